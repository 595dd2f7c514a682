"""Stop texts: what they act on, whoever writes it, and that nothing but the text before them is left."""

import asyncio
import copy
import random
from dataclasses import replace

import pytest
from intervention.scripted import ScriptedEngine, follow

from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import lab_spellings, parse_method
from satisfice.intervention.draft import Draft
from satisfice.intervention.stops import NO_STOPS, StopFilter, Stops
from satisfice.problems import Problem
from satisfice.thinking import StreamSplitter, ThinkingFormat

QUESTION = "Start with 10. Steps in the order of their letters: c) +5, d) *3. What is the result?"
PROBLEM = Problem("p", QUESTION, "45")
GREEDY = Sampling(temperature=0, max_tokens=200)
TEXT = "So 15.\n\nWait, 45.\n\n</think>\n\nThe answer is \\boxed{45}.\n\nSo 15."


@pytest.fixture(scope="module")
def lab():
    engine = TransformersEngine.load("lab", max_batch_tokens=1 << 15)
    yield engine
    engine.close()


def solve(engine, method, stops, sampling=GREEDY, watch=None):
    return asyncio.run(parse_method(method).solve(engine, PROBLEM, sampling, stops=stops, watch=watch))


# -- texts


@pytest.mark.parametrize(
    ("texts", "text", "found"),
    [
        (("b",), "abc", (1, "b")),
        (("abc", "b"), "abc", (1, "b")),  # complete first, although it begins later
        (("c", "bc"), "abc", (1, "bc")),  # complete together: the longer one
        (("x",), "abc", None),
        ((), "abc", None),
    ],
)
def test_the_stop_that_is_complete_first_counts(texts, text, found):
    assert Stops(texts).find(text) == found


def test_a_filter_passes_on_the_same_however_the_text_is_cut():
    draw = random.Random(3)
    for _ in range(2000):
        text = "".join(draw.choices("ab\n", k=draw.randrange(12)))
        stops = Stops(tuple("".join(draw.choices("ab\n", k=draw.randrange(1, 4))) for _ in range(draw.randrange(3))))
        passing = StopFilter(stops)
        passed, place = "", 0
        while place < len(text):
            step = draw.randrange(1, 4)
            passed += passing.push(text[place : place + step])
            place += step
            assert text.startswith(passed)
        passed += passing.rest()
        found = stops.find(text)
        assert passed == (text if found is None else text[: found[0]])
        assert passing.stopped is (found is not None)


def test_no_more_is_held_back_than_may_become_a_stop():
    passing = StopFilter(Stops(("Question:",)))
    assert passing.push("The Quest") == "The "
    assert passing.push("s are") == "Quests are"


# -- responses


@pytest.mark.parametrize(
    ("stop", "content"),
    [
        ("So", "The answer is \\boxed{45}.\n\n"),  # in the thinking too, where it sleeps
        ("\n\n", "The answer is \\boxed{45}."),  # not the one after the marker
        ("boxed", "The answer is \\"),
        ("answer is", "The "),  # over two tokens
        ("is \\boxed{4", "The answer "),
        ("T", ""),
        ("</think>", "The answer is \\boxed{45}.\n\nSo 15."),
        ("nowhere", "The answer is \\boxed{45}.\n\nSo 15."),
    ],
)
def test_a_stop_sleeps_while_the_model_thinks_and_acts_in_the_answer(tokenizer, stop, content):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, TEXT, "<think>\n" + TEXT))
    trace = solve(engine, "plain", Stops((stop,)))
    assert trace.answer.lstrip() == content
    assert "Wait, 45." in trace.thinking
    assert (trace.finished, trace.stop) == (True, "marker")
    if stop not in ("nowhere", "</think>"):
        assert trace.stopped_by == stop
        # What was generated ends with the token that completes the stop, and all of it is paid for.
        written = engine.tokenizer.decode(trace.response_ids)
        assert stop in written.partition("</think>\n\n")[2]
        assert stop not in engine.tokenizer.decode(trace.response_ids[:-1]).partition("</think>\n\n")[2]
        assert trace.cost.retained_tokens == len(trace.response_ids) == trace.cost.forward_passes


@pytest.mark.parametrize(
    ("stop", "thinking", "answer"),
    [
        ("Wait", "So 15.\n\n", ""),
        ("</think>", "So 15.\n\nWait, 45.\n\n", ""),
        ("think>\n\nThe", "So 15.\n\nWait, 45.\n\n</", ""),
        ("answer", "So 15.\n\nWait, 45.\n\n", "\n\nThe "),
    ],
)
def test_a_stop_can_be_meant_literally(tokenizer, stop, thinking, answer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, TEXT, "<think>\n" + TEXT))
    trace = solve(engine, "plain", Stops((stop,), in_thinking=True))
    assert (trace.thinking.lstrip("\n"), trace.answer) == (thinking, answer)
    assert (trace.finished, trace.stopped_by) == (True, stop)


def test_a_stop_acts_in_an_answer_without_any_thinking(tokenizer):
    """A model that opens thinking itself: until it does, what it writes is its answer."""
    never_forced = replace(ThinkingFormat.detect(tokenizer), force_open=False)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|><think>\\n", "<|assistant|>")
    for text in ("The answer is 45.\n\nSo 15.", "<think>\nSo 15.\n\n</think>\n\nThe answer is 45.\n\nSo"):
        engine = ScriptedEngine(tokenizer, follow(tokenizer, text), thinking=never_forced)
        trace = solve(engine, "plain", Stops(("\n\n",)))
        assert trace.answer.lstrip() == "The answer is 45."
        assert trace.thinking.strip() == ("So 15." if text.startswith("<think>") else "")


def test_stops_fall_asleep_again_where_thinking_is_opened_again(tokenizer):
    text = "So 15.\n\n</think>\n\nThe answer is 45.<think>\nWait, 15\n\n</think>\n\n15.\n\nWait"
    engine = ScriptedEngine(tokenizer, follow(tokenizer, text, "<think>\n" + text))
    trace = solve(engine, "plain", Stops(("Wait",)))
    assert "Wait, 15" in trace.thinking
    assert trace.answer.endswith("15.\n\n")
    assert trace.stopped_by == "Wait"


def test_a_stop_that_a_method_writes_ends_the_response_too(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, TEXT, "<think>\n" + TEXT))
    trace = solve(engine, 'budget-forcing:max_thinking=4,cue="The answer is 15."', Stops(("answer",)))
    assert trace.answer.lstrip() == "The "
    assert trace.stopped_by == "answer"
    assert trace.cost.retained_tokens == len(trace.response_ids)


def test_a_stop_over_two_calls_is_found(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, TEXT, "<think>\n" + TEXT))

    async def in_pieces():
        draft = Draft(engine, PROBLEM, GREEDY, stops=Stops(("answer is \\boxed",)))
        while not draft.finished and draft.remaining:
            await draft.write(1)
        return draft

    draft = asyncio.run(in_pieces())
    assert draft.answer.lstrip() == "The "
    assert draft.ending.stop == "answer is \\boxed"
    # Nothing changes a response that has been stopped.
    before = list(draft.ids)
    draft.force_text("More")
    draft.take_back(1)
    asyncio.run(draft.conclude())
    assert (draft.ids, draft.remaining, draft.answer.lstrip()) == (before, 0, "The ")


SPELLED = [spelled for spelled in lab_spellings() if not spelled.startswith("tldr")]


@pytest.mark.parametrize("method", SPELLED, ids=lambda method: method.partition(":")[0])
@pytest.mark.parametrize("stop", [" is", "\n\n", "{"])
def test_every_method_obeys_stops_and_shows_what_it_returns(lab, method, stop):
    """The answer never holds the stop; what is shown on the way, filtered as the server does, is the response."""
    drawn = replace(lab.default_sampling, seed=4, max_tokens=150)
    for stops in (Stops((stop,)), Stops((stop,), in_thinking=True)):
        shown = []
        trace = solve(lab, method, stops, drawn, watch=lambda phase, text, shown=shown: shown.append((phase, text)))
        content = trace.answer.lstrip()
        assert stop not in content
        thinking = trace.thinking if stops.in_thinking else ""
        assert stop not in thinking
        assert trace.cost.retained_tokens == len(trace.response_ids)
        splitter = StreamSplitter(lab.thinking, lab.tokenizer, shown[0][0]) if shown else None
        whole, end = StopFilter(stops if stops.in_thinking else NO_STOPS), StopFilter(stops)
        pieces = [piece for _, text in shown for piece in splitter.push(whole.push(text))]
        pieces += [*splitter.push(whole.rest()), *splitter.rest()]
        streamed = "".join(text for phase, text in pieces if phase == 2).lstrip()
        streamed = streamed if stops.in_thinking else end.push(streamed) + end.rest()
        assert streamed == content
        assert "".join(text for phase, text in pieces if phase == 1) == trace.thinking


@pytest.mark.parametrize("method", ["plain", "budget-forcing:max_thinking=40", "temperature-scaling:t=0.9", "no-wait"])
def test_a_stop_changes_nothing_before_it(lab, method):
    drawn = replace(lab.default_sampling, seed=9, max_tokens=200, temperature=1.0)
    for seed in range(6):
        free = solve(lab, method, NO_STOPS, replace(drawn, seed=seed))
        cut = solve(lab, method, Stops(("boxed",)), replace(drawn, seed=seed))
        assert free.response_ids[: len(cut.response_ids)] == cut.response_ids
        assert cut.thinking == free.thinking
        assert cut.answer == free.answer.partition("boxed")[0]
