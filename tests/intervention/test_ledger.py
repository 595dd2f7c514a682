"""What a response costs when forks take back, are adopted, are cancelled or fail: every token counts once."""

import asyncio

import pytest
from intervention.scripted import ScriptedEngine, follow

from satisfice.engines.base import EngineFailed, Sampling, Usage
from satisfice.intervention import Draft
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem

PROBLEM = Problem("p", "Start with 4: a) *2. What is the result?", "8")
TEXT = "<think>\na) 4*2=8\nSo 8.\n\nWait, let me check.\na) 4*2=8\n\n</think>\n\nThe answer is \\boxed{8}."


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def run(tokenizer, steps, written=6):
    """The cost of a draft that has written some tokens and then gone through `steps`, and the engine's own count."""
    engine = ScriptedEngine(tokenizer, follow(tokenizer, TEXT))

    async def go():
        draft = Draft(engine, PROBLEM, Sampling(temperature=0, max_tokens=100))
        await draft.write(max_tokens=written)
        await steps(draft)
        return draft

    draft = asyncio.run(go())
    cost = draft.cost()
    generated = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for _, _, text in engine.calls)
    assert cost.retained_tokens == len(draft.ids)
    assert cost.retained_tokens - cost.forced_tokens + cost.branch_tokens + cost.probe_tokens == generated
    assert cost.forward_passes == generated
    return cost


def test_a_fork_that_takes_back_what_it_inherited_throws_nothing_of_its_own_away(tokenizer):
    async def steps(draft):
        fork = draft.fork(1)
        await fork.write(max_tokens=2)
        fork.take_back(5)  # 2 of its own and 3 that the draft keeps
        await fork.write(max_tokens=4)

    cost = run(tokenizer, steps)
    assert (cost.probe_tokens, cost.branch_tokens) == (2, 4)


def test_adopting_a_fork_that_went_back_throws_away_what_it_left(tokenizer):
    async def steps(draft):
        fork = draft.fork(1)
        fork.take_back(2)
        await fork.write(max_tokens=7)
        draft.adopt(fork)
        assert len(draft.ids) == 11

    cost = run(tokenizer, steps)
    assert (cost.probe_tokens, cost.branch_tokens) == (0, 2)


def test_a_watcher_sees_what_an_adopted_fork_went_back_to(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, TEXT))
    seen = []

    async def go():
        watch = lambda phase, text: seen.append(text)  # noqa: E731
        draft = Draft(engine, PROBLEM, Sampling(temperature=0, max_tokens=100), watch=watch)
        draft.withhold()
        await draft.write(max_tokens=6)
        fork = draft.fork(1)
        fork.take_back(2)
        fork.force_text("\n\n")
        draft.adopt(fork)
        draft.show_rest()
        return draft.text(draft.ids)

    assert asyncio.run(go()) == "".join(seen)


def test_forks_of_an_adopted_fork_are_paid_once(tokenizer):
    async def steps(draft):
        outer = draft.fork(0, at=3)
        await outer.write(max_tokens=4)
        inner, other = outer.fork(0), outer.fork(1)
        await inner.write(max_tokens=5)
        await other.write(max_tokens=2)
        outer.adopt(inner)
        draft.adopt(outer)

    cost = run(tokenizer, steps)
    assert (cost.probe_tokens, cost.branch_tokens, cost.retained_tokens) == (0, 3 + 2, 3 + 4 + 5)


def test_a_fork_that_is_cancelled_has_paid_for_what_it_wrote(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, TEXT))

    async def go():
        draft = Draft(engine, PROBLEM, Sampling(temperature=0, max_tokens=100))
        fork = draft.fork(1, cancellable=True)
        task = asyncio.create_task(fork.write())
        written = task.get_coro()
        await asyncio.sleep(0)  # it has begun, and waits for its call of the engine
        while len(written.cr_await.cr_frame.f_locals.get("arrived", ())) < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return draft.cost(), len(fork.ids)

    cost, written = asyncio.run(go())
    assert written >= 3
    assert (cost.branch_tokens, cost.forward_passes, cost.retained_tokens) == (written, written, 0)


def test_a_call_that_fails_is_paid_and_nothing_of_it_retained(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, TEXT))

    async def fail(*arguments, **options):
        raise EngineFailed("lost", Usage(generated=4, prefilled=9, forward_passes=5))

    async def go():
        draft = Draft(engine, PROBLEM, Sampling(temperature=0, max_tokens=100))
        await draft.write(max_tokens=2)
        fork = draft.fork(1)
        engine.generate = fail
        with pytest.raises(EngineFailed):
            await fork.write()
        return draft.cost()

    cost = asyncio.run(go())
    assert (cost.retained_tokens, cost.branch_tokens, cost.forward_passes) == (2, 4, 7)
