"""Adaptive Think, decision by decision, on a scripted engine."""

import asyncio
import math

import pytest
from intervention.scripted import ScriptedEngine
from intervention.thinker import ANSWER, SURE, RecordingEngine, count, thinker
from tokenizers import AddedToken

from satisfice.engines.base import Capability, EngineError, Sampling, require
from satisfice.intervention import MethodError, describe, parse_method
from satisfice.intervention.composed import compose
from satisfice.intervention.methods.adaptive_think import LARGEST_TERM, AdaptiveThink, mean_entropy, option_letters
from satisfice.intervention.methods.plain import Plain
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem
from satisfice.problems.extraction import extract_answer
from satisfice.thinking import ThinkingFormat

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
CHOICE = Problem("c", "Which is it?\n\nA. 1\nB. 2\nC. 3", "B", grader="choice")
GREEDY = Sampling(temperature=0, max_tokens=200)

CUE = AdaptiveThink.cue
FIRST = "So 1, 3.\nSo 3.\n\n"
SECOND = "Wait, let me check.\nSo 1, 3.\nYes, 3.\n\n"
THIRD = "Hmm, let me verify.\nSo 1, 3.\nYes.\n\n"
THINKING = FIRST + SECOND + THIRD + "</think>"


def solve(engine, method, sampling=GREEDY, problem=PROBLEM):
    return asyncio.run(method.solve(engine, problem, sampling))


def tree(distributions):
    """A part that is played by what was written after the cue, the same at every probe; else the end of text."""
    return lambda before, after: distributions.get(after, {"<|end|>": SURE})


def evenly(*answers):
    """Every answer with the same probability, and certainly closed."""
    share = (1 - 1e-9) / len(answers)
    return {"": dict.fromkeys(answers, share)} | {answer: {"}": SURE} for answer in answers}


def engine_for(tokenizer, part=None, thinking=THINKING, cue=CUE, answer=ANSWER, **options):
    parts = {} if part is None else {cue: part}
    return RecordingEngine(tokenizer, thinker(tokenizer, thinking, parts, answer), **options)


def probes(trace):
    return [event for event in trace.events if event.kind == "probe"]


# -- the measure


def test_mean_entropy_by_hand():
    assert mean_entropy([1.0]) == 0.0
    assert mean_entropy([0.5, 0.5]) == 0.5
    assert mean_entropy([0.25] * 4) == 0.5
    assert mean_entropy([0.1] * 10) == pytest.approx(math.log2(10) / 10)
    assert mean_entropy([0.75, 0.25]) == pytest.approx((0.75 * math.log2(4 / 3) + 0.25 * 2) / 2)
    assert mean_entropy([1.0, 0.0, 0.0]) == 0.0
    assert pytest.approx(0.530738, abs=1e-6) == LARGEST_TERM
    assert max(-p * math.log2(p) for p in [i / 1000 for i in range(1, 1000)]) <= LARGEST_TERM


def test_an_alpha_of_one_stops_at_any_number_of_candidates():
    assert all(mean_entropy([1 / n] * n) <= LARGEST_TERM for n in range(1, 100))


# -- free answers


def test_a_model_that_is_never_sharp_answers_as_plain_decoding_does(tokenizer):
    engine = engine_for(tokenizer, tree(evenly("3", "4")))
    trace = solve(engine, AdaptiveThink(merge=0, width=2))
    plain = solve(engine_for(tokenizer), Plain())
    assert trace.response_ids == plain.response_ids
    assert (trace.thinking, trace.answer, trace.stop) == (plain.thinking, plain.answer, "marker")
    ends = [0, *(count(tokenizer, text) for text in (FIRST, FIRST + SECOND, FIRST + SECOND + THIRD))]
    assert [event.at for event in trace.events] == ends
    assert [event.detail["step"] for event in trace.events] == [0, 1, 2, 3]
    assert all(event.detail["entropy"] == pytest.approx(0.5, abs=1e-6) for event in trace.events)
    assert trace.events[0].detail["candidates"] == pytest.approx({"3": 0.5, "4": 0.5}, abs=1e-6)
    assert trace.cost.probe_tokens == 4 * 3  # the first token, then the next of both paths
    assert trace.cost.retained_tokens == plain.cost.retained_tokens
    assert trace.cost.forced_tokens == 0
    assert trace.cost.forward_passes == plain.cost.forward_passes + 12


def test_step_zero_is_a_probe_without_thinking_and_may_be_the_last(tokenizer):
    engine = engine_for(tokenizer, tree({"": {"3": 0.99, "4": 0.01 - 1e-9}, "3": {"}": SURE}, "4": {"}": SURE}}))
    trace = solve(engine, AdaptiveThink(width=2))
    assert [text for text, _ in engine.probes(CUE)] == ["</think>\n\n" + CUE + after for after in ("", "3", "4")]
    assert (trace.thinking, trace.stop, trace.finished, trace.stopped_by) == ("", "closed by method", True, "method")
    assert trace.answer == "\n\n" + CUE + "3}"
    assert extract_answer(trace.answer) == "3"
    expected = (0.99 * math.log2(1 / 0.99) + 0.01 * math.log2(100)) / 2
    event = probes(trace)[0]
    assert (event.at, event.detail["exit"]) == (0, True)
    assert event.detail["entropy"] == pytest.approx(expected, abs=1e-6)
    assert event.detail["at_most"] == pytest.approx(0.0530738, abs=1e-6)
    assert event.detail["candidates"] == pytest.approx({"3": 0.99, "4": 0.01}, abs=1e-6)
    # What is retained: the marker, the cue and the answer; all of it written by the method.
    written = count(tokenizer, "</think>\n\n" + CUE + "3}")
    assert trace.cost.retained_tokens == trace.cost.forced_tokens == len(trace.response_ids) == written
    assert trace.cost.probe_tokens == 3


@pytest.mark.parametrize(("alpha", "stops"), [(0.0760, False), (0.0762, True)])
def test_alpha_is_a_share_of_the_largest_term(tokenizer, alpha, stops):
    """(0.99, 0.01): 0.08079 bits, 0.04040 a candidate, which is 0.07611 of 0.53074."""
    part = tree({"": {"3": 0.99, "4": 0.01 - 1e-9}, "3": {"}": SURE}, "4": {"}": SURE}})
    trace = solve(engine_for(tokenizer, part), AdaptiveThink(width=2, alpha=alpha, max_probes=1))
    assert probes(trace)[0].detail["exit"] is stops
    assert trace.stop == ("closed by method" if stops else "marker")


def test_thinking_sharpens_the_answers_until_it_is_cut(tokenizer):
    """Evenly split before any thinking and after one step, sharp after two."""

    def part(before, after):
        sharp = "Wait" in before
        return tree(
            {"": {"3": 0.999 if sharp else 0.5, "4": 0.0005 if sharp else 0.4}, "3": {"}": SURE}, "4": {"}": SURE}}
        )(before, after)

    trace = solve(engine_for(tokenizer, part), AdaptiveThink(merge=0, width=2))
    assert [event.detail["exit"] for event in probes(trace)] == [False, False, True]
    assert trace.thinking == FIRST + SECOND
    assert trace.answer == "\n\n" + CUE + "3}"
    assert trace.cost.thinking_tokens == count(tokenizer, FIRST + SECOND) + 1
    assert trace.cost.forced_tokens == count(tokenizer, "</think>\n\n" + CUE + "3}")


def test_the_most_likely_candidate_is_answered(tokenizer):
    part = tree({"": {"3": 0.1, "4": 0.8}, "3": {"}": SURE}, "4": {"}": SURE}})
    trace = solve(engine_for(tokenizer, part), AdaptiveThink(alpha=1, width=2))
    assert trace.answer.endswith("{4}")


def test_path_probabilities_are_products_and_are_renormalised(tokenizer):
    part = tree({"": {"3": 0.6, "4": 0.3}, "3": {"}": 0.5, "7": 0.2}, "37": {"}": 0.9}, "4": {"}": 0.8}})
    # 3: 0.6 * 0.5 = 0.30; 4: 0.3 * 0.8 = 0.24; 37: 0.6 * 0.2 * 0.9 = 0.108
    engine = engine_for(tokenizer, part)
    trace = solve(engine, AdaptiveThink(width=3, depth=4, max_probes=1, alpha=0.01))
    candidates = probes(trace)[0].detail["candidates"]
    assert list(candidates) == ["3", "4", "37"]
    total = 0.30 + 0.24 + 0.108
    assert candidates == pytest.approx({"3": 0.30 / total, "4": 0.24 / total, "37": 0.108 / total}, rel=1e-3)
    assert probes(trace)[0].detail["entropy"] == pytest.approx(mean_entropy(list(candidates.values())))


def test_only_the_best_candidates_are_kept(tokenizer):
    part = tree({"": {str(n): 0.3 - 0.05 * n for n in range(5)}} | {str(n): {"}": SURE} for n in range(5)})
    trace = solve(engine_for(tokenizer, part), AdaptiveThink(width=3, max_probes=1, alpha=0.01))
    assert list(probes(trace)[0].detail["candidates"]) == ["0", "1", "2"]


@pytest.mark.parametrize(("duplicates", "share"), [("sum", 0.5 / 0.9), ("first", 0.3 / 0.7)])
def test_the_same_answer_in_other_tokens(tokenizer, duplicates, share):
    """With and without a space before it."""
    closed = {answer: {"}": SURE} for answer in ("3", "4", " 3")}
    part = tree({"": {"3": 0.3, " ": 0.2, "4": 0.4}, " ": {"3": SURE}} | closed)
    trace = solve(engine_for(tokenizer, part), AdaptiveThink(width=3, max_probes=1, alpha=0.01, duplicates=duplicates))
    candidates = probes(trace)[0].detail["candidates"]
    assert candidates == pytest.approx({"3": share, "4": 1 - share}, rel=1e-6)


def test_duplicates_decide_which_answer_is_the_most_likely(tokenizer):
    closed = {answer: {"}": SURE} for answer in ("3", "4", " 3")}
    part = tree({"": {"3": 0.3, " ": 0.25, "4": 0.4}, " ": {"3": SURE}} | closed)
    for duplicates, answer in (("sum", "3"), ("first", "4")):
        trace = solve(engine_for(tokenizer, part), AdaptiveThink(width=3, alpha=1, duplicates=duplicates))
        # Of the ways to write it, the likeliest is written.
        assert trace.answer == "\n\n" + CUE + answer + "}"


def test_a_single_candidate_stops_at_once_unless_more_are_asked_for(tokenizer):
    part = tree({"": {"3": 0.2}, "3": {"}": 0.3}})
    one = AdaptiveThink(width=1)
    trace = solve(engine_for(tokenizer, part), one)
    assert (trace.thinking, trace.answer) == ("", "\n\n" + CUE + "3}")
    assert probes(trace)[0].detail["entropy"] == 0.0
    guarded = solve(engine_for(tokenizer, part), AdaptiveThink(width=1, min_candidates=2))
    assert guarded.response_ids == solve(engine_for(tokenizer), Plain()).response_ids
    assert not any(event.detail["exit"] for event in probes(guarded))


def test_without_a_candidate_thinking_goes_on(tokenizer):
    endless = lambda before, after: {"7": SURE}  # noqa: E731
    engine = engine_for(tokenizer, endless)
    trace = solve(engine, AdaptiveThink(merge=0, width=1, depth=4, alpha=1))
    assert trace.response_ids == solve(engine_for(tokenizer), Plain()).response_ids
    assert [event.detail["entropy"] for event in probes(trace)] == [None] * 4
    assert [event.detail["candidates"] for event in probes(trace)] == [{}] * 4
    assert trace.cost.probe_tokens == 4 * 4
    # A text that ends, or a box that stays empty, is no candidate either.
    for first in ({"<|end|>": SURE}, {"}": SURE}):
        trace = solve(engine_for(tokenizer, tree({"": first})), AdaptiveThink(width=1, alpha=1, max_probes=1))
        assert probes(trace)[0].detail["candidates"] == {}
        assert trace.stop == "marker"


def test_at_worst_the_search_takes_one_and_nine_times_five_tokens(tokenizer):
    endless = lambda before, after: {"7": 0.4, "8": 0.3, "9": 0.1, "5": 0.1, "6": 0.05}  # noqa: E731
    trace = solve(engine_for(tokenizer, endless), AdaptiveThink(max_probes=1))
    assert trace.cost.probe_tokens == 1 + 9 * 5


def test_only_the_brace_that_closes_the_box_ends_a_candidate(tokenizer):
    steps = ["2", "{", "3", "}", "}"]
    part = tree({"".join(steps[:n]): {token: SURE} for n, token in enumerate(steps)})
    trace = solve(engine_for(tokenizer, part), AdaptiveThink(width=1))
    assert list(probes(trace)[0].detail["candidates"]) == ["2{3}"]
    assert extract_answer(trace.answer) == "2{3}"


# -- steps


@pytest.mark.parametrize(
    ("merge", "steps"),
    [
        (0, [FIRST, FIRST + SECOND, FIRST + SECOND + THIRD]),
        (len(FIRST), [FIRST, FIRST + SECOND, FIRST + SECOND + THIRD]),
        (len(FIRST) + 1, [FIRST + SECOND, FIRST + SECOND + THIRD]),
        (len(FIRST + SECOND) + 1, [FIRST + SECOND + THIRD]),
        (None, []),
    ],
)
def test_paragraphs_are_joined_until_a_step_is_long_enough(tokenizer, merge, steps):
    trace = solve(engine_for(tokenizer, tree(evenly("3", "4"))), AdaptiveThink(merge=merge, width=2))
    assert [event.at for event in probes(trace)] == [0, *(count(tokenizer, text) for text in steps)]


def test_after_max_probes_the_model_is_left_alone(tokenizer):
    engine = engine_for(tokenizer, tree(evenly("3", "4")))
    trace = solve(engine, AdaptiveThink(merge=0, width=2, max_probes=2))
    assert len(probes(trace)) == 2
    assert trace.response_ids == solve(engine_for(tokenizer), Plain()).response_ids


def test_end_of_text_inside_thinking_becomes_a_conclusion(tokenizer):
    trace = solve(engine_for(tokenizer, tree(evenly("3", "4")), thinking="So 3."), AdaptiveThink(width=2))
    assert (trace.thinking, trace.answer, trace.stop) == ("So 3.\n", ANSWER, "closed by method")


def test_the_end_of_the_thinking_budget_leads_to_the_conclusion(tokenizer):
    budget = count(tokenizer, FIRST + "Wait")
    method = AdaptiveThink(width=2, merge=0, think_ratio=(budget + 0.5) / 200)
    trace = solve(engine_for(tokenizer, tree(evenly("3", "4"))), method)
    assert (trace.thinking, trace.answer, trace.stop) == (FIRST + "Wait\n", ANSWER, "closed by method")


def test_an_answer_that_does_not_fit_is_a_truncated_response(tokenizer):
    part = tree({"": {"3": SURE}, "3": {"}": SURE}})
    whole = count(tokenizer, "</think>\n\n" + CUE + "3}")
    for limit, finished in ((whole + 1, True), (whole - 1, False), (2, False)):
        sampling = Sampling(temperature=0, max_tokens=limit)
        trace = solve(engine_for(tokenizer, part), AdaptiveThink(width=1), sampling)
        assert trace.finished is finished
        assert len(trace.response_ids) == min(limit, whole)


def test_a_prompt_with_thinking_switched_off_is_answered(tokenizer):
    engine = engine_for(tokenizer)
    engine.thinking = ThinkingFormat("other", "<|user|>", "<think>", "<|user|>", "<think>")
    trace = solve(engine, AdaptiveThink())
    assert (trace.events, trace.finished, trace.stop) == ([], True, "not opened")


def test_a_response_without_thinking_is_probed_once_and_left_alone(tokenizer):
    engine = engine_for(tokenizer, tree(evenly("3", "4")), thinking=FIRST + SECOND)
    engine.thinking = ThinkingFormat("other", "<|user|>", "Therefore", "<|user|>", "Therefore")
    trace = solve(engine, AdaptiveThink(width=2))
    assert (trace.stop, trace.finished, len(probes(trace))) == ("not opened", True, 1)
    assert engine.probes(CUE)[0][0] == "<|user|>Therefore" + CUE
    assert trace.cost.forced_tokens == 0


def test_at_the_end_of_the_context_a_search_goes_as_deep_as_there_is_room(tokenizer):
    endless = lambda before, after: {"7": 0.6, "8": 0.3}  # noqa: E731
    for room in (0, 1, 3):
        engine = engine_for(tokenizer, endless)
        asked = count(tokenizer, "</think>\n\n" + CUE)
        engine.context_length = len(engine.thinking.render(tokenizer, PROBLEM.messages(None)).ids) + asked + room
        trace = solve(engine, AdaptiveThink(width=2, depth=5, max_probes=1))
        assert trace.cost.probe_tokens == [0, 1, 1 + 2 + 2][min(room, 2)]
        assert probes(trace)[0].detail["candidates"] == {}


def test_sampling_goes_on_as_if_nobody_had_asked(tokenizer):
    def script(text):
        response = text.rpartition("<|assistant|>")[2]
        if CUE in response:
            return {"3": 0.3, "7": 0.3, "}": 0.3}
        return {". ": 0.3, ", ": 0.2, "\n\n": 0.4, "</think>": 0.1}

    made = 0
    for seed in range(10):
        sampling = Sampling(temperature=1, top_p=1, max_tokens=60, seed=seed)
        method = AdaptiveThink(merge=0, alpha=1e-6, think_ratio=1, width=2, depth=3)
        trace = solve(ScriptedEngine(tokenizer, script), method, sampling)
        assert trace.response_ids == solve(ScriptedEngine(tokenizer, script), Plain(), sampling).response_ids
        made += len(probes(trace))
    assert made > 20


# -- multiple choice


@pytest.fixture(scope="module")
def letters():
    """The lab's tokenizer with option letters, with and without a space before them."""
    tokenizer = build_tokenizer()
    words = ["The answer is", " A", " B", " C", "A", "B", "C"]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


CHOICE_CUE = AdaptiveThink.choice_cue


def choice_engine(tokenizer, distribution, thinking=THINKING, **options):
    part = distribution if callable(distribution) else lambda before, after: distribution
    return engine_for(tokenizer, part, thinking, CHOICE_CUE, answer="\n\nSo B.", **options)


def test_options_are_weighed_with_and_without_a_space(letters):
    engine = choice_engine(letters, {" A": 0.05, "A": 0.15, " B": 0.3, "B": 0.25, " C": 0.05})
    trace = solve(engine, AdaptiveThink(max_probes=1), problem=CHOICE)
    shares = {"A": 0.2 / 0.8, "B": 0.55 / 0.8, "C": 0.05 / 0.8}
    detail = probes(trace)[0].detail
    assert detail["candidates"] == pytest.approx(shares, rel=1e-2)
    assert detail["entropy"] == pytest.approx(-sum(p * math.log2(p) for p in shares.values()) / 3, rel=1e-2)
    assert detail["exit"] is False
    assert engine.probes(CHOICE_CUE)[0][0] == "</think>\n\n" + CHOICE_CUE
    assert trace.cost.probe_tokens == 1
    assert trace.stop == "marker"


@pytest.mark.parametrize("token", [" B", "B"])
def test_the_chosen_option_is_the_answer(letters, token):
    engine = choice_engine(letters, {token: 0.995, " A": 0.002, " C": 0.002})
    trace = solve(engine, AdaptiveThink(), problem=CHOICE)
    assert (trace.answer, trace.stop, trace.finished) == ("\n\n" + CHOICE_CUE + token, "closed by method", True)
    assert trace.thinking == ""
    if token == " B":
        assert extract_answer(trace.answer, "choice") == "B"


def test_options_are_weighed_again_after_each_step(letters):
    def part(before, after):
        return {" B": 0.999} if "Wait" in before else {" A": 0.5, " B": 0.4}

    trace = solve(choice_engine(letters, part), AdaptiveThink(merge=0), problem=CHOICE)
    assert [event.detail["exit"] for event in probes(trace)] == [False, False, True]
    assert trace.thinking == FIRST + SECOND


def test_a_step_of_a_choice_problem_has_at_least_120_characters(letters):
    long = "So 1, 3.\n" * 13 + "\n"
    assert 100 < len(long) < 120 < len(long + FIRST) < 200
    thinking = long + FIRST + SECOND + "</think>"
    even = {" A": 0.5, " B": 0.4}
    trace = solve(choice_engine(letters, even, thinking), AdaptiveThink(), problem=CHOICE)
    assert [event.at for event in probes(trace)] == [0, count(letters, long + FIRST)]


def test_where_no_option_is_likely_thinking_goes_on(letters):
    engine = choice_engine(letters, {str(n): 0.04 for n in range(24)})
    trace = solve(engine, AdaptiveThink(alpha=1), problem=CHOICE)
    assert [event.detail["entropy"] for event in probes(trace)] == [None]
    assert trace.stop == "marker"


def test_the_variant_can_be_chosen_by_hand(letters):
    free = RecordingEngine(letters, thinker(letters, THINKING, {CUE: tree(evenly("3", "4"))}, "\n\nSo B."))
    trace = solve(free, AdaptiveThink(variant="free", width=2, max_probes=1), problem=CHOICE)
    assert set(probes(trace)[0].detail["candidates"]) == {"3", "4"}
    engine = choice_engine(letters, {" B": 0.5, " A": 0.4})
    question = Problem("m", CHOICE.prompt, "2", grader="math")
    trace = solve(engine, AdaptiveThink(variant="choice", max_probes=1), problem=question)
    assert set(probes(trace)[0].detail["candidates"]) == {"A", "B", "C"}


def test_a_choice_problem_without_options_or_letters_is_refused(letters, tokenizer):
    bare = Problem("bare", "Which is it?", "B", grader="choice")
    with pytest.raises(MethodError, match="problem bare names no options"):
        solve(choice_engine(letters, {}), AdaptiveThink(), problem=bare)
    with pytest.raises(MethodError, match="scripted has no single token for the option A"):
        solve(choice_engine(tokenizer, {}), AdaptiveThink(), problem=CHOICE)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Which?\n\nA. one\nB. two\nC. three", "ABC"),
        ("Which?\n(A) one\n(B) two", "AB"),
        ("Which?\nA) one\nB: two", "AB"),
        ("A. Nobel won it.\nWhich?\nA. one\nB. two\nC. three\nD. four", "ABCD"),
        ("Plan B. is better\nA. one\nB. two", "AB"),
        ("A. one\nC. three", ""),
        ("No options at all", ""),
    ],
)
def test_options_are_counted_line_by_line(question, expected):
    assert "".join(option_letters(question)) == expected


# -- together with a control, and refusals


def test_a_control_bends_thinking_and_leaves_the_probes_alone(tokenizer):
    base = thinker(tokenizer, THINKING, {CUE: tree(evenly("3", "4"))})

    def script(text):
        return {"Hmm": 0.7, "</think>": 0.2} if text.endswith(SECOND) else base(text)

    engine = RecordingEngine(tokenizer, script)
    method = AdaptiveThink(merge=0, width=2)
    trace = solve(engine, compose([method, parse_method("temperature-scaling:mode=bias,bias=2")]))
    assert (trace.thinking, trace.stop) == (FIRST + SECOND, "marker")
    for text, control in engine.controls:
        assert (control is None) == ("</think>" in text.rpartition("<|assistant|>")[2])


def test_needs_an_engine_that_gives_log_probabilities(tokenizer):
    engine = engine_for(tokenizer, without=[Capability.LOGPROBS])
    with pytest.raises(EngineError, match="adaptive-think needs logprobs, which scripted does not offer"):
        require(engine, AdaptiveThink().needs, AdaptiveThink.name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, "alpha is 0; it must be above 0"),
        ({"alpha": 1.01}, "at most 1"),
        ({"variant": "beam"}, "must be auto, choice or free"),
        ({"merge": -1}, "must be at least 0"),
        ({"width": 0}, "must be at least 1"),
        ({"depth": 0}, "must be at least 1"),
        ({"duplicates": "max"}, "must be sum or first"),
        ({"min_candidates": 0}, "must be at least 1"),
        ({"cue": ""}, "must be a text that asks for an answer"),
        ({"choice_cue": " "}, "must be a text that asks for an option"),
        ({"max_probes": 0}, "must be at least 1"),
        ({"think_ratio": 0}, "must be above 0"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_in_one_sentence(options, message):
    with pytest.raises(MethodError) as caught:
        AdaptiveThink(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_default_cue_is_written_in_the_words_of_the_lab(tokenizer):
    assert tokenizer.unk_token_id not in tokenizer(CUE, add_special_tokens=False)["input_ids"]


def test_every_parameter_is_described():
    assert all(parameter["meaning"] for parameter in describe(AdaptiveThink)["parameters"])
    assert str(AdaptiveThink()) == "adaptive-think"
