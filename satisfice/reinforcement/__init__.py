"""Training with a price on length: objectives by name, and what binds them to TRL and verl.

One file an objective; `objective.py` is their contract. `trainer.py` binds them to TRL, `verl.py` to verl.
"""

from collections.abc import Mapping
from typing import Any

from satisfice.parameters import convert, describe_parameters, nearest, no_parameter, parameter_types
from satisfice.reinforcement.aalc import AALC
from satisfice.reinforcement.adaptthink import AdaptThink
from satisfice.reinforcement.arora_zanette import AroraZanette
from satisfice.reinforcement.crt import CRT
from satisfice.reinforcement.dapo_overlong import DAPOOverlong
from satisfice.reinforcement.depo import DEPO
from satisfice.reinforcement.dler import DLER
from satisfice.reinforcement.dot import DOT
from satisfice.reinforcement.dr_grpo import DrGRPO
from satisfice.reinforcement.grpo_lead import GRPOLead
from satisfice.reinforcement.kimi import Kimi
from satisfice.reinforcement.l1 import L1Exact, L1Max
from satisfice.reinforcement.laser import LASER
from satisfice.reinforcement.laser_d import LASERD
from satisfice.reinforcement.objective import Objective, ObjectiveError
from satisfice.reinforcement.shorter_better import ShorterBetter
from satisfice.reinforcement.smartthinker import SmartThinker
from satisfice.reinforcement.thinkprune import ThinkPrune
from satisfice.reinforcement.tldr import TLDR

__all__ = ["OBJECTIVES", "Objective", "ObjectiveError", "describe_objective", "objective_from"]

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        TLDR,
        DrGRPO,
        L1Exact,
        L1Max,
        AroraZanette,
        Kimi,
        DLER,
        LASER,
        LASERD,
        ShorterBetter,
        ThinkPrune,
        DAPOOverlong,
        GRPOLead,
        AALC,
        DEPO,
        SmartThinker,
        CRT,
        DOT,
        AdaptThink,
    )
}
"""Every objective by name."""


def objective_from(name: str, parameters: Mapping[str, Any]) -> Objective:
    """The objective of that name with these parameters.

    Raises:
        ObjectiveError: no such objective or parameter (with the nearest that exists), or a value that does not fit.
    """
    if name not in OBJECTIVES:
        raise ObjectiveError(
            f"there is no objective {name!r}{nearest(name, OBJECTIVES)}; `satisfice objectives` lists them all"
        )
    kind = OBJECTIVES[name]
    known = parameter_types(kind)
    given: dict[str, Any] = {}
    for key, value in parameters.items():
        if key not in known:
            raise ObjectiveError(no_parameter(name, key, known))
        try:
            given[key] = convert(value, known[key])
        except ValueError as error:
            raise ObjectiveError(f"{name}: {key} cannot be {value!r}: {error}") from None
    return kind(**given)


def describe_objective(kind: type[Objective]) -> dict[str, Any]:
    """An objective as plain data: name, summary, paper, needs and parameters with type, default and meaning."""
    return {
        "name": kind.name,
        "summary": kind.summary,
        "paper": kind.paper,
        "needs": sorted(kind.needs),
        "parameters": describe_parameters(kind),
    }
