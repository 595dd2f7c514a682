"""Objectives as reward functions of TRL's own trainers: what is refused, how groups are read, what TRL makes of it."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from training.setting import PROBLEMS, Graders, Recording, arguments, policy
from transformers import AutoTokenizer
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer

from satisfice.lab import WEIGHTS
from satisfice.problems import Problem
from satisfice.reinforcement import OBJECTIVES, Objective, ObjectiveError, objective_from
from satisfice.reinforcement.objective import Normalisation, Rollouts, normalise
from satisfice.training.responses import training_rows, with_conditions
from satisfice.training.trl_rewards import as_reward_function

SUITABLE = {
    "arora-zanette": "none",
    "dapo-overlong": "group",
    "dr-grpo": "none",
    "l1-exact": "group",
    "l1-max": "group",
    "laser": "group",
    "shorter-better": "group",
}
"""And the `scale_rewards` of each."""


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """TRL's configuration, with groups of two."""

    def make(**changes: Any) -> Any:
        return arguments(tmp_path, **{"num_generations": 2, "scale_rewards": "group", **changes})

    return make


def reward_function(objective: Objective, tokenizer: Any, args: Any, **options: Any) -> Any:
    return as_reward_function(objective, tokenizer, args, **{"graders": Graders(), **options})


def completed(tokenizer: Any, *texts: str, end: bool = True) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * end for text in texts]


# -- refusals


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_only_what_a_reward_can_express_is_taken(tokenizer: Any, settings: Any, name: str) -> None:
    objective = objective_from(name, {})
    if name in SUITABLE:
        assert reward_function(objective, tokenizer, settings(scale_rewards=SUITABLE[name])).__name__ == name
        other = "group" if SUITABLE[name] == "none" else "none"
        with pytest.raises(ObjectiveError, match=f"use scale_rewards='{SUITABLE[name]}'"):
            reward_function(objective, tokenizer, settings(scale_rewards=other))
    else:
        with pytest.raises(ObjectiveError, match="train with `satisfice train` or LengthGRPOTrainer") as caught:
            reward_function(objective, tokenizer, settings())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adaptthink", "needs direct and reference"),
        ("kimi", "has a state"),
        ("laser-d", "has a state"),
        ("dot", "cuts responses"),
        ("tldr", "has advantages of its own"),
        ("grpo-lead", "has advantages of its own"),
    ],
)
def test_the_reason_is_named(tokenizer: Any, settings: Any, name: str, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        reward_function(objective_from(name, {}), tokenizer, settings())


@dataclass
class OverTheBatch(Objective):
    name: ClassVar[str] = "over-the-batch"
    summary: ClassVar[str] = "for tests"
    paper: ClassVar[str] = ""
    normalisation: ClassVar[Normalisation] = "batch"

    def rewards(self, rollouts: Rollouts) -> torch.Tensor:
        return rollouts.correct.double()


@dataclass
class ByToken(OverTheBatch):
    name: ClassVar[str] = "by-token"
    normalisation: ClassVar[Normalisation] = "group-std"
    per_token: ClassVar[bool] = True


@pytest.mark.parametrize("objective", [OverTheBatch(), ByToken()], ids=lambda objective: objective.name)
def test_advantages_that_trl_does_not_have_are_refused(tokenizer: Any, settings: Any, objective: Objective) -> None:
    with pytest.raises(ObjectiveError, match="advantages of its own"):
        reward_function(objective, tokenizer, settings(scale_rewards="batch"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_rewards": "batch"}, "by group-std: use scale_rewards='group'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize"),
        ({"num_generations_eval": 4}, "leave out num_generations_eval"),
    ],
)
def test_settings_that_change_the_rewards_are_refused(
    tokenizer: Any, settings: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        reward_function(objective_from("laser", {}), tokenizer, settings(**changes))


@pytest.mark.parametrize(
    ("name", "normalised", "message"),
    [("arora-zanette", True, "use normalize_advantages=False"), ("laser", False, "use GRPOConfig with scale_rewards")],
)
def test_rloo_takes_what_it_leaves_alone(
    tokenizer: Any, tmp_path: Path, name: str, normalised: bool, message: str
) -> None:
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "num_generations": 2}
    with pytest.raises(ObjectiveError, match=message):
        reward_function(objective_from(name, {}), tokenizer, RLOOConfig(normalize_advantages=normalised, **common))
    reward_function(objective_from("arora-zanette", {}), tokenizer, RLOOConfig(**common))


# -- layout and columns


@pytest.mark.parametrize("prompts", ["aab", "abab", "aabc", "abba"])
def test_a_group_in_pieces_is_refused(tokenizer: Any, settings: Any, prompts: str) -> None:
    reward = reward_function(objective_from("laser", {}), tokenizer, settings())
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    ids = completed(tokenizer, *["1"] * len(prompts))
    with pytest.raises(ObjectiveError, match="are not whole groups of num_generations=2"):
        reward(prompts=asked, completions=ids, completion_ids=ids, answer=["1"] * len(prompts))


def test_missing_columns_are_named(tokenizer: Any, settings: Any) -> None:
    asked, ids = [[{"role": "user", "content": "?"}]] * 2, completed(tokenizer, "1", "2")
    reward = reward_function(objective_from("laser", {}), tokenizer, settings())
    with pytest.raises(ObjectiveError, match="no column 'answer' with the gold answers"):
        reward(prompts=asked, completions=ids, completion_ids=ids, solution=["1", "1"])
    reward = reward_function(objective_from("l1-max", {}), tokenizer, settings())
    with pytest.raises(ObjectiveError, match=r"no column 'level': make its rows with .*with_conditions"):
        reward(prompts=asked, completions=ids, completion_ids=ids, answer=["1", "1"])


# -- rewards


@pytest.mark.parametrize("plain_text", [False, True])
def test_rewards_are_those_of_the_objective_on_graded_responses(
    tokenizer: Any, settings: Any, plain_text: bool
) -> None:
    args = settings(scale_rewards="none", max_completion_length=30)
    reward = as_reward_function(objective_from("arora-zanette", {"alpha": 0.5}), tokenizer, args, answer="solution")
    texts = ("<think>\n9\n</think>\n\n7", "<think>\n7\n</think>\n\n9", "<think>\n8 8 8\n</think>\n\n8", "8")
    ids = completed(tokenizer, *texts[:3]) + completed(tokenizer, texts[3], end=False)
    prompts: list[Any] = ["first ", "first ", "second ", "second "]
    if not plain_text:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    logged: dict[str, float] = {}
    got = reward(
        prompts=prompts, completions=list(texts), completion_ids=ids, solution=["7", "7", "8", "8"],
        log_metric=logged.__setitem__, trainer_state=None,
    )  # fmt: skip
    rollouts = Rollouts.of(
        torch.tensor([len(sequence) for sequence in ids]).reshape(2, 2),
        torch.tensor([[True, False], [True, False]]),
        torch.tensor([[False, False], [False, True]]),  # the last one has no end
        max_length=30,
    )
    assert got == objective_from("arora-zanette", {"alpha": 0.5}).rewards(rollouts).flatten().tolist()
    assert logged == {"accuracy": 0.5, "truncated": 0.25, "reward_violations": 0.0}


def test_budgets_are_read_from_the_rows(tokenizer: Any, settings: Any) -> None:
    objective = objective_from("l1-exact", {"min_budget": 5, "max_budget": 40})
    rows = with_conditions(training_rows([Problem("p", "?", "1", grader="exact")], 3), objective, seed=1)
    rows = [row for row in rows for _ in range(2)]
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
    ids = completed(tokenizer, *["</think>\n\n1", "</think>\n\n2"] * 3)
    got = as_reward_function(objective, tokenizer, settings())(
        prompts=[row["prompt"] for row in rows], completions=ids, completion_ids=ids, **columns
    )
    slope = 1.2 / 40
    wanted = [
        right - slope * abs(row["budget"] - len(sequence))
        for row, sequence, right in zip(rows, ids, [1, 0] * 3, strict=True)
    ]
    assert got == pytest.approx(wanted)


def test_other_ends_of_a_response_can_be_named(tokenizer: Any, settings: Any) -> None:
    last = tokenizer("1")["input_ids"][-1]
    asked, ids = [[{"role": "user", "content": "?"}]] * 2, [[*tokenizer("</think>\n\n7")["input_ids"], last]] * 2
    for ends, right in (((), 0.0), ((last,), 1.0)):
        reward = as_reward_function(
            objective_from("dr-grpo", {}), tokenizer, settings(scale_rewards="none"), ends=ends, grader="exact"
        )
        assert reward(prompts=asked, completions=ids, completion_ids=ids, answer=["7", "7"]) == [right, right]


@pytest.mark.parametrize("given", ["beside the tokenizer", "the model", "its directory", "nothing"])
def test_every_end_token_of_the_model_is_known(
    tmp_path: Path, tiny_config: Any, tokenizer: Any, settings: Any, given: str
) -> None:
    other = tokenizer("1")["input_ids"][-1]
    model = policy(tiny_config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, other]
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    if given != "nothing":
        model.save_pretrained(tmp_path / ("tokenizer" if given == "beside the tokenizer" else "model"))
    own = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    options = {"the model": {"model": model}, "its directory": {"model": str(tmp_path / "model")}}.get(given, {})
    reward = as_reward_function(
        objective_from("laser", {"target": 99}), own, settings(), grader="exact", **options
    )  # fmt: skip
    asked, ids = [[{"role": "user", "content": "?"}]] * 2, [[*own("</think>\n\n7")["input_ids"], other]] * 2
    right = given != "nothing"
    got = reward(prompts=asked, completions=ids, completion_ids=ids, answer=["7", "7"])
    assert got == [1.5 if right else -0.5] * 2


def test_a_model_that_cannot_be_read_is_named(tokenizer: Any, settings: Any, tmp_path: Path) -> None:
    with pytest.raises(ObjectiveError, match=r"cannot be read .* pass the model itself"):
        as_reward_function(objective_from("laser", {}), tokenizer, settings(), model=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("prompt", "response", "right"),
    [
        # The last response of an example is closed; the one that is asked for is not.
        ("<|user|>As in <think>1+1</think>2. And 3+4?<|assistant|><think>\n", "3+4 is 7", False),
        ("<|user|>As in <think>1+1</think>2. And 3+4?<|assistant|><think>\n", "so</think>\n\n7", True),
        ("<|user|>1+1?<|assistant|><think>\n</think>\n\n2<|user|>3+4?<|assistant|><think>\n", "7", False),
        # Thinking was closed by the template, or begun for the model.
        ("<|user|>3+4?<|assistant|><think>\n</think>\n\n", "7", True),
        ("<|user|>3+4?<|assistant|><think>\nWell,", "7", False),
        # No template was applied.
        ("Write <think>...</think> and then the answer. 3+4?", "<think>7", False),
        ("Write <think>...</think> and then the answer. 3+4?", "7", True),
        ("Write <think>...</think> and then the answer. 3+4? <think>", "7", False),
        ("What does <think> mean? 3+4?", "7", True),
    ],
)
def test_a_prompt_as_text_is_read_where_the_response_begins(
    tokenizer: Any, settings: Any, prompt: str, response: str, right: bool
) -> None:
    reward = as_reward_function(
        objective_from("laser", {"target": 99}), AutoTokenizer.from_pretrained(WEIGHTS), settings(), grader="exact"
    )
    lab = AutoTokenizer.from_pretrained(WEIGHTS)
    ids = [[*lab(response, add_special_tokens=False)["input_ids"], lab.eos_token_id]] * 2
    got = reward(prompts=[prompt] * 2, completions=ids, completion_ids=ids, answer=["7", "7"])
    assert got == [1.5 if right else -0.5] * 2


def test_it_can_be_pickled(tokenizer: Any, settings: Any) -> None:
    reward = as_reward_function(objective_from("laser", {"target": 3}), tokenizer, settings())
    asked, ids = [[{"role": "user", "content": "?"}]] * 2, completed(tokenizer, *["</think>7"] * 2)
    given = {"prompts": asked, "completions": ids, "completion_ids": ids, "answer": ["7", "8"]}
    again = pickle.loads(pickle.dumps(reward))
    assert again.__name__ == "laser"
    assert again(**given) == reward(**given) == [1.5, -0.5]


# -- TRL itself


@dataclass
class Rewarding(Recording):
    """As `Recording`, without state and conditions."""

    update = Objective.update
    condition = Objective.condition


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_trl_trains_with_it_and_computes_the_objectives_advantages(
    tmp_path: Path, tiny_config: Any, tokenizer: Any, kind: str
) -> None:
    objective = Rewarding()
    args = arguments(tmp_path, max_steps=2, scale_rewards="none")
    if kind == "rloo":
        taken = ("output_dir", "max_steps", "per_device_train_batch_size", "num_generations", "max_completion_length")
        args = RLOOConfig(
            **{name: getattr(args, name) for name in taken},
            use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", beta=0.0,
            logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
    trainer = (GRPOTrainer if kind == "grpo" else RLOOTrainer)(
        policy(tiny_config),
        reward_funcs=[reward_function(objective, tokenizer, args)],
        args=args,
        train_dataset=Dataset.from_list(training_rows(PROBLEMS, 4)),
        processing_class=tokenizer,
    )
    batches: list[Any] = []
    inner = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: batches.append(inputs) or inner(model, inputs)
    before = [value.detach().clone() for value in trainer.model.parameters()]
    trainer.train()
    assert len(objective.seen) == len(batches) == 2
    for rollouts, inputs in zip(objective.seen, batches, strict=True):
        assert rollouts.lengths.shape == (2, 4)
        rewards = rollouts.correct.double() + rollouts.lengths / 1000
        wanted = normalise(rewards, "group-mean" if kind == "grpo" else "leave-one-out").flatten()
        got = sorted(zip(inputs["completion_mask"].sum(1).tolist(), inputs["advantages"].tolist(), strict=True))
        expected = sorted(zip(rollouts.lengths.flatten().tolist(), wanted.tolist(), strict=True))
        assert [length for length, _ in got] == [length for length, _ in expected]
        assert [value for _, value in got] == pytest.approx([value for _, value in expected], abs=1e-5)
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    logged = [entry for entry in trainer.state.log_history if "accuracy" in entry]
    assert logged[0]["accuracy"] == pytest.approx(objective.seen[0].correct.double().mean().item())


def test_the_documentation_lists_what_is_taken() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training-trl.md").read_text()
    lines = [line.split("|") for line in page.splitlines() if line.startswith("| ") and "`" in line]
    listed = {name.strip(): cells[2].strip(' `"') for cells in lines for name in cells[1].split(",")}
    assert listed == SUITABLE
