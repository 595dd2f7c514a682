"""Markers against tokenizers that cut them differently: byte-level BPE, sentencepiece-like BPE, the lab's words.

The chat templates are minimal ones of our own that begin a response in the way of the family they are named after.
"""

import functools
import itertools
import json
import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from satisfice.lab.tokenizer import build_tokenizer
from satisfice.thinking import (
    FAMILIES,
    MarkerAutomaton,
    Phase,
    Split,
    StreamSplitter,
    TextStream,
    ThinkingFormat,
    ThinkingTracker,
    UnknownThinkingFormat,
    _compile,
    decode,
    encode_after,
    token_bytes,
)

BEFORE, THINKING, ANSWER = Phase.BEFORE, Phase.THINKING, Phase.ANSWER
TAGS = FAMILIES["think-tags"]

# The first example pays for training a tokenizer, so a deadline would tell nothing.
reproducible = settings(deadline=None, derandomize=True)

# -- tokenizers: trained on lines in which the markers have neighbours, so that BPE merges across their edges

LINES = [
    "<think>\nOkay, so 6 times 7 is 42.\n\nWait, let me check.\n</think>\n\nThe answer is 42.\n",
    "So 6 * 7 = 42.\n</b>\n</p>\n",
    "naïve café ← Größe\n",
] * 3
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789<>/[]|_.,=*"


def trained(tokenizer: Tokenizer, lines: list[str], size: int, alphabet: list[str]) -> tuple[dict[str, int], list]:
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


def wrap(
    tokenizer: Tokenizer, special: tuple[str, ...], template: str | None, **options: str
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **options)


@functools.cache
def byte_level(special: tuple[str, ...] = (), template: str | None = None) -> PreTrainedTokenizerFast:
    """Like Qwen, Llama 3 or gpt-oss: BPE over bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trained(tokenizer, LINES, 330, pre_tokenizers.ByteLevel.alphabet())
    return wrap(tokenizer, special, template)


@functools.cache
def sentencepiece(
    style: str, special: tuple[str, ...] = (), template: str | None = None, bos: bool = False
) -> PreTrainedTokenizerFast:
    """Like Llama 2 or Mistral 7B: a space is part of the word after it, unknown characters fall back to bytes."""
    lines = [line.replace("\n", " ").replace(" ", "▁") for line in LINES]
    vocabulary, merges = trained(Tokenizer(models.BPE()), lines, 200, list(ALPHABET))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(vocabulary, key=vocabulary.__getitem__)
    model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)},
        [tuple(merge) for merge in merges],
        byte_fallback=True,
        unk_token="<unk>",
    )
    tokenizer = Tokenizer(model)
    if style == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=style, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrap(tokenizer, special, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def lab() -> PreTrainedTokenizerFast:
    return build_tokenizer()


TOKENIZERS = {
    "bytes": byte_level,
    "bytes, markers added": lambda: byte_level(("<think>", "</think>")),
    "sentencepiece": lambda: sentencepiece("first"),
    "sentencepiece, legacy": lambda: sentencepiece("legacy"),
    "sentencepiece, markers added": lambda: sentencepiece("legacy", ("<think>", "</think>")),
    "lab": lab,
}
PUT_TOGETHER = {"bytes", "bytes, markers added", "lab"}
"""Those whose text is that of their tokens, one after the other."""
each_tokenizer = pytest.mark.parametrize("tokenizer_name", TOKENIZERS)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def chat(generation: str, before: str = "") -> str:
    """A chat template that begins a response with `generation`."""
    return (
        before + "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}" + generation + "{% endif %}"
    )


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# -- the families

THINK = ("<think>", "</think>")
CHATML = ("<|im_start|>", "<|im_end|>")
R1 = ("<｜User｜>", "<｜Assistant｜>", *THINK)
HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")
MISTRAL = ("[INST]", "[/INST]", "[THINK]", "[/THINK]")
OFF = "enable_thinking is defined and not enable_thinking"

# name: special tokens, template, model name; the family; the phase at the end of a prompt, thinking on and off
MODELS = {
    "R1 distill": (
        R1, chat("{{ '<｜Assistant｜><think>\\n' }}"), "", "think-tags", THINKING, THINKING,
    ),
    "R1 distill, first template": (R1, chat("<｜Assistant｜>"), "", "think-tags", THINKING, BEFORE),
    "Qwen3": (
        (*CHATML, *THINK),
        chat("<|im_start|>assistant\n{% if " + OFF + " %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"),
        "Qwen/Qwen3-1.7B", "think-tags", BEFORE, ANSWER,
    ),
    "Qwen3.5": (
        (*CHATML, *THINK),
        chat("<|im_start|>assistant\n<think>\n{% if " + OFF + " %}{{ '\\n</think>\\n\\n' }}{% endif %}"),
        "", "think-tags", THINKING, ANSWER,
    ),
    "QwQ": (CHATML, chat("{{ '<|im_start|>assistant\\n<think>\\n' }}", "{# cuts at </think> #}"), "Qwen/QwQ-32B",
            "think-tags", THINKING, THINKING),
    "SmolLM3": (
        (*CHATML, *THINK),
        chat(
            "{{ '<|im_start|>assistant\\n' }}{% if not enable_thinking %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}",
            "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
            "reasoning mode: {{ '/think' if enable_thinking else '/no_think' }}",
        ),
        "HuggingFaceTB/SmolLM3-3B", "think-tags", BEFORE, ANSWER,
    ),
    "off unless switched on": (
        THINK, chat("<|assistant|>{{ '<think>' if enable_thinking | default(false) else '</think>' }}"), "",
        "think-tags", THINKING, ANSWER,
    ),
    "the switch's other name": (
        THINK, chat("<|assistant|>{{ '<think>' if thinking | default(false) else '</think>' }}"), "",
        "think-tags", THINKING, ANSWER,
    ),
    "s1": (CHATML, chat("{{ '<|im_start|>assistant\\n' }}"), "simplescaling/s1-32B", "s1", THINKING, BEFORE),
    "s1.1": (CHATML, chat("{{ '<|im_start|>assistant\\n' }}"), "/models/s1.1-7B", "s1", THINKING, BEFORE),
    "Magistral": (
        MISTRAL,
        "[SYSTEM_PROMPT]Draft first: [THINK]a draft[/THINK]the answer.[/SYSTEM_PROMPT]"
        "{% for message in messages %}[INST]{{ message['content'] }}[/INST]{% endfor %}",
        "mistralai/Magistral-Small-2509", "magistral", BEFORE, BEFORE,
    ),
    "gpt-oss": (
        HARMONY,
        "{% for message in messages %}<|start|>user<|message|>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "openai/gpt-oss-20b", "gpt-oss", BEFORE, BEFORE,
    ),
    "Gemma 4": (
        ("<|channel>", "<channel|>", "<|turn>", "<turn|>"),
        "{% for message in messages %}<|turn>user\n{{ message['content'] | trim }}<turn|>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|turn>model\\n' }}"
        "{% if not enable_thinking | default(false) %}{{ '<|channel>thought\\n<channel|>' }}{% endif %}{% endif %}",
        "", "gemma-4", BEFORE, ANSWER,
    ),
    "Seed-OSS": (("<seed:think>", "</seed:think>"), chat("assistant\n"), "", "seed-oss", BEFORE, BEFORE),
    "EXAONE Deep": ((), chat("{{ '[|assistant|]<thought>\\n' }}", "{# </thought> #}"), "", "exaone-deep", THINKING,
                    THINKING),
}  # fmt: skip
each_model = pytest.mark.parametrize("model", MODELS)


@functools.cache
def load(model: str) -> tuple[PreTrainedTokenizerFast, ThinkingFormat]:
    if model == "lab":
        return lab(), ThinkingFormat.detect(lab())
    special, template, name, *_ = MODELS[model]
    return byte_level(special, template), ThinkingFormat.detect(byte_level(special, template), name)


@each_model
def test_detects_the_family(model: str) -> None:
    assert load(model)[1].name == MODELS[model][3]


def test_detects_the_lab() -> None:
    assert ThinkingFormat.detect(build_tokenizer()) == TAGS


def test_detects_from_one_of_several_named_templates() -> None:
    tokenizer = byte_level((), chat("<|assistant|><think>"))
    several = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    several.chat_template = {"default": chat("<|assistant|><think>", "{# </think> #}"), "tool_use": "tools"}
    assert ThinkingFormat.detect(several).name == "think-tags"
    assert TAGS.automaton(several).phase(TAGS.render(several, user("hi")).state) is THINKING


def test_a_name_finds_s1_only_with_its_token() -> None:
    assert ThinkingFormat.detect(byte_level(THINK), "outputs/s1-run").name == "think-tags"
    with pytest.raises(UnknownThinkingFormat):
        ThinkingFormat.detect(byte_level(), "outputs/s1-run")


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-1.5B-Instruct", "user/qwens1-7B", ""])
def test_a_chat_model_that_does_not_think_is_unknown_and_the_message_shows_what_to_pass(name: str) -> None:
    tokenizer = byte_level(CHATML, chat("{{ '<|im_start|>assistant\\n' }}"))
    with pytest.raises(UnknownThinkingFormat) as error:
        ThinkingFormat.detect(tokenizer, name)
    message = str(error.value)
    assert (name or "this model") in message
    assert "--thinking-format '<think>,</think>'" in message
    assert "ThinkingFormat.custom('<think>', '</think>')" in message
    assert all(family in message for family in FAMILIES)


def test_custom_and_parse() -> None:
    given_by_hand = ThinkingFormat.custom("<r>", "</r>")
    assert given_by_hand == ThinkingFormat.parse("<r>,</r>") == ThinkingFormat.parse(" <r>, </r> ")
    assert (given_by_hand.name, given_by_hand.opening, given_by_hand.closing) == ("custom", "<r>\n", "</r>\n\n")
    assert given_by_hand.force_open
    assert not ThinkingFormat.custom("<r>", "</r>", force_open=False).force_open
    assert ThinkingFormat.parse("s1") is FAMILIES["s1"]


@pytest.mark.parametrize(("open_marker", "close_marker"), [("", "b"), ("a", ""), ("a", "a"), ("ab", "b"), ("a", "ab")])
def test_markers_that_cannot_be_told_apart_are_refused(open_marker: str, close_marker: str) -> None:
    with pytest.raises(ValueError, match="neither contains the other"):
        ThinkingFormat.custom(open_marker, close_marker)


def test_parse_refuses_what_is_no_format() -> None:
    with pytest.raises(ValueError, match=r"'qwen9'.*think-tags.*'<think>,</think>'"):
        ThinkingFormat.parse("qwen9")
    with pytest.raises(ValueError, match="non-empty"):
        ThinkingFormat.parse("<think>,")


# -- prompts


@each_model
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("adds", ["", "{marker}", " {marker} \n", "a {open} b {close} c"])
def test_phase_at_the_end_of_a_prompt_whatever_the_user_wrote(model: str, thinking: bool, adds: str) -> None:
    tokenizer, form = load(model)
    text = "What is 6 * 7?" + adds.format(marker=form.close, open=form.open, close=form.close)
    prompt = form.render(tokenizer, user(text), thinking=thinking)
    assert form.automaton(tokenizer).phase(prompt.state) is MODELS[model][4 if thinking else 5]
    assert text.strip() in prompt.text
    assert decode(tokenizer, prompt.ids) == prompt.text
    assert "satisfice" not in prompt.text


@pytest.mark.parametrize("thinking", [True, False])
def test_phase_at_the_end_of_a_lab_prompt(thinking: bool) -> None:
    prompt = TAGS.render(lab(), user("Start with 3. What is the result?"), thinking=thinking)
    assert TAGS.automaton(lab()).phase(prompt.state) is (THINKING if thinking else ANSWER)
    assert prompt.text.endswith("<think>\n" if thinking else "<think>\n</think>\n\n")


def test_opens_thinking_where_the_template_of_a_distilled_r1_does_not() -> None:
    for model in ("R1 distill", "R1 distill, first template"):
        tokenizer, form = load(model)
        prompt = form.render(tokenizer, user("hi"))
        assert prompt.text.endswith("<｜Assistant｜><think>\n")
        assert prompt.text.count("<think>") == 1
        assert prompt.state == form.automaton(tokenizer).run_text("\n", form.automaton(tokenizer).thinking_state)


@pytest.mark.parametrize(
    "template",
    [
        # ends a conversation without a response in another way
        "{% for message in messages %}{{ message['content'] }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>{% else %}<|endoftext|>{% endif %}",
        # begins a response whether asked to or not
        "{% for message in messages %}{{ message['content'] }}<|eot|>{% endfor %}<|assistant|><think>",
        # trims
        "{% for message in messages %}{{ message['content'] | trim }}{% endfor %}"
        "{% if add_generation_prompt %}<think>{% endif %}",
    ],
)
@pytest.mark.parametrize("content", ["", "a", "a</think> ", "<", "<|assistant|><think>"])
def test_reads_the_beginning_of_the_response_from_any_template(template: str, content: str) -> None:
    tokenizer = byte_level(THINK, template)
    prompt = TAGS.render(tokenizer, user(content))
    assert TAGS.automaton(tokenizer).phase(prompt.state) is THINKING


def test_markers_of_earlier_turns_change_nothing() -> None:
    tokenizer, form = load("Qwen3")
    turns = [
        {"role": "system", "content": "Think between <think> and </think>."},
        *user("1 + 1?"),
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n2"},
        *user("And 2 + 2?"),
    ]
    assert form.render(tokenizer, turns).state == form.render(tokenizer, user("hi")).state


def test_prompt_without_a_chat_template() -> None:
    tokenizer = byte_level()
    prompt = TAGS.render(tokenizer, user("6 * 7 </think>"))
    assert prompt.text == "6 * 7 </think>\n\n"
    assert TAGS.automaton(tokenizer).phase(prompt.state) is BEFORE
    forced = ThinkingFormat.custom("<r>", "</r>")
    prompt = forced.render(tokenizer, user("6 * 7"))
    assert prompt.text == "6 * 7\n\n<r>\n"
    assert forced.automaton(tokenizer).phase(prompt.state) is THINKING
    assert forced.render(tokenizer, user("6 * 7"), thinking=False).text == "6 * 7\n\n"


def test_prompt_without_a_chat_template_begins_as_the_tokenizer_begins_a_text() -> None:
    assert TAGS.render(sentencepiece("first"), user("6 * 7")).text == "6 * 7\n\n"
    prompt = TAGS.render(sentencepiece("first", bos=True), user("6 * 7"))
    assert prompt.text == "<s>6 * 7\n\n"
    assert prompt.ids[0] == 1
    assert prompt.ids.count(1) == 1


# -- responses


def response_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return encode_after(tokenizer, text)


@pytest.mark.parametrize(
    ("model", "response", "thinking", "answer"),
    [
        ("R1 distill", "So 42.\n</think>\n\n42", "So 42.\n", "\n\n42"),
        ("Qwen3", "<think>\nSo 42.\n</think>\n\n42", "\nSo 42.\n", "\n\n42"),
        ("Magistral", "[THINK]So 42.[/THINK]42", "So 42.", "42"),
        ("s1", "So 42.\n<|im_start|>answer\n42", "So 42.\n", "\n42"),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>So 42.<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>",
            "So 42.",
            "42<|return|>",
        ),
        ("Gemma 4", "<|channel>thought\nSo 42.\n<channel|>42", "\nSo 42.\n", "42"),
        # nothing before the answer: the closing marker began in the prompt
        ("gpt-oss", "<|channel|>final<|message|>42<|return|>", "", "42<|return|>"),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>So<|end|><|start|>assistant<|channel|>analysis<|message|> 42."
            "<|end|><|start|>assistant<|channel|>final<|message|>42",
            "So 42.",
            "42",
        ),
        ("lab", "So 40+2=42.\n</think>\n\nThe answer is 42", "So 40+2=42.\n", "\n\nThe answer is 42"),
    ],
)
def test_splits_the_response_of_each_family(model: str, response: str, thinking: str, answer: str) -> None:
    tokenizer, form = load(model)
    prompt = form.render(tokenizer, user("6*7"))
    ids = response_ids(tokenizer, response)
    split = form.split(tokenizer, ids, prompt.state)
    assert (split.thinking, split.answer, split.phase) == (thinking, answer, ANSWER)
    assert split.span[0] == 0
    assert decode(tokenizer, ids[split.span[1] :]) in answer


def test_an_answer_of_gpt_oss_has_no_marker_whatever_the_prompt_ended_with() -> None:
    tokenizer, form = load("gpt-oss")
    again = "<|end|><|start|>assistant<|channel|>{}<|message|>"
    for text, thinking, answer in (
        ("<|channel|>final<|message|>5", "", "5"),
        (f"Hm{again.format('final')}5", "Hm", "5"),
        (
            f"<|channel|>final<|message|>5{again.format('analysis')}Is it?{again.format('final')}, yes",
            "Is it?",
            "5, yes",
        ),
        (f"<|channel|>final<|message|>5{again.format('final')}, yes", "", "5, yes"),
    ):
        split = form.split(tokenizer, encode(tokenizer, text))
        assert (split.thinking, split.answer, split.phase) == (thinking, answer, ANSWER)


def test_splits_without_thinking() -> None:
    tokenizer, form = load("Qwen3")
    off = form.render(tokenizer, user("6*7"), thinking=False).state
    ids = encode(tokenizer, "42, as 6*7 says")
    assert form.split(tokenizer, ids, off) == Split((0, 0), "", "42, as 6*7 says", ANSWER)
    assert form.split(tokenizer, encode(tokenizer, "Just 42.")) == Split((0, 0), "", "Just 42.", BEFORE)
    assert form.split(tokenizer, []) == Split((0, 0), "", "", BEFORE)


@each_tokenizer
def test_a_marker_that_never_comes(tokenizer_name: str) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]()
    opened = TAGS.automaton(tokenizer).thinking_state
    ids = response_ids(tokenizer, "So 42. </thi")
    split = TAGS.split(tokenizer, ids, opened)
    assert (split.span, split.answer, split.phase) == ((0, len(ids)), "", THINKING)
    assert split.thinking == decode(tokenizer, ids)


@each_tokenizer
def test_a_second_closing_marker_is_left_out_and_makes_nothing_thinking(tokenizer_name: str) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]()
    opened = TAGS.automaton(tokenizer).thinking_state
    first, second = response_ids(tokenizer, "So 42</think>"), response_ids(tokenizer, " 42</think> 42")
    split = TAGS.split(tokenizer, first + second, opened)
    assert (split.span, split.thinking_tokens) == ((0, len(first)), len(first))
    assert split.thinking == decode(tokenizer, first).removesuffix("</think>")
    assert split.answer == decode(tokenizer, first + second).split("</think>", 1)[1].replace("</think>", "")
    assert split.phase is ANSWER


@pytest.mark.parametrize(
    ("text", "thinking", "answer", "phase"),
    [
        ("Sure. <think>a</think>b", "Sure. a", "b", ANSWER),
        ("a</think>b", "a", "b", ANSWER),
        ("<think>a</think><think>b</think>5", "ab", "5", ANSWER),
        ("<think>a</think></think>5", "a", "5", ANSWER),
        ("<think>a</think>5<think>b</think> or 6", "ab", "5 or 6", ANSWER),
        ("<think>a</think>5<think>b", "ab", "5", THINKING),
        ("<think><think>a</think>5", "a", "5", ANSWER),
        ("6 < 7 </thin", "", "6 < 7 </thin", BEFORE),
    ],
)
def test_no_marker_is_left_in_either_part_whatever_their_order(
    text: str, thinking: str, answer: str, phase: Phase
) -> None:
    tokenizer = byte_level()
    split = TAGS.split(tokenizer, encode(tokenizer, text))
    assert (split.thinking, split.answer, split.phase) == (thinking, answer, phase)
    streamed = StreamSplitter(TAGS, tokenizer, BEFORE)
    pieces = [piece for character in text for piece in streamed.push(character)] + streamed.rest()
    assert "".join(written for part, written in pieces if part is THINKING) == thinking
    assert "".join(written for part, written in pieces if part is ANSWER) == answer


def test_thinking_that_is_opened_again_is_counted_without_the_answer_before_it() -> None:
    tokenizer = byte_level()
    parts = ["<think>So 42.</think>", "The answer is 42.", "<think>Wait</think>", "It is 43."]
    lengths = [len(encode(tokenizer, part)) for part in parts]
    tracker = ThinkingTracker(TAGS.automaton(tokenizer))
    ends = []
    for part in parts:
        for token in encode(tokenizer, part):
            tracker.push(token)
        ends.append((tracker.phase, tracker.end, tracker.thinking_tokens))
    assert ends == [
        (ANSWER, lengths[0], lengths[0]),
        (ANSWER, lengths[0], lengths[0]),
        (ANSWER, sum(lengths[:3]), lengths[0] + lengths[2]),
        (ANSWER, sum(lengths[:3]), lengths[0] + lengths[2]),
    ]
    assert tracker.span == (0, sum(lengths[:3]))
    assert tracker.spans == ((0, lengths[0]), (sum(lengths[:2]), sum(lengths[:3])))
    off = ThinkingTracker(TAGS.automaton(tokenizer), TAGS.automaton(tokenizer).answer_state)
    for token in encode(tokenizer, "".join(parts[1:3])):
        off.push(token)
    assert off.span == (lengths[1], lengths[1] + lengths[2])


@each_tokenizer
def test_empty_thinking(tokenizer_name: str) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]()
    ids = response_ids(tokenizer, "<think></think>42")
    split = TAGS.split(tokenizer, ids)
    assert (split.thinking.strip(), split.answer.strip(), split.phase) == ("", "42", ANSWER)
    opened = TAGS.automaton(tokenizer).thinking_state
    split = TAGS.split(tokenizer, response_ids(tokenizer, "</think>42"), opened)
    assert (split.thinking, split.answer.strip()) == ("", "42")
    assert split.span[1] > 0


def test_text_before_the_opening_marker_is_thinking() -> None:
    split = TAGS.split(byte_level(), encode(byte_level(), "Hm. <think>So 42.</think>42"))
    assert (split.thinking, split.answer) == ("Hm. So 42.", "42")
    split = TAGS.split(byte_level(), encode(byte_level(), "Hm. <think>So"))
    assert (split.thinking, split.answer, split.phase) == ("Hm. So", "", THINKING)


def test_a_closing_marker_without_an_opening_one_ends_thinking() -> None:
    ids = encode(byte_level(), "So 42.</think>42<think>")
    split = TAGS.split(byte_level(), ids)
    assert (split.thinking, split.answer, split.phase) == ("So 42.", "42", THINKING)


def test_a_marker_that_is_merged_with_its_neighbours() -> None:
    tokenizer = byte_level()
    names = tokenizer.convert_ids_to_tokens(encode(tokenizer, "42.\n</think>\n\nThe"))
    merged = next(name for name in names if "think>Ċ" in name)  # the end of the marker and a line break
    split = TAGS.split(tokenizer, encode(tokenizer, "42.\n</think>\n\nThe"), TAGS.automaton(tokenizer).thinking_state)
    assert split.span == (0, names.index(merged) + 1)
    assert (split.thinking, split.answer) == ("42.\n", "\n\nThe")


def test_a_token_that_holds_a_whole_marker_and_both_neighbours() -> None:
    pieces = [b"x\n</think>\n\ny</think>", b"<think>z</think>42", b"</think>\n<think>", b"y"]
    automaton = _compile([b"<think>"], [b"</think>"], pieces)
    assert automaton.phase(automaton.step(automaton.thinking_state, 0)) is ANSWER
    assert automaton.phase(automaton.step(0, 1)) is ANSWER
    assert automaton.phase(automaton.step(0, 2)) is THINKING
    tracker = ThinkingTracker(automaton, automaton.thinking_state)
    assert [tracker.push(token) for token in (3, 0, 3)] == [THINKING, ANSWER, ANSWER]
    assert (tracker.end, tracker.span, tracker.position) == (2, (0, 2), 3)


def test_tracker_attributes_from_each_beginning() -> None:
    tokenizer, form = load("Qwen3")
    automaton = form.automaton(tokenizer)
    tracker = ThinkingTracker(automaton)
    seen = []
    for token in encode(tokenizer, "<think>ab</think>c"):
        tracker.push(token)
        seen.append((tracker.phase, tracker.span, tracker.end))
    assert seen[0] == (THINKING, (0, 1), None)
    assert seen[-2:] == [(ANSWER, (0, len(seen) - 1), len(seen) - 1)] * 2
    closed = ThinkingTracker(automaton, automaton.answer_state)
    closed.push(encode(tokenizer, "</think>")[0])
    assert (closed.phase, closed.span, closed.end, closed.position) == (ANSWER, (0, 0), 0, 1)


# -- closing thinking by force


@each_tokenizer
@pytest.mark.parametrize(
    ("so_far", "written"),
    [("", "</think>\n\n"), ("So 42.\n", "</think>\n\n"), ("So 42.", "\n</think>\n\n"), ("So 42.\n ", "\n</think>\n\n")],
)
def test_a_forced_close_begins_a_new_line_and_only_one(tokenizer_name: str, so_far: str, written: str) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]()
    of_token = token_bytes(tokenizer)
    ids = TAGS.forced_close(tokenizer, so_far)
    assert ids == encode_after(tokenizer, written)
    begins = b"".join(of_token[token] for token in ids)
    assert begins.startswith(written.rstrip().encode())  # no space that a tokenizer puts before a text
    assert TAGS.automaton(tokenizer).phase(TAGS.automaton(tokenizer).run(ids)) is ANSWER


@each_tokenizer
def test_a_forced_close_with_a_cue_splits_again(tokenizer_name: str) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]()
    cue = "The answer is "
    ids = response_ids(tokenizer, "So 42") + TAGS.forced_close(tokenizer, "So 42", cue)
    split = TAGS.split(tokenizer, ids, TAGS.automaton(tokenizer).thinking_state)
    assert split.thinking.strip(" ") == "So 42\n"
    assert split.answer.strip() == cue.strip()


def test_formats_without_line_breaks_get_none() -> None:
    tokenizer, form = load("Magistral")
    assert decode(tokenizer, form.forced_close(tokenizer, "So 42", "42")) == "[/THINK]42"
    tokenizer, form = load("gpt-oss")
    assert decode(tokenizer, form.forced_close(tokenizer, "So 42")) == form.close


def test_close_ids_are_those_that_a_response_is_made_of() -> None:
    assert len(TAGS.close_ids(byte_level(THINK))) == 1
    assert len(TAGS.close_ids(byte_level())) > 1
    for style in ("first", "legacy"):
        tokenizer = sentencepiece(style)
        ids = TAGS.close_ids(tokenizer)
        assert "▁" not in tokenizer.convert_ids_to_tokens(ids)[0]
        within = encode(tokenizer, "x</think>")
        assert within[-len(ids) :] == ids


def test_encode_after_falls_back_where_the_text_merges_with_what_stands_before() -> None:
    assert decode(lab(), encode_after(lab(), "7")) == "7"  # "07" is no token of the lab, yet one match of its pattern


# -- the table of tokens


@each_tokenizer
def test_token_bytes_are_what_decoding_writes(tokenizer_name: str) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]()
    of_token = token_bytes(tokenizer)
    assert len(of_token) == len(tokenizer)
    text = "So 42.\n</think>\n\n<think>The answer is 4 naïve 😀"
    ids = encode(tokenizer, text)
    assert b"".join(of_token[token] for token in ids).decode().removeprefix(" ") == decode(tokenizer, ids)


@reproducible
@given(st.data())
def test_token_bytes_of_any_ids_are_what_decoding_writes(data: st.DataObject) -> None:
    # added tokens may hold characters that byte-level BPE gives another meaning, or none
    tokenizer = byte_level(("<think>", "<｜end▁of▁sentence｜>", "<a b>", "<0x41>"))
    of_token = token_bytes(tokenizer)
    any_id, added = st.integers(0, len(tokenizer) - 1), st.integers(len(tokenizer) - 4, len(tokenizer) - 1)
    ids = data.draw(st.lists(any_id | added, max_size=20))
    written = b"".join(of_token[token] for token in ids)
    assert written.decode(errors="replace") == decode(tokenizer, ids)


def test_ids_that_stand_for_no_text_change_nothing() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "</think>": 5}, unk_token="a"))
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert token_bytes(tokenizer) == [b"a", b"", b"", b"", b"", b"</think>"]
    automaton = TAGS.automaton(tokenizer)
    for free_or_padding in (3, 6, 10_000):
        assert automaton.run([0, free_or_padding], automaton.thinking_state) == automaton.thinking_state
        split = TAGS.split(tokenizer, [0, free_or_padding, 5, 0], automaton.thinking_state)
        assert split == Split((0, 3), "a", "a", ANSWER)


def test_the_table_is_compiled_once_for_a_tokenizer_and_again_when_it_grows() -> None:
    tokenizer = build_tokenizer()
    automaton = TAGS.automaton(tokenizer)
    assert TAGS.automaton(tokenizer) is automaton
    assert TAGS.automaton(build_tokenizer()) is not automaton
    tokenizer.add_tokens(["\n</think>"])
    grown = TAGS.automaton(tokenizer)
    assert grown.phase(grown.run([len(tokenizer) - 1])) is ANSWER


def test_a_large_vocabulary_compiles_fast_and_small() -> None:
    draw = random.Random(0)
    characters = b" etaoinshrdlucmfwypvbgk<>/|\n.0123456789"
    vocabulary = [bytes([byte]) for byte in range(256)] + [b" " * 2**power for power in range(1, 9)]
    while len(vocabulary) < 150_000:
        vocabulary.append(bytes(draw.choices(characters, k=1 + int(draw.expovariate(1 / 6)))))
    begin = time.perf_counter()
    automaton = _compile([b"<think>"], [b"</think>"], vocabulary)
    assert time.perf_counter() - begin < 2
    assert automaton.token_table.dtype == np.int16
    assert automaton.token_table.shape == (len(automaton.phases), 150_000)
    for token in draw.sample(range(150_000), 300):
        for state in range(len(automaton.phases)):
            assert automaton.step(state, token) == read(automaton, vocabulary[token], state)


def read(automaton: MarkerAutomaton, text: bytes, state: int) -> int:
    for byte in text:
        state = int(automaton.bytes_table[state, byte])
    return state


# -- properties: the automaton against plain text search

fragments = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<",
        "</",
        "/",
        "th",
        "ink",
        "think",
        ">",
        ">\n",
        "\n",
        "\n\n",
        " ",
        "a",
        "So",
        "é",
        "😀",
        "</thi",
    ]
)
texts = st.lists(fragments, max_size=12).map("".join)


def divided(text: bytes, phase: Phase, openers: list[bytes], closers: list[bytes]):
    """What reading for markers one byte at a time gives.

    Returns:
        the phase at the end; the text of thinking and of the answer; of each marker its beginning and end, the phase
        before it and the one after it.
    """
    begin, parts, markers = 0, [], []
    for end in range(1, len(text) + 1):
        found = max(
            (marker for marker in (*openers, *closers) if text[begin:end].endswith(marker)), key=len, default=b""
        )
        if found:
            following = THINKING if found in openers else ANSWER
            parts.append((phase, text[begin : end - len(found)]))
            markers.append((end - len(found), end, phase, following))
            begin, phase = end, following
    parts.append((phase, text[begin:]))
    early = ANSWER if phase is BEFORE else THINKING
    joined = {
        part: b"".join(piece for where, piece in parts if (where or early) is part) for part in (THINKING, ANSWER)
    }
    return phase, joined[THINKING], joined[ANSWER], markers


def thinking_tokens(pieces: list[bytes], phase: Phase, openers: list[bytes], closers: list[bytes]) -> set[int]:
    """Which tokens are thinking: those with thinking before or after them, and those of the marker that opens it."""
    ends = [0, *itertools.accumulate(map(len, pieces))]
    text = b"".join(pieces)
    phases = [divided(text[:end], phase, openers, closers)[0] for end in ends]
    found = {place for place, around in enumerate(itertools.pairwise(phases)) if THINKING in around}
    found |= {place for place in range(len(pieces)) if phases[place] is BEFORE and phases[-1] is not BEFORE}
    for begin, end, before, following in divided(text, phase, openers, closers)[3]:
        completing = next(place for place in range(len(pieces)) if ends[place + 1] >= end)
        if before is ANSWER and following is THINKING and phases[completing + 1] is THINKING:
            found |= {place for place in range(completing) if ends[place + 1] > begin}
    return found


def check_tracker(pieces: list[bytes], automaton: MarkerAutomaton, ids: list[int], phase: Phase, markers) -> None:
    state = (0, automaton.thinking_state, automaton.answer_state)[phase]
    tracker = ThinkingTracker(automaton, state)
    for position, token in enumerate(ids, start=1):
        now = divided(b"".join(pieces[:position]), phase, *markers)[0]
        assert tracker.push(token) is tracker.phase is now
        assert tracker.position == position
        thinking = thinking_tokens(pieces[:position], phase, *markers)
        assert tracker.thinking_tokens == len(thinking)
        assert tracker.span == ((min(thinking), max(thinking) + 1) if thinking else (0, 0))
        assert {place for span in tracker.spans for place in range(*span)} <= thinking
        assert tracker.end == (None if now is not ANSWER else tracker.span[1])
    assert automaton.run(ids, state) == tracker.state == read(automaton, b"".join(pieces), state)


each_phase = st.sampled_from([BEFORE, THINKING, ANSWER])
TAG_MARKERS = ([b"<think>"], [b"</think>"])


@reproducible
@given(texts, st.data(), each_phase)
def test_tracker_agrees_with_text_search_however_the_bytes_are_cut(
    text: str, data: st.DataObject, phase: Phase
) -> None:
    written = text.encode()
    cuts = data.draw(st.sets(st.integers(0, len(written)))) | {0, len(written)}
    pieces = [written[a:b] for a, b in itertools.pairwise(sorted(cuts))]
    automaton = _compile(*TAG_MARKERS, pieces)
    check_tracker(pieces, automaton, list(range(len(pieces))), phase, TAG_MARKERS)


small = st.text("ab", min_size=1, max_size=5)


@reproducible
@given(small, small, st.text("ab", max_size=3), st.lists(st.text("abc", max_size=6), max_size=8), each_phase)
def test_tracker_agrees_with_text_search_for_markers_that_overlap(
    open_marker: str, close_marker: str, longer: str, words: list[str], phase: Phase
) -> None:
    if open_marker in longer + close_marker or close_marker in open_marker:
        return
    markers = ([open_marker.encode()], [close_marker.encode(), (longer + close_marker).encode()])
    pieces = [word.encode() for word in words]
    check_tracker(pieces, _compile(*markers, pieces), list(range(len(pieces))), phase, markers)


@each_tokenizer
@reproducible
@given(text=texts, phase=each_phase)
def test_tracker_and_split_agree_with_text_search_for_real_tokenizers(
    tokenizer_name: str, text: str, phase: Phase
) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]()
    automaton = TAGS.automaton(tokenizer)
    ids = encode(tokenizer, text)
    of_token = token_bytes(tokenizer)
    check_tracker([of_token[token] for token in ids], automaton, ids, phase, TAG_MARKERS)

    written = decode(tokenizer, ids)
    state = (0, automaton.thinking_state, automaton.answer_state)[phase]
    split = TAGS.split(tokenizer, ids, state)
    end, thinking, answer, _ = divided(written.encode(), phase, *TAG_MARKERS)
    assert (split.phase, split.thinking, split.answer) == (end, thinking.decode(), answer.decode())
    assert automaton.phase(automaton.run_text(written, state)) is split.phase


@reproducible
@given(st.lists(texts, max_size=4), st.integers(0, 44))
def test_run_and_run_text_agree_from_every_state(parts: list[str], state: int) -> None:
    tokenizer = byte_level()
    automaton = TAGS.automaton(tokenizer)
    state %= len(automaton.phases)
    text = "".join(parts)
    assert automaton.run(encode(tokenizer, text), state) == automaton.run_text(text, state)


def test_text_that_no_encoding_can_write_is_read_all_the_same() -> None:
    automaton = TAGS.automaton(lab())
    assert automaton.phase(automaton.run_text("\ud83d<think>\udc00</think>")) is ANSWER


# -- while it comes


@each_tokenizer
@reproducible
@given(data=st.data())
def test_the_text_of_a_stream_is_the_text_of_the_whole(tokenizer_name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]()
    words = st.sampled_from(["So 6", " * 7", "ï", "ü", "←", "\n", " ", "</think>", "Wait"])
    ids = encode(tokenizer, "".join(data.draw(st.lists(words, min_size=1, max_size=12))))
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.rest() == decode(tokenizer, ids)


@each_tokenizer
def test_tokens_that_are_put_together_are_not_decoded_one_by_one(
    tokenizer_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]()
    TextStream(tokenizer)
    calls: list[list[int]] = []

    def counting(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
        calls.append(ids)
        return decode(tokenizer, ids)

    monkeypatch.setattr("satisfice.thinking.decode", counting)
    rng = random.Random(3)
    # Every token after any other, bytes that form no character and ids beyond the vocabulary among them.
    ids = [rng.randrange(len(tokenizer)) for _ in range(3000)] + [len(tokenizer) + 1]
    stream = TextStream(tokenizer)
    pieces = [*map(stream.push, ids), stream.rest()]
    assert bool(calls) != (tokenizer_name in PUT_TOGETHER)
    if not calls:
        assert "".join(pieces) == decode(tokenizer, ids)


def test_a_class_with_a_decoder_of_its_own_is_asked_for_the_text() -> None:
    class Shouting(PreTrainedTokenizerFast):
        def decode(self, *ids: Any, **options: Any) -> str:
            return str(super().decode(*ids, **options)).upper()

    tokenizer = Shouting(tokenizer_object=byte_level().backend_tokenizer)
    stream = TextStream(tokenizer)
    ids = encode(tokenizer, "So 6 * 7")
    assert "".join(map(stream.push, ids)) + stream.rest() == "SO 6 * 7"


def test_a_character_that_is_never_completed_comes_last() -> None:
    tokenizer = byte_level()
    ids = encode(tokenizer, "a€")[:-1]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, ids)) == "a"
    assert stream.rest() == decode(tokenizer, ids)[1:]


@each_tokenizer
def test_tokens_that_never_form_a_character_are_read_beside_a_bounded_number_of_others(
    tokenizer_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]()
    euro = encode(tokenizer, "€")
    broken = [token for token in euro if decode(tokenizer, [token]).endswith("\ufffd")][:2]
    if not broken:
        pytest.skip("this tokenizer has no token of a part of a character")
    whole = encode(tokenizer, "So 6 * 7")
    read: list[int] = []

    def counting(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
        read.append(len(ids))
        return decode(tokenizer, ids)

    monkeypatch.setattr("satisfice.thinking.decode", counting)
    rng = random.Random(5)
    for length in (3, 40, 700):
        ids = [*whole, *(rng.choice(broken) for _ in range(length)), *euro, *whole, *broken]
        stream = TextStream(tokenizer)
        pieces = [stream.push(token) for token in ids]
        assert "".join(pieces) + stream.rest() == decode(tokenizer, ids)
        assert len("".join(pieces)) > len(decode(tokenizer, ids)) - 80, "late, but not only at the end"
    assert max(read, default=0) < 80
    assert bool(read) != (tokenizer_name in PUT_TOGETHER)


@pytest.mark.parametrize("family", ["think-tags", "gpt-oss", "s1"])
@pytest.mark.parametrize("phase", list(Phase))
@reproducible
@given(data=st.data())
def test_a_stream_is_divided_as_the_whole_is(family: str, phase: Phase, data: st.DataObject) -> None:
    form, tokenizer = FAMILIES[family], byte_level()
    parts = [*form.openers, *form.closers, form.close[:-1], form.open[:3], "<", "</", "So ü", "\n", "think>", " "]
    text = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=8)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    automaton = form.automaton(tokenizer)
    state = (0, automaton.thinking_state, automaton.answer_state)[phase]
    # The prompt may end with the beginning of a marker.
    begun = data.draw(st.sampled_from([""] * 3 + [form.close[:2], form.open[:4], "<"]))
    state = automaton.run_text(begun, state)
    splitter = StreamSplitter(form, tokenizer, phase, state)
    given = [splitter.push(text[low:high]) for low, high in itertools.pairwise([0, *cuts, len(text)])]
    pieces = [*itertools.chain.from_iterable(given), *splitter.rest()]
    whole = form.split(tokenizer, encode(tokenizer, text), state)
    for part, written in ((THINKING, whole.thinking), (ANSWER, whole.answer)):
        assert "".join(piece for where, piece in pieces if where is part) == written
    assert all(piece and where is not BEFORE for where, piece in pieces)


def test_only_what_may_be_a_marker_is_kept_back() -> None:
    splitter = StreamSplitter(TAGS, byte_level(), THINKING)
    assert splitter.push("1 < 2 </th") == [(THINKING, "1 < 2 ")]
    assert splitter.push("e") == [(THINKING, "</the")]
    assert splitter.push("</think>3") == [(ANSWER, "3")]
    assert splitter.push("</think>") == []
    assert splitter.push("4<") == [(ANSWER, "4")]
    assert splitter.push("think>5") == [(THINKING, "5")]


def test_text_before_any_marker_waits_until_it_is_known_what_it_is() -> None:
    for rest, expected in (("<think>a", [(THINKING, "So. "), (THINKING, "a")]), ("42", []), ("</think>b", None)):
        splitter = StreamSplitter(TAGS, byte_level(), BEFORE)
        assert splitter.push("So. ") == []
        assert splitter.push(rest) == ([(THINKING, "So. "), (ANSWER, "b")] if expected is None else expected)
        assert splitter.rest() == ([] if rest != "42" else [(ANSWER, "So. 42")])


def test_a_marker_that_began_in_the_prompt_is_left_out_of_stream_and_whole() -> None:
    tokenizer, form = byte_level(), ThinkingFormat.custom("<r>", "\nFinal: ")
    state = form.automaton(tokenizer).run_text("<r>\n")
    splitter = StreamSplitter(form, tokenizer, THINKING, state)
    assert splitter.push("Fin") + splitter.push("al: 5") + splitter.rest() == [(ANSWER, "5")]
    assert form.split(tokenizer, encode(tokenizer, "Final: 5"), state).answer == "5"
