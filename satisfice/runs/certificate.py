"""What a calibration gives: a setting with its promise, in one JSON file that whoever uses the setting reads again.

A promise is about problems like those it was made on, asked in the same way of the same model. So a certificate holds
digests of all of that, and whoever is about to use it elsewhere is told what differs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from satisfice.engines.base import Engine, Sampling
from satisfice.intervention import Method, MethodError, parse_method
from satisfice.measurement.risk import PRECISION
from satisfice.parameters import nearest
from satisfice.runs.experiment import versions_of
from satisfice.thinking import ThinkingFormat

SCHEMA_VERSION = 2
"""Version 1 did not count responses that could not be had."""
KIND = "satisfice certificate"


class CertificateError(ValueError):
    """A certificate cannot be read, or certifies nothing."""


Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Verdict = Literal["certified", "hopeless", "open", "failing", "not tried"]


class _Record(BaseModel):
    # A key that is misspelt would be one that is missing: a digest that nobody compares.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Saving(_Record):
    """What the certified setting saves against the baseline.

    Attributes:
        value, low, high: share of the baseline's tokens, and its 95 % interval; None where nothing can be said.
        convention: which tokens are counted, see `satisfice.trace.CONVENTIONS`.
        n: problems.
        held_back: whether these were held back from the choice; if not, the saving was looked at while choosing, and
            is optimistic.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    convention: str
    n: Count
    held_back: bool


class Setting(_Record):
    """One setting of a knob, as far as it was tried.

    Attributes:
        method: as spelled.
        parameter, value: the knob, and where it stands.
        verdict: "certified"; "hopeless" where it loses more than is allowed; "open" where the problems would not
            suffice even if nothing more were lost; "failing" where too many of its responses could not be had; "not
            tried" where one before it in the order did not pass.
        n: problems that it was tested on.
        failed, baseline_failed: on how many of them its own response or the baseline's could not be had; each counts
            as a loss of 1.
        failed_because: the last reason why its own could not.
        loss: mean over them.
        bound: the least bound that they certify, at the level of its sequence.
        tokens, baseline_tokens: means over those where both responses are there, under the certificate's convention.
        needed: problems besides that would certify it if none of them lost anything; None where that was not asked.
    """

    method: str
    parameter: str
    value: str | float | int
    verdict: Verdict
    n: Count = 0
    failed: Count = 0
    baseline_failed: Count = 0
    failed_because: str = ""
    loss: float | None = None
    bound: float | None = None
    tokens: float | None = None
    baseline_tokens: float | None = None
    needed: int | None = None


class Certificate(_Record):
    """A promise: on problems like these the expected loss is below `max_loss`, with `confidence` over the draw of them.

    Attributes:
        method: the certified setting that saves most, as spelled; None where none qualifies.
        baseline: what is lost against.
        loss: "net", "harm" or "disagreement", see `satisfice.measurement.risk`.
        max_loss, confidence: of the promise.
        levels: how the chance to be wrong, 1 - confidence, was shared out in the end, by method.
        n: problems that the setting was tested on.
        failed: on how many of them the response of the baseline or of the method could not be had; each counts as a
            loss of 1, the most that it could be.
        observed_loss: mean over them.
        bound: the least bound that they certify.
        saving: of that setting.
        ladders: every setting of each method, from harmless to bold.
        self_disagreement: for loss "disagreement": how often two runs of the baseline with different seeds differ.
        held_back: what was seen of the certified setting on the problems held back: n, loss, and how many failed.
        responses: how many it took, how many of these only were the end of a thinking that another setting shares,
            and how many a full grid would have taken.
        asked: digests of the model and of everything that decides how problems are asked.
        versions: of the packages.
    """

    kind: str = KIND
    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION
    method: str | None
    baseline: str
    loss: Literal["net", "harm", "disagreement"]
    max_loss: Share
    confidence: Share
    levels: dict[str, float]
    n: Count = 0
    failed: dict[str, int] = Field(default_factory=dict)
    observed_loss: float | None = None
    bound: float | None = None
    saving: Saving | None = None
    ladders: dict[str, list[Setting]] = Field(default_factory=dict)
    self_disagreement: dict[str, float] | None = None
    held_back: dict[str, float] | None = None
    responses: dict[str, int] = Field(default_factory=dict)
    asked: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    path: str = Field(default="", exclude=True)

    @property
    def certified(self) -> list[Setting]:
        """All certified settings of the ladder of `method`, from the most careful to the boldest."""
        for settings in self.ladders.values():
            if any(setting.method == self.method for setting in settings):
                return [setting for setting in settings if setting.verdict == "certified"]
        return []

    def chosen(self) -> Method:
        """The certified method.

        Raises:
            CertificateError: none qualified, or the method is none that this version knows.
        """
        if self.method is None:
            raise CertificateError(
                f"{self.path or 'the certificate'} certifies nothing: no setting qualified for a {self.loss} loss of "
                f"at most {self.max_loss:g}; calibrate on more problems, or use the baseline {self.baseline}"
            )
        return self._method("method", self.method)

    def against(self) -> Method:
        """The baseline.

        Raises:
            CertificateError: it is none that this version knows.
        """
        return self._method("baseline", self.baseline)

    def more_careful(self) -> Method | None:
        """The certified setting before `method` in its order; None where it is the first.

        Raises:
            CertificateError: it is none that this version knows.
        """
        before = [setting.method for setting in self.certified]
        place = before.index(self.method) if self.method in before else 0
        return self._method("ladders", before[place - 1]) if place else None

    def _method(self, key: str, spelled: str) -> Method:
        try:
            return parse_method(spelled)
        except MethodError as error:
            raise CertificateError(f"{self.path or 'the certificate'}: its {key} cannot be read: {error}") from None

    def fault(self) -> str:
        """What contradicts itself in it, as no calibration leaves it; "" for nothing."""
        if self.method is None:
            return ""
        chosen = next((setting for setting in self.certified if setting.method == self.method), None)
        if chosen is None or chosen.verdict != "certified":
            return f"method: {self.method} is none of the settings that its ladders certify"
        for setting in self.certified:
            if setting.bound is None or setting.bound > self.max_loss + 2 * PRECISION:
                return (
                    f"ladders: {setting.method} is certified for a loss of at most {setting.bound}, and max_loss is "
                    f"{self.max_loss:g}"
                )
        if (self.n, self.bound) != (chosen.n, chosen.bound):
            return f"n and bound are {self.n} and {self.bound}, and {chosen.n} and {chosen.bound} in its ladders"
        return ""


def read_certificate(path: str | Path) -> Certificate:
    """The certificate in a file.

    Raises:
        CertificateError: there is none, or it is damaged or newer than this version reads.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise CertificateError(f"there is no file {path}; `satisfice calibrate` writes certificates") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CertificateError(f"{path} is no certificate: {error}") from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise CertificateError(f"{path} is no certificate: give the file that `satisfice calibrate --out` wrote")
    version = content.get("schema_version", 0)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CertificateError(f"{path} was written by a newer satisfice: upgrade satisfice to read it")
    try:
        certificate = Certificate.model_validate(content)
    except ValidationError as error:
        raise CertificateError(f"{path} is damaged: {_misfit(error)}") from None
    for key, kind in (("sampling", dict), ("model", str), ("model_digest", str), ("thinking", str), ("attention", str)):
        if not isinstance(certificate.asked.get(key, kind()), kind):
            raise CertificateError(f"{path} is damaged: asked.{key}: {certificate.asked[key]!r} is no {NAMES[kind]}")
    for key in certificate.asked:
        if key not in ASKED:
            raise CertificateError(f"{path} is damaged: asked.{key}: there is no such key{nearest(key, ASKED)}")
    certificate.path = str(path)
    certificate.against()
    if certificate.method is not None:
        certificate.chosen()
    if fault := certificate.fault():
        raise CertificateError(f"{path} is damaged: {fault}")
    return certificate


NAMES = {dict: "object", str: "text"}
ASKED = (
    "model", "model_digest", "thinking", "sampling", "instruction", "system", "attention", "problems", "problems_digest"
)  # fmt: skip
"""What a certificate says of how it was asked; nothing of attention where that was dense."""


def _misfit(error: ValidationError) -> str:
    """The first that is wrong, a key that is not known before one that is missing."""
    found = error.errors()
    unknown = next((each for each in found if each["type"] == "extra_forbidden"), None)
    first = unknown or found[0]
    where = ".".join(map(str, first["loc"]))
    if unknown is None:
        return f"{where}: {first['msg']}"
    missing = [str(each["loc"][-1]) for each in found if each["type"] == "missing"]
    known = missing or [name for kind in (Certificate, Setting, Saving) for name in kind.model_fields]
    return f"{where}: there is no such key{nearest(str(first['loc'][-1]), known)}"


def asked(configuration: Mapping[str, Any], thinking: ThinkingFormat) -> dict[str, Any]:
    """What a certificate says of the model and of how it was asked, from the configuration of a run.

    Args:
        configuration: of `Experiment.configuration`.
        thinking: how the model marks its thinking.
    """
    said = {
        "model": configuration["model"],
        "model_digest": configuration["model_digest"],
        "thinking": thinking_digest(thinking),
        "sampling": configuration["sampling"],
        "instruction": configuration["instruction"],
        "system": configuration["system"],
        **({"attention": configuration["attention"]} if "attention" in configuration else {}),
        "problems": configuration["problems"]["name"],
        "problems_digest": configuration["problems"]["digest"],
    }
    return dict(json.loads(json.dumps(said)))  # as it will be read again: JSON has no tuples


@dataclass(frozen=True)
class Place:
    """Where a certificate is about to be used, as far as that is known; None is not compared.

    Attributes:
        model: the name of the engine with its model, as `Engine.name`.
        model_digest: of the weights.
        thinking: how the model marks its thinking.
        sampling: how tokens are chosen, by name.
        instruction, system: that every question gets.
        attention: what a decoding step reads, as spelled.
        versions: of packages. Only `COMPARED` count.
    """

    model: str
    model_digest: str | None = None
    thinking: ThinkingFormat | None = None
    sampling: Mapping[str, Any] | None = None
    instruction: str | None = None
    system: str | None = None
    attention: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        engine: Engine,
        sampling: Sampling | None = None,
        *,
        instruction: str | None = None,
        system: str | None = None,
    ) -> "Place":
        """The place that an engine in this process is."""
        return cls(
            engine.name, engine.digest or None, engine.thinking, None if sampling is None else asdict(sampling),
            instruction, system, str(engine.attention), versions_of(engine.name),
        )  # fmt: skip


COMPARED = ("satisfice", "torch", "transformers", "vllm")
"""Packages whose version can move what a model writes or when a method stops it."""


def differences(certificate: Certificate, place: Place) -> list[str]:
    """What differs between where a certificate was made and a place, one clause each. Problems may be others."""
    was, found = certificate.asked, []

    def compare(what: str, before: Any, now: Any) -> None:
        if before is not None and now is not None and before != now:
            found.append(f"{what} {_shown(before)} -> {_shown(now)}")

    compare("model and engine", was.get("model"), place.model)
    compare("weights", was.get("model_digest") or None, place.model_digest)
    compare("thinking format", was.get("thinking"), None if place.thinking is None else thinking_digest(place.thinking))
    for name, before in (was.get("sampling") or {}).items():
        now = (place.sampling or {}).get(name)  # None where the place does not know
        compare(name, before, [*now] if isinstance(now, tuple) else now)
    compare("instruction", was.get("instruction"), place.instruction)
    compare("system turn", was.get("system"), place.system)
    compare("attention", was.get("attention", "dense"), place.attention)
    return found


def other_versions(certificate: Certificate, place: Place) -> list[str]:
    """The packages whose versions differ between where a certificate was made and a place, one clause each.

    Of a package that only one of the two has, the engine is another, which `differences` says.
    """
    was, now = certificate.versions, place.versions
    both = (name for name in COMPARED if name in was and name in now)
    return [f"{name} {was[name]} -> {now[name]}" for name in both if was[name] != now[name]]


def warnings(certificate: Certificate, place: Place) -> list[str]:
    """What to say before a certificate is used at a place, one sentence each; none where nothing differs."""
    said = []
    if found := differences(certificate, place):
        said.append(
            f"the certificate {certificate.path} promises nothing here, because it was made under other conditions: "
            f"{'; '.join(found)} (then -> now)"
        )
    if found := other_versions(certificate, place):
        said.append(
            f"the certificate {certificate.path} was made with other versions, under which responses may differ: "
            f"{'; '.join(found)} (then -> now)"
        )
    return said


def thinking_digest(thinking: ThinkingFormat) -> str:
    """What stands for how a model marks its thinking."""
    return hashlib.sha256(json.dumps(asdict(thinking), sort_keys=True, default=str).encode()).hexdigest()[:12]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
