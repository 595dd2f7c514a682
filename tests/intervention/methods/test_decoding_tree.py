"""Decoding tree sketching, decision by decision."""

import asyncio
import json
import math

import pytest
from intervention.scripted import ScriptedEngine, follow, nats

from satisfice.engines.base import Capability, EngineError, Sampling
from satisfice.intervention import MethodError, parse_method
from satisfice.intervention.composed import compose
from satisfice.intervention.methods.decoding_tree import DecodingTree
from satisfice.intervention.methods.plain import Plain
from satisfice.intervention.methods.temperature_scaling import TemperatureScaling
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem
from satisfice.trace import Trace

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
GREEDY = Sampling(temperature=0, top_p=1, max_tokens=100, seed=7)

UNSURE = (0.7, 0.2, 0.1)
"""Entropy 0.80, varentropy 0.49."""
EVEN = (0.4, 0.3, 0.3)
"""Entropy 1.09, varentropy 0.02."""
TAU_V = 0.3


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def surprise(*probabilities):
    """Varentropy of a distribution given whole."""
    entropy = nats(*probabilities)
    return sum(p * (-math.log(p) - entropy) ** 2 for p in probabilities)


def fork(*words, shares=UNSURE):
    return dict(zip(words, shares, strict=True))


def said(words, answer, lines=0):
    """A response: some words, lines of thinking, an answer."""
    end = "Maybe" if answer is None else f"The answer is \\boxed{{{answer}}}."
    return f"{words}{'So 1.' * lines}</think>\n\n{end}"


def engine_of(tokenizer, *texts, forks, **options):
    """Writes whichever of `texts` a branch has begun; after a response in `forks`, its distribution instead.

    A branch that no text begins with goes on forever.
    """
    script = follow(tokenizer, *(f"<think>\n{text}" for text in texts))

    def branching(text):
        response = text.rpartition("<|assistant|><think>\n")[2]
        on_script = any(known.startswith(response) for known in texts)
        return forks.get(response) or (script(text) if on_script else {"No": 1 - 1e-6})

    return ScriptedEngine(tokenizer, branching, **options)


def sketching(**options):
    """The method with thresholds for the tests' distributions, measured as they are given."""
    return DecodingTree(**{"tau_v": TAU_V, "entropy_temperature": 1.0, "max_active": 6, **options})


def first_version(**options):
    return DecodingTree(**{"version": 1, "tau_h": 0.5, "entropy_temperature": 1.0, "max_active": 6, **options})


def solve(engine, method, sampling=GREEDY, **options):
    return asyncio.run(method.solve(engine, PROBLEM, sampling, **options))


def tokens(tokenizer, text):
    """Tokens of a response, its end included."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1


def detail(trace, kind):
    return [event.detail for event in trace.events if event.kind == kind]


def widths(engine):
    [tree] = engine.trees
    return [len(step) for step in tree.steps]


ROOT = {"": fork("Wait", "Hmm", "So ")}


# -- DTS-Greedy


def test_the_first_branch_to_finish_is_returned(tokenizer):
    texts = [said("Wait", 5, 4), said("Hmm", 3, 1), said("So ", 4, 2)]
    engine = engine_of(tokenizer, *texts, forks=ROOT)
    trace = solve(engine, sketching())
    assert trace.thinking == "HmmSo 1."
    assert trace.answer == "\n\nThe answer is \\boxed{3}."
    assert (trace.finished, trace.stop, trace.stopped_by) == (True, "marker", "<|end|>")
    length = tokens(tokenizer, texts[1])
    assert len(trace.response_ids) == length
    assert widths(engine) == [3] * (length - 1)
    assert not engine.trees[0].open


def test_every_token_of_every_branch_is_paid_for_once(tokenizer):
    # One token in common, then three branches, one of which branches again after two more.
    texts = [said("YesWait", 5, 6), said("YesHmm1", 3, 1), said("YesHmm2", 4, 5), said("YesHmm3", 4, 5)]
    texts.append(said("YesSo ", 4, 4))
    forks = {"Yes": fork("Wait", "Hmm", "So "), "YesHmm": fork("2", "1", "3")}
    engine = engine_of(tokenizer, *texts, forks=forks)
    trace = solve(engine, sketching())
    length = tokens(tokenizer, texts[1])
    assert trace.answer.endswith("{3}.")
    unique = 1 + 3 + 5 * (length - 2)
    assert trace.cost.retained_tokens == length
    assert trace.cost.branch_tokens == unique - length
    assert trace.cost.total_tokens == unique
    # One pass for the prompt's end, one forevery token but the newest.
    assert trace.cost.forward_passes == 1 + unique - 5
    assert trace.cost.prefilled_tokens == len(trace.prompt_ids) - 1
    assert trace.cost.forced_tokens == trace.cost.probe_tokens == 0
    assert trace.cost.thinking_tokens == trace.thinking_span[1]


def test_a_branching_takes_up_the_likeliest_tokens_not_samples(tokenizer):
    forks = {"": {"Wait": 0.1, "Hmm": 0.6, "So ": 0.06, "Yes": 0.2, "No": 0.04}}
    engine = engine_of(tokenizer, *(said(word, 3) for word in ("Wait", "Hmm", "So ", "Yes", "No")), forks=forks)
    for k, expected in ((2, ["Hmm", "Yes"]), (3, ["Hmm", "Yes", "Wait"]), (5, ["Hmm", "Yes", "Wait", "So ", "No"])):
        trace = solve(engine, sketching(k=k), Sampling(temperature=0.6, max_tokens=100, seed=k))
        assert engine.trees[-1].steps[0] == expected
        assert detail(trace, "branch")[0]["tokens"] == expected


def test_branches_that_finish_together_vote_and_the_likeliest_token_comes_first(tokenizer):
    texts = [said("Hmm", 4), said("Wait", 5), said("So ", 5)]
    trace = solve(engine_of(tokenizer, *texts, forks=ROOT), sketching())
    assert trace.answer.endswith("{5}.")
    assert detail(trace, "vote") == [{"tally": {"5": 2, "4": 1}, "without_answer": 0, "adopted": 0}]
    tie = [said("Hmm", 4), said("Wait", 5), said("So ", 3)]
    assert solve(engine_of(tokenizer, *tie, forks=ROOT), sketching()).thinking == "Wait"
    mute = [said("Hmm", 4), said("Wait\n\n\n", None), said("So ", 3)]
    assert len({tokens(tokenizer, text) for text in mute}) > 1  # else they would not finish in this order
    assert solve(engine_of(tokenizer, *mute, forks=ROOT), sketching()).answer.endswith("Maybe")


def test_the_answer_may_branch_too(tokenizer):
    # In thinking all goes straight; what wavers is the answer's number.
    texts = [
        f"So </think>\n\nThe answer is \\boxed{{{answer}}}{rest}" for answer, rest in ((4, ".\n"), (3, ""), (5, "."))
    ]
    begun = "So </think>\n\nThe answer is \\boxed{"
    engine = engine_of(tokenizer, *texts, forks={begun: fork("4", "3", "5")})
    trace = solve(engine, sketching())
    assert trace.answer.endswith("{3}")
    [branching] = [event for event in trace.events if event.kind == "branch"]
    assert branching.at == tokens(tokenizer, begun) - 1


def test_a_branch_that_ends_inside_its_thinking_is_finished_without_an_answer(tokenizer):
    texts = ["Wait", said("Hmm", 3, 1), said("So ", 4, 1)]
    trace = solve(engine_of(tokenizer, *texts, forks=ROOT), sketching())
    assert (trace.stop, trace.answer, trace.finished) == ("end of text", "", True)
    voted = solve(engine_of(tokenizer, *texts, forks=ROOT), sketching(traces=3))
    assert voted.answer.endswith("{3}.")
    assert detail(voted, "vote") == [{"tally": {"3": 1, "4": 1}, "without_answer": 1, "adopted": 1}]


# -- where version 2 branches


def test_it_branches_where_entropy_is_low_and_varentropy_high(tokenizer):
    texts = [said("Wait1", 3), said("Wait2", 3), said("Hmm1", 4), said("So 1", 5)]
    even = {"": fork("Wait", "Hmm", "So ", shares=EVEN), "Wait": fork("1", "2", "3")}
    trace = solve(engine_of(tokenizer, *texts, forks=even), sketching())
    [branching] = detail(trace, "branch")
    assert branching == {
        "entropy": pytest.approx(nats(*UNSURE), abs=1e-6),
        "varentropy": pytest.approx(surprise(*UNSURE), abs=1e-5),
        "tokens": ["1", "2", "3"],
        "active": 3,
        "returned": True,
    }
    assert surprise(*EVEN) < TAU_V < surprise(*UNSURE)
    assert nats(*UNSURE) == pytest.approx(0.801818553)
    assert surprise(*UNSURE) == pytest.approx(0.494, abs=1e-3)


def test_the_entropy_may_reach_its_threshold_the_varentropy_must_exceed_its_own(tokenizer):
    engine = engine_of(tokenizer, said("Wait", 3), said("Hmm", 4), said("So ", 5), forks=ROOT)

    def branched(**options):
        return len(detail(solve(engine, sketching(**options)), "branch")) == 1

    [at] = detail(solve(engine, sketching()), "branch")
    assert branched(tau_h=at["entropy"])
    assert not branched(tau_h=math.nextafter(at["entropy"], 0))
    assert not branched(tau_v=at["varentropy"])
    assert branched(tau_v=math.nextafter(at["varentropy"], 0))


def test_entropy_and_varentropy_are_those_of_the_entropy_temperature(tokenizer):
    engine = engine_of(tokenizer, said("Wait", 3), said("Hmm", 4), said("So ", 5), forks=ROOT)
    warm = [share ** (1 / 0.6) for share in UNSURE]
    shares = [share / sum(warm) for share in warm]
    assert surprise(*shares) > TAU_V
    [branching] = detail(solve(engine, DecodingTree(tau_v=TAU_V)), "branch")
    assert branching["entropy"] == pytest.approx(nats(*shares), abs=1e-4)
    assert branching["varentropy"] == pytest.approx(surprise(*shares), abs=1e-3)
    # What a branch is worth is measured on the model's own distribution.
    best = detail(solve(engine, DecodingTree(tau_v=TAU_V)), "finished")[0]
    assert best["logprob"] == pytest.approx(math.log(0.7), abs=1e-4)


def test_the_papers_thresholds_are_the_defaults(tokenizer):
    assert (DecodingTree().tau_h, DecodingTree().tau_v, DecodingTree().k, DecodingTree().traces) == (2.5, 1.5, 3, 1)
    engine = engine_of(tokenizer, said("Wait", 3), forks=ROOT)
    solve(engine, DecodingTree())
    assert widths(engine) == [1] * (tokens(tokenizer, said("Wait", 3)) - 1)
    assert engine.trees[0].heat == 0.6


# -- the cap


def test_a_branching_never_exceeds_the_cap_and_then_the_tree_is_frozen_for_good(tokenizer):
    deep = {
        "": fork("Wait", "Hmm", "So "),
        "Wait": fork("1", "2", "3"),
        "Hmm": fork("4", "5", "6"),
        "Wait1": fork("Yes", "No", "Maybe"),
    }
    texts = [said("Wait1Yes", 3, 5), said("Wait2", 3, 5), said("Hmm4", 3, 5), "Hmm", said("So ", 3, 5)]
    engine = engine_of(tokenizer, *texts, forks=deep)
    trace = solve(engine, sketching(max_active=4, traces=9))
    assert engine.trees[0].steps[:3] == [
        ["Wait", "Hmm", "So "],
        ["Wait1", "Wait2", "Hmm4", "So So "],  # room for two; the tree is frozen before the third branch is looked at
        ["Wait1Yes", "Wait2So ", "Hmm4So ", "So So 1"],
    ]
    assert max(widths(engine)) == 4
    assert [d["active"] for d in detail(trace, "branch")] == [3, 4]
    assert [(event.at, event.detail) for event in trace.events if event.kind == "freeze"] == [(1, {"active": 4})]


def test_a_frozen_tree_does_not_branch_when_branches_have_finished(tokenizer):
    forks = {"": fork("Wait", "Hmm", "So "), "HmmSo 1.": fork("1", "2", "3")}
    texts = ["Wait", said("HmmSo 1.1", 3), "So "]
    engine = engine_of(tokenizer, *texts, forks=forks)
    trace = solve(engine, sketching(max_active=3, traces=9))
    assert widths(engine)[:3] == [3, 1, 1]
    assert len(detail(trace, "branch")) == len(detail(trace, "freeze")) == 1
    # With room it would have branched there.
    assert len(detail(solve(engine, sketching(max_active=4, traces=9)), "branch")) == 2


def test_finished_branches_leave_room_while_the_cap_was_never_reached(tokenizer):
    forks = {"": fork("Wait", "Hmm", "So "), "HmmSo 1.": fork("1", "2", "3"), "HmmSo 1.1": fork("1", "2", "3")}
    texts = ["Wait", said("HmmSo 1.11", 3), said("HmmSo 1.2", 3), said("HmmSo 1.3", 3), "So "]
    engine = engine_of(tokenizer, *texts, forks=forks)
    trace = solve(engine, sketching(max_active=5, traces=9))
    assert [d["active"] for d in detail(trace, "branch")] == [3, 3, 5]


# -- DTS-Stable


def ways(tokenizer, *answers, lines=(1, 2, 3, 4, 5, 6)):
    """Five branches or six that finish in turn with these answers."""
    words = ("Wait", "Hmm", "So ", "Yes", "No", "Maybe")[: len(answers)]
    shares = (0.8, 0.1, 0.05, 0.03, 0.015, 0.005)[: len(answers)]
    texts = [said(word, answer, count) for word, answer, count in zip(words, answers, lines, strict=False)]
    return engine_of(tokenizer, *texts, forks={"": fork(*words, shares=shares)})


def test_the_first_trace_with_the_most_frequent_answer_is_returned(tokenizer):
    engine = ways(tokenizer, "5", "3", "+3", "4", "4")
    trace = solve(engine, sketching(k=5, traces=3))
    assert trace.thinking == "HmmSo 1.So 1."
    assert detail(trace, "vote") == [{"tally": {"5": 1, "3": 2}, "without_answer": 0, "adopted": 1}]
    assert [(d["answer"], d["returned"]) for d in detail(trace, "finished")] == [
        ("5", False), ("3", True), ("+3", False),
    ]  # fmt: skip
    # The other two were not waited for.
    third = tokens(tokenizer, said("So ", "+3", 3))
    lengths = [tokens(tokenizer, said("Wait", "5", 1)), tokens(tokenizer, said("Hmm", "3", 2))]
    assert trace.cost.total_tokens == sum(lengths) + 3 * third


def test_votes_tie_to_the_earliest_finish(tokenizer):
    assert solve(ways(tokenizer, "5", "3", "3", "5", "1"), sketching(k=5, traces=4)).thinking == "WaitSo 1."
    trace = solve(ways(tokenizer, "5", "3", "3", "5", "1", lines=(5, 4, 3, 2, 1)), sketching(k=5, traces=5))
    assert detail(trace, "vote")[0]["tally"] == {"1": 1, "5": 2, "3": 2}
    assert trace.thinking == "YesSo 1.So 1."


def test_traces_without_an_answer_do_not_vote_and_where_none_votes_the_first_is_returned(tokenizer):
    engine = ways(tokenizer, None, None, "3", None, "4", lines=(1, 2, 3, 7, 9))
    trace = solve(engine, sketching(k=5, traces=5))
    assert trace.answer.endswith("{3}.")
    assert detail(trace, "vote")[0] == {"tally": {"3": 1, "4": 1}, "without_answer": 3, "adopted": 2}
    mute = solve(ways(tokenizer, *[None] * 5), sketching(k=5, traces=5))
    assert mute.thinking == "WaitSo 1."
    assert detail(mute, "vote")[0] == {"tally": {}, "without_answer": 5, "adopted": 0}


def test_fewer_branches_than_traces_end_the_tree_when_the_last_has_finished(tokenizer):
    engine = ways(tokenizer, "5", "3", "3", "4", "1")
    trace = solve(engine, sketching(k=5, traces=8))
    assert len(detail(trace, "finished")) == 5
    assert trace.thinking == "HmmSo 1.So 1."
    assert widths(engine)[-1] == 1


def test_at_the_limit_those_that_have_finished_vote(tokenizer):
    limit = tokens(tokenizer, said("So ", "3", 3))
    trace = solve(
        ways(tokenizer, "5", "3", "3", "4", "4"),
        sketching(k=5, traces=5),
        Sampling(temperature=0, max_tokens=limit),
    )
    assert detail(trace, "vote")[0]["tally"] == {"5": 1, "3": 2}
    assert trace.thinking == "HmmSo 1.So 1."
    assert trace.cost.total_tokens == 3 * limit + sum(tokens(tokenizer, said("Wait", "5", n)) for n in (1, 2))


# -- the rule of the code alone


@pytest.mark.parametrize(
    ("answers", "waited_for"),
    [
        (("5", "3", "4", "5", "1", "2"), 4),  # two of four agree
        (("5", "3", "4", "1", "5", "2"), 5),  # two of five: 40 % are enough
        (("5", "5", None, "3", "4", "2"), 5),  # four answers are needed, not four traces
        (("5", "3", "4", "1", "2", "5"), 6),
    ],
    ids=str,
)
def test_early_stop(tokenizer, answers, waited_for):
    engine = ways(tokenizer, *answers)
    trace = solve(engine, sketching(k=6, traces=6, early_stop=True))
    assert len(detail(trace, "finished")) == waited_for
    assert len(detail(solve(engine, sketching(k=6, traces=6)), "finished")) == 6


def test_early_stop_leaves_the_rest_unfinished(tokenizer):
    engine = ways(tokenizer, "5", "5", "5", "5", "3", lines=(1, 2, 3, 4, 9))
    solve(engine, sketching(k=5, traces=5, early_stop=True))
    assert len(engine.trees[0].steps) == tokens(tokenizer, said("Yes", "5", 4)) - 1


# -- nobody finishes


def test_where_none_finishes_the_likeliest_branch_is_returned_as_it_is(tokenizer):
    texts = [said("Wait1", 5, 9), said("Wait2", 5, 9), said("Hmm", 5, 9), said("So ", 5, 9)]
    forks = {"": fork("Wait", "Hmm", "So ", shares=(0.55, 0.4, 0.05)), "Wait": fork("1", "2", "3")}
    engine = engine_of(tokenizer, *texts, forks=forks)
    # Wait1 has 0.55 * 0.7 = 0.385, Hmm has 0.4.
    trace = solve(engine, sketching(tau_v=0.2), Sampling(temperature=0, max_tokens=5))
    assert trace.thinking == "HmmSo 1.So "
    assert (trace.finished, trace.stop, trace.stopped_by) == (False, "token limit", "length")
    assert len(trace.response_ids) == 5
    assert (trace.cost.retained_tokens, trace.cost.branch_tokens) == (5, 3 + 4 * 5 - 5)
    assert detail(trace, "vote") == detail(trace, "finished") == []


def test_a_response_of_one_token(tokenizer):
    engine = engine_of(tokenizer, said("Wait", 3), forks=ROOT)
    trace = solve(engine, sketching(), Sampling(temperature=0, max_tokens=1))
    assert (trace.thinking, trace.cost.total_tokens, trace.cost.forward_passes) == ("Wait", 3, 1)
    assert engine.trees[0].steps == []


def test_a_prompt_that_leaves_no_room(tokenizer):
    room = len(solve(engine_of(tokenizer, said("Wait", 3), forks={}), Plain()).prompt_ids)
    with pytest.raises(EngineError, match=f"the prompt has {room} tokens"):
        solve(engine_of(tokenizer, said("Wait", 3), forks={}, context_length=room), sketching())


# -- version 1


def test_version_1_branches_where_entropy_is_high_and_for_ever(tokenizer):
    forks = {"": fork("Wait", "Hmm", "So ", shares=EVEN), "Wait": fork("1", "2", "3")}
    forks |= {"Wait1": fork("Yes", "No", "Maybe"), "Hmm": fork("4", "5", "6", shares=(0.9, 0.06, 0.04))}
    texts = [said("Wait1Yes", 3, 5), said("Hmm4", 4, 5), said("So ", 5, 5)]
    engine = engine_of(tokenizer, *texts, forks=forks)
    trace = solve(engine, first_version(max_active=7))
    assert nats(0.9, 0.06, 0.04) < 0.5 < nats(*UNSURE)
    assert engine.trees[0].steps[1] == ["Wait1", "Wait2", "Wait3", "Hmm4", "So So "]
    assert [d["active"] for d in detail(trace, "branch")] == [3, 5, 7]
    assert detail(trace, "freeze") == detail(trace, "prune") == []


def test_version_1_must_exceed_its_threshold_and_measures_at_the_sampling_temperature(tokenizer):
    engine = engine_of(tokenizer, said("Wait", 3), said("Hmm", 4), said("So ", 5), forks=ROOT)
    [at] = detail(solve(engine, first_version()), "branch")
    assert detail(solve(engine, first_version(tau_h=at["entropy"])), "branch") == []
    assert len(detail(solve(engine, first_version(tau_h=math.nextafter(at["entropy"], 0))), "branch")) == 1
    warm = Sampling(temperature=0.8, top_p=1, max_tokens=100)
    solve(engine, DecodingTree(version=1), warm)
    assert engine.trees[-1].heat == 0.8
    with pytest.raises(MethodError, match="measures entropy at the sampling temperature, which is 0 here; give ent"):
        solve(engine, DecodingTree(version=1))


def test_version_1_keeps_the_likeliest_branches(tokenizer):
    forks = {"": fork("Wait", "Hmm", "So "), "Hmm": fork("1", "2", "3", shares=(0.5, 0.3, 0.2))}
    forks["Wait"] = fork("4", "5", "6", shares=(0.6, 0.39, 0.01))
    texts = [*(said(words, 3, 5) for words in ("Wait4", "Wait5", "Hmm1")), said("So ", 3, 9)]
    engine = engine_of(tokenizer, *texts, forks=forks)
    trace = solve(engine, first_version(max_active=4))
    # Wait4 0.42, Wait5 0.27, Hmm1 0.1, So 0.1, Hmm2 0.06, Hmm3 0.04, Wait6 0.007: what is dropped costs no pass.
    assert engine.trees[0].steps[1] == ["Wait4", "Wait5", "Hmm1", "So So "]
    assert max(widths(engine)) == 4
    assert detail(trace, "prune") == [{"dropped": 3, "active": 4}]
    # But it was taken up, so it is counted: 3 + 7 + 4 a step.
    length = tokens(tokenizer, texts[0])
    assert trace.cost.total_tokens == 3 + 7 + 4 * (length - 2)
    assert trace.cost.forward_passes == 1 + 3 + 4 * (length - 2)


def test_version_1_returns_the_likeliest_of_those_that_finish_together(tokenizer):
    forks = {"": fork("Wait", "Hmm", "So ", shares=(0.45, 0.4, 0.15)), "Wait": fork("1", "2", "3")}
    texts = [said("Wait1", 3), said("Hmm4", 4), said("So 5", 4)]
    trace = solve(engine_of(tokenizer, *texts, forks=forks), first_version())
    # Wait1 has 0.45 * 0.7 = 0.315, Hmm4 has 0.4.
    assert trace.thinking == "Hmm4"
    assert detail(trace, "vote") == []
    other = [said("Wait1", 3), said("Hmm4", 4, 1), said("So 5", 4, 1)]
    assert solve(engine_of(tokenizer, *other, forks=forks), first_version()).thinking == "Wait1"
    # The shortest is returned, whatever the vote or the likelihood.
    short = [said("Wait1", 4, 1), said("Hmm4", 4, 1), said("So 5", 3)]
    assert solve(engine_of(tokenizer, *short, forks=forks), first_version()).thinking == "So 5"


# -- what all of them share


def coin(text):
    return {"<|end|>": 1 - 1e-9} if text.count("Wait") + text.count("Hmm") > 12 else {"Wait": 0.5, "Hmm": 0.5}


def test_a_tree_that_never_branches_is_plain(tokenizer):
    engine = ScriptedEngine(tokenizer, coin)
    sampling = Sampling(temperature=0.6, top_p=1, max_tokens=100, seed=3)
    tree, plain = (solve(engine, method, sampling) for method in (DecodingTree(), Plain()))
    assert tree.response_ids == plain.response_ids
    assert len(set(tree.response_ids)) == 3
    assert tree.cost.total_tokens == plain.cost.total_tokens
    assert tree.cost.forward_passes == plain.cost.forward_passes
    assert tree.stop == plain.stop
    assert tree.events[-1].kind == "finished"


def test_the_likeliest_child_goes_on_drawing_what_its_branch_would_have_drawn(tokenizer):
    def script(text):
        response = text.rpartition("<think>\n")[2]
        return fork("Wait", "Hmm", "Yes") if response == "" else coin(text)

    engine = ScriptedEngine(tokenizer, script)
    sampling = Sampling(temperature=0.6, top_p=1, max_tokens=100, seed=3)
    solve(engine, sketching(traces=3), sampling)
    first, second, third = engine.trees[-1].steps[10]
    assert len({first[4:], second[3:], third[3:]}) == 3

    def straight(text):
        response = text.rpartition("<think>\n")[2]
        return {"Wait": 1 - 1e-9} if response == "" else coin(text)

    plain = solve(ScriptedEngine(tokenizer, straight), Plain(), sampling)
    assert tokenizer.decode(plain.response_ids[:11]) == first


def test_events_come_in_the_order_of_depth_and_say_what_is_part_of_the_response(tokenizer):
    forks = {"": fork("Wait", "Hmm", "So "), "Wait": fork("1", "2", "3"), "Hmm": fork("4", "5", "6")}
    texts = [said("Wait1", 3, 4), said("Hmm4", 4, 1), said("So ", 5, 9)]
    trace = solve(engine_of(tokenizer, *texts, forks=forks), sketching(max_active=7))
    kinds = [(event.at, event.kind, event.detail.get("returned")) for event in trace.events]
    end = len(trace.response_ids)
    assert kinds[:4] == [(0, "branch", True), (1, "branch", False), (1, "branch", True), (1, "freeze", None)]
    assert kinds[4:] == [(end, "finished", True)]
    again = Trace.from_json(trace.to_json())
    assert [json.loads(event.model_dump_json()) for event in again.events] == [
        json.loads(event.model_dump_json()) for event in trace.events
    ]


def test_watch_sees_the_returned_response_alone(tokenizer):
    seen = []
    texts = [said("Wait", 5, 4), said("Hmm", 3, 1), said("So ", 4, 2)]
    trace = solve(engine_of(tokenizer, *texts, forks=ROOT), sketching(), watch=lambda phase, text: seen.append(text))
    assert "".join(seen) == f"{trace.thinking}</think>{trace.answer}"


def test_a_stop_text_or_id_of_the_sampling_ends_a_branch(tokenizer):
    texts = [said("Wait", 5, 4), said("Hmm", 3, 1), said("So ", 4, 2)]
    engine = engine_of(tokenizer, *texts, forks=ROOT)
    by_text = solve(engine, sketching(), Sampling(temperature=0, max_tokens=100, stop=("mSo 1",)))
    assert (by_text.thinking, by_text.stopped_by, by_text.finished) == ("HmmSo 1", "mSo 1", True)
    [hmm] = tokenizer("Hmm", add_special_tokens=False)["input_ids"]
    by_id = solve(engine, sketching(), Sampling(temperature=0, max_tokens=100, stop_ids=(hmm,)))
    assert by_id.response_ids == [hmm]
    on = solve(engine, sketching(traces=9), Sampling(temperature=0, max_tokens=40, ignore_eos=True))
    assert (on.finished, len(on.response_ids)) == (False, 40)


def test_a_cancelled_task_leaves_its_tree(tokenizer):
    async def cancel():
        engine = engine_of(tokenizer, said("Wait", 5, 9), said("Hmm", 5, 9), said("So ", 5, 9), forks=ROOT)
        task = asyncio.create_task(sketching().solve(engine, PROBLEM, GREEDY))
        while not (engine.trees and len(engine.trees[0].steps) > 3):
            await asyncio.sleep(0)
        assert engine.trees[0].open
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine.trees[0].open

    asyncio.run(cancel())


def test_an_engine_without_trees_is_refused(tokenizer):
    engine = ScriptedEngine(tokenizer, coin, without=[Capability.TREE])
    with pytest.raises(EngineError, match=r"^decoding-tree needs tree, which scripted does not offer"):
        DecodingTree().check(engine)


def test_it_joins_no_control():
    with pytest.raises(MethodError, match="decoding-tree cannot be joined with temperature-scaling"):
        compose([DecodingTree(), TemperatureScaling()])


def test_its_spelling():
    spelled = "decoding-tree:traces=8,tau_v=0.3,max_active=8,early_stop=true"
    method = parse_method(spelled)
    assert method == DecodingTree(traces=8, tau_v=0.3, max_active=8, early_stop=True)
    assert str(method) == spelled
    assert parse_method("decoding-tree:version=1").version == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 3}, "version is 3; it must be 1 or 2"),
        ({"traces": 0}, "traces is 0"),
        ({"tau_h": -0.1}, "tau_h is -0.1"),
        ({"tau_v": -0.1}, "tau_v is -0.1"),
        ({"k": 1}, "k is 1; it must be at least 2"),
        ({"max_active": 1}, "max_active is 1; it must be at least 2"),
        ({"entropy_temperature": 0.0}, "entropy_temperature is 0; it must be above 0"),
        ({"version": 1, "traces": 8}, "traces acts with version=2 only"),
        ({"version": 1, "tau_v": 1.0}, "tau_v acts with version=2 only"),
        ({"early_stop": True, "traces": 4}, "early_stop acts with more than 4 traces only"),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(options, message):
    with pytest.raises(MethodError, match=message):
        DecodingTree(**options)
