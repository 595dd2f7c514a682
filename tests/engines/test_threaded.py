"""The thread of an engine: whatever becomes of it, nobody waits forever."""

import asyncio
import threading

import pytest

from satisfice.engines.base import EngineClosed, EngineFailed, Sampling
from satisfice.engines.threaded import Request, ThreadedEngine


class Echo(ThreadedEngine[Request]):
    """Writes a token a turn, always 7; a turn waits until it is let go, and may go wrong."""

    name, context_length, end_ids, _vocabulary = "echo", 100, frozenset(), 10

    def __init__(self):
        super().__init__()
        self.running: list[Request] = []
        self.go = threading.Event()
        self.go.set()
        self.wrong = self.wrong_reset = None
        self.dropped = 0

    def _new_request(self, ids, sampling):
        return Request(ids, sampling)

    _new_scoring = trees = _new_request

    def _has_work(self):
        return bool(self.running)

    def _turn(self):
        self.running += self._waiting
        self._waiting.clear()
        self.go.wait(20)
        if self.wrong is not None:
            wrong, self.wrong = self.wrong, None
            raise wrong
        kept = [request for request in self.running if not request.cancelled]
        self.dropped += len(self.running) - len(kept)
        self.running = []
        for request in kept:
            request.ids.append(7)
            request.usage.generated += 1
            if len(request.ids) - request.prompt_length == request.sampling.max_tokens:
                request.finish(("length", None, 0))
            else:
                self.running.append(request)

    def _unanswered(self):
        return [*self.running, *self._waiting]

    def _reset(self):
        self.running.clear()
        if self.wrong_reset is not None:
            raise self.wrong_reset


Echo.__abstractmethods__ = frozenset()


@pytest.fixture
def engine():
    engine = Echo()
    yield engine
    engine.go.set()
    engine.close()


async def ask(engine, tokens=3):
    return await asyncio.wait_for(engine.generate([1, 2], Sampling(max_tokens=tokens)), 20)


def test_a_turn_that_goes_wrong_fails_everybody_and_the_engine_goes_on(engine):
    async def go():
        engine.wrong = RuntimeError("no memory")
        failed = await asyncio.gather(ask(engine), return_exceptions=True)
        return failed, await ask(engine)

    (failed,), done = asyncio.run(go())
    assert isinstance(failed, EngineFailed)
    assert "echo failed: RuntimeError: no memory" in str(failed)
    assert done.ids == [7, 7, 7]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("wrong", [RuntimeError("device lost"), SystemExit(1)])
def test_nobody_waits_for_a_thread_that_has_ended(engine, wrong):
    async def go():
        engine.go.clear()
        first = asyncio.create_task(ask(engine))
        while not engine.running:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(ask(engine))  # still in the inbox when the thread ends
        while not engine._inbox:
            await asyncio.sleep(0.001)
        if isinstance(wrong, SystemExit):
            engine.wrong = wrong
        else:
            engine.wrong, engine.wrong_reset = ValueError("first"), wrong
        engine.go.set()
        answers = await asyncio.gather(first, second, return_exceptions=True)
        with pytest.raises(EngineClosed):
            await ask(engine)
        return answers

    assert [type(answer) for answer in asyncio.run(go())] == [EngineFailed, EngineFailed]


def test_a_caller_who_is_cancelled_while_waiting_is_dropped_and_the_others_are_served(engine):
    async def go():
        engine.go.clear()
        gone, stays = asyncio.create_task(ask(engine)), asyncio.create_task(ask(engine, 5))
        while len(engine.running) + len(engine._inbox) < 2:
            await asyncio.sleep(0.001)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        engine.go.set()
        return await stays

    assert asyncio.run(go()).ids == [7] * 5
    assert engine.dropped == 1


def test_closing_answers_who_waits(engine):
    async def go():
        engine.go.clear()
        waiting = asyncio.create_task(ask(engine, 50))
        while not engine.running:
            await asyncio.sleep(0.001)
        threading.Timer(0.05, engine.go.set).start()
        await asyncio.to_thread(engine.close)
        return (await asyncio.gather(waiting, return_exceptions=True))[0]

    done = asyncio.run(go())
    assert isinstance(done, EngineClosed) or done.ids == [7] * 50
