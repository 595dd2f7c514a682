"""The openai engine against a server that goes wrong: what is tried again, said, counted as cost and hidden."""

import asyncio
import email.utils
import json
import pickle
import sys
import threading
import time
import traceback
from datetime import UTC, datetime, timedelta

import pytest
from engines.fake_server import Fault, sampled

from satisfice import cli
from satisfice.engines.base import EngineClosed, EngineError, EngineFailed, Usage
from satisfice.engines.openai import OpenAIEngine
from satisfice.engines.openai_connection import FIRST_PAUSE, RefusedError, _retry_after
from satisfice.engines.openai_dialects import DIALECTS
from satisfice.engines.openai_secrets import hiding
from satisfice.runs.run_folder import read_run
from satisfice.thinking import token_bytes

KEY = 'sk-Mellon/4+friends=and"foes'
"""A key that escapes differently in URLs, HTML and JSON."""


@pytest.fixture
def hasty(monkeypatch):
    """Pauses of hundredths of a second."""
    monkeypatch.setattr("satisfice.engines.openai_connection.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("satisfice.engines.openai_connection.LONGEST_PAUSE", 0.08)


# -- faults


async def test_too_many_requests_are_waited_for_as_long_as_the_server_says(serve, load, prompt, answer):
    server = serve()
    engine = load(server)
    server.faults = [Fault(429, {"Retry-After": "0.3"})]
    generation = await engine.generate(prompt, sampled())
    assert generation.ids == answer
    assert 0.3 <= server.times[1] - server.times[0] < 2


async def test_errors_of_the_server_are_tried_again_with_growing_pauses_that_differ(serve, load, prompt, answer):
    server = serve()
    engine = load(server)
    server.faults = [Fault(500), Fault(503)]
    assert (await engine.generate(prompt, sampled())).ids == answer
    first, second = (after - before for before, after in zip(server.times, server.times[1:], strict=False))
    assert 0.375 <= first < 0.9
    assert 0.75 <= second < 1.5


async def test_a_server_that_keeps_failing_is_given_up_with_a_sentence(serve, load, prompt):
    server = serve()
    engine = load(server, max_retries=1)
    server.faults = [Fault(500)] * 2
    with pytest.raises(EngineFailed, match=r"answers 500, after 2 tries: scripted"):
        await engine.generate(prompt, sampled())
    assert len(server.requests) == 2


async def test_a_request_that_the_server_refuses_is_not_tried_again(serve, load, prompt):
    server = serve()
    engine = load(server)
    server.refuses = {"temperature"}
    with pytest.raises(EngineError, match="answers 400: temperature is not known here") as refused:
        await engine.generate(prompt, sampled())
    assert not isinstance(refused.value, EngineFailed)
    assert len(server.requests) == 1


async def test_silence_ends_at_the_time_limit(serve, load, prompt, answer):
    server = serve()
    engine = load(server, timeout=0.3, max_retries=1)
    server.faults = [Fault(silent=1.5)]
    assert (await engine.generate(prompt, sampled())).ids == answer
    server.faults = [Fault(silent=1.5)] * 2
    with pytest.raises(EngineFailed, match=r"silent for 0\.3 s, after 2 tries"):
        await engine.generate(prompt, sampled())


async def test_a_long_answer_is_not_bounded_by_the_time_limit(serve, load, prompt, answer):
    server = serve(pause=0.02)
    engine = load(server, timeout=0.25)
    started = time.monotonic()
    assert (await engine.generate(prompt, sampled())).ids == answer
    assert time.monotonic() - started > 0.25
    assert len(server.requests) == 1


async def test_a_dropped_answer_goes_on_after_the_tokens_that_had_come(kind, serve, load, prompt, answer):
    server = serve(kind)
    engine = load(server)
    server.faults = [Fault(drop_after=4), Fault(drop_after=2)]
    seen = []
    generation = await engine.generate(prompt, sampled(), on_token=seen.append)
    assert generation.ids == seen == answer
    assert (generation.finish, generation.usage.generated) == ("stop", len(answer) - (kind == "standard"))
    assert [request["max_tokens"] for request in server.requests] == [200, 196, 194]
    # What was sent again is paid for again.
    assert generation.usage.prefilled + generation.usage.cached == 3 * len(prompt) + 4 + 6
    if kind != "standard":
        assert server.requests[1]["prompt"] == [*prompt, *answer[:4]]


async def test_a_stop_may_be_cut_by_a_dropped_connection(serve, load, prompt, answer):
    server = serve("llamacpp")
    engine = load(server)
    place = (await engine.generate(prompt, sampled(stop=("= 45",)))).ids
    server.faults = [Fault(drop_after=len(place) - 1)]
    generation = await engine.generate(prompt, sampled(stop=("= 45",)))
    assert (generation.ids, generation.stopped_by) == (place, "= 45")


async def test_an_answer_that_drops_too_often_is_given_up(serve, load, prompt):
    server = serve()
    engine = load(server, max_retries=1)
    server.faults = [Fault(drop_after=1)] * 2
    with pytest.raises(
        EngineFailed, match=r"dropped the connection .*, after 2 tries; 2 tokens of the answer had come"
    ):
        await engine.generate(prompt, sampled())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(event='{"choices": [{"text": '), "no JSON"),
        (Fault(event='{"object": "something else"}'), "no completion"),
        (Fault(event='{"choices": [{"index": 0}]}'), "no completion"),
        (Fault(event="7"), "no completion"),
        (Fault(event='{"error": {"message": "out of memory"}}'), "out of memory"),
        (Fault(finish="abort"), "abort"),
    ],
)
async def test_what_cannot_be_read_is_an_error_that_shows_it(fault, said, serve, load, prompt, hasty):
    server = serve()
    engine = load(server, max_retries=1)
    server.faults = [fault, fault]
    # The first message alone says little; an answer with tokens in it is ended by the end token, not by a reason.
    with pytest.raises(EngineFailed, match=f"{said}.*after 2 tries|after 2 tries.*{said}"):
        await engine.generate(prompt, sampled(ignore_eos=True) if fault.finish else sampled())


async def test_one_failed_request_does_not_disturb_another(serve, load, prompt, answer):
    server = serve()
    engine = load(server, max_retries=0)
    server.faults = [Fault(event="7")]
    results = await asyncio.gather(*(engine.generate(prompt, sampled()) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(result, EngineError) for result in results) == 1
    assert sum(not isinstance(result, Exception) and result.ids == answer for result in results) == 3


async def test_a_cancelled_request_closes_its_connection(serve, load, prompt):
    server = serve(pause=0.02)
    engine = load(server)
    task = asyncio.create_task(engine.generate(prompt, sampled()))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if server.given_up and not server.at_once:
            break
        await asyncio.sleep(0.02)
    assert (server.given_up, server.at_once) == (1, 0)


async def test_no_more_requests_are_under_way_than_allowed(serve, load, prompt):
    server = serve(pause=0.005)
    engine = load(server, max_batch=2)
    await asyncio.gather(*(engine.generate(prompt, sampled(max_tokens=5)) for _ in range(6)))
    assert (server.most_at_once, len(server.requests)) == (2, 6)


async def test_requests_are_spaced_by_their_rate(serve, load, prompt):
    server = serve()
    engine = load(server, requests_per_minute=600)
    await asyncio.gather(*(engine.generate(prompt, sampled(max_tokens=2)) for _ in range(4)))
    spaces = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert all(space > 0.05 for space in spaces)
    assert sum(spaces) >= 0.28


async def test_a_closed_engine_says_so(serve, load, prompt):
    server = serve(pause=0.02)
    engine = load(server)
    running = asyncio.create_task(engine.generate(prompt, sampled()))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(engine.close)
    for request in (running, engine.generate(prompt, sampled())):
        with pytest.raises(EngineFailed, match="closed"):
            await request


# -- two kinds of failure


@pytest.mark.parametrize("status", [400, 402, 404, 413, 422, 451])
async def test_what_is_refused_is_refused_for_ever_and_asked_once(status, serve, load, prompt):
    server = serve()
    engine = load(server)
    server.broken = Fault(status)
    with pytest.raises(RefusedError, match=f"/v1/completions answers {status}: scripted") as refused:
        await engine.generate(prompt, sampled())
    assert not isinstance(refused.value, EngineFailed)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 501, 502, 503, 504, 529])
async def test_what_may_pass_is_tried_again_and_then_said_to_have_failed(status, serve, load, prompt, answer, hasty):
    server = serve()
    engine = load(server, max_retries=2)
    server.faults = [Fault(status)] * 2
    assert (await engine.generate(prompt, sampled())).ids == answer
    server.broken = Fault(status)
    with pytest.raises(EngineFailed, match=f"answers {status}, after 3 tries: scripted") as failed:
        await engine.generate(prompt, sampled())
    assert len(server.requests) == 6
    assert failed.value.usage == Usage()  # nothing was said of a prompt that was read


async def test_a_server_that_is_away_for_a_while_costs_the_wait_alone(serve, load, prompt, answer, hasty, caplog):
    server = serve()
    engine = load(server)
    server.broken = Fault(503)
    threading.Timer(0.15, setattr, (server, "broken", None)).start()
    generations = await asyncio.gather(*(engine.generate(prompt, sampled(seed=seed)) for seed in range(5)))
    assert all(generation.ids == answer for generation in generations)
    # Five requests wait for one thing, which is said once.
    assert sum("answers 503: scripted; going on in" in line for line in caplog.messages) == 1


async def test_a_closed_engine_says_what_the_answer_had_cost(serve, load, prompt, answer):
    server = serve(pause=0.02)
    engine = load(server)
    seen = []
    running = asyncio.create_task(engine.generate(prompt, sampled(), on_token=seen.append))
    while len(seen) < 3:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(engine.close)
    with pytest.raises(EngineClosed) as closed:
        await running
    usage = closed.value.usage
    assert 3 <= usage.generated == usage.forward_passes < len(answer)
    assert usage.prefilled + usage.cached == len(prompt)


# -- waiting


async def test_a_wait_that_is_too_long_is_not_begun_and_said_as_it_was_asked_for(serve, load, prompt):
    server = serve()
    engine = load(server)
    server.broken = Fault(429, {"Retry-After": "121"})
    with pytest.raises(
        EngineFailed, match=r"answers 429 and asks to be left alone for 121 s .* 120 s .*given up after 1 try: scripted"
    ):
        await engine.generate(prompt, sampled())
    assert len(server.requests) == 1
    server.faults = [Fault(500)]
    with pytest.raises(EngineFailed, match=r"for 121 s .* given up after 2 tries"):
        await engine.generate(prompt, sampled())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, float("inf")),
        ({}, None),
    ],
)
def test_what_a_server_asks_for_is_read_in_every_spelling(headers, seconds):
    headers = {name.lower(): value for name, value in headers.items()}
    assert _retry_after(headers) == seconds


def test_a_date_is_read_too():
    until = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    assert 38 < _retry_after({"retry-after": until}) <= 40
    assert _retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) is None


async def test_retries_keep_to_the_rate(serve, load, prompt, answer, hasty):
    server = serve()
    engine = load(server, requests_per_minute=600)
    server.faults = [Fault(503), Fault(drop_after=0), Fault(drop_after=2), Fault(event="7")]
    await asyncio.gather(*(engine.generate(prompt, sampled()) for _ in range(2)))
    spaces = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert len(spaces) == 5
    assert min(spaces) > 0.05
    assert sum(spaces) >= 0.48


async def test_a_stream_that_always_drops_at_once_is_asked_for_with_growing_pauses(serve, load, prompt):
    server = serve()
    engine = load(server, max_retries=3)
    server.broken = Fault(drop_after=0)
    with pytest.raises(EngineFailed, match=r"dropped the connection .*, after 4 tries$"):
        await engine.generate(prompt, sampled())
    spaces = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    for count, space in enumerate(spaces):
        assert 0.75 * FIRST_PAUSE * 2**count <= space < FIRST_PAUSE * 2**count + 0.5
    assert len(spaces) == 3


async def test_a_silent_server_is_asked_twice_and_not_seven_times(serve, load, prompt, hasty):
    server = serve()
    engine = load(server, timeout=0.2)
    server.broken = Fault(silent=0.6)
    with pytest.raises(EngineFailed, match=r"silent for 0\.2 s, after 2 tries"):
        await engine.generate(prompt, sampled())
    assert len(server.requests) == 2


# -- what it costs


async def test_what_had_come_before_it_was_given_up_is_cost_and_said(serve, load, prompt, hasty, caplog):
    server = serve(caches=False)
    engine = load(server, max_retries=1)
    server.faults = [Fault(drop_after=3), Fault(drop_after=2)]
    with pytest.raises(EngineFailed, match=r"; 5 tokens of the answer had come, which count as cost$") as failed:
        await engine.generate(prompt, sampled())
    assert failed.value.usage == Usage(5, 2 * len(prompt) + 3, 0, 5)
    assert any("after the 3 tokens that had come: what is sent again counts" in line for line in caplog.messages)


async def test_what_is_refused_half_way_says_its_cost_too(serve, load, prompt, hasty):
    server = serve(caches=False)
    engine = load(server)
    server.faults = [Fault(drop_after=3), Fault(400)]
    with pytest.raises(RefusedError, match="answers 400: scripted; 3 tokens") as refused:
        await engine.generate(prompt, sampled())
    assert refused.value.usage == Usage(3, len(prompt), 0, 3)
    server.faults = [Fault(finish="content_filter")]
    with pytest.raises(RefusedError, match="content_filter") as refused:
        await engine.generate(prompt, sampled(ignore_eos=True))
    assert refused.value.usage.generated > 3


async def test_a_connection_that_drops_after_the_last_token_loses_nothing(serve, load, prompt, answer):
    server = serve("llamacpp")
    engine = load(server)
    server.faults = [Fault(drop_after=6)]
    generation = await engine.generate(prompt, sampled(max_tokens=6))
    assert (generation.ids, generation.finish, len(server.requests)) == (answer[:6], "length", 1)


# -- what it says in place of an answer


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        ('{"error": {"message": "no GPU is left", "code": 503}}', {}, "no GPU is left"),
        ('{"error": "no GPU is left"}', {}, "no GPU is left"),
        ('{\n  "detail": "no GPU is left"\n}', {"Content-Type": "text/event-stream"}, "no GPU is left"),
        ('{"object": "error", "message": "no GPU is left"}', {}, "no GPU is left"),
        ("<h1>no GPU</h1>", {"Content-Type": "text/html"}, "no stream of completions, after 2 tries: <h1>no GPU"),
        ("", {}, "ended a stream before the answer"),
        ("data: [DONE]\n\n", {"Content-Type": "text/event-stream"}, "ended a stream before the answer"),
        ('event: error\ndata: {"message": "no GPU"}\n\n', {"Content-Type": "text/event-stream"}, "no GPU"),
    ],
)  # fmt: skip
async def test_an_error_in_place_of_a_stream_keeps_its_words(body, headers, said, serve, load, prompt, answer, hasty):
    server = serve()
    engine = load(server, max_retries=1)
    server.faults = [Fault(body=body, headers=headers)]
    assert (await engine.generate(prompt, sampled())).ids == answer
    server.broken = Fault(body=body, headers=headers)
    with pytest.raises(EngineFailed, match=said):
        await engine.generate(prompt, sampled())


@pytest.mark.parametrize("facts", [{"code": 400}, {"type": "invalid_request_error"}])
async def test_an_error_in_a_stream_that_says_never_is_not_tried_again(facts, serve, load, prompt):
    server = serve()
    engine = load(server)
    server.broken = Fault(event=json.dumps({"error": {"message": "too long", **facts}}))
    with pytest.raises(RefusedError, match="too long"):
        await engine.generate(prompt, sampled())
    assert len(server.requests) == 1


async def test_a_server_that_does_not_stream_is_read_all_the_same(serve, load, prompt, answer):
    server = serve()
    engine = load(server)
    choice = {"text": "", "token_ids": answer, "finish_reason": "stop"}
    server.faults = [Fault(body=json.dumps({"choices": [choice]}, indent=1))]
    assert (await engine.generate(prompt, sampled())).ids == answer


async def test_null_is_no_word(kind, serve, load, prompt, answer):
    server = serve(kind, nulls=True)
    engine = load(server)
    assert (await engine.generate(prompt, sampled())).ids == answer


@pytest.mark.parametrize("text", [7, True, ["a"], {}])
def test_a_text_is_a_text(text, checkpoint):
    words = token_bytes(checkpoint.tokenizer)
    with pytest.raises(TypeError):
        DIALECTS[-1].read({"choices": [{"text": text}]}, checkpoint.tokenizer, words)
    assert DIALECTS[-1].read({"choices": [{"text": None}]}, checkpoint.tokenizer, words).ids == []


@pytest.mark.parametrize("token", [1 << 20, "size"])
async def test_a_token_that_the_tokenizer_has_not_is_refused(token, serve, load, prompt):
    server = serve()
    engine = load(server)
    token = len(engine.token_bytes) if token == "size" else token
    server.broken = Fault(event=json.dumps({"choices": [{"text": "", "token_ids": [5, token]}]}))
    with pytest.raises(RefusedError, match=rf"wrote the token {token}, .* --tokenizer") as refused:
        await engine.generate(prompt, sampled())
    assert not isinstance(refused.value, EngineFailed)
    with pytest.raises(EngineError, match="is not in the vocabulary"):
        await engine.generate([*prompt, token], sampled())


@pytest.mark.parametrize(
    "choice",
    [
        {"token_ids": [-1]},
        {"token_ids": ["7"]},
        {"token_ids": [True]},
        {"token_ids": [7.0]},
        {"token_ids": [7], "logprobs": {"token_logprobs": [], "top_logprobs": []}},
        {"token_ids": [7], "logprobs": {"token_logprobs": [float("nan")], "top_logprobs": [{"7": -1}]}},
    ],
)
async def test_tokens_that_are_none_are_no_completion(choice, serve, load, prompt, hasty):
    server = serve()
    engine = load(server, max_retries=1)
    server.broken = Fault(event=json.dumps({"choices": [{"text": "", **choice}]}))
    with pytest.raises(EngineFailed, match="no completion, after 2 tries"):
        await engine.generate(prompt, sampled())


# -- limits that it does not keep


async def test_a_server_that_ignores_max_tokens_is_cut_off_and_this_is_said(kind, serve, load, prompt, answer, caplog):
    server = serve(kind, endless=2000, pause=0.002)
    engine = load(server)
    assert sum("was asked for 1 token and wrote" in line for line in caplog.messages) == 1
    started = time.monotonic()
    generation = await engine.generate(prompt, sampled(max_tokens=5))
    assert (generation.ids, generation.finish) == (answer[:5], "length")
    assert time.monotonic() - started < 2  # of four that it would have taken
    assert 5 < generation.usage.generated < 100  # what came after the limit is cost
    assert sum("goes on after the end" in line for line in caplog.messages) == 1


async def test_a_server_that_keeps_the_limit_is_not_accused(kind, serve, load, prompt, caplog):
    engine = load(serve(kind, chunk=3))
    await engine.generate(prompt, sampled(max_tokens=5))
    assert not any("goes on after" in line or "1 token" in line for line in caplog.messages)


async def test_an_answer_that_the_server_cuts_short_is_no_answer(kind, serve, load, prompt):
    server = serve(kind)
    engine = load(server)
    server.cap = 4
    with pytest.raises(RefusedError, match="after 4 of the 9 tokens that were asked for: lower max_tokens"):
        await engine.generate(prompt, sampled(max_tokens=9))
    assert (await engine.generate(prompt, sampled(max_tokens=4))).finish == "length"


# -- keys


ECHOES = [
    "you sent HEADERS",
    '{"detail": "you sent HEADERS"}',
    '{"error": {"message": "you sent HEADERS"}}',
    '{"choices": [{"txt": "HEADERS"}]}',
    "{" + "x" * 120 + " HEADERS",
]


def shown(error):
    """All that anybody could print of an exception."""
    chain = "".join(traceback.format_exception(error))
    return f"{error} {error!r} {error.args} {chain} {error.__cause__!r} {error.__context__!r} {vars(error)}"


def assert_hidden(text, key=KEY):
    assert key[:8] not in text
    assert key[8:] not in text


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("status", [200, 400, 401, 500])
async def test_an_echoed_key_is_hidden_everywhere(echo, status, serve, load, prompt, hasty, monkeypatch, caplog):
    monkeypatch.setenv("THE_KEY", KEY)
    caplog.set_level("DEBUG", logger="satisfice")
    server = serve(key=KEY)
    engine = load(server, api_key_env="THE_KEY", max_retries=1)
    server.broken = Fault(status, body=echo)
    with pytest.raises(EngineError) as failed:
        await engine.generate(prompt, sampled())
    server.faults = [Fault(status, body=echo)] * 3
    with pytest.raises(EngineError) as at_start:
        load(server, api_key_env="THE_KEY")
    for error in (failed.value, at_start.value):
        assert_hidden(shown(error))
        assert "Bearer" not in shown(error) or "***" in shown(error)
    assert_hidden(caplog.text)
    assert_hidden(f"{engine!r} {vars(engine)} {engine.connection!r} {engine.device}")


@pytest.mark.parametrize("form", ["{}", "sk-Mellon%2F4%2Bfriends%3Dand%22foes", 'sk-Mellon\\/4+friends=and\\"foes'])
def test_a_key_is_hidden_in_every_escape_and_where_it_is_cut_off(form):
    hide = hiding(KEY)
    written = form.format(KEY)
    for text in (f"Bearer {written}", f"{written},", written[:16], written.upper(), f"<b>{written}</b>"):
        assert "***" in hide(text)
        assert_hidden(hide(text).lower(), KEY.lower())


def test_a_short_key_hides_no_parts_of_words():
    assert hiding("x")("exit: Bearer x, key=x.") == "exit: Bearer ***, key=***."
    assert hiding("EMPTY")("EMPTY EMPTYING") == "*** EMPTYING"
    assert hiding("")("nothing") == "nothing"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/v1?api-key=hush-hush",
        "http://127.0.0.1:1/v1#hush-hush",
        "http://hush-hush@127.0.0.1:1/v1",
        "http://me:hush-hush@127.0.0.1:1/v1",
        "http://me:hush?hush-hush@127.0.0.1:1/v1",
        "127.0.0.1/v1?key=hush-hush",
        "me:hush-hush@127.0.0.1/v1",
        "http://127.0.0.1:1/hush-hush/v1",
        "http://127.0.0.1:1/hush%2Dhush/v1",
    ],
)
def test_a_base_url_with_a_secret_is_refused_without_it(url, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hush-hush")
    with pytest.raises(EngineError, match="the base URL") as refused:
        OpenAIEngine.load("fake", base_url=url, tokenizer="lab")
    assert "hush" not in shown(refused.value)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("sk-0123-hush", None, "--api-key-env takes the name"),
        ("gsk_hush0123", None, "that --api-key-env names, .* is not set"),
        ("THE_KEY", "hush hush", "no header can carry|that no header"),
        ("THE_KEY", "hush\nhush", "in the environment variable THE_KEY has a blank, a line break"),
        ("THE_KEY", "hüsh", "another character"),
    ],
)  # fmt: skip
def test_a_key_that_is_none_or_stands_in_the_wrong_place_is_not_shown(variable, value, said, serve, load, monkeypatch):
    if value is not None:
        monkeypatch.setenv(variable, value)
    with pytest.raises(EngineError, match=said) as refused:
        load(serve(), api_key_env=variable)
    assert "hush" not in shown(refused.value)


def test_a_line_break_after_a_key_does_not_belong_to_it(serve, load, monkeypatch):
    monkeypatch.setenv("THE_KEY", "sk-good-key\n")
    load(serve(key="sk-good-key"), api_key_env="THE_KEY")


def test_failures_travel_between_processes_with_their_cost():
    failed = pickle.loads(pickle.dumps(EngineFailed("gone", Usage(3))))
    assert (str(failed), failed.usage) == ("gone", Usage(3))


# -- at the start


def test_a_base_url_without_v1_is_told_where_the_models_are(serve, load):
    server = serve(root="/v1")
    url = server.url.removesuffix("/v1")
    with pytest.raises(EngineError, match=f"give --base-url {url}/v1$"):
        OpenAIEngine.load("fake", base_url=url, tokenizer="lab")
    with pytest.raises(EngineError, match=f"give --base-url {url}/v1$"):
        OpenAIEngine.load("fake", base_url=f"{url}/", tokenizer="lab")
    load(serve(root="/api/openai"))  # who serves elsewhere is left alone


@pytest.mark.parametrize("path", ["/completions", "/chat/completions", "/models"])
def test_a_base_url_is_not_the_path_of_a_request(path):
    with pytest.raises(EngineError, match=f"ends with the path of a request: leave out {path}$"):
        OpenAIEngine.load("fake", base_url=f"http://127.0.0.1:1/v1{path}", tokenizer="lab")


def test_a_server_that_is_down_is_said_within_seconds(serve):
    server = serve()
    server._http.server_close()
    started = time.monotonic()
    with pytest.raises(EngineFailed, match=r"cannot reach .*/v1/models \(.*\), after 3 tries: start the server"):
        OpenAIEngine.load("fake", base_url=server.url, tokenizer="lab")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(500), r"/v1/models answers 500, after 3 tries: scripted"),
        (Fault(401), r"/v1/models refuses the key"),
        (Fault(400), r"/v1/models answers 400: scripted"),
        (Fault(200, body="{not"), r"/v1/models wrote what is no JSON: \{not"),
    ],
)
def test_a_list_that_fails_is_named_by_its_path(fault, said, serve, load, hasty):
    with pytest.raises(EngineError, match=said):
        load(serve(broken_list=fault))


@pytest.mark.parametrize("body", ['"hello"', "[]", '{"data": 7}', '{"data": [{"id": 7}, "fake"]}', '{"data": null}'])
def test_a_list_that_is_none_is_no_hindrance(body, serve, load):
    assert load(serve(broken_list=Fault(200, body=body))).context_length > 0


def test_what_most_methods_need_and_the_server_lacks_is_said_at_the_start(serve, load, caplog):
    load(serve("standard", caches=False))
    (said,) = [line for line in caplog.messages if "does not offer" in line]
    assert "control" in said
    assert "which tokens it wrote" in said
    assert "--enable-prompt-tokens-details" in said
    caplog.clear()
    load(serve(plugin=True))
    assert not caplog.messages


async def test_seeds_beyond_the_numbers_of_json_reach_the_server_whole(serve, load, prompt):
    server = serve()
    engine = load(server)
    for seed in (1 << 53, (1 << 53) + 1, (1 << 64) + 5, -1):
        await engine.generate(prompt, sampled(seed=seed, max_tokens=1))
    seeds = [request["seed"] for request in server.requests]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 1 << 31 for seed in seeds)


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"requests_per_minute": -1.0}, {"timeout": 0.0}, {"max_retries": -1}]
)
def test_settings_that_cannot_be_are_refused(options, serve, load):
    with pytest.raises(EngineError, match=f"{next(iter(options))} is .*it must be"):
        load(serve(), **options)


# -- what the user sees


@pytest.fixture
def compare(monkeypatch, tmp_path, capfd):
    """`satisfice compare` on a scripted server: exit status, what was printed, the run folder."""

    def run(url, *more):
        command = [
            "satisfice", "compare", "fake", "--engine", "openai", "--base-url", url, "--tokenizer", "lab", "--problems",
            "lab:test", "--limit", "20", "--methods", "plain", "--max-tokens", "200", "--out", str(tmp_path / "run"),
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capfd.readouterr()
        return ended.value.code or 0, " ".join(f"{out.out} {out.err}".split()), tmp_path / "run"

    return run


def test_a_run_over_an_outage_has_every_answer(serve, compare, hasty, caplog):
    server = serve(pause=0.002)

    def outage():
        while len(server.requests) < 22:
            time.sleep(0.005)
        server.broken = Fault(503)
        time.sleep(0.2)
        server.broken = None

    threading.Thread(target=outage, daemon=True).start()
    status, _, folder = compare(server.url, "--max-batch", "4")
    assert (status, len(read_run(folder).traces["plain"])) == (0, 20)
    assert caplog.text.count("answers 503") == 1


def test_a_run_that_loses_its_server_stops_and_goes_on_with_the_same_command(serve, compare, hasty, monkeypatch):
    monkeypatch.setattr("satisfice.runs.experiment.PAUSE", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(pause=0.002, key=KEY)

    def goes():
        while len(server.requests) < 16:
            time.sleep(0.005)
        server.broken = Fault(503, body="gone: HEADERS")

    threading.Thread(target=goes, daemon=True).start()
    status, said, folder = compare(server.url, "--max-batch", "4")
    assert status == 1
    before = len(read_run(folder).traces["plain"])
    assert 0 < before < 20
    server.broken = None
    status, _, folder = compare(server.url, "--max-batch", "4")
    assert (status, len(read_run(folder).traces["plain"])) == (0, 20)
    for file in folder.rglob("*"):
        if file.is_file():
            assert_hidden(file.read_text())
    assert_hidden(said)


def test_a_run_on_a_server_that_is_down_begins_nothing(serve, compare):
    server = serve()
    server._http.server_close()
    status, said, folder = compare(server.url)
    assert status == 2
    assert "start the server or correct the URL" in said
    assert not folder.exists()
