"""What is said of a method before it is used: the certificate that it comes from, and what is known against it."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from satisfice.cli.console import complain

if TYPE_CHECKING:
    from satisfice.engines.base import Engine, Sampling
    from satisfice.intervention import Method
    from satisfice.runs.certificate import Certificate


def certificate_of(path: Path | None, method: str, default: str = "plain") -> "Certificate | None":
    """The certificate that was given; None where none was.

    Args:
        path: of --calibrated.
        method: of --method.
        default: what stands there if it was not given.

    Raises:
        ValueError: a method was given too, or the certificate cannot be read or certifies nothing.
    """
    if path is None:
        return None
    if method != default:
        raise ValueError(f"--method {method} and --calibrated {path} both say which method: leave one of them out")
    from satisfice.runs.certificate import read_certificate

    certificate = read_certificate(path)
    certificate.chosen()
    return certificate


def warn_of_differences(
    certificate: "Certificate | None", engine: "Engine", sampling: "Sampling", instruction: str, system: str
) -> None:
    """Say what differs between where a certificate was made and this use of it."""
    from satisfice.runs.certificate import Place, warnings

    if certificate is None:
        return
    for said in warnings(certificate, Place.of(engine, sampling, instruction=instruction, system=system)):
        complain(f"warning: {said}")


def warn_of_time(methods: "Iterable[Method]", engine: "Engine") -> None:
    """Say which methods are known to cost more time on this engine than they save."""
    from satisfice.intervention.paying_off import slower

    for said in slower(methods, engine):
        complain(f"warning: {said}")
