import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import psutil
import pytest

from satisfice.problems import GraderError, GraderPool, worker

# A worker that misbehaves on certain answers, in ways that no answer can be relied on to cause.
MISBEHAVING = """
import ctypes, os, sys, time
from satisfice.problems import graders, worker_main
honest = graders.judge
def judge(grader, extracted, gold, problem_id):
    if extracted == r"\\segfault": ctypes.string_at(0)
    if extracted == r"\\exit": os._exit(0)
    if extracted == r"\\sleep": time.sleep(60)
    if extracted == r"\\memory": return len("x" * worker_main.MEMORY_LIMIT) > 0, ""
    if extracted == r"\\print": print("noise on standard output", flush=True)
    if extracted == r"\\mkdir": os.mkdir(os.environ["FORBIDDEN"])
    if extracted == r"\\write": open(os.environ["FORBIDDEN"], "w")
    if extracted == r"\\run": os.system("true")
    if extracted == r"\\raise": raise SystemExit(3)
    if extracted == r"\\modules": return False, " ".join(sys.modules)
    return honest(grader, extracted, gold, problem_id)
worker_main.FUNCTIONS["judge"] = judge
worker_main.serve()
"""


@pytest.fixture
def misbehaving(monkeypatch):
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, "-c", MISBEHAVING))


# One half, in a form that only algebra finds equal to 0.5.
HALF = r"\sqrt{\frac{1}{4}}"


async def grade(pool, answer, gold=HALF, **more):
    return await pool.grade(**{"grader": "math", "answer": answer, "gold": gold, "finished": True} | more)


def children():
    # Other tests of the process may have left children of their own, as multiprocessing's tracker of resources is.
    living = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if "satisfice.problems.worker_main" in child.cmdline()]


async def test_grades_with_and_without_algebra():
    with GraderPool(workers=1) as pool:
        right = await grade(pool, r"\boxed{0.5}")
        wrong = await grade(pool, r"\boxed{0.6}")
        plain = await grade(pool, r"\boxed{1,000}", "1000")
    assert (right.correct, right.extracted, right.expected, right.grader) == (True, "0.5", HALF, "math")
    assert (wrong.correct, wrong.note) == (False, "")
    assert plain.correct


async def test_a_truncated_answer_is_wrong_whatever_it_says():
    with GraderPool(workers=1) as pool:
        truncated = await grade(pool, r"\boxed{5}", "5", finished=False)
    assert (truncated.correct, truncated.extracted, truncated.note) == (False, None, "truncated")


async def test_what_plain_comparison_settles_starts_no_process():
    with GraderPool(workers=1) as pool:
        await grade(pool, r"\boxed{5}", "5")
        await grade(pool, "no answer")
        await grade(pool, r"\boxed{5", finished=False)
        assert children() == []


async def test_hostile_answers_neither_hang_nor_crash_the_run():
    hostile = [
        r"\boxed{9^{9^{9^9}}}",
        r"\boxed{" + "{" * 500_000 + "}" * 500_000 + "}",
    ]
    with GraderPool(workers=2, timeout=0.5) as pool:
        # Importing takes longer than these answers may take: the time for one answer must not count it.
        assert (await grade(pool, r"\boxed{0.5}")).correct
        start = time.perf_counter()
        grades = await asyncio.gather(*(grade(pool, answer, "7") for answer in hostile))
        seconds = time.perf_counter() - start
        assert (await grade(pool, r"\boxed{0.5}")).correct
    assert not any(g.correct for g in grades)
    assert grades[0].note == "grader timed out after 0.5 s"
    assert grades[0].extracted == r"9^{9^{9^9}}"
    assert seconds < 20
    assert children() == []


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize("way", ["segfault", "exit", "raise"])
async def test_the_pool_survives_a_crash(way):
    with GraderPool(workers=1) as pool:
        crashed = await grade(pool, rf"\boxed{{\{way}}}")
        after = await grade(pool, r"\boxed{0.5}")
    assert (crashed.correct, crashed.extracted, crashed.note) == (False, f"\\{way}", "grader crashed")
    assert after.correct


@pytest.mark.usefixtures("misbehaving")
async def test_a_worker_that_sleeps_in_c_is_killed_in_time():
    with GraderPool(workers=1, timeout=0.3) as pool:
        await grade(pool, r"\boxed{0.5}")
        start = time.perf_counter()
        slept = await grade(pool, r"\boxed{\sleep}")
        assert 0.3 <= time.perf_counter() - start < 5
    assert slept.note == "grader timed out after 0.3 s"


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit of address space")
async def test_a_worker_cannot_eat_all_memory():
    with GraderPool(workers=1) as pool:
        eaten = await grade(pool, r"\boxed{\memory}")
        after = await grade(pool, r"\boxed{0.5}")
    assert (eaten.correct, eaten.note) == (False, "grader crashed")
    assert after.correct


@pytest.mark.usefixtures("misbehaving")
async def test_what_a_library_prints_is_no_reply():
    with GraderPool(workers=1) as pool:
        assert (await grade(pool, r"\boxed{\print}")).note == ""
        assert (await grade(pool, r"\boxed{0.5}")).correct


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize("deed", ["mkdir", "write", "run"])
async def test_an_answer_that_is_evaluated_as_code_does_no_harm(deed, tmp_path, monkeypatch):
    monkeypatch.setenv("FORBIDDEN", str(tmp_path / "forbidden"))
    with GraderPool(workers=1) as pool:
        refused = await grade(pool, rf"\boxed{{\{deed}}}")
        after = await grade(pool, r"\boxed{0.5}")
    assert (refused.correct, refused.note) == (False, "grader crashed")
    assert list(tmp_path.iterdir()) == []
    assert after.correct


@pytest.mark.usefixtures("misbehaving")
async def test_workers_import_no_model_library():
    with GraderPool(workers=1) as pool:
        modules = (await grade(pool, r"\boxed{\modules}")).note.split()
    assert "math_verify" in modules
    assert not {"torch", "transformers", "datasets", "numpy"} & set(modules)


def test_importing_the_room_is_light():
    code = "import sys, satisfice.problems as p; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "numpy", "sympy", "math_verify", "reasoning_gym"} & set(modules)


async def test_many_at_once_share_few_workers_and_are_not_mixed_up():
    with GraderPool(workers=2) as pool:
        answers = [rf"\boxed{{\frac{{{n}}}{{{2 * n + n % 2}}}}}" for n in range(1, 61)]
        grades = await asyncio.gather(*(grade(pool, answer) for answer in answers))
        assert len(children()) <= 2
    assert [g.correct for g in grades] == [n % 2 == 0 for n in range(1, 61)]


async def test_one_pool_reuses_its_process():
    with GraderPool(workers=3) as pool:
        await grade(pool, r"\boxed{0.5}")
        before = {child.pid for child in children()}
        for _ in range(3):
            await grade(pool, r"\boxed{0.5}")
        assert {child.pid for child in children()} == before
        assert len(before) == 1


def test_works_from_a_thread_and_from_one_event_loop_after_another():
    results = []
    with GraderPool(workers=1) as pool:
        for _ in range(2):
            thread = threading.Thread(target=lambda: results.append(asyncio.run(grade(pool, r"\boxed{0.5}")).correct))
            thread.start()
            thread.join()
        results.append(asyncio.run(grade(pool, r"\boxed{0.5}")).correct)
    assert results == [True, True, True]


async def test_a_main_script_that_imports_much_is_not_run_again(tmp_path):
    # multiprocessing would run this script again in every worker, without end where it has no main guard.
    script = tmp_path / "recipe.py"
    script.write_text(
        "import asyncio, sys\n"
        "from satisfice.problems import GraderPool\n"
        "print('once')\n"
        "with GraderPool(workers=1) as pool:\n"
        "    asyncio.run(pool.grade(grader='math', answer=r'\\boxed{x+1}', gold='y+1', finished=True))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("once\n", "")


@pytest.mark.usefixtures("misbehaving")
async def test_closing_ends_a_worker_that_is_busy():
    pool = GraderPool(workers=1, timeout=60)
    await grade(pool, r"\boxed{0.5}")
    busy = asyncio.create_task(grade(pool, r"\boxed{\sleep}"))
    await asyncio.sleep(0.1)
    start = time.perf_counter()
    pool.close()
    assert time.perf_counter() - start < 5
    assert children() == []
    assert not (await busy).correct
    with pytest.raises(RuntimeError):
        await grade(pool, r"\boxed{0.5}")
    pool.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = (
        "import asyncio, os, signal, psutil\n"
        "from satisfice.problems import GraderPool\n"
        "pool = GraderPool(workers=1)\n"
        "asyncio.run(pool.grade(grader='math', answer=r'\\boxed{x+1}', gold='y+1', finished=True))\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker outlived its parent by 5 s")


async def test_an_unknown_grader_is_refused():
    with GraderPool(workers=1) as pool, pytest.raises(GraderError, match="no grader 'maths'"):
        await grade(pool, r"\boxed{5}", grader="maths")


async def test_a_worker_that_cannot_start_says_how_to_find_out_why(monkeypatch):
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
    with GraderPool(workers=1) as pool, pytest.raises(GraderError, match=r"does not start; see what .* -c raise"):
        await grade(pool, r"\boxed{0.5}")


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"timeout": 0}, {"timeout": -1}])
def test_a_pool_without_workers_or_time_is_refused(arguments):
    with pytest.raises(ValueError, match="needs a worker and some time"):
        GraderPool(**arguments)


async def test_a_worker_that_died_while_it_was_idle_costs_no_grade():
    with GraderPool(workers=1) as pool:
        await grade(pool, r"\boxed{0.5}")
        for _ in range(3):
            (idle,) = children()
            idle.kill()
            # No pause: what asks next may or may not see the death before it writes.
            for _ in range(2):
                after = await grade(pool, r"\boxed{0.5}")
                assert (after.correct, after.note) == (True, "")


def test_a_worker_that_died_while_it_was_idle_prepares_again():
    with closing(worker.Worker()) as one:
        one.prepare("math")
        one._process.kill()
        one._prepared.clear()
        one.prepare("math")
        assert one.ask("judge", "math", "0.5", HALF, "", timeout=10) == [True, ""]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_timer_that_fires_just_as_the_reply_arrives_costs_no_grade(monkeypatch, moment):
    """The timer's function runs before the reply was seen, or after the timer was told to stop."""
    late_threads = []

    class LateTimer(threading.Timer):
        def start(self):
            if moment == "before":
                # Fires when the reply is there, but nobody has read it yet.
                self.interval = 1.5
            super().start()

        def cancel(self):
            if moment == "before":
                self.join()
            else:
                super().cancel()
                late_threads.append(threading.Thread(target=self.function))
                late_threads[-1].start()

    with GraderPool(workers=1) as pool:
        await grade(pool, r"\boxed{0.5}")
        monkeypatch.setattr(worker.threading, "Timer", LateTimer)
        grades = [await grade(pool, r"\boxed{0.5}") for _ in range(3)]
        assert [(g.correct, g.note) for g in grades] == [(True, "")] * 3
    for late in late_threads:
        late.join()


def test_a_process_that_is_killed_while_it_prepares_is_no_prepared_one(monkeypatch):
    with closing(worker.Worker()) as one:
        ask = one.ask

        def ask_and_lose(function, *arguments, timeout):
            reply = ask(function, *arguments, timeout=timeout)
            monkeypatch.setattr(one, "ask", ask)
            one.kill()
            return reply

        monkeypatch.setattr(one, "ask", ask_and_lose)
        one.prepare("math")
        # In a process that has not imported the algebra, importing it is refused as a side effect of the answer.
        assert one.ask("judge", "math", "0.5", HALF, "", timeout=10) == [True, ""]


@pytest.mark.usefixtures("misbehaving")
async def test_an_answer_that_crashes_twice_is_the_cause():
    with GraderPool(workers=1) as pool:
        crashed = await grade(pool, r"\boxed{\exit}")
        after = await grade(pool, r"\boxed{0.5}")
    assert (crashed.correct, crashed.note) == (False, "grader crashed")
    assert after.correct
