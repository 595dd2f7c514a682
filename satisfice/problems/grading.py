"""Grading while a run goes on: many answers at once, none of which can hang or crash the run."""

import asyncio
import os
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from satisfice.problems.graders import settle
from satisfice.problems.worker import Worker, WorkerCrashed
from satisfice.trace import Grade


class GraderPool:
    """Grades answers from any event loop; a context manager that leaves no process behind.

    What plain comparison can settle is settled at once. The rest goes to one of a few processes, each started when
    it is first needed, used again and again, and killed when it is busy with one answer for longer than `timeout`.
    """

    def __init__(self, *, workers: int | None = None, timeout: float = 10.0) -> None:
        """A pool that has started nothing yet.

        Args:
            workers: how many processes at most; as many as there are processor cores, up to 4, unless given.
            timeout: seconds for one answer.

        Raises:
            ValueError: there would be no worker or no time.
        """
        workers = min(4, os.cpu_count() or 1) if workers is None else workers
        if workers < 1 or timeout <= 0:
            raise ValueError(f"a grader pool needs a worker and some time, not workers={workers}, timeout={timeout}")
        self.timeout = timeout
        self._workers = [Worker() for _ in range(workers)]
        # Last in, first out: as long as one process keeps up, no second one is started.
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grader")

    async def grade(self, *, grader: str, answer: str, gold: str, finished: bool, problem_id: str = "") -> Grade:
        """The grade of one answer.

        Args:
            grader: one of `GRADERS`.
            answer: what was written after thinking.
            gold: the gold answer as the problem gives it; without one ("") no answer is right.
            finished: whether the response ended by itself; a truncated one is wrong, whatever it says.
            problem_id: needed by reasoning-gym graders only, which make the problem again from it.

        Raises:
            GraderError: there is no such grader, it does not fit the problem, or its process does not start.
            RuntimeError: the pool has been closed.
        """
        grade, settled = _at_once(grader, answer, gold, finished)
        if settled:
            return grade
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._judge, grade, gold, problem_id)

    def grade_all(self, answers: Sequence[Mapping[str, Any]]) -> list[Grade]:
        """The grades of many answers, each given as the arguments of `grade`; waits until the last is there.

        Raises:
            GraderError: see `grade`.
            RuntimeError: the pool has been closed.
        """
        grades: list[Grade | Future[Grade]] = []
        for given in answers:
            gold = given["gold"]
            grade, settled = _at_once(given["grader"], given["answer"], gold, given["finished"])
            waiting = None if settled else self._threads.submit(self._judge, grade, gold, given.get("problem_id", ""))
            grades.append(waiting or grade)
        return [grade.result() if isinstance(grade, Future) else grade for grade in grades]

    def close(self) -> None:
        """End all processes, also those that are at work; grading again is an error."""
        for worker in self._workers:
            worker.close()
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _judge(self, grade: Grade, gold: str, problem_id: str) -> Grade:
        worker = self._idle.get()
        try:
            # A process may have died while it was idle, which is no fault of the answer: a new one tries again.
            for _ in range(2):
                try:
                    worker.prepare(grade.grader)
                    grade.correct, grade.note = worker.ask(
                        "judge", grade.grader, grade.extracted, gold, problem_id, timeout=self.timeout
                    )
                except TimeoutError:
                    grade.note = f"grader timed out after {self.timeout:g} s"
                except WorkerCrashed:
                    grade.note = "grader crashed"
                    if not worker.closed:
                        continue
                break
        finally:
            self._idle.put(worker)
        return grade


def _at_once(grader: str, answer: str, gold: str, finished: bool) -> tuple[Grade, bool]:
    """The grade as far as it goes without algebra, and whether that settles it."""
    if not finished:
        return Grade(correct=False, expected=gold, grader=grader, note="truncated"), True
    if not gold:
        return Grade(correct=False, grader=grader, note="no gold answer"), True
    return settle(grader, answer, gold)
