"""The watch: which requests are shadowed, what is compared, what an alarm does, and what survives a restart."""

import asyncio
import json
import logging
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from runs.test_calibration import RaisedEngine, answering
from server.running import HeldEngine, serving

from satisfice.engines.base import Sampling
from satisfice.intervention import parse_method
from satisfice.intervention.methods.plain import Plain
from satisfice.runs.watch import AnswerWatch
from satisfice.server.app import ChatServer, Settings
from satisfice.server.watch import WatchSettings
from satisfice.thinking import ThinkingFormat

WORSE = parse_method("temperature-scaling")  # ends behind the first paragraph, with another answer than plain
SAME = parse_method("temperature-scaling:t=0.95")


def until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def ask(running, times, **fields):
    return [running.post(temperature=0, **fields)[2]["choices"][0]["message"]["content"] for _ in range(times)]


def watched(running):
    return json.loads(running.request("GET", "/health")[2])["watch"]


def test_an_alarm_is_raised_said_and_acted_on(tokenizer, caplog):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    settings = WatchSettings(share=1.0, max_loss=0.2, confidence=0.9, on_alarm="baseline")
    with caplog.at_level(logging.INFO, "satisfice.server"), serving(engine, method=WORSE, watch=settings) as running:
        before = ask(running, 1)[0]
        assert "boxed{1}" in before
        ask(running, 12)
        until(lambda: watched(running)["alarm"])
        found = watched(running)
        assert found["disagreement"] == 1
        assert found["answered_by"] == "plain"
        assert found["e_value"] >= 10
        assert found["shadow_tokens"] > 0
        assert "boxed{3}" in ask(running, 1)[0]
        assert running.metric("satisfice_watch_alarm") == 1
        assert running.metric("satisfice_watch_disagreement") == 1
        assert running.metric('satisfice_watch_shadows{outcome="compared"}') == found["shadows"]["compared"]
        # Whoever names the method gets it.
        assert "boxed{1}" in ask(running, 1, method="temperature-scaling")[0]
    assert any(
        record.message.startswith("ALARM: temperature-scaling disagrees with plain") for record in caplog.records
    )


def test_an_alarm_is_said_once_whatever_is_under_way(tokenizer, caplog):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    settings = WatchSettings(1.0, 0.2, 0.9, capacity=1.0)
    with caplog.at_level(logging.WARNING, "satisfice.server"), serving(
        engine, method=WORSE, watch=settings, max_concurrency=16
    ) as running:  # fmt: skip
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: ask(running, 1), range(48)))
        until(lambda: watched(running)["compared"] == 48)
    assert sum(record.message.startswith("ALARM") for record in caplog.records) == 1


def test_where_nothing_differs_nothing_is_raised_and_the_share_is_kept(tokenizer):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    with serving(engine, method=SAME, watch=WatchSettings(share=0.5, max_loss=0.2)) as running:
        ask(running, 40)
        until(lambda: running.metric("satisfice_watch_shadows_under_way") == 0)
        found = watched(running)
        assert 8 <= found["shadows"]["compared"] <= 32
        assert (found["disagreement"], found["alarm"], found["answered_by"]) == (0, False, str(SAME))
        assert 0 == found["low"] < found["high"] < 0.5


def test_an_alarm_may_fall_back_to_the_next_more_careful_setting_or_only_warn(tokenizer):
    for on_alarm, careful, answered_by in (
        ("next", SAME, str(SAME)),
        ("next", None, "plain"),
        ("warn", SAME, str(WORSE)),
    ):
        engine = RaisedEngine(tokenizer, answering(tokenizer))
        settings = WatchSettings(1.0, 0.2, 0.9, on_alarm, careful)
        with serving(engine, method=WORSE, efforts={"low": WORSE}, watch=settings) as running:
            ask(running, 14)
            until(lambda running=running: watched(running)["alarm"])
            assert watched(running)["answered_by"] == answered_by
            # An effort that stood for the method that failed stands for its replacement now.
            low = ask(running, 1, reasoning_effort="low")[0]
            assert ("boxed{1}" in low) == (on_alarm == "warn")


def test_the_state_survives_a_restart_and_belongs_to_one_watch(tokenizer, tmp_path):
    state = tmp_path / "watch.json"
    settings = WatchSettings(1.0, 0.2, 0.9, "baseline", state=state)
    with serving(RaisedEngine(tokenizer, answering(tokenizer)), method=WORSE, watch=settings) as running:
        ask(running, 14)
        until(lambda: watched(running)["alarm"])
        before = watched(running)
    with serving(RaisedEngine(tokenizer, answering(tokenizer)), method=WORSE, watch=settings) as running:
        after = watched(running)
        assert after["compared"] >= before["compared"]
        assert after["alarm_at"] == before["alarm_at"]
        assert after["shadow_tokens"] >= before["shadow_tokens"]
        assert "boxed{3}" in ask(running, 1)[0], "the alarm still holds"
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    with pytest.raises(ValueError, match=r"state of another watch \(method 'temperature-scaling' instead of 'temperat"):
        ChatServer(engine, Settings("lab", SAME, watch=settings))
    with pytest.raises(ValueError, match=r"max loss 0.2 instead of 0.1\): remove it to begin anew"):
        ChatServer(engine, Settings("lab", WORSE, watch=WatchSettings(1.0, 0.1, 0.9, state=state)))
    kept = json.loads(state.read_text())
    for text, message in (
        ("{", "holds no state of a watch"),
        ("[]", "holds no state of a watch"),
        ("[" * 100_000, "holds no state of a watch"),
        ("{}", "holds no state of a watch"),
        (json.dumps({**kept, "answers": {**kept["answers"], "unanswered": 10**6}}), "holds no state of a watch"),
        (json.dumps({**kept, "outcomes": {**kept["outcomes"], "compared": 1}}), "1 compared, and"),
        (
            json.dumps({**kept, "answers": {**kept["answers"], "alarm": {**kept["answers"]["alarm"], "n": 0}}}),
            "cannot be",
        ),
        (json.dumps({key: kept[key] for key in kept if key != "weights"}), "weights not said instead of ''"),
    ):
        state.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            ChatServer(engine, Settings("lab", WORSE, max_tokens=320, watch=settings))
        assert str(state) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_two_servers_do_not_share_a_state(tokenizer, tmp_path):
    state = tmp_path / "watch.json"
    other = subprocess.Popen(
        [
            sys.executable, "-c", "import fcntl, sys; held = open(sys.argv[1], 'w'); fcntl.lockf(held, fcntl.LOCK_EX); "
            "print('held', flush=True); sys.stdin.read()", f"{state}.lock",
        ], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert other.stdout.readline() == "held\n"
        made = Settings("lab", SAME, watch=WatchSettings(1.0, 0.2, state=state))
        with pytest.raises(
            ValueError, match=r"another server keeps its watch in .*: give this one another --watch-state"
        ):
            ChatServer(RaisedEngine(tokenizer, answering(tokenizer)), made)
    finally:
        other.communicate("")
    ChatServer(RaisedEngine(tokenizer, answering(tokenizer)), made).watch.close()
    nowhere = Settings("lab", SAME, watch=WatchSettings(1.0, 0.2, state=tmp_path / "none" / "watch.json"))
    with pytest.raises(ValueError, match="cannot be written: No such file or directory"):
        ChatServer(RaisedEngine(tokenizer, answering(tokenizer)), nowhere)


def test_a_state_of_other_weights_markers_or_sampling_is_refused(tokenizer, tmp_path):
    state = tmp_path / "watch.json"
    settings = WatchSettings(1.0, 0.2, 0.9, state=state)
    with serving(RaisedEngine(tokenizer, answering(tokenizer)), method=SAME, watch=settings) as running:
        ask(running, 1)
        until(lambda: watched(running)["compared"] == 1)
    made = {"method": SAME, "max_tokens": 320, "watch": settings}
    ChatServer(RaisedEngine(tokenizer, answering(tokenizer)), Settings("lab", **made))
    for change, message in (
        ({"digest": "fff"}, "weights '' instead of 'fff'"),
        ({"default_sampling": Sampling(temperature=0.2)}, "temperature 0.6 instead of 0.2"),
        ({"thinking": ThinkingFormat.custom("<a>", "</a>")}, "thinking '"),
        ({"name": "another"}, "model 'scripted' instead of 'another'"),
    ):
        engine = RaisedEngine(tokenizer, answering(tokenizer))
        for name, value in change.items():
            setattr(engine, name, value)
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            ChatServer(engine, Settings("lab", **made))
        assert "remove it to begin anew, or give another --watch-state" in str(caught.value)
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    with pytest.raises(ValueError, match="max_tokens 320 instead of 100"):
        ChatServer(engine, Settings("lab", **{**made, "max_tokens": 100}))


def test_shadows_wait_for_user_traffic_and_never_take_more_than_their_share(tokenizer):
    engine = HeldEngine(tokenizer)
    engine.held = False
    settings = WatchSettings(1.0, 0.2, capacity=0.5)
    with serving(engine, method=parse_method("no-wait"), watch=settings, max_concurrency=4) as running:
        counted = []
        plain = settings.baseline

        async def solve(*arguments, **options):
            counted.append(running.chat.waiting)
            return await type(plain).solve(plain, *arguments, **options)

        object.__setattr__(plain, "solve", solve)
        engine.held = True
        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(ask, running, 1) for _ in range(12)]
            until(lambda: running.chat.running == 4)
            time.sleep(0.2)
            assert counted == [], "users wait, so no shadow runs"
            engine.held = False
            assert len([each.result() for each in asked]) == 12
        until(lambda: watched(running)["shadows"]["compared"] == 12)
        assert set(counted) == {0}
        object.__delattr__(plain, "solve")


def test_a_shadow_that_fails_touches_no_user(tokenizer):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    settings = WatchSettings(1.0, 0.2)

    class Broken(type(settings.baseline)):
        async def respond(self, draft):
            raise RuntimeError("on fire")

    with serving(engine, method=SAME, watch=WatchSettings(1.0, 0.2, baseline=Broken())) as running:
        assert len(ask(running, 3)) == 3
        until(lambda: watched(running)["shadows"]["failed"] == 3)
        found = watched(running)
        assert (found["compared"], found["lost"]) == (0, 1)
        assert (
            "3 of 3 shadowed requests (100.0%) came to no comparison (3 failed): the numbers hold" in found["notes"][0]
        )
        assert running.metric("satisfice_watch_lost") == 1
        assert running.metric('satisfice_watch_shadows{outcome="failed"}') == 3


class Now(Plain):
    """The baseline, whose responses fail, take forever or come, as a test wants it."""

    async def respond(self, draft):
        if NOW["then"] == "fail":
            raise RuntimeError("on fire")
        if NOW["then"] == "wait":
            await asyncio.sleep(60)
        await super().respond(draft)


NOW = {"then": "answer"}


def test_what_came_to_no_comparison_is_counted_by_its_reason_and_kept(tokenizer, tmp_path, caplog):
    state = tmp_path / "watch.json"
    settings = WatchSettings(1.0, 0.2, state=state, baseline=Now())
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    lost = []
    with caplog.at_level(logging.WARNING, "satisfice.server"), serving(
        engine, method=SAME, watch=settings, timeout=1.0
    ) as running:  # fmt: skip
        NOW["then"] = "answer"
        ask(running, 60)
        until(lambda: watched(running)["compared"] == 60)
        assert watched(running)["notes"] == []
        NOW["then"] = "fail"
        ask(running, 1)
        until(lambda: watched(running)["shadows"]["failed"] == 1)
        lost.append(watched(running))
        NOW["then"] = "wait"
        ask(running, 1)
        until(lambda: watched(running)["shadows"]["timeout"] == 1)
        lost.append(watched(running))
        assert json.loads(state.read_text())["outcomes"]["timeout"] == 1
        # The last one is under way when the server ends.
        ask(running, 1)
        until(lambda: running.metric("satisfice_watch_shadows_under_way") == 1)
    assert [len(found["notes"]) for found in lost] == [0, 1], "1 of 61 is less than 2 %, 2 of 62 are more"
    assert "2 of 62 shadowed requests (3.2%) came to no comparison (1 failed, 1 timeout)" in lost[1]["notes"][0]
    assert sum("the watch: 2 of 62 shadowed requests" in record.message for record in caplog.records) == 1
    assert json.loads(state.read_text())["outcomes"] == {
        "compared": 60, "failed": 1, "timeout": 1, "dropped": 0, "unanswered": 0, "shutdown": 1,
    }  # fmt: skip
    NOW["then"] = "answer"
    with serving(engine, method=SAME, watch=settings, timeout=1.0) as running:
        assert watched(running)["shadows"]["shutdown"] == 1
        assert "1 shutdown" in watched(running)["notes"][0]


def test_a_server_that_is_killed_counts_what_was_under_way(tokenizer, tmp_path):
    state = tmp_path / "watch.json"
    settings = WatchSettings(1.0, 0.2, state=state, baseline=Now(), capacity=1.0)
    with serving(RaisedEngine(tokenizer, answering(tokenizer)), method=SAME, watch=settings) as running:
        NOW["then"] = "wait"
        ask(running, 2)
        until(lambda: running.metric("satisfice_watch_shadows_under_way") == 2)
        NOW["then"] = "answer"
        ask(running, 1)
        until(lambda: watched(running)["compared"] == 1)
        killed = state.read_text()
    assert json.loads(state.read_text())["outcomes"]["shutdown"] == 2
    assert json.loads(killed)["under_way"] == 2
    state.write_text(killed)
    with serving(RaisedEngine(tokenizer, answering(tokenizer)), method=SAME, watch=settings) as running:
        found = watched(running)["shadows"]
        assert (found["compared"], found["shutdown"]) == (1, 2)


def test_a_request_that_fails_itself_is_counted_too(tokenizer):
    class Broken(type(SAME)):
        async def respond(self, draft):
            raise RuntimeError("on fire")

    engine = RaisedEngine(tokenizer, answering(tokenizer))
    with serving(engine, method=Broken(t=0.95), watch=WatchSettings(1.0, 0.2)) as running:
        assert running.post(temperature=0)[0] == 500
        until(lambda: watched(running)["shadows"]["unanswered"] == 1)
        assert "(1 unanswered)" in watched(running)["notes"][0]


def test_pairs_without_answers_agree_and_are_said_where_they_are_most(tokenizer):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    with serving(engine, method=SAME, watch=WatchSettings(1.0, 0.2)) as running:
        ask(running, 4, max_tokens=5)  # cut off: no answer on either side
        until(lambda: watched(running)["compared"] == 4)
        found = watched(running)
        assert (found["unanswered"], found["disagreement"]) == (4, 0)
        assert "in 4 of 4 pairs (100%) neither side gave an answer" in found["notes"][0]
        assert running.metric("satisfice_watch_unanswered") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "--shadow is 0; it must be above 0"),
        ({"share": 0.1, "max_loss": 3}, "--max-loss is 3"),
        ({"share": 0.1, "confidence": 1}, "--confidence is 1"),
        ({"share": 0.1, "on_alarm": "panic"}, "--on-alarm is panic; it must be one of baseline, next, warn"),
        ({"share": 0.1, "capacity": 0}, "--shadow-capacity is 0"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        WatchSettings(**options)


def test_a_watch_over_the_baseline_itself_is_refused(tokenizer):
    with pytest.raises(ValueError, match="which is what this server answers with anyway"):
        ChatServer(RaisedEngine(tokenizer, answering(tokenizer)), Settings("lab", watch=WatchSettings(0.1)))


# -- the library function


def test_pairs_of_answers_are_compared_as_the_grader_does():
    watch = AnswerWatch(max_loss=0.3, confidence=0.9)
    watch.add("The answer is \\boxed{0.5}.", "So \\boxed{\\frac{1}{2}}.")
    watch.add("It is \\boxed{7}.", "It is \\boxed{8}.")
    watch.add("", "It is \\boxed{8}.")
    watch.add("", "")
    watch.add("B", "(B)", "choice:4")
    found = watch.report()
    assert (found["compared"], found["unanswered"], found["disagreement"]) == (5, 1, 0.4)
    for _ in range(20):
        raised = watch.add("\\boxed{1}", "\\boxed{2}")
    assert raised
    assert watch.report()["alarm_at"] == AnswerWatch.from_state(watch.state()).report()["alarm_at"]
    with pytest.raises(ValueError, match="the confidence is 95; it must lie between 0 and 1"):
        AnswerWatch(0.1, 95)
