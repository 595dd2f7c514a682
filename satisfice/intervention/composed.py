"""A strategy and a control together: the strategy decides when to ask, the control bends how the model thinks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from satisfice.engines.base import Engine
from satisfice.engines.control_setting import Control
from satisfice.intervention.controls import ThinkingBudget
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method, MethodError
from satisfice.thinking import ThinkingFormat

_PROBE_FORMAT = ThinkingFormat.custom("<open>", "<close>")


@dataclass(frozen=True)
class Composed(Method):
    """`strategy` with the control of `bending` on everything that it lets the model think.

    Attributes:
        strategy: the method that writes the response.
        bending: the method whose control acts while it thinks.
    """

    name: ClassVar[str] = "composed"
    summary: ClassVar[str] = "a strategy and a control together"
    paper: ClassVar[str] = ""

    strategy: Method
    bending: Method

    def __post_init__(self) -> None:
        # An instance's needs are those of both parts; the class attribute stays what it is for all others.
        object.__setattr__(self, "needs", self.strategy.needs | self.bending.needs)

    def control(self, thinking: ThinkingFormat) -> Control | None:
        return self.bending.control(thinking)

    def check(self, engine: Engine) -> None:
        self.strategy.check(engine)
        self.bending.check(engine)

    @property
    def breadth(self) -> int:
        return self.strategy.breadth

    async def respond(self, draft: Draft) -> None:
        await self.strategy.respond(draft)

    def __str__(self) -> str:
        return f"{self.strategy}+{self.bending}"


def compose(methods: Sequence[Method]) -> Method:
    """A strategy and a control as one method.

    Raises:
        MethodError: the parts do not fit; the message says why.
    """
    if len(methods) > 2:
        raise MethodError("at most one strategy and one control can be joined, as strategy+control")
    strategy, bending = methods
    bends = bending.control(_PROBE_FORMAT)
    if isinstance(bends, ThinkingBudget):
        raise MethodError(
            f"{bending.name} follows the tokens of one engine call, and a strategy makes several: write "
            f"budget-forcing+CONTROL for a cap that is joined with something, or {bending.name} alone"
        )
    if bends is None:
        raise MethodError(
            f"{bending.name} edits no logits, so it cannot stand after the plus sign: write strategy+control, for "
            "example budget-forcing:max_thinking=512+temperature-scaling"
        )
    if strategy.control(_PROBE_FORMAT) is not None:
        raise MethodError(f"{strategy.name} is a control itself; two controls on one sequence are not supported")
    if not strategy.takes_control:
        raise MethodError(
            f"{strategy.name} cannot be joined with {bending.name}: "
            + (f"that is {bending.name} alone" if strategy.name == "plain" else "it offers no thinking to act on")
        )
    return Composed(strategy, bending)
