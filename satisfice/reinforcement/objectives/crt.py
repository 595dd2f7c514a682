"""CRT, constraint-rectified training (arXiv 2602.12526): first shorten at kept accuracy, then gain at kept length."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from satisfice.lazy import Tensor, torch
from satisfice.parameters import Because, BelowOne
from satisfice.reinforcement.objective import Need, Objective, ObjectiveError, Rollouts


@dataclass
class CRT(Objective):
    """One objective at a time: length while a constraint on accuracy holds, accuracy while it does not; then reversed.

        Stage I    accuracy < reference accuracy - eps - eta:  R = correct          else  R = -l
        Stage II   l > l of stage I + delta + eta:             R = -l               else  R = correct
        l = sigmoid((L - mean) / std)

    Accuracies and lengths are means over the rollouts of one step that the model wrote by itself. In stage I, mean and
    std (population form) are of the current rollouts of a prompt; in stage II they and the l to compare with are frozen
    from the end of stage I. The formulas are the paper's (equations 2 and 3 and its algorithm). Where lengths do not
    differ, l is 0.5 and there is no advantage (ours).

    A step on length rewards a short wrong response above a long right one: that is the method, and shows up among the
    violations. The paper does not say how an objective becomes a gradient; the group's standard scores (GRPO) are the
    natural reading.

    Ours, because the paper names no value or no rule: eps, eta and delta; that the reference accuracy of a problem is
    measured once, before the training, and not along with it; and when stage I ends. It ends when length has stopped
    falling: over the last `window` steps on length the mean length is lower by a share of at most `plateau` than over
    the `window` before. The rollouts of its last 2 * `window` steps become the frozen profile. A problem that is not
    among them is measured by the profile of all lengths together.

    Attributes:
        eps: accuracy that stage I may cost.
        eta: slack of a constraint before a step is spent on it, in accuracy and in l.
        delta: how much above the l of stage I stage II may be.
        hysteresis: once a constraint is broken, work on it until it holds without slack (ours); off as in the paper,
            where each step decides by itself.
        window: steps on length.
        plateau: the share up to which lengths count as no longer falling.
        switch_at: end stage I at this step and by no other rule; 0 for the rule above.
    """

    name: ClassVar[str] = "crt"
    summary: ClassVar[str] = "shortens while accuracy holds against the untrained model, else repairs accuracy"
    paper: ClassVar[str] = "2602.12526 (CRT)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCE, Need.OWN})

    eps: BelowOne = 0.02
    eta: BelowOne = 0.01
    delta: BelowOne = 0.02
    hysteresis: bool = False
    window: PositiveInt = 10
    plateau: BelowOne = 0.01
    switch_at: Annotated[NonNegativeInt, Because("0 waits until length has stopped falling")] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stage = 1
        self.violated = False
        self._step = 0
        # Mean length of each recent step on length; each problem's lengths and the step they were seen in.
        self._fallen: list[float] = []
        self._seen: dict[int, tuple[int, list[int]]] = {}
        # Mean, standard deviation and mean l of each problem and, under None, of all lengths: empty in stage I.
        self._profile: dict[int | None, tuple[float, float, float]] = {}

    @property
    def on_length(self) -> bool:
        """Whether this step is spent on length, not on accuracy."""
        return self.violated == (self.stage == 2)

    def update(self, rollouts: Rollouts) -> None:
        if rollouts.reference_accuracy is None:
            raise ObjectiveError(
                f"{self.name} needs the accuracy of the model before the training on each problem "
                "(Rollouts.reference_accuracy)"
            )
        own = rollouts.own
        if not bool(own.any()):
            raise ObjectiveError(
                f"{self.name} follows the accuracy of what the model writes by itself, and every response of this step "
                "was explored or made to be direct: leave some of each group to the model"
            )
        self._step += 1
        if self.stage == 1:
            self._remember(rollouts)
            reference = rollouts.reference_accuracy.double()[:, None].expand_as(own)[own]
            missing = reference.mean().item() - rollouts.correct[own].double().mean().item()
            self._decide(missing - self.eps)
            if self.on_length:
                self._fallen = [*self._fallen, rollouts.lengths[own].double().mean().item()][-2 * self.window :]
            if (self._step >= self.switch_at) if self.switch_at else self._saturated():
                self._freeze()
        if self.stage == 2:
            there = own.any(dim=1)
            allowed = fmean(self._frozen(problem)[2] for problem in rollouts.problems[there].tolist())
            written = torch.stack(
                [row[by_itself].mean() for row, by_itself in zip(self._relative_length(rollouts), own, strict=True)]
            )
            self._decide(written[there].mean().item() - allowed - self.delta)

    def rewards(self, rollouts: Rollouts) -> Tensor:
        return -self._relative_length(rollouts) if self.on_length else rollouts.correct.double()

    def inactive(self, rollouts: Rollouts) -> str:
        if self.on_length:
            return ""
        if self.stage == 2:
            return "stage II: lengths are within those of stage I, so this step is spent on accuracy"
        return (
            f"accuracy has fallen below that of the untrained model by more than eps + eta = {self.eps + self.eta:g}, "
            "so this step is spent on accuracy"
        )

    # -- what decides

    def _decide(self, excess: float) -> None:
        """Whether the constraint that is exceeded by `excess` is broken."""
        slack = 0.0 if self.hysteresis and self.violated else self.eta
        self.violated = excess > slack + 1e-12

    def _saturated(self) -> bool:
        if len(self._fallen) < 2 * self.window:
            return False
        before, now = sum(self._fallen[: self.window]), sum(self._fallen[self.window :])
        return now >= (1 - self.plateau) * before

    def _relative_length(self, rollouts: Rollouts) -> Tensor:
        """l of each response, (P, G)."""
        if self.stage == 1:
            return torch.stack([_relative(row, *_moments(row)) for row in rollouts.lengths.double()])
        return torch.stack(
            [
                _relative(row, *self._frozen(problem)[:2])
                for row, problem in zip(rollouts.lengths.double(), rollouts.problems.tolist(), strict=True)
            ]
        )

    # -- the profile of stage I

    def _remember(self, rollouts: Rollouts) -> None:
        for problem, row, own in zip(rollouts.problems.tolist(), rollouts.lengths, rollouts.own, strict=True):
            lengths = row[own].tolist()
            if not lengths:
                continue
            step, known = self._seen.get(problem, (0, []))
            self._seen[problem] = (self._step, [*known, *lengths] if step == self._step else lengths)
        oldest = self._step - 2 * self.window
        self._seen = {problem: (step, known) for problem, (step, known) in self._seen.items() if step > oldest}

    def _freeze(self) -> None:
        lengths = {problem: torch.tensor(known, dtype=torch.float64) for problem, (_, known) in self._seen.items()}
        everything = torch.cat(list(lengths.values()))
        overall = _moments(everything)
        self._profile = {None: (*overall, _relative(everything, *overall).mean().item())}
        for problem, own in lengths.items():
            mean, deviation = _moments(own)
            # Lengths that did not differ say nothing of the scale.
            deviation = deviation or overall[1]
            self._profile[problem] = (mean, deviation, _relative(own, mean, deviation).mean().item())
        self.stage, self.violated = 2, False
        self._fallen, self._seen = [], {}

    def _frozen(self, problem: int) -> tuple[float, float, float]:
        return self._profile.get(problem, self._profile[None])

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "violated": self.violated,
            "step": self._step,
            "fallen": list(self._fallen),
            # Lists of pairs: the keys of a JSON object would come back as text.
            "seen": [[problem, step, list(lengths)] for problem, (step, lengths) in self._seen.items()],
            "profile": [[problem, *numbers] for problem, numbers in self._profile.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        expected = self.state_dict().keys()
        if state.keys() != expected:
            raise ObjectiveError(
                f"the checkpoint holds no state of {self.name}: it has {', '.join(sorted(state)) or 'nothing'} in "
                f"place of {', '.join(sorted(expected))}"
            )
        self.stage, self.violated, self._step = int(state["stage"]), bool(state["violated"]), int(state["step"])
        self._fallen = [float(length) for length in state["fallen"]]
        self._seen = {problem: (step, list(lengths)) for problem, step, lengths in state["seen"]}
        self._profile = {problem: (mean, deviation, usual) for problem, mean, deviation, usual in state["profile"]}


def _moments(lengths: Tensor) -> tuple[float, float]:
    """Mean and population standard deviation."""
    return lengths.mean().item(), lengths.std(correction=0).item()


def _relative(lengths: Tensor, mean: float, deviation: float) -> Tensor:
    """The sigmoid of the lengths' standard scores, 0.5 where nothing deviates."""
    if deviation == 0 or math.isnan(deviation):
        return torch.full_like(lengths, 0.5)
    return torch.sigmoid((lengths - mean) / deviation)
