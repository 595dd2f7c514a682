"""Problems of reasoning-gym, which makes its problems by program and scores answers against the whole entry.

A trace keeps the id of its problem and the gold answer, not the entry; so the id holds all that makes the entry
again, `NAME/seed0/size100/17`, and a run can be graded again from its folder.

reasoning-gym is imported only in a process of its own: some of its generators follow the order of Python sets, which
differs from one process to the next unless the hash seed is fixed before the start, and some scorers evaluate the
answer as Python code.
"""

import difflib
import functools
import re
from typing import Any

ANY_VALID = "(any valid answer)"
"""Gold answer of a problem that has many right answers and names none."""

_ID = re.compile(r"(?P<name>\w+)/seed(?P<seed>\d+)/size(?P<size>\d+)/(?P<index>\d+)")


class GymError(ValueError):
    """A reasoning-gym problem cannot be made."""


def make_problems(name: str, seed: int, size: int) -> list[tuple[str, str, str]]:
    """(id, question, gold answer) of each problem of one set.

    Raises:
        GymError: there is no set of that name, or it cannot be made without further configuration.
    """
    entries = _dataset(name, seed, size)
    return [
        (f"{name}/seed{seed}/size{size}/{index}", entry["question"], _gold(entry))
        for index, entry in enumerate(entries[index] for index in range(size))
    ]


def full_score(extracted: str, gold: str, problem_id: str) -> bool:
    """Whether the scorer of a problem gives an answer the full score; less than full is for near misses.

    Raises:
        GymError: the id names no problem, or one with another gold answer than `gold`.
    """
    parts = _ID.fullmatch(problem_id)
    if parts is None:
        raise GymError(f"problem id {problem_id!r} does not name a reasoning-gym problem (NAME/seed0/size100/17)")
    dataset = _dataset(parts["name"], int(parts["seed"]), int(parts["size"]))
    entry = dataset[int(parts["index"])]
    if _gold(entry) != gold:
        raise GymError(
            f"the installed reasoning-gym makes another problem for {problem_id!r}: its gold answer is "
            f"{_gold(entry)!r}, not {gold!r}; grade with the version that the problems were made with"
        )
    return bool(dataset.score_answer(extracted, entry) == 1.0)


def _gold(entry: dict[str, Any]) -> str:
    return ANY_VALID if entry["answer"] is None else str(entry["answer"])


@functools.lru_cache(maxsize=16)
def _dataset(name: str, seed: int, size: int) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=5, cutoff=0.4)
        hint = f"the nearest are {', '.join(near)}" if near else f"for example {', '.join(sorted(DATASETS)[:5])}"
        raise GymError(f"reasoning-gym has no set {name!r}; {hint}")
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size)
    except (AssertionError, TypeError, ValueError) as error:
        raise GymError(f"reasoning-gym cannot make {name!r} with its default configuration: {error}") from error
