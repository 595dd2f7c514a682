"""Self-consistency, best-of-n and the length-filtered vote, decision by decision."""

import asyncio
import math

import pytest
from intervention.scripted import ScriptedEngine, SeededEngine, follow, nats

from satisfice.engines.base import Capability, EngineError, Sampling, require
from satisfice.intervention import MethodError
from satisfice.intervention.composed import compose
from satisfice.intervention.draft import fork_seed
from satisfice.intervention.method import together
from satisfice.intervention.methods.best_of_n import SCORERS, BestOfN, Scorer
from satisfice.intervention.methods.length_filtered_vote import LengthFilteredVote
from satisfice.intervention.methods.self_consistency import SelfConsistency
from satisfice.intervention.methods.temperature_scaling import TemperatureScaling
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
SAMPLING = Sampling(temperature=0.6, top_p=1, max_tokens=100, seed=7)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def response(answer, lines=1):
    """A response with `lines` lines of thinking and one of answer."""
    said = f"The answer is \\boxed{{{answer}}}." if answer is not None else "Maybe"
    return "<think>\n" + "So 1.\n" * lines + f"</think>\n\n{said}"


def engine_of(tokenizer, *texts, **options):
    """An engine whose fork number i writes text number i."""
    return SeededEngine(
        tokenizer,
        {fork_seed(SAMPLING.seed, (index,)): follow(tokenizer, text) for index, text in enumerate(texts)},
        **options,
    )


def solve(engine, method, sampling=SAMPLING, watch=None):
    return asyncio.run(method.solve(engine, PROBLEM, sampling, watch=watch))


def tokens(tokenizer, text):
    """What a response costs: its tokens after the prompt's opening marker, and the end."""
    return len(tokenizer(text.removeprefix("<think>\n"), add_special_tokens=False)["input_ids"]) + 1


def detail(trace, kind):
    return [event.detail for event in trace.events if event.kind == kind]


# -- self-consistency


def test_the_first_response_with_the_most_frequent_answer_is_returned(tokenizer):
    texts = [response("4", 3), response("3", 2), response("+3", 5), response("5", 1)]
    trace = solve(engine_of(tokenizer, *texts), SelfConsistency(k=4))
    assert trace.answer.endswith("\\boxed{3}.")
    assert trace.thinking == "So 1.\n" * 2
    assert trace.finished
    assert detail(trace, "vote") == [
        {"tally": {"4": 1, "3": 2, "5": 1}, "without_answer": 0, "adopted": 1},
    ]
    assert [d["tokens"] for d in detail(trace, "response")] == [tokens(tokenizer, text) for text in texts]


def test_every_response_is_paid_for_and_the_prompt_once(tokenizer):
    texts = [response("4", 3), response("3", 2), response("3", 5)]
    trace = solve(engine_of(tokenizer, *texts), SelfConsistency(k=3))
    assert trace.cost.retained_tokens == len(trace.response_ids) == tokens(tokenizer, texts[1])
    assert trace.cost.branch_tokens == tokens(tokenizer, texts[0]) + tokens(tokenizer, texts[2])
    assert trace.cost.total_tokens == trace.cost.forward_passes
    assert trace.cost.prefilled_tokens == len(trace.prompt_ids) - 1
    assert trace.cost.forced_tokens == trace.cost.probe_tokens == 0


def test_a_tie_goes_to_the_answer_that_was_given_first(tokenizer):
    texts = [response("5"), response("4"), response("4"), response("5")]
    assert solve(engine_of(tokenizer, *texts), SelfConsistency(k=4)).answer.endswith("{5}.")


def test_no_answer_and_a_cut_off_one_do_not_vote(tokenizer):
    texts = [response(None), response("4", 60), response("4", 61), response("3")]
    trace = solve(engine_of(tokenizer, *texts), SelfConsistency(k=4))
    assert trace.answer.endswith("{3}.")
    assert detail(trace, "vote")[0]["without_answer"] == 3


def test_without_any_answer_the_first_response_is_returned(tokenizer):
    trace = solve(engine_of(tokenizer, response(None, 2), response(None)), SelfConsistency(k=2))
    assert trace.thinking == "So 1.\n" * 2
    assert detail(trace, "vote")[0]["adopted"] == 0


def test_one_response_is_what_plain_would_have_written(tokenizer):
    """The first fork keeps the seed, so it draws the same random numbers."""

    def coin(text):
        return {"<|end|>": 1 - 1e-9} if text.count("Wait") + text.count("Hmm") > 8 else {"Wait": 0.5, "Hmm": 0.5}

    from satisfice.intervention.methods.plain import Plain

    engine = ScriptedEngine(tokenizer, coin)
    assert solve(engine, SelfConsistency(k=1)).response_ids == solve(engine, Plain()).response_ids


def test_watch_sees_the_returned_response_alone(tokenizer):
    seen = []
    texts = [response("4"), response("3", 2), response("3")]
    trace = solve(engine_of(tokenizer, *texts), SelfConsistency(k=3), watch=lambda phase, text: seen.append(text))
    assert "".join(seen) == f"{trace.thinking}</think>{trace.answer}"


def test_a_control_bends_every_response(tokenizer):
    def script(text):
        written = text.rpartition("<|assistant|>")[2]
        if "</think>" in written:
            return {"<|end|>": 1 - 1e-9}
        return {"</think>": 1e-6, "So ": 1 - 1e-6}

    method = compose([SelfConsistency(k=2), TemperatureScaling(mode="bias", bias=40)])
    trace = solve(ScriptedEngine(tokenizer, script), method)
    assert (trace.cost.thinking_tokens, trace.cost.branch_tokens) == (1, 2)


def test_where_one_job_fails_the_others_are_cancelled_and_its_error_is_raised(tokenizer):
    class Failing(SeededEngine):
        async def generate(self, prompt_ids, sampling, **options):
            if sampling.seed == fork_seed(SAMPLING.seed, (1,)):
                await asyncio.sleep(0)
                raise EngineError("no more room")
            return await super().generate(prompt_ids, sampling, **options)

    engine = Failing(tokenizer, dict.fromkeys([SAMPLING.seed, fork_seed(7, (2,))], lambda text: {"So ": 1 - 1e-9}))
    with pytest.raises(EngineError, match="no more room"):
        solve(engine, SelfConsistency(k=3))
    assert len(engine.cancelled) == 2


def test_results_come_in_the_order_of_the_jobs():
    async def late(value, seconds):
        await asyncio.sleep(seconds)
        return value

    async def both():
        return await together(late("a", 0.02), late("b", 0))

    assert asyncio.run(both()) == ["a", "b"]


# -- best of n


def certain(tokenizer, text, certainty):
    """A script that is sure of everything but its answer's number."""
    script = follow(tokenizer, text)

    def with_doubt(so_far):
        (token,) = script(so_far)
        return {token: certainty if so_far.endswith("\\boxed{") else 1 - 1e-9}

    return with_doubt


def test_confidence_takes_the_surest_response(tokenizer):
    scripts = [certain(tokenizer, response("4"), 0.6), certain(tokenizer, response("3"), 0.9)]
    seeds = [fork_seed(SAMPLING.seed, (index,)) for index in range(2)]
    # Greedy: what is scored is the model's own distribution, whatever the temperature.
    engine = SeededEngine(tokenizer, dict(zip(seeds, scripts, strict=True)))
    trace = solve(engine, BestOfN(n=2), Sampling(temperature=0, max_tokens=100, seed=7))
    assert trace.answer.endswith("{3}.")
    whole = tokens(tokenizer, response("3"))
    scores = [d["score"] for d in detail(trace, "response")]
    assert scores == pytest.approx([0.6 ** (1 / whole), 0.9 ** (1 / whole)], rel=1e-6)
    assert detail(trace, "chosen") == [{"scorer": "confidence", "adopted": 1}]
    assert trace.cost.branch_tokens == tokens(tokenizer, response("4"))


def test_confidence_counts_the_thinking_too(tokenizer):
    def hesitant(text):
        (token,) = follow(tokenizer, response("4"))(text)
        return {token: 0.3 if text.endswith("<think>\n") else 1 - 1e-9}

    scripts = [hesitant, certain(tokenizer, response("3"), 0.5)]
    engine = SeededEngine(tokenizer, {fork_seed(7, (index,)): script for index, script in enumerate(scripts)})
    trace = solve(engine, BestOfN(n=2), Sampling(temperature=0, max_tokens=100, seed=7))
    assert trace.answer.endswith("{3}.")


def test_shortest_takes_the_shortest_that_answers(tokenizer):
    texts = [response("5", 4), response(None, 1), response("4", 2), response("3", 2), response("6", 60)]
    trace = solve(engine_of(tokenizer, *texts), BestOfN(n=5, scorer="shortest"))
    assert trace.answer.endswith("{4}.")  # as short as the other, but first
    scores = [d["score"] for d in detail(trace, "response")]
    assert scores[0] == pytest.approx(1 / tokens(tokenizer, texts[0]))
    assert scores[1] is None  # no answer
    assert scores[4] is None  # cut off


def test_best_of_no_answers_is_the_first_response(tokenizer):
    trace = solve(engine_of(tokenizer, response(None, 3), response(None)), BestOfN(n=2, scorer="shortest"))
    assert trace.thinking == "So 1.\n" * 3


def test_a_scorer_of_ones_own(tokenizer, monkeypatch):
    async def lines(written, generation):
        await asyncio.sleep(0)
        return written.text(written.ids).count("\n")

    monkeypatch.setitem(SCORERS, "lines", Scorer(lines))
    texts = [response("5", 1), response("4", 3), response("3", 2)]
    assert solve(engine_of(tokenizer, *texts), BestOfN(n=3, scorer="lines")).answer.endswith("{4}.")


@pytest.mark.parametrize("score", [-0.5, math.nan, math.inf])
def test_a_score_that_cannot_be_compared_or_added_is_refused(tokenizer, monkeypatch, score):
    async def bad(written, generation):
        return score

    monkeypatch.setitem(SCORERS, "bad", Scorer(bad))
    with pytest.raises(MethodError, match="finite number, 0 or more"):
        solve(engine_of(tokenizer, response("5")), BestOfN(n=1, scorer="bad"))


def test_needs_are_those_of_the_scorer(tokenizer):
    engine = ScriptedEngine(tokenizer, lambda text: {}, without=[Capability.LOGPROBS])
    with pytest.raises(EngineError, match="best-of-n needs log"):
        require(engine, BestOfN().needs, "best-of-n")
    require(engine, BestOfN(scorer="shortest").needs, "best-of-n")


# -- length-filtered vote


def test_only_the_bins_of_least_entropy_vote(tokenizer):
    # Lines with the answer's own: 2 and 3 share bin 1, 4 and 5 bin 2, 8 is bin 4, 10 is bin 5.
    texts = [
        response("5", 1), response("5", 2), response("4", 1),  # 2/3 and 1/3
        response("6", 3), response("7", 4),                    # 1/2 and 1/2
        response("3", 7), response("3", 7),                    # of one mind
        response("9", 9),                                      # alone
    ]  # fmt: skip
    trace = solve(
        engine_of(tokenizer, *texts), LengthFilteredVote(n=8, keep=1), Sampling(max_tokens=200, seed=7, top_p=1)
    )
    assert trace.answer.endswith("{3}.")
    bins = {d["number"]: d for d in detail(trace, "bin")}
    assert {number: d["members"] for number, d in bins.items()} == {1: [0, 1, 2], 2: [3, 4], 4: [5, 6], 5: [7]}
    assert bins[1]["entropy"] == pytest.approx(nats(2 / 3, 1 / 3)) == pytest.approx(0.636514168)
    assert bins[2]["entropy"] == pytest.approx(math.log(2))
    assert bins[4]["entropy"] == bins[5]["entropy"] == 0
    assert [number for number, d in bins.items() if d["votes"]] == [4]  # not the one that is alone
    assert detail(trace, "vote")[0] == {
        "tally": {"3": 2}, "bins_voting": 1, "filtered": True, "without_answer": 0, "adopted": 5,
    }  # fmt: skip
    assert trace.cost.branch_tokens == sum(tokens(tokenizer, text) for text in texts[:5] + texts[6:])


def test_a_minimum_of_one_is_the_rule_as_written_and_prefers_the_odd_one_out(tokenizer):
    texts = [response("5", 1), response("5", 2), response("4", 1), response("9", 9)]
    engine = engine_of(tokenizer, *texts)
    assert solve(engine, LengthFilteredVote(n=4, keep=1, min_size=1)).answer.endswith("{9}.")
    assert solve(engine, LengthFilteredVote(n=4, keep=1)).answer.endswith("{5}.")


def test_members_of_all_kept_bins_vote_together(tokenizer):
    # Bin 1: 5, 5; bin 2: 3, 3; bin 3: 3, 3; bin 4: 5, 5, 4 has the most entropy and does not vote.
    texts = [response(a, n) for a, n in [("5", 1), ("5", 1), ("3", 3), ("3", 3), ("3", 5), ("3", 5)]]
    texts += [response(a, 7) for a in ("5", "5", "4")]
    trace = solve(engine_of(tokenizer, *texts), LengthFilteredVote(n=9), Sampling(max_tokens=200, seed=7, top_p=1))
    assert detail(trace, "vote")[0]["tally"] == {"5": 2, "3": 4}
    assert trace.answer.endswith("{3}.")


def test_of_bins_with_equal_entropy_the_larger_then_the_shorter_is_kept(tokenizer):
    two_and_three = [response("5", 1)] * 2 + [response("3", 3)] * 3
    assert solve(engine_of(tokenizer, *two_and_three), LengthFilteredVote(n=5, keep=1)).answer.endswith("{3}.")
    two_and_two = [response("3", 3)] * 2 + [response("5", 1)] * 2
    assert solve(engine_of(tokenizer, *two_and_two), LengthFilteredVote(n=4, keep=1)).answer.endswith("{5}.")
    # Two of three against four of six: equal shares, so the larger bin, whatever a float sum would say.
    shares = [response(a, 1) for a in "556"] + [response(a, 3) for a in "334334"]
    trace = solve(engine_of(tokenizer, *shares), LengthFilteredVote(n=9, keep=1))
    entropies = [d["entropy"] for d in detail(trace, "bin")]
    assert entropies[0] == entropies[1]
    assert trace.answer.endswith("{3}.")


def test_without_a_bin_that_is_large_enough_all_vote(tokenizer):
    texts = [response("4", 9), response("5", 1), response("5", 3)]
    trace = solve(engine_of(tokenizer, *texts), LengthFilteredVote(n=3))
    assert trace.answer.endswith("{5}.")
    assert detail(trace, "vote")[0]["filtered"] is False


def test_responses_without_an_answer_are_in_no_bin(tokenizer):
    texts = [response(None, 1), response(None, 1), response("4", 3), response("4", 3)]
    trace = solve(engine_of(tokenizer, *texts), LengthFilteredVote(n=4))
    assert [d["members"] for d in detail(trace, "bin")] == [[2, 3]]
    nobody = solve(engine_of(tokenizer, *[response(None, 2)] * 2), LengthFilteredVote(n=2))
    assert detail(nobody, "vote")[0] == {
        "tally": {}, "bins_voting": 0, "filtered": False, "without_answer": 2, "adopted": 0,
    }  # fmt: skip


def test_quantile_bins_count_tokens(tokenizer):
    # Two quarters each: the shorter two disagree, the longer two agree.
    texts = [response("4", 1), response("5", 2), response("3", 8), response("3", 11)]
    trace = solve(engine_of(tokenizer, *texts), LengthFilteredVote(n=4, quantiles=2, keep=1))
    assert [d["members"] for d in detail(trace, "bin")] == [[0, 1], [2, 3]]
    assert trace.answer.endswith("{3}.")
    same = solve(engine_of(tokenizer, *[response("3", 2)] * 3), LengthFilteredVote(n=3, quantiles=3))
    assert [d["members"] for d in detail(same, "bin")] == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfConsistency(k=0), "k is 0"),
        (lambda: BestOfN(n=0), "n is 0"),
        (lambda: BestOfN(scorer="prm"), "no scorer 'prm'"),
        (lambda: LengthFilteredVote(width=0), "width is 0"),
        (lambda: LengthFilteredVote(min_size=0), "min_size is 0"),
        (lambda: LengthFilteredVote(quantiles=1), "quantiles is 1"),
        (lambda: LengthFilteredVote(quantiles=4, width=5), "give one of them"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(MethodError, match=message):
        make()
