"""Where the right answer stands, how redundant the rest is, and where steps end, over words and over bytes."""

import asyncio
import functools
import math
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intervention.scripted import ScriptedEngine
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from satisfice.engines.base import Capability, EngineError
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.reinforcement.segments import (
    TokenText,
    estimate_importance,
    first_right_answer,
    redundancy,
    split_steps,
    stated_answer,
)
from satisfice.thinking import FAMILIES, ThinkingFormat, decode

TAGS = FAMILIES["think-tags"]
PASS = "a) 12*3=36\nb) 36+2=38\nc) 38-2=36\nSo 36."
LAB = f"{PASS}\n\nWait, let me check.\n{PASS}\n\n</think>\n\nThe answer is \\boxed{{36}}."


@functools.cache
def byte_level() -> PreTrainedTokenizerFast:
    """BPE over bytes, like that of Qwen or Llama 3, whose merges reach over spaces, line breaks and characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["So the answer is 36.\n\nWait, let me check.\n\n", "Größe ← naïve 答案是36。\n\n", "</think>\n\n"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {"words": functools.cache(build_tokenizer), "bytes": byte_level}


@pytest.fixture(params=TOKENIZERS)
def any_tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def encode(tokenizer, text):
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# -- tokens and characters


@settings(deadline=None, derandomize=True)
@given(st.text(st.sampled_from("So 36.\n答案ö←😀")), st.booleans())
def test_tokens_and_characters_agree_at_every_place(text, single_bytes):
    tokenizer = byte_level()
    names = bytes_to_unicode()
    ids = encode(tokenizer, text)
    if single_bytes:  # so that every character outside of ASCII is cut over tokens
        ids = [tokenizer.convert_tokens_to_ids(names[byte]) for byte in text.encode()]
    bytes_of = {character: byte for byte, character in names.items()}
    lengths = [len([bytes_of[sign] for sign in name]) for name in tokenizer.convert_ids_to_tokens(ids)]
    read = TokenText(tokenizer, ids)
    assert read.text == text
    for offset in range(len(text) + 1):
        count, wanted = read.tokens(offset), len(text[:offset].encode())
        assert sum(lengths[:count]) >= wanted
        assert count == 0 or sum(lengths[: count - 1]) < wanted


def test_bytes_that_are_no_character_are_one_character_each():
    tokenizer = byte_level()
    names = bytes_to_unicode()
    # The beginning of a character, then a whole one: the model may write anything.
    ids = [tokenizer.convert_tokens_to_ids(names[byte]) for byte in (0xE7, 0xAD, 0x41, 0xFF, 0x42)]
    read = TokenText(tokenizer, ids)
    assert read.text == "\ufffd\ufffdA\ufffdB"
    assert [read.tokens(offset) for offset in range(6)] == [0, 1, 2, 3, 4, 5]


def test_ids_beyond_the_tokenizer_stand_for_no_text():
    tokenizer = build_tokenizer()
    read = TokenText(tokenizer, [*encode(tokenizer, "So "), 10**6, *encode(tokenizer, "36")])
    assert read.text == "So 36"
    assert [read.tokens(3), read.tokens(5)] == [1, 3]


def first_token_end(tokenizer, text, offset):
    """How many tokens hold the first `offset` characters of an ASCII text, by decoding ever more of them."""
    ids = encode(tokenizer, text)
    return next(count for count in range(len(ids) + 1) if len(decode(tokenizer, ids[:count])) >= offset)


# -- the first right answer


def boundary(tokenizer, text, gold="36", question="", **options):
    ids, end = thought(tokenizer, text)
    found = first_right_answer(tokenizer, ids, (0, end), question, gold, **options)
    return None if found < 0 else decode(tokenizer, ids[:found])


def test_the_first_conclusion_in_the_lab():
    # The line "a) 12*3=36" computes 36 earlier, but it is an intermediate result.
    assert boundary(build_tokenizer(), LAB) == PASS


def test_a_token_that_holds_more_than_the_sentence_is_counted_whole():
    tokenizer = byte_level()
    text = "Wait. So the answer is 36.\n\nWait, let me check.\n\n</think>\n\n36"
    whole = first_token_end(tokenizer, text, len("Wait. So the answer is 36."))
    assert boundary(tokenizer, text) == decode(tokenizer, encode(tokenizer, text)[:whole])
    assert len(boundary(tokenizer, text)) > len("Wait. So the answer is 36.")


def test_thinking_that_does_not_begin_with_the_response():
    tokenizer = build_tokenizer()
    ids = encode(tokenizer, "36!\n\nSo 36.\n\nHmm</think>36")
    assert first_right_answer(tokenizer, ids, (3, len(ids) - 1), "", "36") == 6


def test_there_is_none_without_thinking(any_tokenizer):
    assert first_right_answer(any_tokenizer, encode(any_tokenizer, "So 36."), (0, 0), "", "36") == -1
    assert first_right_answer(any_tokenizer, [], (0, 0), "", "36") == -1


def test_another_judge_takes_the_place_of_the_text_comparison():
    seen = []

    def judge(question, thinking, gold):
        seen.append((question, thinking, gold))
        return thinking.index("=38") + 3

    assert boundary(build_tokenizer(), LAB, question="Start", judge=judge) == "a) 12*3=36\nb) 36+2=38"
    assert seen == [("Start", LAB.partition("\n\nThe answer")[0], "36")]
    assert boundary(build_tokenizer(), LAB, judge=lambda *_: None) is None


@pytest.mark.parametrize(
    ("text", "gold", "stated"),
    [
        # whole numbers by value
        ("We have 136. And 36.5, 360, x36, 36x. Here are 36 eggs.", "36", "Here are 36 eggs."),
        ("It is 36.0 now. Then", "36", "It is 36.0 now."),
        ("The total is $1,000. Good", "1000", "The total is $1,000."),
        ("x = -36. x = 36.", "36", "x = 36."),
        ("40 - 36 is 4.", "36", "40 - 36 is 4."),
        ("136 and 36.5", "36", None),
        # a conclusion goes before an earlier computation, and that before an earlier mention
        ("36 eggs. 6*6 = 36. Hmm. So 36.", "36", "So 36."),
        ("36 eggs. 6*6 = 36. Hmm.", "36", "6*6 = 36."),
        ("So far 36. Thus 35.", "36", "So far 36."),
        # a conclusion is what its last number says
        ("So 36 eggs cost 72 in all. Hence 36 of them.", "36", "Hence 36 of them."),
        ("Therefore the sum is 30 + 6 = 36.", "36", "Therefore the sum is 30 + 6 = 36."),
        ("The answer is 36 (that is 72/2). So", "36", "The answer is 36 (that is 72/2)."),
        ("so we get \\boxed{36} as above. Then", "36", "so we get \\boxed{36} as above."),
        ("So the final answer is:\n\n36\n\nWait", "36", "So the final answer is:\n\n36\n"),
        ("**Answer:** $36$.\nWait", "36", "**Answer:** $36$."),
        ("So 36</think>", "36", "So 36</think>"),
        # texts, expressions and letters
        ("I like new york. So it is New  York, maybe. x", "New York", "So it is New  York, maybe."),
        ("Newark. Newyorkers.", "New York", None),
        ("So x = \\dfrac{1}{ 2 }.\nWait", "\\frac{1}{2}", "So x = \\dfrac{1}{ 2 }."),
        ("It is 11/2. Or 1/25. Thus 1/2.", "1/2", "Thus 1/2."),
        ("A car. So a car. A is good. The answer is (A), since", "A", "The answer is (A), since"),
        ("是北京吗？北京。", "北京", "是北京吗？"),
        ("B is a letter. So option B. Wait", "B", "So option B."),
        ("A car is A car", "A", None),
        ("答案是36。 又", "36", "答案是36。"),
        ("anything", " ", None),
    ],
)
def test_which_sentence_states_the_answer(text, gold, stated):
    offset = stated_answer("", text, gold)
    if stated is None:
        assert offset is None
    else:
        assert offset == text.index(stated) + len(stated)


def test_a_mention_counts_only_where_the_question_does_not_name_the_answer():
    text = "There are 2 dogs and 5 cats."
    assert stated_answer("How many dogs?", text, "2") == len(text)
    assert stated_answer("There are 2 dogs. How many dogs?", text, "2") is None
    assert stated_answer("There are 2 dogs. How many dogs?", text + " So 2.", "2") == len(text) + 6


def test_a_hostile_thinking_takes_no_time():
    for text in ("so 1," * 20000, "=" * 100000, "\\boxed{" * 20000, "1," * 50000, "\n" * 100000, "." * 100000):
        stated_answer("", text, "36")
        stated_answer("", text, "\\frac{1}{2}")


# -- redundancy


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("So 36.", 0),
        # transitions: But, Alternatively, However; reflections: wait, hmm, Hmmm, not sure
        ("But wait, hmm. Alternatively, another way. Hmmm. I am not sure, but ok. However", 4),
        ("But 1. However 2. Another 3. Wait", 3),
        ("Waiting for Button", 0),
        ("Wait. WAIT, wait", 3),
        ("but another however", 0),
        ("Going back, I backtrack; Trace back.", 3),
    ],
)
def test_redundancy_is_the_larger_of_two_counts(text, count):
    assert redundancy(text) == count


def test_other_phrases():
    assert redundancy("Moment. Aber nein. Moment", transitions=("Aber",), reflections=("moment",)) == 2
    assert redundancy("Wait. But", transitions=(), reflections=()) == 0
    assert redundancy("a+b a+b aab", transitions=(), reflections=("a+b",)) == 2


# -- steps


def thought(tokenizer, text, close="</think>"):
    """The tokens of a response, and where its thinking ends."""
    ids = encode(tokenizer, text)
    before, closing, _ = text.partition(close)
    return ids, first_token_end(tokenizer, text, len(before + closing))


def pieces(text, thinking=TAGS):
    """The texts of the steps, over words."""
    tokenizer = build_tokenizer()
    ids, end = thought(tokenizer, text, thinking.close)
    return [
        decode(tokenizer, ids[start:end])
        for start, end in pairwise([0, *split_steps(tokenizer, ids, (0, end), thinking)])
    ]


def test_paragraphs_of_the_lab():
    assert pieces(LAB) == [f"{PASS}\n\n", f"Wait, let me check.\n{PASS}\n\n</think>"]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("So 36.</think>36", ["So 36.</think>"]),
        ("So 36.\n\n</think>36", ["So 36.\n\n</think>"]),
        ("So 36.\n\nWait</think>", ["So 36.\n\n", "Wait</think>"]),
        ("<think>\nSo 36.\n\nWait\n\n</think>\n\n36", ["<think>\nSo 36.\n\n", "Wait\n\n</think>"]),
        ("<think>\n\nSo 36.\n\nWait</think>", ["<think>\n\nSo 36.\n\n", "Wait</think>"]),
        ("So 36.\n\n\n\n\nWait\n\n\n</think>", ["So 36.\n\n\n\n\n", "Wait\n\n\n</think>"]),
        ("So 36.\n \nWait</think>", ["So 36.\n \n", "Wait</think>"]),
        # cut off by the token limit: inside a step, and just after one
        ("So 36.\n\nWait, let me check", ["So 36.\n\n", "Wait, let me check"]),
        ("So 36.\n\nWait\n\n", ["So 36.\n\n", "Wait\n\n"]),
        # nothing was thought
        ("</think>\n\n36", []),
        ("<think>\n\n</think>\n\n36", []),
        ("\n\n\n\n", []),
        ("", []),
    ],
)
def test_steps(any_tokenizer, text, steps):
    ids, end = thought(any_tokenizer, text)
    ends = [first_token_end(any_tokenizer, text, place) for place in accumulate(map(len, steps))]
    assert split_steps(any_tokenizer, ids, (0, end), TAGS) == ends


def test_a_response_without_thinking_has_no_steps(any_tokenizer):
    ids = encode(any_tokenizer, "So 36.\n\nThe answer is 36.")
    assert split_steps(any_tokenizer, ids, (0, 0), TAGS) == []


def test_other_markers():
    thinking = ThinkingFormat.custom("(", ")")
    assert pieces("(So 36.\n\nWait\n\n)36", thinking) == ["(So 36.\n\n", "Wait\n\n)"]


def test_two_gaps_in_one_token_end_one_step():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"A\n\nB\n\n": 0, "C": 1, "D\n\nE": 2}, unk_token="C"))
    )
    assert split_steps(tokenizer, [0, 1], (0, 2), TAGS) == [1, 2]
    assert split_steps(tokenizer, [1, 2], (0, 2), TAGS) == [2]


# -- the importance of steps

QUESTION = "Start with 5. What is the result?"


def prompt_and_engine(script, **options):
    tokenizer = build_tokenizer()
    engine = ScriptedEngine(tokenizer, script, **options)
    prompt = engine.thinking.render(tokenizer, [{"role": "user", "content": QUESTION}])
    return prompt, engine


def sure_after(probabilities):
    """The gold answer 36 is as likely as the number of steps written so far says; the brace after it is one half."""

    def script(text):
        if text.endswith("36"):
            return {"}": 0.5}
        if not text.endswith("</think>\n\nThe answer is \\boxed{"):
            return {}
        thinking = text.rpartition("<think>\n")[2].partition("</think>")[0]
        return {"36": probabilities[thinking.count("So ")]}

    return script


async def test_importance_is_what_a_step_adds_to_the_answers_probability():
    text = "So 1.\n\nSo 2.\n\nSo 3.\n\nSo 36.\n\n</think>\n\nThe answer is \\boxed{36}."
    prompt, engine = prompt_and_engine(sure_after([0.1, 0.1, 0.7, 0.3, 0.9]))
    ids = encode(engine.tokenizer, text)
    span = (0, ids.index(engine.tokenizer.convert_tokens_to_ids("</think>")) + 1)
    ends = split_steps(engine.tokenizer, ids, span, engine.thinking)
    found = await estimate_importance(engine, prompt, ids, ends, "36")
    assert [step.end for step in found] == ends
    assert [step.importance for step in found] == pytest.approx([0, 0.3, 0, 0.3], abs=1e-6)


async def test_a_truncated_thinking_is_closed_for_the_estimate():
    prompt, engine = prompt_and_engine(sure_after([0.2, 0.8]))
    ids = encode(engine.tokenizer, "So 36")
    (step,) = await estimate_importance(engine, prompt, ids, [len(ids)], "36")
    assert step.end == len(ids)
    assert step.importance == pytest.approx(0.3, abs=1e-6)


async def test_a_thinking_that_the_response_opens_itself():
    asked = []

    def script(text):
        asked.append(text)
        return {"36": 0.5} if text.endswith("{") else {"}": 1 - 1e-9}

    tokenizer = build_tokenizer()
    engine = ScriptedEngine(tokenizer, script)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    prompt = engine.thinking.render(tokenizer, [{"role": "user", "content": QUESTION}])
    assert "<think>" not in prompt.text
    ids = encode(tokenizer, "<think>\nSo 1.\n\n")
    await estimate_importance(engine, prompt, ids, [len(ids)], "36")
    after = "</think>\n\nThe answer is \\boxed{"
    assert sorted({text.removeprefix(QUESTION) for text in asked if text.endswith("{")}) == sorted(
        [f"<think>\n{after}", f"<think>\nSo 1.\n\n{after}"]
    )


async def test_all_places_are_scored_at_once():
    class Counting(ScriptedEngine):
        running = most = 0

        async def score(self, ids, start):
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0)
            self.running -= 1
            return await super().score(ids, start)

    tokenizer = build_tokenizer()
    engine = Counting(tokenizer, sure_after([0.5] * 9))
    prompt = engine.thinking.render(tokenizer, [{"role": "user", "content": QUESTION}])
    ids = encode(tokenizer, "So 1.\n\nSo 2.\n\nSo 3.\n\n")
    await estimate_importance(engine, prompt, ids, split_steps(tokenizer, ids, (0, len(ids)), TAGS), "36")
    assert engine.most == 4


async def test_steps_after_which_the_context_is_full_have_no_importance():
    script = sure_after([0.2, 0.4, 0.8])
    prompt, engine = prompt_and_engine(script)
    ids = encode(engine.tokenizer, "So 1.\n\nSo 2.\n\n")
    # marker, line break, "The answer is ", "\boxed", "{", "36", "}"
    engine.context_length = len(prompt.ids) + 4 + 7
    found = await estimate_importance(engine, prompt, ids, [4, 8], "36")
    assert [step.importance for step in found] == pytest.approx([0.1, 0], abs=1e-6)


async def test_nothing_is_asked_where_there_are_no_steps():
    prompt, engine = prompt_and_engine(lambda text: pytest.fail("asked"))
    assert await estimate_importance(engine, prompt, encode(engine.tokenizer, "36"), [], "36") == []


async def test_an_engine_that_does_not_score_is_refused():
    prompt, engine = prompt_and_engine(lambda text: {}, without=[Capability.SCORE])
    with pytest.raises(EngineError, match="estimating the importance of steps needs score"):
        await estimate_importance(engine, prompt, [], [], "36")


async def test_on_a_real_model(make_engine):
    engine = make_engine()
    prompt = engine.thinking.render(engine.tokenizer, [{"role": "user", "content": QUESTION}])
    ids = encode(engine.tokenizer, LAB)
    ends = split_steps(engine.tokenizer, ids, (0, ids.index(engine.thinking.close_ids(engine.tokenizer)[0]) + 1), TAGS)
    found = await estimate_importance(engine, prompt, ids, ends, "36")
    # By hand: close thinking before and after the first step, and multiply two probabilities.
    cue = encode(engine.tokenizer, "</think>\n\nThe answer is \\boxed{36}")
    chances = []
    for end in (0, ends[0]):
        sequence = [*prompt.ids, *ids[:end], *cue]
        chances.append(math.exp(sum((await engine.score(sequence, len(sequence) - 2)).logprobs)))
    assert found[0].importance == pytest.approx(max(0.0, chances[1] - chances[0]), rel=1e-3, abs=1e-9)
