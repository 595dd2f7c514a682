"""The lab's tokenizer and chat template, built from its closed vocabulary as ordinary Hugging Face files.

One token a word, number, step, sign or line break, and text that survives encoding and decoding unchanged, so that
stop strings, inducers and answer extraction work on the lab exactly as they do on a large model.
"""

import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from satisfice.lab.arithmetic import LETTERS, OPERANDS, OPERATIONS

PAD, BOS, EOS, UNKNOWN = "<|pad|>", "<|begin|>", "<|end|>", "<|unknown|>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"
OPEN, CLOSE = "<think>", "</think>"

SPECIAL = (PAD, BOS, EOS, UNKNOWN, USER, ASSISTANT, OPEN, CLOSE)
LABELS = tuple(f"{letter}) " for letter in LETTERS)
NUMBERS = tuple(str(number) for number in range(100))
STEPS = tuple(f"{operation}{operand}" for operation in OPERATIONS for operand in OPERANDS)
SIGNS = (
    "+",
    "-",
    "*",
    "=",
    ", ",
    ",",
    ".",
    ". ",
    "?",
    ":",
    ": ",
    "!",
    "(",
    ")",
    "{",
    "}",
    "\n",
    "\n\n",
    " ",
    "\\boxed",
    "**",
)
WORDS = (
    # the question
    "Start with ", "Steps in the order of their letters: ", "What is the result", "Result", "Question", "Steps",
    # the thinking
    "So ", "Wait", "But wait", "Hmm", "Alternatively", "Maybe", "let me check", "let me verify", " again",
    "Yes", "No", "that is right", "that is wrong",
    # the answer and the cues that make a model give one
    "The answer is ", "Final Answer", "The final answer is ", "Therefore",
    # length instructions: read in training, without effect there; reinforcement alone gives them a meaning
    "Think", "briefly", "normally", "at length", "for", "at most", "exactly", "about", "hundred", "tokens",
    "short", "medium", "long", "thinking", "Use",
)  # fmt: skip

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' + message['content'] + eos_token }}"
    "{% else %}{{ '" + USER + "' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + OPEN + "\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '" + CLOSE + "\\n\\n' }}{% endif %}"
    "{% endif %}"
)
"""Opens thinking in the prompt, as the templates of distilled R1 models do; `enable_thinking=False` closes it."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The lab's tokenizer: 217 tokens, one a word, number, step, sign or marker."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *NUMBERS, *STEPS, *LABELS, *SIGNS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    literals = sorted((*LABELS, *SIGNS, *WORDS), key=len, reverse=True)
    pattern = "|".join([r"[+*-][2-9](?!\d)", r"\d{1,2}", *(re.escape(literal) for literal in literals)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL[:6]])
    # The thinking markers are ordinary added tokens: decoding with skip_special_tokens must keep them, as in Qwen3.
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in (OPEN, CLOSE)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1024,
    )
