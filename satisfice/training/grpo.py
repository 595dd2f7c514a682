"""Any objective on TRL's GRPO: `LengthGRPOTrainer`.

TRL loads, computes the loss, logs, saves and distributes. One step of it is `_generate_and_score_completions`, and is
extended so:

    step = asked(inputs)        prompts with what the objective says about length
    step = written(step)        responses, by TRL's generation or the transformers engine
    step = rewarded(step)       graded, gathered into whole groups, rewarded by the objective
    batch = TRL's own           log-probabilities; it takes prompts, responses and rewards from the step
    put_advantages(step, batch) the objective's, one a response or one a token, in TRL's place

and its loss is TRL's on each micro-batch without the columns that are padding in all of its rows.

`step` is one record (`step.py`); the stages are here, what they do in `writing.py` and `reading.py`, and what a
checkpoint must hold in `checkpoints.py`.

Departures from GRPO as TRL has it: advantages are the objective's own; prompts are rendered exactly as they are at
decoding time; validation is a mean over problems, not over batches; rewards are known before the log-probabilities.

The five methods that are extended are private to TRL. `tests/training/test_grpo.py` fails loudly where an upgrade moves
them.
"""

import functools
import json
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention.controls import EndScaling
from satisfice.problems import GraderPool, Problem
from satisfice.reinforcement.objective import Condition, Need, Objective, ObjectiveError
from satisfice.reinforcement.segments import Judge
from satisfice.thinking import Prompt, ThinkingFormat
from satisfice.training.alarms import Alarms
from satisfice.training.checkpoints import SaveState, check_decided_by, configured, newest_checkpoint, read_state
from satisfice.training.reading import Reader, gathered
from satisfice.training.recipe import Exploration, unmet
from satisfice.training.responses import training_rows, under
from satisfice.training.rollout_copy import RolloutCopy
from satisfice.training.step import (
    TrainingStep,
    first_row,
    put_advantages,
    training_metrics,
    validation_metrics,
    without_padding,
)
from satisfice.training.writing import begins_directly, closing, exploring, write_together

RENDERED = 4096
"""Rendered prompts that are kept, at most."""


def training_set(
    problems: Sequence[Problem],
    prompts: int,
    *,
    instruction: str = "",
    reference_accuracy: Sequence[float] | None = None,
) -> Dataset:
    """The prompts of a training: problems in their order, repeated until there are `prompts` rows.

    What they are told about length is added when they are asked, by the objective as it stands then.

    Args:
        problems: what to ask.
        prompts: how many rows.
        instruction: text after each question and before the objective's own, as in `satisfice compare`.
        reference_accuracy: share of right answers of the untrained model, one a problem.
    """
    rows = training_rows(problems, prompts, instruction=instruction, reference_accuracy=reference_accuracy)
    return Dataset.from_list(rows)


class LengthGRPOTrainer(GRPOTrainer):
    """GRPO under a length-aware objective.

    Args:
        model: the policy; a model or what TRL loads one from.
        objective: rewards and advantages.
        args: TRL's configuration. `scale_rewards` and the reward weights are not read: advantages are the objective's.
        train_dataset: from `training_set`.
        eval_dataset: the same for validation; needed by objectives that need "validation".
        processing_class: the tokenizer.
        thinking: how the model marks thinking; detected from the tokenizer where not given.
        graders: grades answers; one of its own, closed with the training, where not given.
        judge: finds the first right answer in a thinking, for objectives that need "boundary"; comparison of text
            unless given.
        in_flight: write the responses with the transformers engine, whose batch lets a finished response go, and not
            with TRL's generation, which carries all to the end of the longest. For a device that holds the whole model,
            and under `bf16` or `fp16` a copy of its weights in that precision besides, see `RolloutCopy`.
        explore: make endings likelier in a share of the responses; needs `in_flight`.
        decided_by: what decides the weights, as plain data: it stands in each checkpoint, and a checkpoint of anything
            else is refused. The data set and the main settings in `args` unless given.
        say: where alarms go; Python warnings unless given.
        others: passed to `GRPOTrainer` (`peft_config`, `callbacks`, `optimizers`, ...).

    Raises:
        ObjectiveError: the configuration or the data cannot give what the objective needs.
    """

    objective: Objective
    alarms: Alarms
    validation_accuracy: float | None

    def __init__(
        self,
        model: PreTrainedModel | str,
        objective: Objective,
        *,
        args: GRPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase,
        thinking: ThinkingFormat | None = None,
        graders: GraderPool | None = None,
        judge: Judge | None = None,
        in_flight: bool = False,
        explore: Exploration | None = None,
        decided_by: Mapping[str, Any] | None = None,
        say: Any = None,
        **others: Any,
    ) -> None:
        _check(objective, args, train_dataset, eval_dataset, in_flight, explore)
        self.objective = objective
        self._in_flight = in_flight
        self._copy: RolloutCopy | None = None
        self._explore = explore
        say = say or functools.partial(warnings.warn, stacklevel=2)
        self.alarms = Alarms(say)
        if objective.loss_type not in (None, args.loss_type):
            say(
                f"{objective.name} is described with the loss {objective.loss_type} and trained under "
                f"{args.loss_type}, so only a part of the method is in force: set loss_type={objective.loss_type!r}"
            )
        self._decided_by = dict(decided_by) if decided_by is not None else configured(args, train_dataset)
        self.validation_accuracy: float | None = None
        self._graders = graders or GraderPool()
        self._own_graders = graders is None
        source = model if isinstance(model, str) else model.name_or_path
        self._thinking = thinking or ThinkingFormat.detect(processing_class, str(source))
        self._rendered: dict[str, Prompt] = {}
        # Of a validation as far as it has come: a row for each response, with the columns of `reading.MEASURED`.
        self._validated: list[list[float]] = []
        args.reward_weights = [0.0, 1.0]
        super().__init__(
            model=model,
            # TRL wants functions to name its columns by; the step fills the columns.
            reward_funcs=[_named("correct"), _named(objective.name)],
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **others,
        )
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        self._reader = Reader(
            tokenizer=processing_class, thinking=self._thinking, graders=self._graders, judge=judge, ends=ends,
            engine=self._engine, group=self.num_generations, max_length=self.max_completion_length,
        )  # fmt: skip
        self.add_callback(SaveState(self.saved_state, self.accelerator.wait_for_everyone))

    # -- a step

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch with the objective's advantages: (B,), or (B, T) where it has one for each token."""
        step = self._asked(inputs)
        step = self._written(step)
        step = self._rewarded(step) if self.model.training else self._measured(step)
        self._at_hand = step  # for the three methods below, which TRL's own calls
        batch: dict[str, Any] = super()._generate_and_score_completions(step.rows)
        self._correct_table(step)
        return put_advantages(step, batch)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """The step's prompts."""
        return [prompt.ids for prompt in self._at_hand.prompts], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """The step's responses."""
        return (self._at_hand.responses, *self._at_hand.beside)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> Tensor:
        """(P * G, 2), whether each response of all processes is right, and its reward."""
        return self._at_hand.reward_columns.to(self.accelerator.device)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's, on no more columns than the micro-batch needs."""
        loss: Tensor = super()._compute_loss(model, without_padding(inputs))
        return loss

    # -- its first stage: what is asked

    def _asked(self, inputs: list[dict[str, Any]]) -> TrainingStep:
        """Prompts with what they are told about length, and who is to write each response."""
        rows = [self._under_condition(row) for row in inputs]
        prompts = [self._render(row["prompt"]) for row in rows]
        share = self.objective.direct_share if self.model.training else 0.0
        first, group = first_row(len(rows)), self.num_generations
        direct = [begins_directly(first + row, group, share) for row in range(len(rows))]
        controls: list[EndScaling | None] = [None] * len(rows)
        if self._explore is not None and self.model.training:
            left = 1 - self.state.global_step / self.state.max_steps
            controls = [
                None if direct[row] else exploring(
                    self._explore, rows[row]["level"], prompts[row], place=first + row, group=group, left=left
                )
                for row in range(len(rows))
            ]  # fmt: skip
        return TrainingStep(rows=rows, prompts=prompts, direct=direct, controls=controls)

    def _under_condition(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with what its prompt is told about length, the same for a whole group wherever its rows are.

        Validation asks without a condition: what is validated is the model as it is used by default.
        """
        condition = Condition()
        if self.model.training:
            seed = f"{self.args.seed}/{self._generations}/{row['problem']}"
            condition = self.objective.condition(random.Random(seed))
        return under(row, condition)

    @property
    def _generations(self) -> int:
        """Batches of responses that were generated before this one, from the very start of the training.

        Every random number of a batch holds it, so a problem that comes again, within a step or later, gets other
        responses, and a resumed training gets the same.
        """
        return int(self._step // (self.args.steps_per_generation * self.num_iterations))

    def _render(self, messages: list[dict[str, str]]) -> Prompt:
        """The prompt as the engines render it. All responses of a group, and often of many steps, share one."""
        key = json.dumps(messages)
        if key not in self._rendered:
            if len(self._rendered) >= RENDERED:
                self._rendered.clear()
            self._rendered[key] = self._thinking.render(self.processing_class, messages)
        return self._rendered[key]

    # -- the second: what is written

    def _written(self, step: TrainingStep) -> TrainingStep:
        """A response to each prompt, from where it begins for the model."""
        begun = [
            closing(self.processing_class, self._thinking, prompt) if direct else []
            for prompt, direct in zip(step.prompts, step.direct, strict=True)
        ]
        asked = [[*prompt.ids, *forced] for prompt, forced in zip(step.prompts, begun, strict=True)]
        if self._in_flight:
            written, beside = self._write(asked, step.controls), [None]
        else:
            group = self.num_generations if self.model.training else self.num_generations_eval
            written, *beside = super()._generate_single_turn(asked, None, {}, group)
        responses = [[*forced, *ids] for forced, ids in zip(begun, written, strict=True)]
        return replace(step, responses=responses, beside=tuple(beside))

    def _write(self, prompt_ids: list[list[int]], controls: Sequence[EndScaling | None]) -> list[list[int]]:
        """One response to each prompt, by the transformers engine."""
        first = first_row(len(prompt_ids))
        if self.model.training:
            moment = str(self._generations)
        else:
            # The same random numbers at each validation, so that two differ by the model and not by the draw.
            moment, first = "validation", first + len(self._validated)
        sampling = Sampling(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k or 0, min_p=self.min_p or 0.0,
            max_tokens=self.max_completion_length,
        )  # fmt: skip
        samplings = []
        for row, ids in enumerate(prompt_ids):
            # The same after an interruption and for any number of processes; no two responses share it.
            seed = random.Random(f"{self.args.seed}/{moment}/{first + row}/{ids}").getrandbits(62)
            samplings.append(replace(sampling, seed=seed))
        # All rows begin together, so what a finished one has computed is of use to none; by default an engine keeps as
        # much of it as fits in a quarter of the free memory.
        stored = sum(len(ids) for ids in prompt_ids)
        with self._engine(self._writer(), max_batch=len(prompt_ids), max_cached_tokens=stored) as engine:
            return write_together(engine, prompt_ids, samplings, controls)

    def _writer(self) -> PreTrainedModel | None:
        """A copy of the policy in the precision of the step, with its weights as they stand; None for full precision.

        It only writes: what is scored by the policy is scored by the policy itself.
        """
        half = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        if half is None:
            return None
        model = self.accelerator.unwrap_model(self.model)
        self._copy = self._copy or RolloutCopy(model, half)
        self._copy.follow(model)
        return self._copy.network

    @contextmanager
    def _engine(self, writer: PreTrainedModel | None = None, **options: Any) -> Iterator[TransformersEngine]:
        """The policy as it stands, or a copy that writes for it, as an engine."""
        model = self.accelerator.unwrap_model(self.model)
        training = self.model.training
        network = model if writer is None else writer
        engine = TransformersEngine(network, self.processing_class, thinking=self._thinking, threads=None, **options)
        try:
            yield engine
        finally:
            engine.close()
            model.train(training)

    # -- the third: what it is worth

    def _rewarded(self, step: TrainingStep) -> TrainingStep:
        """What the objective makes of the groups of all processes."""
        needs, accuracy = self.objective.needs, self.validation_accuracy
        rollouts, thinking_tokens = self._reader.rollouts(step, needs, accuracy)
        self.objective.update(rollouts)
        cut = self.objective.cut(rollouts)
        if cut is not None:
            rollouts, thinking_tokens = self._reader.rollouts(step, needs, accuracy, cut)
        rewards = self.objective.rewards(rollouts)
        advantages = self.objective.advantages(rollouts, rewards)
        by_token = self.objective.token_advantages(rollouts, advantages)
        for name, value in training_metrics(rollouts, thinking_tokens, rewards).items():
            self._metrics["train"][name].append(value)
        self.alarms.check(self.objective, rollouts, rewards)
        return replace(
            step, correct=rollouts.correct, rewards=rewards, cut=cut,
            advantages=advantages if by_token is None else by_token,
        )  # fmt: skip

    def _measured(self, step: TrainingStep) -> TrainingStep:
        """Whether each response is right, and nothing that is learned: no business of the objective's."""
        _, columns = self._reader.graded(step)
        found = gathered(columns, 1)
        self._validated += torch.cat(list(found.values()), dim=1).tolist()
        correct = found["correct"].bool()
        return replace(step, correct=correct, rewards=correct.double(), advantages=torch.zeros(correct.shape))

    # -- what is logged, validated, saved

    def _correct_table(self, step: TrainingStep) -> None:
        """TRL has put advantages of its own making into its table of completions."""
        table, right = self._logs["advantages"], step.shown_advantages
        for _ in range(min(len(table), len(right))):
            table.pop()
        table.extend(right)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """A measurement of the model as it is used by default; no objective has a part in it.

        Its accuracy is what objectives that need `Need.VALIDATION` see from then on. The random numbers of the training
        go on as if there had been none.
        """
        self._validated.clear()
        with torch.random.fork_rng():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        # Every process has computed it from the same gathered grades.
        self.validation_accuracy = metrics.get("eval_accuracy", self.validation_accuracy)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log; the numbers of a validation are means over its problems, where TRL's are means over batches."""
        if not self.model.training and self._validated:
            mode = self._metrics["eval"]
            mode.clear()
            for name, value in validation_metrics(self._validated).items():
                mode[name].append(value)
            self._validated.clear()
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """TRL's training; from a checkpoint, the objective goes on in the state it was saved in.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the newest complete one where there is any.
            kwargs: TRL's.

        Raises:
            ObjectiveError: the checkpoint is not complete, or it was written under another objective or by a training
                that something else decided.
        """
        checkpoint = (
            newest_checkpoint(Path(str(self.args.output_dir)))
            if resume_from_checkpoint is True
            else Path(resume_from_checkpoint) if resume_from_checkpoint else None
        )  # fmt: skip
        if checkpoint:
            self._restore(checkpoint)
        try:
            return super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
        finally:
            if self._own_graders:
                self._graders.close()

    def _restore(self, checkpoint: Path) -> None:
        saved = read_state(checkpoint)
        if saved["objective"] != str(self.objective):
            raise ObjectiveError(
                f"{checkpoint} was trained with {saved['objective']}, not {self.objective}: go on with the same "
                "objective, or start in another directory"
            )
        check_decided_by(checkpoint, self._decided_by)
        # TRL counts its passes from 0 in each process's life; which generation is due follows from those of all lives.
        done = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
        self._step = done * self.args.gradient_accumulation_steps
        self.objective.load_state_dict(saved["state"])
        self.alarms.load_state_dict(saved["alarms"])
        self.validation_accuracy = saved["validation_accuracy"]

    def saved_state(self) -> dict[str, Any]:
        """What a checkpoint holds besides TRL's own files, as plain data."""
        return {
            "objective": str(self.objective),
            "decided_by": self._decided_by,
            "state": self.objective.state_dict(),
            "alarms": self.alarms.state_dict(),
            "validation_accuracy": self.validation_accuracy,
        }


def _named(name: str) -> Any:
    """A reward function that is never called, for its name."""

    def placeholder(**_: Any) -> list[float]:
        raise NotImplementedError

    placeholder.__name__ = name
    return placeholder


def _check(
    objective: Objective,
    args: GRPOConfig,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
    in_flight: bool,
    explore: Exploration | None,
) -> None:
    """Refuse, before anything is loaded, what would fail or mislead later."""
    if obstacle := unmet(objective, vars(args), in_flight=in_flight, explore=explore):
        raise ObjectiveError(obstacle)
    if Need.VALIDATION in objective.needs and (
        eval_dataset is None or not args.eval_on_start or str(args.eval_strategy.value) == "no"
    ):
        raise ObjectiveError(
            f"{objective.name} follows the validation accuracy: give held-out problems (validation), evaluate from the "
            "start (eval_on_start) and then regularly (eval_strategy; in a recipe validate_every)"
        )
    if Need.REFERENCE in objective.needs and min(train_dataset["reference_accuracy"]) < 0:
        raise ObjectiveError(
            f"{objective.name} compares with the untrained model: measure its accuracy on the training problems first "
            "(reference_samples in a recipe)"
        )
