"""Training with a price on length: objectives by name.

One file an objective in `objectives/`; `objective.py` is their contract. `satisfice.training` binds them to trainers.
"""

from collections.abc import Mapping
from typing import Any

from satisfice.parameters import describe_parameters, nearest, no_parameter, parameter_types
from satisfice.registry import Registry
from satisfice.reinforcement.objective import Need, Objective, ObjectiveError

__all__ = [
    "OBJECTIVES",
    "Need",
    "Objective",
    "ObjectiveError",
    "describe_objective",
    "objective_from",
    "objective_named",
]

OBJECTIVES: Registry[Objective] = Registry(
    Objective, "objective", "satisfice.objectives", "satisfice.reinforcement.objectives"
)
"""Every objective by name."""


def objective_named(name: str) -> type[Objective]:
    """The objective of that name, without parameters.

    Raises:
        ObjectiveError: there is none; the message names the nearest that exists.
    """
    if name not in OBJECTIVES:
        raise ObjectiveError(
            f"there is no objective {name!r}{nearest(name, OBJECTIVES)}; `satisfice objectives` lists them all"
        )
    return OBJECTIVES[name]


def objective_from(name: str, parameters: Mapping[str, Any]) -> Objective:
    """The objective of that name with these parameters.

    Raises:
        ObjectiveError: no such objective or parameter (with the nearest that exists), or a value that does not fit.
    """
    kind = objective_named(name)
    known = parameter_types(kind)
    for key in parameters:
        if key not in known:
            raise ObjectiveError(no_parameter(name, key, known))
    return kind(**parameters)


def describe_objective(kind: type[Objective]) -> dict[str, Any]:
    """An objective as plain data: name, summary, paper, needs and parameters with type, default, bounds and meaning."""
    return {
        "name": kind.name,
        "summary": kind.summary,
        "paper": kind.paper,
        "needs": sorted(kind.needs),
        "parameters": describe_parameters(kind),
    }
