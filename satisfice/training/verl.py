"""Every objective as an advantage estimator of verl: `algorithm.adv_estimator=satisfice-NAME`.

Importing this module registers them, because that is all that verl does with a user's module:

    python -m verl.trainer.main_ppo actor_rollout_ref.model.external_lib=satisfice.training.verl ...

verl calls an estimator once for each batch, in one process, with the rewards, the masks and the prompts' ids of all
responses, and with `config.algorithm`. It passes nothing else of a response. So lengths are read from the mask, the
token limit from the configuration (`EstimatorSettings`), and what a prompt was told about length from the score:
`compute_score` writes it there.
"""

import functools
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from satisfice.parameters import check_parameters, no_parameter, parameter_types
from satisfice.reinforcement import OBJECTIVES, objective_from
from satisfice.reinforcement.objective import Need, Objective, ObjectiveError, Rollouts
from satisfice.thinking import ThinkingFormat
from satisfice.training.alarms import Alarms
from satisfice.training.responses import (
    check_fixed_conditions,
    opened_by_template,
    shared_graders,
    unmet_needs,
)

STATE_FILE = "objective.json"
"""In each of verl's checkpoints, where `SaveState` is in use: the objective and its state."""

SECTION = "algorithm.satisfice"


@dataclass(frozen=True)
class EstimatorSettings:
    """What a training sets under `algorithm.satisfice`.

    Attributes:
        max_length: the token limit of a response, `${data.max_response_length}`. The estimator cannot find it out: the
            newer trainers of verl pad a batch to its longest response.
        threshold: a score above it is a right answer.
        parameters: of the objective.
    """

    max_length: PositiveInt
    threshold: float = 0.5
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_parameters(self, SECTION, ObjectiveError)

    @classmethod
    def read(cls, algorithm: Any) -> "EstimatorSettings":
        """The settings in verl's `config.algorithm`.

        Raises:
            ObjectiveError: one is missing, unknown or does not fit.
        """
        given = _plain((algorithm or {}).get("satisfice") or {})
        known = parameter_types(cls)
        for key in given:
            if key not in known:
                raise ObjectiveError(no_parameter(SECTION, key, known))
        if "max_length" not in given:
            raise ObjectiveError(
                f"{SECTION}.max_length says which responses are truncated: add '+{SECTION}.max_length="
                "${data.max_response_length}' to verl's command"
            )
        return cls(**given)


class Estimator:
    """An advantage estimator for verl; it keeps the objective, and with it the objective's state, between batches."""

    def __init__(self, kind: type[Objective]) -> None:
        self.__name__ = f"satisfice-{kind.name}"
        self._kind = kind
        self._settings: EstimatorSettings | None = None
        self._objective: Objective
        self._alarms = Alarms(warnings.warn)
        self.saved = False
        """Whether verl's checkpoints hold the objective's state."""

    def __call__(
        self,
        token_level_rewards: Tensor,
        response_mask: Tensor,
        config: Any = None,
        index: Sequence[Any] | None = None,
        non_tensor_batch: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Advantages, and the same again as returns, both (B, T).

        A group is what shares a prompt id, wherever in the batch. Where responses were lost, groups of different sizes
        are rewarded apart from each other: what an objective scales over the batch, it scales over groups of one size,
        and a state sees only the size that most responses are in. Rows without a token, with which verl fills up a
        batch, get 0 and count nowhere.

        Args:
            token_level_rewards: (B, T), the score of each response somewhere in its row.
            response_mask: (B, T), 1 for each token that the model wrote.
            config: verl's `config.algorithm`.
            index: (B,), the id of each response's prompt.
            non_tensor_batch: "extra_info" of each response, in versions of verl that pass it.

        Raises:
            ObjectiveError: verl cannot give what the objective needs, or the configuration hides it.
        """
        settings = self.prepare(config)
        objective = self._objective
        if index is None:
            raise ObjectiveError(f"{self.__name__} compares the responses of a prompt, and the batch has no uid")
        if not self.saved and objective.state_dict():
            warnings.warn(
                f"{objective.name} has a state that follows the training and is lost when verl resumes: set "
                f"trainer.checkpoint_callback_class={SaveState.__module__}.{SaveState.__qualname__}",
                stacklevel=2,
            )
        mask = response_mask.detach().cpu().bool()
        scores = token_level_rewards.detach().cpu().double().sum(dim=1)
        lengths = mask.sum(dim=1)
        if int(lengths.max()) > settings.max_length:
            raise ObjectiveError(
                f"a response has {int(lengths.max())} tokens, but {SECTION}.max_length is {settings.max_length}: set "
                "it to ${data.max_response_length}"
            )
        advantages = torch.zeros(mask.shape, dtype=torch.float64)
        for number, rows in enumerate(_groups(index, lengths)):
            rollouts = self._rollouts(rows, scores[rows], lengths[rows], settings, non_tensor_batch)
            if number == 0:
                objective.update(rollouts)
            rewards = objective.rewards(rollouts)
            if number == 0:
                self._alarms.check(objective, rollouts, rewards)
            each = objective.advantages(rollouts, rewards)
            by_token = objective.token_advantages(rollouts, each)
            flat = rows.flatten()
            if by_token is None:
                advantages[flat] = each.flatten()[:, None] * mask[flat]
            else:
                for row, values in zip(flat.tolist(), by_token.flatten(0, 1), strict=True):
                    advantages[row, mask[row]] = values[: int(lengths[row])]
        given = advantages.to(token_level_rewards)
        return given, given.clone()

    def prepare(self, algorithm: Any) -> EstimatorSettings:
        """Read the settings and make the objective; done once.

        Raises:
            ObjectiveError: verl cannot give what the objective needs, or the configuration hides it.
        """
        if self._settings is None:
            settings = EstimatorSettings.read(algorithm)
            objective = objective_from(self._kind.name, settings.parameters)
            _check(objective, algorithm)
            if obstacle := objective.obstacle(settings.max_length):
                raise ObjectiveError(obstacle)
            self._settings, self._objective = settings, objective
        return self._settings

    def save(self, folder: Path) -> None:
        """Write the objective's state into a checkpoint."""
        content = {
            "objective": str(self._objective),
            "state": self._objective.state_dict(),
            "alarms": self._alarms.state_dict(),
        }
        (folder / STATE_FILE).write_text(json.dumps(content, indent=1))

    def restore(self, folder: Path) -> None:
        """Go on in the state that a checkpoint holds.

        Raises:
            ObjectiveError: it holds none although the objective has one, or that of another objective.
        """
        path, objective = folder / STATE_FILE, self._objective
        if not path.is_file():
            if objective.state_dict():
                raise ObjectiveError(
                    f"{folder} holds no state of {objective.name}, because it was saved without SaveState; start "
                    "again with trainer.resume_mode=disable"
                )
            return
        content = json.loads(path.read_text())
        if content["objective"] != str(objective):
            raise ObjectiveError(
                f"{folder} was trained with {content['objective']}, not {objective}: go on with the same objective, or "
                "start in another directory"
            )
        objective.load_state_dict(content["state"])
        self._alarms.load_state_dict(content["alarms"])

    def _rollouts(
        self,
        rows: Tensor,
        scores: Tensor,
        lengths: Tensor,
        settings: EstimatorSettings,
        non_tensor_batch: Mapping[str, Any] | None,
    ) -> Rollouts:
        correct, truncated = scores > settings.threshold, lengths >= settings.max_length
        told = {}
        if self._objective.draws_conditions:
            codes = _codes(rows, scores, correct, (non_tensor_batch or {}).get("extra_info"))
            different = (codes != codes[:, :1]).any(dim=1)
            if bool((codes < 1).any() | different.any()):
                raise ObjectiveError(
                    f"{self._objective.name} goes by what its prompts are told about length, and the scores of this "
                    "batch do not say it: make the data with satisfice.training.verl.verl_rows and grade with "
                    "satisfice.training.verl.compute_score, with nothing added to its score"
                )
            told = {"levels": (codes[:, 0] - 1) % 4 - 1, "budgets": (codes[:, 0] - 1) // 4}
        return Rollouts.of(lengths, correct & ~truncated, truncated, max_length=settings.max_length, **told)


class SaveState:
    """Keeps the objective's state in verl's checkpoints; for `trainer.checkpoint_callback_class`.

    verl makes it before anything is loaded, so what cannot work is refused there already.

    Raises:
        ObjectiveError: the estimator is none of satisfice's, verl cannot give what its objective needs, or the
            checkpoint that verl resumes from does not fit.
    """

    def __init__(self, config: Any = None) -> None:
        name = config.algorithm.adv_estimator
        if name not in ESTIMATORS:
            raise ObjectiveError(
                f"SaveState keeps the state of satisfice's estimators, and algorithm.adv_estimator is {name}"
            )
        self._estimator = ESTIMATORS[name]
        self._estimator.prepare(config.algorithm)
        self._estimator.saved = True
        checkpoint = _resumed_from(config.trainer)
        if checkpoint is not None:
            self._estimator.restore(checkpoint)

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, **_: Any) -> None:
        """Called by verl when it has written a checkpoint."""
        self._estimator.save(Path(checkpoint_dir))


ESTIMATORS = {f"satisfice-{name}": Estimator(kind) for name, kind in OBJECTIVES.items()}
"""Every objective's estimator by the name that verl knows it by."""


def register() -> None:
    """Make the estimators known to verl; importing this module does it.

    Raises:
        ImportError: there is no verl.
    """
    try:
        from verl.trainer.ppo.core_algos import register_adv_est
    except ImportError as error:
        raise ImportError(
            f"satisfice.training.verl makes objectives known to verl, which cannot be imported here ({error}); "
            "without verl, train with `satisfice train`"
        ) from error
    for name, estimator in ESTIMATORS.items():
        register_adv_est(name)(estimator)


# -- data and scores


def verl_rows(rows: Iterable[Mapping[str, Any]], source: str = "satisfice") -> list[dict[str, Any]]:
    """Rows in the form that verl reads from parquet.

    Args:
        rows: from `training_rows`, through `with_conditions` where the objective draws conditions.
        source: verl's "data_source", by which it groups the results of a validation.
    """
    return [
        {
            "data_source": source,
            "prompt": row["prompt"],
            "ability": "reasoning",
            "reward_model": {"style": "rule", "ground_truth": row["answer"]},
            "extra_info": {"index": index}
            | {key: row[key] for key in ("grader", "problem_id", "level", "budget") if key in row},
        }
        for index, row in enumerate(rows)
    ]


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    grader: str = "math",
    model: str | None = None,
    max_length: int | None = None,
    thinking: str | None = None,
    opened: bool | None = None,
    **_: Any,
) -> dict[str, float]:
    """The grade of a response, for `reward.custom_reward_function`.

    "acc" is 1 for a right answer and 0 for a wrong one, and so is "score" where the prompt says nothing about length.
    Where it does, its level and budget go into the score as a whole number, n: 1 + n for a right answer, -n for a wrong
    one. A response that ran into `max_length` is wrong in both. verl gives its text only, so its tokens are counted as
    the model's tokenizer writes them, and one that ended by itself with its last token at the limit is taken for
    truncated, as the estimator does.

    Answers that only computer algebra can compare are graded in a process that is killed when it takes too long.

    Args:
        data_source: not read.
        solution_str: the response as text.
        ground_truth: the gold answer.
        extra_info: "grader", "problem_id", "level" and "budget" of `verl_rows`.
        grader: where `extra_info` names none; one of `satisfice.problems.GRADERS`.
        model: directory or Hub id of the model, whose tokenizer tells how it marks thinking, whether its template opens
            it, and how many tokens a response has.
        max_length: the token limit of a response; needs `model`.
        thinking: how the model marks thinking: a family of `satisfice.thinking`, or the two markers, "OPEN,CLOSE". The
            model's own unless given, "think-tags" without a model.
        opened: whether the prompt itself opens thinking, as with the distilled R1 models; a response that never closes
            it then has no answer. What the model's template does unless given, False without a model.

    Raises:
        ObjectiveError: `max_length` is given without a model.
        GraderError: there is no such grader, or it does not fit the problem.
    """
    if max_length is not None and model is None:
        raise ObjectiveError(
            "compute_score counts tokens with the model's tokenizer: give reward_kwargs.model with max_length"
        )
    tokenizer = _tokenizer(model) if model else None
    if thinking is not None or tokenizer is None:
        form = ThinkingFormat.parse(thinking or "think-tags")
    else:
        form = ThinkingFormat.detect(tokenizer, model or "")
    if opened is None:
        opened = tokenizer is not None and opened_by_template(tokenizer, form)
    # The end token, which verl takes away, is one more.
    truncated = max_length is not None and tokenizer is not None and (
        len(tokenizer(solution_str, add_special_tokens=False)["input_ids"]) + 1 >= max_length
    )  # fmt: skip
    info = extra_info or {}
    graded = {
        "grader": info.get("grader") or grader,
        "answer": _answer(solution_str, form, opened),
        "gold": str(ground_truth),
        "finished": not truncated,
        "problem_id": info.get("problem_id") or "",
    }
    correct = shared_graders().grade_all([graded])[0].correct
    code = _code(info)
    return {"score": float(1 + code if correct else -code), "acc": float(correct)}


@functools.cache
def _tokenizer(model: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model)  # type: ignore[no-any-return]


def _answer(text: str, thinking: ThinkingFormat, opened: bool) -> str:
    before, closed, after = text.partition(thinking.close)
    if closed:
        return after
    return "" if opened or thinking.open in text else before


def _code(info: Mapping[str, Any]) -> int:
    """A level and a budget as one number above 0; 0 where they are not given."""
    if info.get("level") is None or info.get("budget") is None:
        return 0
    return 1 + (int(info["level"]) + 1) + 4 * int(info["budget"])


def _codes(rows: Tensor, scores: Tensor, correct: Tensor, extra_info: Sequence[Mapping[str, Any]] | None) -> Tensor:
    """(P, G) int64, what `_code` made of each response's prompt, -1 where that cannot be told."""
    if extra_info is not None:
        return torch.tensor([[_code(extra_info[row]) for row in group] for group in rows.tolist()])
    codes = torch.where(correct, scores - 1, -scores)
    return torch.where(codes == codes.round(), codes, -1).long()


# -- what verl gives


def _groups(index: Sequence[Any], lengths: Tensor) -> list[Tensor]:
    """(P, G) rows of the responses of P prompts, once for each size G; the size of most responses first."""
    groups: dict[Any, list[int]] = {}
    for row, (prompt, length) in enumerate(zip(index, lengths.tolist(), strict=True)):
        if length:
            groups.setdefault(prompt, []).append(row)
    sizes: dict[int, list[list[int]]] = {}
    for group in groups.values():
        sizes.setdefault(len(group), []).append(group)
    return sorted((torch.tensor(same) for same in sizes.values()), key=torch.numel, reverse=True)


def _check(objective: Objective, algorithm: Any) -> None:
    name = objective.name
    instead = "train with `satisfice train` or LengthGRPOTrainer"
    # All responses are the model's own there, budgets come from `with_conditions`, and the loss is verl's to configure.
    if needs := unmet_needs(objective, {Need.OWN, Need.BUDGET, Need.LOSS_TYPE}):
        raise ObjectiveError(f"{name} needs {needs}, which verl cannot give: {instead}")
    if objective.cuts_responses:
        raise ObjectiveError(f"{name} cuts responses and grades them again, which verl cannot: {instead}")
    check_fixed_conditions(objective)
    if algorithm.get("use_kl_in_reward"):
        raise ObjectiveError(
            f"{name} reads from a score whether an answer is right, and algorithm.use_kl_in_reward takes the KL off "
            "it: use actor_rollout_ref.actor.use_kl_loss=True instead"
        )
    correction = algorithm.get("rollout_correction") or {}
    if correction.get("rollout_rs") and not correction.get("bypass_mode"):
        raise ObjectiveError(
            f"{name} reads lengths from the response mask, and algorithm.rollout_correction.rollout_rs takes tokens "
            "out of it: set it to null"
        )


def _resumed_from(trainer: Any) -> Path | None:
    """The checkpoint that verl goes on from, None where it starts from the beginning."""
    mode = trainer.get("resume_mode", "auto")
    if mode == "resume_path":
        return Path(trainer.resume_from_path)
    tracker = Path(trainer.default_local_dir) / "latest_checkpointed_iteration.txt"
    if mode == "disable" or not tracker.is_file():
        return None
    return tracker.parent / f"global_step_{tracker.read_text().strip()}"


def _plain(value: Any) -> Any:
    """A configuration node as plain dictionaries and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


register()
