"""TS: temperature scaling of the end-of-thinking token (arXiv 2505.07961).

While the model thinks, the raw logit of the token that ends thinking is divided by a temperature before anything
else happens to it. Below 1 the model stops sooner, above 1 later; the order of all other tokens stays as it is.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from satisfice.engines.base import Capability
from satisfice.intervention.controls import EndScaling
from satisfice.intervention.method import Draft, Method, MethodError
from satisfice.thinking import ThinkingFormat

Mode = Literal["scale", "bias"]

LARGEST_BIAS = 1000.0
"""Nats; far beyond any logit, and far below what a half-precision tensor cannot hold."""


@dataclass(frozen=True)
class TemperatureScaling(Method):
    """Divide the end-of-thinking logit by a temperature, or add a bias to it.

    Attributes:
        t: temperature of the end-of-thinking token, used with `mode="scale"`. The useful range is narrow and the
            model's own: odds of stopping grow by exp(z (1/t - 1)) for a logit z, so at z = 20 a t of 0.9 makes
            stopping 9 times as likely. The paper's values are not public; this default is ours.
        mode: "scale" is the paper's form. "bias" (ours) adds `bias` instead, which means the same for every model,
            whatever the offset of its logits.
        bias: added to the logit with `mode="bias"`, in nats: 2 makes stopping e^2 = 7.4 times as likely.
    """

    name: ClassVar[str] = "temperature-scaling"
    summary: ClassVar[str] = "divides the end-of-thinking logit by t while thinking; t < 1 stops sooner"
    paper: ClassVar[str] = "2505.07961 (TS)"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTROL})

    t: float = 0.9
    mode: Mode = "scale"
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not 0.001 <= self.t <= 1000:
            raise MethodError(f"temperature-scaling: t is {self.t}; it must be within 0.001..1000 (1 changes nothing)")
        if self.mode not in get_args(Mode):
            raise MethodError(f"temperature-scaling: mode is {self.mode!r}; use {' or '.join(get_args(Mode))}")

        if not abs(self.bias) <= LARGEST_BIAS:
            raise MethodError(
                f"temperature-scaling: bias is {self.bias}; it must be within -{LARGEST_BIAS:g}..{LARGEST_BIAS:g}"
            )
        if self.bias and self.mode == "scale":
            raise MethodError("temperature-scaling: bias acts with mode=bias only; add mode=bias or leave bias out")
        if self.mode == "bias" and not self.bias:
            raise MethodError("temperature-scaling: mode=bias needs a bias other than 0, for example bias=2")

    def control(self, thinking: ThinkingFormat) -> EndScaling:
        return EndScaling(gain=1 / self.t - 1) if self.mode == "scale" else EndScaling(bias=self.bias)

    async def respond(self, draft: Draft) -> None:
        await draft.write()
