"""Any objective on TRL's GRPO: `LengthGRPOTrainer`.

TRL generates, computes the loss, logs, saves and distributes. Four of its methods are extended, and nothing else:

* `_tokenize_prompts` renders prompts exactly as they are rendered at decoding time; `_generate_single_turn` begins some
  responses for the model where an objective wants that, and can have them written by the transformers engine;
* `_calculate_rewards` grades the responses, gathers everything, and hands whole groups to the objective;
* `_generate_and_score_completions` tells each prompt what the objective says about length, and puts the objective's
  advantages, one a response or one a token, in TRL's place.

They are private to TRL. `tests/reinforcement/test_trainer.py` fails loudly where an upgrade moves them.
"""

import asyncio
import functools
import json
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention.controls import EndScaling
from satisfice.levels import LEVELS
from satisfice.problems import GraderPool, Problem
from satisfice.reinforcement.alarms import Alarms
from satisfice.reinforcement.objective import Condition, Objective, ObjectiveError, Rollouts, Step, violations
from satisfice.reinforcement.recipe import Exploration
from satisfice.reinforcement.responses import grade_responses, training_rows, under
from satisfice.reinforcement.segments import Judge, estimate_importance, first_right_answer, redundancy, split_steps
from satisfice.thinking import Phase, Prompt, Split, ThinkingFormat, decode, encode_after

STATE_FILE = "objective.json"
"""In each checkpoint: the objective's state and what else this trainer must remember."""
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
            with TRL's generation, which carries all to the end of the longest. For a device that holds the whole model.
        explore: make endings likelier in a share of the responses; needs `in_flight`.
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
        say: Any = None,
        **others: Any,
    ) -> None:
        _check(objective, args, train_dataset, eval_dataset, in_flight, explore)
        self.objective = objective
        self._in_flight = in_flight
        self._explore = explore
        self.alarms = Alarms(say or functools.partial(warnings.warn, stacklevel=2))
        self.validation_accuracy: float | None = None
        self._graders = graders or GraderPool()
        self._own_graders = graders is None
        self._judge = judge
        self._thinking = thinking or ThinkingFormat.detect(processing_class, str(getattr(model, "name_or_path", model)))
        self._rendered: dict[str, Prompt] = {}
        self._prompts: list[Prompt] = []
        self._direct: list[bool] = []
        self._levels: list[int] = []
        self._advantages: Tensor
        self._cut: Tensor | None = None
        args.reward_weights = [0.0, 1.0]
        super().__init__(
            model=model,
            # TRL wants functions to name its columns by; `_calculate_rewards` fills the columns itself.
            reward_funcs=[_named("correct"), _named(objective.name)],
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **others,
        )
        self.add_callback(_SaveState(self))

    # -- from prompts to rollouts

    def _under_condition(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with what its prompt is told about length, the same for a whole group wherever its rows are.

        Validation asks without a condition: what is validated is the model as it is used by default.
        """
        condition = Condition()
        if self.model.training:
            seed = f"{self.args.seed}/{self.state.global_step}/{row['problem']}"
            condition = self.objective.condition(random.Random(seed))
        return under(row, condition)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Prompts as the engines render them."""
        self._prompts = [self._render(prompt) for prompt in prompts]
        return [prompt.ids for prompt in self._prompts], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """TRL's generation; where the objective wants so, a share of each group begins by closing its thinking.

        Those closing tokens are part of the response, so whether to think at all is learned too.
        """
        training = self.model.training
        share = getattr(self.objective, "direct_share", 0.0) if training else 0.0
        first, size = self.accelerator.process_index * len(prompt_ids), self.num_generations
        self._direct = [(first + row) % size < share * size for row in range(len(prompt_ids))]
        begun = [
            self._closing(prompt) if direct else [] for prompt, direct in zip(self._prompts, self._direct, strict=True)
        ]
        extended = [[*ids, *forced] for ids, forced in zip(prompt_ids, begun, strict=True)]
        if self._in_flight:
            completion_ids, others = self._write(extended), [None]
        else:
            completion_ids, *others = super()._generate_single_turn(extended, *args, **kwargs)
        whole = [[*forced, *ids] for forced, ids in zip(begun, completion_ids, strict=True)]
        return (whole, *others)

    def _write(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """One response to each prompt, by the transformers engine."""
        first = self.accelerator.process_index * len(prompt_ids)
        settings = Sampling(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k or 0, min_p=self.min_p or 0.0,
            max_tokens=self.max_completion_length,
        )  # fmt: skip

        controls = [self._exploring(row, first + row) for row in range(len(prompt_ids))]

        async def write(engine: TransformersEngine) -> list[list[int]]:
            asked = []
            for row, (ids, control) in enumerate(zip(prompt_ids, controls, strict=True)):
                # The same after an interruption and for any number of processes; no two responses share it.
                seed = random.Random(f"{self.args.seed}/{self.state.global_step}/{first + row}/{ids}").getrandbits(62)
                asked.append(engine.generate(ids, replace(settings, seed=seed), control=control))
            return [generation.ids for generation in await asyncio.gather(*asked)]

        with self._engine(max_batch=len(prompt_ids)) as engine:
            return asyncio.run(write(engine))

    def _exploring(self, row: int, place: int) -> EndScaling | None:
        """What makes an ending likelier in the response to a row, `place` rows into the batch of all processes."""
        if self._explore is None or not self.model.training or self._direct[row]:
            return None
        if ("unlabelled", *LEVELS)[self._levels[row] + 1] not in self._explore.levels:
            return None
        # The last ones of a group, because the objective may begin some of its first.
        if self.num_generations - place % self.num_generations > self._explore.share * self.num_generations:
            return None
        left = 1 - self.state.global_step / self.state.max_steps
        return EndScaling(bias=self._explore.bias * left, state=self._prompts[row].state)

    @contextmanager
    def _engine(self, **options: Any) -> Iterator[TransformersEngine]:
        """The policy as it stands, as an engine."""
        model = self.accelerator.unwrap_model(self.model)
        training = self.model.training
        engine = TransformersEngine(model, self.processing_class, thinking=self._thinking, threads=None, **options)
        try:
            yield engine
        finally:
            engine.close()
            model.train(training)

    def _render(self, messages: list[dict[str, str]]) -> Prompt:
        """All responses of a group, and often of many steps, share one prompt."""
        key = json.dumps(messages)
        if key not in self._rendered:
            if len(self._rendered) >= RENDERED:
                self._rendered.clear()
            self._rendered[key] = self._thinking.render(self.processing_class, messages)
        return self._rendered[key]

    def _closing(self, prompt: Prompt) -> list[int]:
        """Token ids of an empty thinking behind `prompt`."""
        tokenizer, thinking = self.processing_class, self._thinking
        opens = thinking.automaton(tokenizer).phase(prompt.state) is Phase.BEFORE
        opening = encode_after(tokenizer, thinking.opening) if opens else []
        return [*opening, *thinking.forced_close(tokenizer, "")]

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> Tensor:
        """(N, 2) gathered: whether each response is right, and what the objective rewards it with."""
        training = self.model.training
        size = self.num_generations if training else self.num_generations_eval
        rollouts = self._rollouts(inputs, completion_ids_list, size)
        if training:
            self.objective.update(rollouts)
        self._cut = self.objective.cut(rollouts) if training else None
        if self._cut is not None:
            rollouts = self._rollouts(inputs, completion_ids_list, size, cut=self._cut)
        rewards = self.objective.rewards(rollouts)
        advantages = self.objective.advantages(rollouts, rewards)
        per_token = self.objective.token_advantages(rollouts, advantages)
        self._advantages = (advantages if per_token is None else per_token).flatten(0, 1)
        self._log_rollouts(rollouts, rewards)
        if training:
            self.alarms.check(self.objective, rollouts, rewards)
        columns = [rollouts.correct.flatten().float(), rewards.flatten().float()]
        return torch.stack(columns, dim=1).to(self.accelerator.device)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch with the objective's advantages: (B,), or (B, T) where it has one for each token."""
        rows = [self._under_condition(row) for row in inputs]
        self._levels = [row["level"] for row in rows]
        output: dict[str, Any] = super()._generate_and_score_completions(rows)
        mask = output["completion_mask"]
        advantages = self._local(self._advantages)
        if advantages.ndim == 2:
            advantages = torch.nn.functional.pad(advantages, (0, max(0, mask.shape[1] - advantages.shape[1])))
            advantages = advantages[:, : mask.shape[1]]
        output["advantages"] = advantages.to(device=mask.device, dtype=torch.float32)
        if self._cut is not None:
            keep = self._local(self._cut.flatten()).to(mask.device)
            columns = torch.arange(mask.shape[1], device=mask.device)
            output["completion_mask"] = mask * (columns < keep[:, None])
            output["num_items_in_batch"] = gather(output["completion_mask"].sum()).sum()
        # What TRL has put into its table of completions are advantages of its own making.
        logged, whole = self._logs["advantages"], self._advantages
        for _ in range(min(len(logged), len(whole))):
            logged.pop()
        logged.extend((whole if whole.ndim == 1 else whole.sum(1) / (whole != 0).sum(1).clamp(min=1)).tolist())
        return output

    def _rollouts(
        self, inputs: list[dict[str, Any]], completion_ids: list[list[int]], size: int, *, cut: Tensor | None = None
    ) -> Rollouts:
        """Grade this process's responses, cut to (P, G) tokens where that is given, and gather those of all."""
        responses = grade_responses(
            inputs,
            completion_ids,
            [prompt.state for prompt in self._prompts],
            tokenizer=self.processing_class,
            thinking=self._thinking,
            graders=self._graders,
            ends={*self.eos_token_ids, self._tokenizer.pad_token_id},
            keep=None if cut is None else self._local(cut.flatten()).tolist(),
        )
        completion_ids, splits = responses.ids, responses.splits
        columns = {
            "lengths": [len(ids) for ids in completion_ids],
            "thinking": [split.span[1] - split.span[0] for split in splits],
            "correct": [int(right) for right in responses.correct],
            "truncated": [int(not done) for done in responses.finished],
            "problems": [row["problem"] for row in inputs],
            "levels": [row["level"] for row in inputs],
            "budgets": [row["budget"] for row in inputs],
            "direct": [int(direct) for direct in self._direct],
        }
        needs = self.objective.needs
        if "boundary" in needs:
            columns |= self._boundaries(inputs, completion_ids, splits, columns["correct"])
        local = torch.tensor(list(columns.values()), device=self.accelerator.device).T.contiguous()
        whole = gather(local).cpu()
        found = {name: whole[:, index].reshape(-1, size) for index, name in enumerate(columns)}
        self._thinking_tokens = found.pop("thinking")
        group = {name: found.pop(name)[:, 0] for name in ("problems", "levels", "budgets")}
        others: dict[str, Any] = {}
        if "reference" in needs:
            accuracy = torch.tensor([row["reference_accuracy"] for row in inputs], dtype=torch.float64)
            gathered = gather(accuracy.to(self.accelerator.device, torch.float32)).cpu().double()
            others["reference_accuracy"] = gathered.reshape(-1, size)[:, 0]
        if "steps" in needs:
            steps = gather_object(self._steps(inputs, completion_ids, splits, columns["correct"]))
            others["steps"] = [steps[start : start + size] for start in range(0, len(steps), size)]
        return Rollouts.of(
            found.pop("lengths"),
            found.pop("correct").bool(),
            found.pop("truncated").bool(),
            max_length=self.max_completion_length,
            direct=found.pop("direct").bool(),
            validation_accuracy=self.validation_accuracy,
            **group,
            **found,
            **others,
        )

    def _boundaries(
        self, inputs: list[dict[str, Any]], completion_ids: list[list[int]], splits: list[Split], correct: list[int]
    ) -> dict[str, list[int]]:
        """Where the first right answer stands in right responses, and how redundant the rest is."""
        tokenizer = self.processing_class
        boundaries, counts = [], []
        for row, ids, split, right in zip(inputs, completion_ids, splits, correct, strict=True):
            question = row["prompt"][-1]["content"]
            boundary = (
                first_right_answer(tokenizer, ids, split.span, question, row["answer"], self._judge) if right else -1
            )
            boundaries.append(boundary)
            counts.append(redundancy(decode(tokenizer, ids[boundary:])) if boundary >= 0 else 0)
        return {"boundaries": boundaries, "redundancy": counts}

    def _steps(
        self, inputs: list[dict[str, Any]], completion_ids: list[list[int]], splits: list[Split], correct: list[int]
    ) -> list[list[Step]]:
        """The steps of each right response's thinking and how much each moved the policy towards the right answer."""

        async def estimated(engine: TransformersEngine, index: int) -> list[Step]:
            if not correct[index]:
                return []
            ids, gold = completion_ids[index], inputs[index]["answer"]
            ends = split_steps(self.processing_class, ids, splits[index].span, self._thinking)
            return await estimate_importance(engine, self._prompts[index], ids, ends, gold)

        async def estimate(engine: TransformersEngine) -> list[list[Step]]:
            return await asyncio.gather(*(estimated(engine, index) for index in range(len(inputs))))

        with self._engine() as engine:
            return asyncio.run(estimate(engine))

    def _local(self, gathered: Tensor) -> Tensor:
        """This process's rows of something that was gathered."""
        rows = len(gathered) // self.accelerator.num_processes
        return gathered[self.accelerator.process_index * rows :][:rows]

    # -- what is logged, validated, saved

    def _log_rollouts(self, rollouts: Rollouts, rewards: Tensor) -> None:
        mode = self._metrics["train" if self.model.training else "eval"]

        def log(name: str, values: Tensor) -> None:
            mode[name].append(values.double().mean().item())

        log("accuracy", rollouts.correct)
        log("thinking_tokens", self._thinking_tokens)
        log("truncated", rollouts.truncated)
        mode["reward_violations"].append(float(violations(rewards, rollouts.correct)))
        means = []
        for index, level in enumerate(LEVELS):
            asked = rollouts.levels == index
            if bool(asked.any()):
                log(f"levels/{level}/accuracy", rollouts.correct[asked])
                log(f"levels/{level}/tokens", rollouts.lengths[asked])
                log(f"levels/{level}/truncated", rollouts.truncated[asked])
                means.append(rollouts.lengths[asked].double().mean().item())
        if len(means) == len(LEVELS):
            mode["levels/ordered"].append(float(means[0] < means[1] < means[2]))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's evaluation; its accuracy is what objectives that need "validation" see from then on."""
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        # Every process has computed it from the same gathered grades.
        self.validation_accuracy = metrics.get("eval_accuracy", self.validation_accuracy)
        return metrics

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """TRL's training; from a checkpoint, the objective goes on in the state it was saved in.

        Raises:
            ObjectiveError: the checkpoint was written under another objective.
        """
        checkpoint = (
            get_last_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is True
            else resume_from_checkpoint or None
        )
        if checkpoint:
            self._restore(Path(checkpoint) / STATE_FILE)
        try:
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            if self._own_graders:
                self._graders.close()

    def _restore(self, path: Path) -> None:
        if not path.is_file():
            raise ObjectiveError(f"{path.parent} was not written by this trainer: it holds no {STATE_FILE}")
        saved = json.loads(path.read_text())
        if saved["objective"] != str(self.objective):
            raise ObjectiveError(
                f"{path.parent} was trained with {saved['objective']}, not {self.objective}: go on with the same "
                "objective, or start in another directory"
            )
        self.objective.load_state_dict(saved["state"])
        self.alarms.load_state_dict(saved["alarms"])
        self.validation_accuracy = saved["validation_accuracy"]

    def saved_state(self) -> dict[str, Any]:
        """What a checkpoint holds besides TRL's own files, as plain data."""
        return {
            "objective": str(self.objective),
            "state": self.objective.state_dict(),
            "alarms": self.alarms.state_dict(),
            "validation_accuracy": self.validation_accuracy,
        }


class _SaveState(TrainerCallback):  # type: ignore[misc]
    """Writes the objective's state into each checkpoint."""

    def __init__(self, trainer: LengthGRPOTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / STATE_FILE).write_text(json.dumps(self.trainer.saved_state(), indent=1))


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
    if explore and (obstacle := explore.obstacle(in_flight=in_flight, group=args.num_generations)):
        raise ObjectiveError(obstacle)
    if in_flight and (args.use_vllm or args.deepspeed or args.fsdp):
        raise ObjectiveError(
            "in_flight writes responses with the model as it lies on one device: set it to false where vLLM writes "
            "them (use_vllm) or the weights are sharded (FSDP, DeepSpeed)"
        )
    if objective.per_token and args.use_liger_kernel:
        raise ObjectiveError(
            f"{objective.name} has an advantage for each token, which Liger's fused loss cannot take: set "
            "use_liger_kernel to false"
        )
    if objective.per_token and (args.loss_type in ("luspo", "vespo") or args.importance_sampling_level == "sequence"):
        raise ObjectiveError(
            f"{objective.name} has an advantage for each token, but the loss {args.loss_type} with importance sampling "
            f"by {args.importance_sampling_level} takes one a response: use dapo, grpo, bnpo or dr_grpo by token"
        )
    if "validation" in objective.needs and (eval_dataset is None or not args.eval_on_start):
        raise ObjectiveError(
            f"{objective.name} follows the validation accuracy: give held-out problems (validation) and evaluate from "
            "the start (eval_on_start)"
        )
    if "reference" in objective.needs and min(train_dataset["reference_accuracy"]) < 0:
        raise ObjectiveError(
            f"{objective.name} compares with the untrained model: measure its accuracy on the training problems first "
            "(reference_samples in a recipe)"
        )
    if "direct" in objective.needs and args.use_vllm:
        raise ObjectiveError(
            f"{objective.name} begins half of each group with a closing marker, for which vLLM gives no "
            "log-probabilities: set use_vllm to false"
        )
