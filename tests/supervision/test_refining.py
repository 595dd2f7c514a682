"""Curations that work with a model: rewording under the divergence limit, pruning by importance, the judge."""

import asyncio
import json
import math
from collections import Counter
from itertools import pairwise

import pytest
from intervention.scripted import ScriptedEngine
from supervision.sampled import problem, trace

from satisfice.engines.base import Capability, EngineFailed
from satisfice.supervision import Drop, Reason, Tools, parse_curation
from satisfice.supervision.method import Memory, side_by_side
from satisfice.supervision.methods.pir import Scored, read_judgement
from satisfice.supervision.methods.tokensqueeze import divergence, step_cuts
from satisfice.supervision.steps import StepKind

QUESTION = "Start with 10. Steps in the order of their letters: c) +5. What is the result?"
TURNS = ({"role": "user", "content": QUESTION},)
ANSWER = "\n\nThe answer is \\boxed{15}."
V, M, C, P = StepKind.VERIFICATION, StepKind.MULTI_METHOD, StepKind.CORRECTION, StepKind.PROGRESSIVE


def sampled(engine, thinking, *, wrong=True):
    """A problem with a right trace that an engine could have written, and a longer wrong one."""
    prompt = engine.thinking.render(engine.tokenizer, [dict(turn) for turn in TURNS])
    ids = engine.tokenizer(f"{thinking}</think>{ANSWER}<|end|>", add_special_tokens=False)["input_ids"]
    split = engine.thinking.split(engine.tokenizer, ids[:-1], prompt.state)
    right = trace(
        len(ids), thinking=split.thinking, answer=split.answer, prompt_ids=prompt.ids, response_ids=ids,
        thinking_span=split.span, sample=0, gold="15", prompt=QUESTION,
    )  # fmt: skip
    right.cost.thinking_tokens = split.thinking_tokens
    right.cost.answer_tokens = len(ids) - split.thinking_tokens
    others = [trace(999, False, sample=1, prompt_ids=prompt.ids, gold="15", prompt=QUESTION)] if wrong else []
    return problem(right, *others, turns=TURNS, question=QUESTION, gold="15", thinking=engine.thinking)


async def graded_right(problem, answer, finished):
    return finished and "15" in answer


def refined(curation, sampled_problem, engine, grade=graded_right):
    made = parse_curation(curation)
    items = made.items(sampled_problem)
    return asyncio.run(made.refine(sampled_problem, items, Tools(engine, grade)))


def row_of(items):
    (row,) = [item for item in items if not isinstance(item, Drop)]
    return row


# -- tokensqueeze


def test_divergence_in_closed_values():
    assert divergence([-1.0, -2.0], [-1.0, -2.0]) == 0
    r = math.exp(0.5)
    assert divergence([-1.0], [-0.5]) == pytest.approx(r - 1 - 0.5)
    assert divergence([-1.0, -1.0], [-0.5, -1.0], mean=True) == pytest.approx((r - 1 - 0.5) / 2)
    assert divergence([-2000.0], [-1.0]) == math.inf
    # Unbiased: over tokens drawn from p it is the divergence of q from p.
    p, q = [0.7, 0.3], [0.4, 0.6]
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = sum(a * divergence([math.log(a)], [math.log(b)]) for a, b in zip(p, q, strict=True))
    assert found == pytest.approx(expected)


THINKING = "Wait. Wait. So 15.\n\nc) 10+5=15\nSo 15.\n\nSo 15.\n\n"


def shortening(text):
    """Writes "So 15." and an empty line from wherever a step begins."""
    for end, token in (("So ", "15"), ("15", "."), (".", "\n\n")):
        if text.endswith(end):
            return {token: 0.9}
    return {"So ": 0.9}


def test_the_shortest_candidate_within_the_limit_takes_the_place_of_a_step(tokenizer):
    engine = ScriptedEngine(tokenizer, shortening)
    before = sampled(engine, THINKING)
    row = row_of(refined("tokensqueeze:candidates=4,limit=1000", before, engine))
    assert row.chosen.thinking.startswith("So 15.\n\n")
    assert row.chosen.thinking.endswith("So 15.\n\n")
    assert row.chosen.answer == before.traces[0].answer
    assert row.chosen.tokens < row.before
    fewer = len(tokenizer(THINKING)["input_ids"]) - len(tokenizer(row.chosen.thinking)["input_ids"])
    assert row.chosen.tokens == row.before - fewer
    assert row.notes["steps"] == 3
    assert row.notes["steps_reworded"] == 2
    assert row.rejected.tokens == 999


def test_the_divergence_is_that_of_whole_distributions_where_the_engine_gives_them(tokenizer):
    # After the short step the next token is much less sure, and the token that follows hardly less likely: what the
    # given tokens say of it and what the distributions say differ.
    def script(text):
        if text.endswith("Wait. Wait. So 15.\n\n"):
            return {"c) ": 0.5, "So ": 0.4}
        return {"c) ": 0.5, "d) ": 0.4} if text.endswith("So 15.\n\n") else shortening(text)

    async def tried(without, limit):
        engine = ScriptedEngine(tokenizer, script, without=without)
        before = sampled(engine, THINKING)
        made = parse_curation(f"tokensqueeze:candidates=4,window=1,limit={limit}")
        items = await made.refine(before, made.items(before), Tools(engine, graded_right))
        return not row_of(items).chosen.thinking.startswith("Wait. Wait."), made.remarks(engine)

    whole = 0.4 * math.log(0.4 / (0.1 / (len(tokenizer) - 2)))
    for factor, passes in ((0.8, False), (1.2, True)):
        assert asyncio.run(tried((), whole * factor))[0] is passes
    reworded, (remark,) = asyncio.run(tried([Capability.DISTRIBUTIONS], 0.001))
    assert reworded
    assert "estimate" in remark
    assert "whole" in asyncio.run(tried((), 1))[1][0]


def test_the_estimate_takes_the_log_probabilities_that_the_run_kept(tokenizer):
    engine = ScriptedEngine(tokenizer, shortening, without=[Capability.DISTRIBUTIONS])
    before = sampled(engine, THINKING)
    trace = before.traces[0]
    scored = []
    inner = engine.score

    async def score(ids, start):
        scored.append(len(ids))
        return await inner(ids, start)

    engine.score = score
    ids = [*trace.prompt_ids, *trace.response_ids]
    alone = row_of(refined("tokensqueeze:candidates=4,limit=1000", before, engine))
    assert scored.count(len(ids)) == 1
    found = asyncio.run(inner(ids, len(trace.prompt_ids))).logprobs
    for logprobs, times in (([round(each, 4) for each in found], 0), ([None, *found[1:]], 1)):
        trace.logprobs, scored[:] = logprobs, []
        assert row_of(refined("tokensqueeze:candidates=4,limit=1000", before, engine)).chosen == alone.chosen
        assert scored.count(len(ids)) == times


class Remembering(Memory):
    """Keeps what it is given as JSON, as a file would."""

    def __init__(self):
        self.found = {}

    def get(self, key):
        return json.loads(self.found[key]) if key in self.found else None

    def put(self, key, value):
        assert key not in self.found
        self.found[key] = json.dumps(value)


@pytest.mark.parametrize("curation", ["tokensqueeze:candidates=4,limit=1000", "pir:ratio=0.5,recheck=true"])
def test_what_is_in_memory_is_not_asked_again(tokenizer, curation):
    engine = ScriptedEngine(tokenizer, shortening)
    before = sampled(engine, CHAIN if curation.startswith("pir") else THINKING)
    made, memory = parse_curation(curation), Remembering()
    asked = []

    def noted(inner):
        def call(*given, **options):
            asked.append(given)
            return inner(*given, **options)

        return call

    for name in ("generate", "score", "divergences"):
        setattr(engine, name, noted(getattr(engine, name)))

    def carried_out():
        asked.clear()
        return asyncio.run(made.refine(before, made.items(before), Tools(engine, graded_right, memory=memory)))

    first = carried_out()
    assert asked
    assert row_of(first).notes
    assert carried_out() == first
    assert not asked
    # One finding that is lost costs that finding alone.
    whole = len(memory.found)
    memory.found.popitem()
    assert carried_out() == first
    assert asked
    assert len(memory.found) == whole


def test_no_candidate_within_the_limit_leaves_the_step(tokenizer):
    engine = ScriptedEngine(tokenizer, shortening)
    before = sampled(engine, THINKING)
    row = row_of(refined("tokensqueeze:candidates=4,limit=0", before, engine))
    assert row.chosen == before.response(0)
    assert row.notes["candidates_accepted"] == 0
    assert row.notes["candidates"] > 0


def test_the_last_step_is_protected_and_one_step_is_left_alone(tokenizer):
    engine = ScriptedEngine(tokenizer, shortening)
    thinking = "So 15.\n\nWait. Wait. So 15.\n\n"
    before = sampled(engine, thinking)
    kept = row_of(refined("tokensqueeze:candidates=2,limit=1000", before, engine))
    assert kept.chosen.thinking == thinking
    free = row_of(refined("tokensqueeze:candidates=2,limit=1000,protect_last=false", before, engine))
    assert free.chosen.thinking == "So 15.\n\nSo 15.\n\n"
    alone = sampled(engine, "Wait. Wait. So 15.")
    assert row_of(refined("tokensqueeze:candidates=2,limit=1000", alone, engine)).chosen == alone.response(0)


def test_candidates_that_close_thinking_are_none(tokenizer):
    engine = ScriptedEngine(tokenizer, lambda text: {"</think>": 0.5, "\n\n": 0.5})
    before = sampled(engine, THINKING)
    row = row_of(refined("tokensqueeze:candidates=8,limit=1000", before, engine))
    assert "</think>" not in row.chosen.thinking
    assert row.chosen.answer == before.traces[0].answer


def test_cuts_are_in_the_tokens_of_the_response(tokenizer):
    engine = ScriptedEngine(tokenizer, shortening)
    one = sampled(engine, THINKING).traces[0]
    cuts = step_cuts(engine, one, "paragraph")
    pieces = [tokenizer.decode(one.response_ids[a:b]) for a, b in pairwise(cuts)]
    assert pieces == ["Wait. Wait. So 15.\n\n", "c) 10+5=15\nSo 15.\n\n", "So 15.\n\n"]
    assert step_cuts(engine, one.model_copy(update={"thinking": "elsewhere"}), "paragraph") == []


# -- pir

CHAIN = "c) 10+5=15\nSo 15.\n\nWait. So 15.\n\nWait. c) 10+5=15\n\nAlternatively. So 15.\n\nSo 15.\n\n"


def needing(*needed):
    """The answer is likely where all of these stand in the thinking, less so for each that is missing."""

    def script(text):
        missing = sum(piece not in text for piece in needed)
        return {"15": 0.9 * 0.5**missing} if text.endswith("\\boxed{") else {"}": 0.9}

    return script


def test_what_the_answer_needs_least_is_deleted(tokenizer):
    engine = ScriptedEngine(tokenizer, needing("Wait. c) 10+5=15", "Alternatively"))
    before = sampled(engine, CHAIN, wrong=False)
    row = row_of(refined("pir:ratio=0.5", before, engine))
    # Of two checks one goes, the one that is not needed; of one other way none, as a half is rounded down.
    assert row.response.thinking == CHAIN.replace("Wait. So 15.\n\n", "")
    assert row.response.tokens == row.before - len(tokenizer("Wait. So 15.\n\n")["input_ids"])
    assert row.notes["steps_functional"] == 3
    assert row.notes["steps_deleted"] == 1
    up = row_of(refined("pir:ratio=0.5,rounding=ceil", before, engine))
    assert "Alternatively" not in up.response.thinking
    kept = row_of(refined("pir:ratio=1,verification=0,multi_method=0", before, engine))
    assert kept.response == before.response(0)
    none = row_of(refined("pir:ratio=0", before, engine))
    assert none.response == before.response(0)


def test_a_chain_without_functional_steps_or_boundaries_stays(tokenizer):
    engine = ScriptedEngine(tokenizer, needing())
    for thinking in ("c) 10+5=15\n\nSo 15.\n\n", "Wait. Wait. So 15."):
        before = sampled(engine, thinking, wrong=False)
        row = row_of(refined("pir:ratio=1", before, engine))
        assert row.response == before.response(0)
        assert row.notes["steps_deleted"] == 0
    assert engine.calls == []


def test_of_equal_scores_the_later_step_goes():
    made = parse_curation("pir:ratio=0.5")
    assert made.lowest([(0.0, 1), (0.0, 4)], V) == {1}
    assert made.lowest([(-1.0, 1), (0.0, 4)], V) == {0}
    scored = Scored(["a", "b", "c", "d"], [P, V, C, V], {1: 0.0, 2: -5.0, 3: 0.0})
    assert made.pruned(scored) == {3}


@pytest.mark.parametrize(
    ("rounding", "number", "deleted"),
    [("floor", 5, 1), ("ceil", 5, 2), ("round", 5, 2), ("floor", 10, 3), ("ceil", 10, 3), ("round", 3, 1),
     ("floor", 3, 0)],
)  # fmt: skip
def test_rounding_is_of_the_decimal_number(rounding, number, deleted):
    # 0.3 * 10 is 3, not a hair below or above; 0.3 * 5 is one and a half, and half goes to the even number.
    made = parse_curation(f"pir:ratio=0.3,rounding={rounding}")
    assert len(made.lowest([(float(place), place) for place in range(number)], V)) == deleted


def test_the_threshold_over_all_data(tokenizer):
    engine = ScriptedEngine(tokenizer, needing("Wait. c) 10+5=15"))
    one = sampled(engine, "So 15.\n\nWait. So 15.\n\n", wrong=False)
    other = sampled(engine, "So 15.\n\nWait. c) 10+5=15\n\n", wrong=False)
    pool = [one, problem(*other.traces, id="q", turns=TURNS, question=QUESTION, gold="15", thinking=engine.thinking)]

    async def pruned(spelled):
        tools = Tools(engine, graded_right)
        made = await parse_curation(spelled).prepare(pool, tools)
        return [row_of(await made.refine(each, made.items(each), tools)).response.thinking for each in pool]

    # Of one check in each chain half is none; of the two in the data it is one.
    assert asyncio.run(pruned("pir:ratio=0.5")) == [one.traces[0].thinking, other.traces[0].thinking]
    assert asyncio.run(pruned("pir:ratio=0.5,scope=data")) == ["So 15.\n\n", other.traces[0].thinking]


def test_a_chain_whose_answer_would_change_stays_whole(tokenizer):
    engine = ScriptedEngine(tokenizer, lambda text: {"<|end|>": 0.99})
    before = sampled(engine, CHAIN, wrong=False)
    whole = row_of(refined("pir:ratio=1,recheck=true", before, engine))
    assert whole.response == before.response(0)
    assert whole.notes["answer_changed"] == 1

    async def right(problem, answer, finished):
        return True

    assert "Wait" not in row_of(refined("pir:ratio=1,recheck=true", before, engine, right)).response.thinking


def test_a_chain_that_finds_no_room_is_dropped(tokenizer):
    engine = ScriptedEngine(tokenizer, needing(), context_length=40)
    items = refined("pir:ratio=1", sampled(engine, CHAIN, wrong=False), engine)
    assert Counter(item.reason for item in items) == {Reason.TOO_LONG: 1}


# -- the judge


class Judge(ScriptedEngine):
    """Ends its reply at once, or fails."""

    def __init__(self, tokenizer, fails):
        super().__init__(tokenizer, lambda text: {"<|end|>": 1.0})
        self.fails = fails

    async def generate(self, prompt_ids, sampling, **options):
        if self.fails:
            raise EngineFailed("gone")
        return await super().generate(prompt_ids, sampling, **options)


@pytest.mark.parametrize(
    ("reply", "kinds"),
    [
        ('{"verification": [1], "multi-method": [], "correction": [2]}', {1: V, 2: C}),
        ('Sure! ```json\n{"verification": [0]}\n```', {0: V}),
        ('{"verification": []}', {}),
        ("I would not know.", None),
        ('{"verification": [1', None),
        ('{"verification": [9]}', None),
        ('{"verification": [-1]}', None),
        ('{"verification": [1], "correction": [1]}', None),
        ('{"verification": "all"}', None),
        ('{"verification": [true]}', None),
        ('{"verification": [1.0]}', None),
        ('{"steps": [1]}', None),
        ("[1, 2]", None),
        ("", None),
    ],
)
def test_what_a_judge_says(reply, kinds):
    assert read_judgement(reply, 3) == kinds


def test_a_judge_that_dies_or_talks_nonsense(tokenizer):
    engine = ScriptedEngine(tokenizer, needing())
    before = sampled(engine, "c) 10+5=15\n\nWait. So 15.\n\n", wrong=False)
    engine.companions = {"j": Judge(tokenizer, True)}
    items = refined("pir:ratio=1,judge=j", before, engine)
    assert Counter(item.reason for item in items) == {Reason.JUDGE_FAILED: 1}
    engine.companions = {"j": Judge(tokenizer, False)}
    row = row_of(refined("pir:ratio=1,judge=j", before, engine))
    assert row.notes["judge_nonsense"] == 1
    # What the rules say stands all the same.
    assert row.response.thinking == "c) 10+5=15\n\n"


# -- many problems


def test_jobs_side_by_side_come_in_their_order_and_a_failure_ends_them():
    under_way, most = 0, 0
    cancelled = []

    async def job(number):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            await asyncio.sleep(0.001 * (5 - number % 5))
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        finally:
            under_way -= 1
        if number == 7:
            raise ValueError("seven")
        return number

    async def results(numbers):
        return [each async for each in side_by_side(map(job, numbers), 3)]

    assert asyncio.run(results(range(6))) == [*range(6)]
    assert most == 3
    with pytest.raises(ValueError, match="seven"):
        asyncio.run(results([1, 2, 7, 3, 8, 9]))
    assert under_way == 0
