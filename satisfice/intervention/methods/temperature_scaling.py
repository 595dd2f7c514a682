"""TS: temperature scaling of the end-of-thinking token (arXiv 2505.07961).

While the model thinks, the raw logit of the token that ends thinking is divided by a temperature before anything
else happens to it. Below 1 the model stops sooner, above 1 later; the order of all other tokens stays as it is.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from satisfice.engines.base import Capability, Engine, EngineError
from satisfice.intervention.controls import EndScaling
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Knob, Method, MethodError
from satisfice.parameters import Because
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
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("t", (0.98, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)),
        Knob("bias", (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), {"mode": "bias"}),
    )
    on_lab: ClassVar[str] = "t=0.85"

    t: Annotated[float, Field(ge=0.001, le=1000), Because("1 changes nothing")] = 0.9
    mode: Mode = "scale"
    bias: Annotated[float, Field(ge=-LARGEST_BIAS, le=LARGEST_BIAS)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias and self.mode == "scale":
            raise MethodError("temperature-scaling: bias acts with mode=bias only; add mode=bias or leave bias out")
        if self.mode == "bias" and not self.bias:
            raise MethodError("temperature-scaling: mode=bias needs a bias other than 0, for example bias=2")
        if self.mode == "bias":
            object.__setattr__(self, "needs", frozenset({Capability.BIAS}))

    def check(self, engine: Engine) -> None:
        try:
            super().check(engine)
        except EngineError as refused:
            if self.mode == "scale" and _takes_biases(engine):
                raise EngineError(f"{refused}; mode=bias needs {Capability.BIAS} alone, which it offers") from None
            raise

    def control(self, thinking: ThinkingFormat) -> EndScaling:
        return EndScaling(gain=1 / self.t - 1) if self.mode == "scale" else EndScaling(bias=self.bias)

    async def respond(self, draft: Draft) -> None:
        await draft.write()


def _takes_biases(engine: Engine) -> bool:
    """Whether an engine could make the closing marker likelier by a constant."""
    try:
        engine.check_control(EndScaling(bias=1.0))
    except EngineError:
        return False
    return Capability.BIAS in engine.capabilities
