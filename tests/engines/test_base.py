"""How tokens get from an engine's thread to those who listen in an event loop."""

import asyncio
import threading

from satisfice.engines.base import in_this_loop


async def in_a_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():  # the loop is free meanwhile
        await asyncio.sleep(0.001)


def test_many_tokens_wake_the_loop_once_and_come_in_order(monkeypatch):
    heard, woken = [], []

    async def listen():
        loop = asyncio.get_running_loop()
        first, second = (
            in_this_loop(lambda token, name=name: heard.append((name, token))) for name in ("first", "second")
        )
        wake = loop.call_soon_threadsafe

        def counting(call, *arguments):
            woken.append(call)
            return wake(call, *arguments)

        def step():
            for token in range(3):
                first(token)
                second(token)
            loop.call_soon_threadsafe(heard.append, "result")

        monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()  # the loop waits, so that all of them are ready at once
        assert len(woken) == 2
        await asyncio.sleep(0)

    asyncio.run(listen())
    assert heard == [(name, token) for token in range(3) for name in ("first", "second")] + ["result"]


def test_every_token_of_several_threads_arrives_in_the_order_of_its_thread():
    heard = [[] for _ in range(4)]

    async def listen():
        sends = [in_this_loop(tokens.append) for tokens in heard]
        await asyncio.gather(*(in_a_thread(lambda send=send: [send(token) for token in range(2000)]) for send in sends))
        await asyncio.sleep(0)

    asyncio.run(listen())
    assert heard == [list(range(2000))] * 4


def test_a_listener_that_fails_is_told_of_and_the_others_hear_theirs():
    heard, told = [], []

    async def listen():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))

        def fail(token):
            raise RuntimeError(f"no {token}")

        bad, good = in_this_loop(fail), in_this_loop(heard.append)
        await in_a_thread(lambda: (bad(1), good(2), bad(3), good(4)))
        await asyncio.sleep(0)

    asyncio.run(listen())
    assert heard == [2, 4]
    assert [str(error) for error in told] == ["no 1", "no 3"]


def test_a_loop_that_is_closed_hears_nothing_and_the_next_one_its_own():
    sends = []

    async def listen():
        sends.append(in_this_loop(sends.append))

    asyncio.run(listen())
    sends[0](1)
    heard = []

    async def again():
        send = in_this_loop(heard.append)
        await in_a_thread(lambda: send(2))

    asyncio.run(again())
    assert heard == [2]
