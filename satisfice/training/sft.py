"""Imitation with TRL: the response alone carries loss, divided by the tokens of the whole batch.

A mean for each micro-batch would weigh an ending in a short example more than a going-on in a long one, and where to
stop is what is to be learned here. `MixtureSampler` draws rows from two pools whose shares move as the training goes
on.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from trl import SFTTrainer

from satisfice.supervision.methods.reweighting import MixRatio, PoolReader


class ResponseSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer on rows that are token ids already, with a sampler of its own where one is given."""

    def __init__(self, *args: Any, sampler: Sampler[int] | None = None, **options: Any) -> None:
        self._own_sampler = sampler
        super().__init__(*args, **options)

    def _get_train_sampler(self, *args: Any, **options: Any) -> Any:
        return self._own_sampler or super()._get_train_sampler(*args, **options)


class MixtureSampler(Sampler[int]):
    """Numbers of rows without end: for each one a pool is drawn by the present shares, and read on in its order.

    Loaders fetch a batch ahead of the step that takes it. So that a resumed training draws as an uninterrupted one,
    what is heard after a step counts from the second step after it.

    Attributes:
        mix: the shares.
        start: number of rows that an interrupted training has taken already.
    """

    def __init__(self, mix: MixRatio, reader: PoolReader, rows: int, seed: int, rows_per_step: int) -> None:
        """Nothing drawn yet.

        Args:
            mix: the shares.
            reader: the pools.
            rows: what `len` says: rows of the whole training.
            seed: of the drawing.
            rows_per_step: how often the place in the pools is remembered.
        """
        self.mix, self.reader = mix, reader
        self.rows, self.seed, self.rows_per_step = rows, seed, rows_per_step
        self.start = 0
        self._positions: dict[int, list[int]] = {0: list(reader.positions)}
        self._shares: list[tuple[int, float]] = [(0, mix.weights[0])]

    def hear(self, step: int, tokens: float, accuracy: float) -> tuple[float, float]:
        """Move the shares by what the model did on the validation problems after so many steps."""
        weights = self.mix.update(tokens, accuracy)
        self._shares = [*self._shares[-2:], ((step + 1) * self.rows_per_step, weights[0])]
        return weights

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        for number in range(self.start, self.rows):
            # Of each row by its number alone, so that a resumed training draws as an uninterrupted one.
            drawn = random.Random(f"{self.seed}/{number}").random()
            short = next(share for begins, share in reversed(self._shares) if begins <= number)
            yield self.reader.next(0 if drawn < short else 1)
            if (number + 1) % self.rows_per_step == 0:
                self._positions[number + 1] = list(self.reader.positions)
                # What a checkpoint may still ask for: the loader is a few batches ahead at most.
                self._positions.pop(number + 1 - 8 * self.rows_per_step, None)

    def state_dict(self, step: int) -> dict[str, Any]:
        """What a checkpoint after so many steps keeps."""
        taken = step * self.rows_per_step
        return {
            "taken": taken,
            "positions": self._positions[taken],
            "shares": self._shares,
            "mix": self.mix.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.start = int(state["taken"])
        self.reader.positions = [int(position) for position in state["positions"]]
        self._positions = {self.start: list(self.reader.positions)}
        self._shares = [(int(begins), float(share)) for begins, share in state["shares"]]
        self.mix.load_state_dict(state["mix"])


class Validation(TrainerCallback):  # type: ignore[misc]
    """Lets the model answer held-out problems at regular steps.

    Args:
        measure: mean tokens and accuracy of the model as it is now.
        every: steps between two measurements.
        hear: told of each of them; what it returns is logged as well.
    """

    def __init__(
        self,
        measure: Callable[[], tuple[float, float]],
        every: int,
        hear: Callable[[int, float, float], dict[str, float]] = lambda step, tokens, accuracy: {},
    ) -> None:
        self.measure, self.every, self.hear = measure, every, hear
        self.trainer: Any = None
        """Set when there is one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The untrained model is the measure of all that follows."""
        if state.global_step == 0:
            self._validate(0, first=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after each step."""
        if self.every and state.global_step % self.every == 0:
            logs = control.should_log  # logging says that it is done
            self._validate(state.global_step)
            control.should_log = logs

    def _validate(self, step: int, first: bool = False) -> None:
        training = self.trainer.model.training
        with torch.no_grad():
            tokens, accuracy = self.measure()
        self.trainer.model.train(training)
        more = {} if first else self.hear(step, tokens, accuracy)
        # Not TRL's own, which would put what it has gathered of the running step into this entry.
        Trainer.log(self.trainer, {"validation_accuracy": accuracy, "validation_tokens": tokens, **more})
