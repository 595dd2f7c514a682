"""Fractured sampling and its early stopping: cuts, votes, weights and costs, decision by decision."""

import asyncio
import math

import pytest
from intervention.scripted import ScriptedEngine, SeededEngine, follow

from satisfice.engines.base import Capability, EngineError, Sampling, require
from satisfice.intervention import Draft, MethodError
from satisfice.intervention.draft import fork_seed
from satisfice.intervention.methods.best_of_n import SCORERS, Scorer
from satisfice.intervention.methods.fractured import Fractured, FracturedStop
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem
from satisfice.thinking import ThinkingFormat

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
SAMPLING = Sampling(temperature=0, max_tokens=100, seed=7)
CLOSE = "\n</think>\n\n"
SOLUTION = len(["The answer is ", "\\boxed", "{", "3", "}", ".", "<|end|>"])


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def model(words, answer, own=None):
    """Thinks `words` words, then closes; `answer(k)` is what it answers after k words of thinking, None for none.

    Where `own` is given it is what the model answers after it has closed its thinking itself.
    """

    def script(text):
        written = text.rpartition("<|assistant|>")[2].removeprefix("<think>\n")
        thinking, closed, said = written.partition("</think>")
        thought = thinking.count("Wait")
        if not closed:
            return {"Wait" if thought < words else "</think>": 1 - 1e-9}
        given = own if own is not None and thought == words and not thinking.endswith("\n") else answer(thought)
        solution = ["\n\n"] if not said else []
        solution += ["Maybe"] if given is None else ["The answer is ", "\\boxed", "{", given, "}", "."]
        written_so_far = said.removeprefix("\n\n")
        for token in solution:
            if token != "\n\n" and written_so_far.startswith(token):
                written_so_far = written_so_far[len(token) :]
            else:
                return {token: 1 - 1e-9}
        return {"<|end|>": 1 - 1e-9}

    return script


def solve(engine, method, sampling=SAMPLING, watch=None):
    return asyncio.run(method.solve(engine, PROBLEM, sampling, watch=watch))


def detail(trace, kind):
    return [event.detail for event in trace.events if event.kind == kind]


def at_cut(engine):
    """How many words of thinking stand before the closing marker in each call that wrote a solution."""
    closed = [text.rpartition("<|assistant|>")[2] for text, _, _ in engine.calls]
    return [text.count("Wait") for text in closed if "</think>" in text]


# -- what a fork at an earlier place costs


def test_a_fork_from_the_middle_leaves_the_rest_as_a_branch(tokenizer):
    engine = ScriptedEngine(tokenizer, model(8, lambda k: "3"))

    async def fork_from_the_middle():
        draft = Draft(engine, PROBLEM, SAMPLING)
        draft.force_text("Wait")
        await draft.think(5)
        draft.force_text("Hmm")
        fork = draft.fork(1, at=3)
        fork.close_thinking()
        await fork.write()
        draft.adopt(fork)
        return draft.trace()

    trace = asyncio.run(fork_from_the_middle())
    assert trace.thinking == "WaitWaitWait\n"
    assert trace.cost.branch_tokens == 4  # three words that the fork has not, and the one that was forced there
    assert trace.cost.forced_tokens == 1 + 3  # the first word and the closing; not the one that is gone
    assert trace.cost.retained_tokens == len(trace.response_ids) == 3 + 3 + SOLUTION


# -- where the cuts are


@pytest.mark.parametrize(
    ("cuts", "length", "expected"),
    [
        ("paper", 16, [(1, 4), (2, 8), (3, 12), (4, 16)]),
        ("code", 16, [(1, 4), (2, 8), (3, 12), (4, 16)]),
        ("paper", 11, [(1, 2), (2, 4), (3, 6), (4, 8)]),  # drops the last three
        ("code", 11, [(1, 2), (2, 5), (3, 8), (4, 11)]),
        ("paper", 2, [(1, 1), (4, 2)]),  # depths 2 to 4 coincide
        ("code", 2, [(1, 0), (3, 1), (4, 2)]),  # depths 2 and 3 coincide, the first is empty
        ("paper", 0, [(4, 0)]),
        ("code", 0, [(4, 0)]),
    ],
)
def test_cuts(cuts, length, expected):
    assert Fractured(depths=4, cuts=cuts)._cut(length) == expected


@pytest.mark.parametrize(
    ("length", "expected"), [(16, [(3, 12), (4, 16)]), (2, [(4, 2)])]
)  # a coinciding cut counts at its deepest depth
def test_only_the_last_depths(length, expected):
    assert Fractured(depths=4, last=2)._cut(length) == expected


# -- what is generated


def test_paper_every_depth_is_answered_and_budgeted(tokenizer):
    engine = ScriptedEngine(tokenizer, model(8, lambda k: "3"))
    trace = solve(engine, Fractured(n=2, depths=4, m=3))
    assert sorted(at_cut(engine)) == sorted([2, 4, 6, 8] * 3 * 2)
    # The first solution wins: it stands at the first cut.
    assert trace.thinking == "WaitWait\n"
    assert trace.answer.endswith("\\boxed{3}.")
    assert trace.stop == "closed by method"
    assert trace.finished
    assert trace.cost.retained_tokens == len(trace.response_ids) == 2 + 3 + SOLUTION
    assert trace.cost.forced_tokens == 3
    # n thinkings of 8 words and a marker; n m (H - 1) cuts that are closed for the model, with 3 tokens, and n m
    # whole thinkings, that go on after the model's own marker with an empty line.
    closed, whole = 2 * 3 * 3 * (3 + SOLUTION), 2 * 3 * (1 + SOLUTION)
    assert trace.cost.total_tokens == 2 * 9 + closed + whole
    budget = detail(trace, "budget")[0]
    assert budget["thinking_mean"] == 9
    assert budget["solution_mean"] == pytest.approx(SOLUTION + 0.25)
    assert budget["formula"] == pytest.approx(2 * 9 + 2 * 3 * 4 * (SOLUTION + 0.25))
    assert budget["solutions"] == 24


def test_prefixes_are_passed_as_ids_and_served_from_the_cache(tokenizer):
    engine = ScriptedEngine(tokenizer, model(8, lambda k: "3"))
    trace = solve(engine, Fractured(n=1, depths=4, m=2))
    # New are only the closings of three cuts, each once, and their last tokens are read by the step that generates;
    # after the whole thinking stands the model's own marker.
    assert trace.cost.prefilled_tokens == len(trace.prompt_ids) - 1 + 3 * (3 - 1)


def test_code_the_last_depth_begins_with_the_trajectorys_own_solution(tokenizer):
    engine = ScriptedEngine(tokenizer, model(8, lambda k: "4", own="3"))
    trace = solve(engine, Fractured(n=2, depths=4, m=3, cuts="code"))
    assert len(at_cut(engine)) == 2 * (4 * 3 - 1) + 2  # n (H m - 1) extra, and n of the trajectories' own
    assert detail(trace, "trajectory")[0]["depths"] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert detail(trace, "trajectory")[0]["answers"] == ["4"] * 9 + ["3"] * 3


def test_one_of_everything_is_plain_decoding(tokenizer):
    from satisfice.intervention.methods.plain import Plain

    engine = ScriptedEngine(tokenizer, model(8, lambda k: "4", own="3"))
    plain = solve(engine, Plain())
    for cuts in ("code", "paper"):
        trace = solve(engine, Fractured(n=1, depths=1, m=1, cuts=cuts))
        assert trace.response_ids == plain.response_ids
        assert trace.stop == "marker"
        assert (trace.cost.branch_tokens, trace.cost.forced_tokens) == (0, 0)


def test_every_solution_has_a_random_stream_of_its_own(tokenizer):
    engine = ScriptedEngine(tokenizer, model(8, lambda k: "3"))
    solve(engine, Fractured(n=2, depths=4, m=3, cuts="code"))  # two trajectories' own and 2 x 11 others
    seeds = [sampling.seed for text, sampling, _ in engine.calls if "</think>" in text.rpartition("<|assistant|>")[2]]
    assert len(set(seeds)) == len(seeds) == 24
    assert fork_seed(SAMPLING.seed, (1,)) in seeds  # the second trajectory's, and nobody else's
    assert SAMPLING.seed in seeds  # the first trajectory draws what plain decoding would have drawn


def test_a_solution_is_cut_at_its_cap_and_does_not_count(tokenizer):
    engine = ScriptedEngine(tokenizer, model(8, lambda k: "3"))
    trace = solve(engine, Fractured(n=1, depths=2, m=1, max_solution=SOLUTION))
    # The second one needs an empty line more.
    assert detail(trace, "trajectory")[0]["answers"] == ["3", None]
    assert {sampling.max_tokens for text, sampling, _ in engine.calls if "</think>" in text.rpartition(">\n")[2]} <= {
        SOLUTION
    }


# -- short, unfinished and missing thinkings


def test_a_thinking_shorter_than_its_depths(tokenizer):
    engine = ScriptedEngine(tokenizer, model(2, lambda k: "3"))
    trace = solve(engine, Fractured(n=1, depths=4, m=2))
    assert sorted(at_cut(engine)) == [1, 1, 2, 2]
    assert detail(trace, "trajectory")[0]["depths"] == [1, 1, 4, 4]
    code = ScriptedEngine(tokenizer, model(2, lambda k: "3"))
    solve(code, Fractured(n=1, depths=4, m=2, cuts="code"))
    assert sorted(at_cut(code)) == [0, 0, 1, 1, 2, 2]


def test_an_empty_thinking(tokenizer):
    for cuts in ("paper", "code"):
        engine = ScriptedEngine(tokenizer, model(0, lambda k: "3"))
        trace = solve(engine, Fractured(n=1, depths=4, m=2, cuts=cuts))
        assert at_cut(engine) == [0, 0]
        assert trace.thinking == ""
        assert trace.answer.endswith("{3}.")


def test_a_thinking_that_never_ends_is_answered_from_its_cuts(tokenizer):
    engine = ScriptedEngine(tokenizer, model(1000, lambda k: "3" if k < 30 else "4"))
    sampling = Sampling(temperature=0, max_tokens=40, seed=7)
    for cuts in ("paper", "code"):
        trace = solve(engine, Fractured(n=1, depths=4, m=1, cuts=cuts), sampling)
        # At 40 of 40 tokens there is no room to close; at 30 there is just enough: 40 - 30 = 3 + SOLUTION.
        assert detail(trace, "trajectory")[0]["answers"] == ["3", "3", "4", None]
        assert trace.finished
        assert trace.cost.total_tokens == 40 + 3 * (3 + SOLUTION)


def test_a_text_that_ends_inside_its_thinking_is_cut_before_its_end(tokenizer):
    def script(text):
        written = text.rpartition("<|assistant|>")[2]
        if "</think>" not in written and written.count("Wait") == 4:
            return {"<|end|>": 1 - 1e-9}
        return model(8, lambda k: "3")(text)

    engine = ScriptedEngine(tokenizer, script)
    trace = solve(engine, Fractured(n=1, depths=2, m=1))
    assert at_cut(engine) == [2, 4]
    assert "<|end|>" not in trace.thinking
    code = solve(engine, Fractured(n=1, depths=2, m=2, cuts="code"))
    # The raw unfinished text counts as its own first solution, without an answer.
    assert detail(code, "trajectory")[0]["answers"] == ["3", "3", None, "3"]


def test_a_response_without_thinking_has_nothing_to_cut(tokenizer):
    for other in ("<|user|>", "Therefore"), ("<|user|>", "answer"):
        thinking = ThinkingFormat("other", *other, other[0], other[1])
        text = "<think>\nThe answer is \\boxed{3}."
        engine = ScriptedEngine(tokenizer, follow(tokenizer, text), thinking=thinking)
        trace = solve(engine, Fractured(n=2, depths=4, m=2))
        assert len(engine.calls) == (2 if other[1] == "Therefore" else 4)
        assert trace.answer.endswith("\\boxed{3}.")
        assert trace.finished
        assert detail(trace, "trajectory")[0]["depths"] == [4]


def test_an_opening_marker_of_the_models_own_is_never_cut_through():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|><think>\\n", "<|assistant|>")
    assert "<think>" not in tokenizer.apply_chat_template(
        [{"role": "user", "content": "1"}], tokenize=False, add_generation_prompt=True
    )

    def script(text):
        written = text.rpartition("<|assistant|>")[2]
        opening = ["So ", "<think>", "\n"]
        for count, token in enumerate(opening):
            if written == "".join(opening[:count]):
                return {token: 1 - 1e-9}
        return model(4, lambda k: "3")(text)

    engine = ScriptedEngine(tokenizer, script)
    solve(engine, Fractured(n=1, depths=8, m=1, cuts="code"))
    starts = [text.rpartition("<|assistant|>")[2] for text, _, _ in engine.calls]
    assert all(start == "" or start.startswith("So <think>") for start in starts)


def test_no_answer_anywhere_returns_the_deepest_solution_of_the_first_trajectory(tokenizer):
    engine = ScriptedEngine(tokenizer, model(8, lambda k: None))
    trace = solve(engine, Fractured(n=2, depths=4, m=2))
    assert trace.thinking == "Wait" * 8
    assert detail(trace, "vote")[0] == {"tally": {}, "without_answer": 16, "adopted": 0, "depth": 4}


# -- who wins

BY_CUT = {2: "4", 4: "4", 6: "5", 8: "3"}


def test_equal_votes(tokenizer):
    trace = solve(ScriptedEngine(tokenizer, model(8, BY_CUT.get)), Fractured(n=1, depths=4, m=1))
    assert detail(trace, "vote")[0]["tally"] == {"4": 2, "5": 1, "3": 1}
    assert trace.answer.endswith("{4}.")
    assert trace.thinking == "Wait" * 2 + "\n"


def test_linear_weights(tokenizer):
    trace = solve(ScriptedEngine(tokenizer, model(8, BY_CUT.get)), Fractured(n=1, depths=4, m=1, weights="linear"))
    # 2t / (H (H + 1)) with H = 4: 0.1, 0.2, 0.3, 0.4
    assert detail(trace, "vote")[0]["tally"] == {
        "4": pytest.approx(0.3), "5": pytest.approx(0.3), "3": pytest.approx(0.4),
    }  # fmt: skip
    assert trace.answer.endswith("{3}.")


def test_a_tie_of_weights_goes_to_the_first_counted(tokenizer):
    answers = {2: "4", 4: "3", 6: "3", 8: "4", 10: None}
    trace = solve(ScriptedEngine(tokenizer, model(10, answers.get)), Fractured(n=1, depths=5, m=1, weights="linear"))
    # Depths 1 and 4 against 2 and 3: both are 1/3, but not if the weights are added up in floating point.
    assert 2 / 30 + 8 / 30 < 4 / 30 + 6 / 30
    assert trace.answer.endswith("{4}.")


def test_the_last_depths_alone(tokenizer):
    engine = ScriptedEngine(tokenizer, model(8, BY_CUT.get))
    trace = solve(engine, Fractured(n=1, depths=4, m=1, last=2))
    assert sorted(at_cut(engine)) == [6, 8]  # the others are not even generated
    assert detail(trace, "vote")[0]["tally"] == {"5": 1, "3": 1}
    assert trace.answer.endswith("{5}.")


def test_trajectories_are_counted_in_their_order(tokenizer):
    answers = [{4: "5", 8: "6"}, {4: "4", 8: "3"}, {4: "9", 8: "3"}]
    scripts = {fork_seed(7, (i,)): model(8, by_cut.get) for i, by_cut in enumerate(answers)}

    class ByTrajectory(SeededEngine):
        """Solutions follow their trajectory's script: told apart by the seeds of its forks."""

        async def generate(self, prompt_ids, sampling, **options):
            known = {fork_seed(7, (i,)): i for i in range(3)}
            known |= {fork_seed(7, (i, j)): i for i in range(3) for j in range(1, 3)}
            self.scripts[sampling.seed] = scripts[fork_seed(7, (known[sampling.seed],))]
            return await super().generate(prompt_ids, sampling, **options)

    trace = solve(ByTrajectory(tokenizer, {}), Fractured(n=3, depths=2, m=1))
    assert detail(trace, "vote")[0]["tally"] == {"5": 1, "6": 1, "4": 1, "3": 2, "9": 1}
    assert detail(trace, "vote")[0]["adopted"] == 1  # the first of two
    assert detail(trace, "vote")[0]["depth"] == 2
    # Retained: the second trajectory's whole thinking and the solution after it; all the rest are branches.
    assert trace.cost.retained_tokens == 9 + 1 + SOLUTION
    assert trace.cost.total_tokens == 3 * (9 + 3 + SOLUTION + 1 + SOLUTION)


def words(written):
    return written.text(written.ids).count("Wait")


def test_a_scorer_takes_the_best_single_solution(tokenizer, monkeypatch):
    async def rate(written, generation):
        return {2: 0.6, 4: 0.6, 6: 0.9, 8: 0.5}[words(written)]

    monkeypatch.setitem(SCORERS, "by cut", Scorer(rate))
    engine = ScriptedEngine(tokenizer, model(8, BY_CUT.get))
    trace = solve(engine, Fractured(n=1, depths=4, m=1, scorer="by cut"))
    assert trace.answer.endswith("{5}.")  # not the two that add up to 1.2
    assert detail(trace, "vote")[0]["tally"] == {"5": 0.9}
    assert detail(trace, "trajectory")[0]["scores"] == [0.6, 0.6, 0.9, 0.5]


def test_weighted_scores_of_equal_answers_are_added(tokenizer, monkeypatch):
    async def rate(written, generation):
        return {2: 1.0, 4: 1.0, 6: 0.9, 8: 0.5}[words(written)]

    monkeypatch.setitem(SCORERS, "by cut", Scorer(rate))
    engine = ScriptedEngine(tokenizer, model(8, BY_CUT.get))
    trace = solve(engine, Fractured(n=1, depths=4, m=1, scorer="by cut", weights="linear"))
    assert detail(trace, "vote")[0]["tally"] == {
        "4": pytest.approx(0.1 + 0.2),
        "5": pytest.approx(0.27),
        "3": pytest.approx(0.2),
    }
    assert trace.answer.endswith("{4}.")


def test_confidence_of_a_solution_is_that_of_its_own_tokens(tokenizer):
    def script(text):
        given = model(8, BY_CUT.get)(text)
        certainty = {2: 0.5, 4: 0.6, 6: 0.7, 8: 0.8}.get(text.count("Wait"), 1 - 1e-9)
        return {token: certainty if text.endswith("{") else 1 - 1e-9 for token in given}

    trace = solve(ScriptedEngine(tokenizer, script), Fractured(n=1, depths=4, m=1, scorer="confidence", cuts="code"))
    lengths = [SOLUTION] * 3 + [SOLUTION + 1]  # the last has the empty line after the model's own marker
    expected = [c ** (1 / length) for c, length in zip([0.5, 0.6, 0.7, 0.8], lengths, strict=True)]
    assert detail(trace, "trajectory")[0]["scores"] == pytest.approx(expected, rel=1e-6)
    assert trace.answer.endswith("{3}.")
    bare = ScriptedEngine(tokenizer, script, without=[Capability.LOGPROBS])
    with pytest.raises(EngineError, match="log"):
        require(bare, Fractured(scorer="confidence").needs, "fractured")
    assert Fractured().needs == frozenset()


# -- early stopping


def test_thinking_ends_when_a_prediction_comes_back_even_after_another(tokenizer):
    answers = {4: "3", 6: "4", 8: None, 10: "3"}
    engine = ScriptedEngine(tokenizer, model(90, answers.get))
    trace = solve(engine, FracturedStop(start=4, interval=2))
    assert at_cut(engine) == [4, 6, 8, 10]
    assert [(d["answer"], d["times"]) for d in detail(trace, "cut")] == [("3", 1), ("4", 1), (None, 0), ("3", 2)]
    assert trace.thinking == "Wait" * 10 + "\n"
    assert trace.answer.endswith("{3}.")
    assert trace.stop == "closed by method"
    assert trace.cost.thinking_tokens == 10 + 2
    assert trace.cost.branch_tokens == 2 * (3 + SOLUTION) + 3 + len(["Maybe", "<|end|>"])
    assert trace.cost.total_tokens == 10 + 3 * (3 + SOLUTION) + 5
    # The thinking is stopped and resumed, not computed again.
    assert trace.cost.prefilled_tokens <= len(trace.prompt_ids) - 1 + 4 * 3


def test_a_thinking_that_ends_by_itself_goes_on_to_its_own_answer(tokenizer):
    engine = ScriptedEngine(tokenizer, model(7, {4: "4", 6: "5"}.get, own="3"))
    trace = solve(engine, FracturedStop(start=4, interval=2))
    assert trace.answer.endswith("{3}.")
    assert trace.stop == "marker"
    assert trace.cost.branch_tokens == 2 * (3 + SOLUTION)
    short = solve(engine, FracturedStop(start=50))
    assert (short.answer, short.cost.branch_tokens) == (trace.answer, 0)


def test_at_the_limit_the_last_prediction_counts(tokenizer):
    answers = {4: "4", 6: "5", 8: None}
    engine = ScriptedEngine(tokenizer, model(90, answers.get))
    trace = solve(engine, FracturedStop(start=4, interval=2), Sampling(temperature=0, max_tokens=20, seed=7))
    assert trace.answer.endswith("{5}.")
    assert trace.finished
    assert trace.thinking == "Wait" * 6 + "\n"
    assert trace.events[-2].kind == "last prediction"
    # All 20 tokens of thinking are paid for, 14 of them for nothing; later cuts had no room for a solution.
    assert trace.cost.retained_tokens == 6 + 3 + SOLUTION
    assert trace.cost.branch_tokens >= 14


def test_at_the_limit_without_a_prediction_the_response_is_truncated(tokenizer):
    engine = ScriptedEngine(tokenizer, model(90, lambda k: None))
    trace = solve(engine, FracturedStop(start=4, interval=8), Sampling(temperature=0, max_tokens=20, seed=7))
    assert not trace.finished
    assert trace.cost.thinking_tokens == 20


def test_one_repeat_stops_at_the_first_prediction(tokenizer):
    engine = ScriptedEngine(tokenizer, model(90, {4: None, 6: "3"}.get))
    assert solve(engine, FracturedStop(start=4, interval=2, repeats=1)).cost.thinking_tokens == 6 + 2


def test_early_stopping_leaves_a_response_without_thinking_alone(tokenizer):
    thinking = ThinkingFormat("other", "<|user|>", "Therefore", "<|user|>", "Therefore")
    engine = ScriptedEngine(tokenizer, follow(tokenizer, "<think>\nThe answer is \\boxed{3}."), thinking=thinking)
    trace = solve(engine, FracturedStop(start=2, interval=2))
    assert trace.answer == "The answer is \\boxed{3}."
    assert trace.cost.branch_tokens == trace.cost.forced_tokens == 0


def test_watch_sees_the_end_that_was_adopted(tokenizer):
    seen = []
    engine = ScriptedEngine(tokenizer, model(90, {4: "3", 6: "3"}.get))
    trace = solve(engine, FracturedStop(start=4, interval=2), watch=lambda phase, text: seen.append(text))
    assert "".join(seen) == f"{trace.thinking}</think>{trace.answer}"


def test_watch_sees_the_retained_text_alone_where_an_earlier_cut_is_adopted(tokenizer):
    seen = []
    engine = ScriptedEngine(tokenizer, model(90, {4: "3"}.get))
    sampling = Sampling(temperature=0, max_tokens=20, seed=7)
    trace = solve(engine, FracturedStop(start=4, interval=20), sampling, watch=lambda phase, text: seen.append(text))
    assert (
        "".join(seen)
        == f"{trace.thinking}</think>{trace.answer}"
        == "Wait" * 4 + "\n</think>\n\nThe answer is \\boxed{3}."
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fractured(n=0), "n is 0"),
        (lambda: Fractured(last=17), "from 1 to depths, which is 16"),
        (lambda: Fractured(weights="square"), "equal or linear"),
        (lambda: Fractured(cuts="both"), "paper or code"),
        (lambda: Fractured(scorer="prm"), "no scorer 'prm'"),
        (lambda: FracturedStop(repeats=0), "repeats is 0"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(MethodError, match=message):
        make()


def test_defaults_are_the_papers():
    assert (Fractured().n, Fractured().depths, Fractured().m, Fractured().max_solution) == (16, 16, 4, 2048)
    assert (FracturedStop().start, FracturedStop().interval, FracturedStop().repeats) == (6144, 2048, 2)
    assert math.fsum(2 * t / (16 * 17) for t in range(1, 17)) == pytest.approx(1)
