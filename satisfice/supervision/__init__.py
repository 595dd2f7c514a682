"""Training data that teaches a model where to stop: curations by name, one file each in `methods/`.

A curation is spelled `name:parameter=value,parameter=value`, as methods at decoding time are:
`tokensqueeze:alpha=0.2,window=512`. `rows.py` says what it takes and gives, `steps.py` divides a thinking into steps.
"""

from typing import Any

from satisfice.parameters import describe_parameters, nearest, parameter_types
from satisfice.registry import Registry
from satisfice.spelling import read_parameters
from satisfice.supervision.method import Curation, CurationError, Tools
from satisfice.supervision.rows import Drop, Item, PreferenceRow, Reason, Response, Row, SampledProblem, SFTRow

__all__ = [
    "CURATIONS",
    "Curation",
    "CurationError",
    "Drop",
    "Item",
    "PreferenceRow",
    "Reason",
    "Response",
    "Row",
    "SFTRow",
    "SampledProblem",
    "Tools",
    "curation_named",
    "describe_curation",
    "parse_curation",
]


CURATIONS: Registry[Curation] = Registry(
    Curation,
    "curation",
    "satisfice.curations",
    "satisfice.supervision.methods",
    first=("sft", "shortest-correct", "truncate-at-answer", "length-levels"),
)
"""Every curation by name, the baselines first."""


def curation_named(name: str) -> type[Curation]:
    """The curation of that name, without parameters.

    Raises:
        CurationError: there is none; the message names the nearest that exists.
    """
    if name not in CURATIONS:
        raise CurationError(
            f"there is no curation {name!r}{nearest(name, CURATIONS)}; `satisfice curate --list` lists them all"
        )
    return CURATIONS[name]


def parse_curation(text: str) -> Curation:
    """The curation spelled by `text`.

    Raises:
        CurationError: no such curation or parameter (with the nearest that exists), or a value that does not fit.
    """
    name, _, rest = text.partition(":")
    kind = curation_named(name.strip())
    try:
        given = read_parameters(kind.name, rest, parameter_types(kind))
    except ValueError as error:
        raise CurationError(str(error)) from None
    return kind(**given)


def describe_curation(kind: type[Curation]) -> dict[str, Any]:
    """A curation as plain data: name, summary, paper, needs and parameters with type, default and meaning."""
    return {
        "name": kind.name,
        "summary": kind.summary,
        "paper": kind.paper,
        "needs": sorted(kind().needs),
        "samples": kind.samples,
        "loss": kind.loss,
        "parameters": describe_parameters(kind),
    }
