"""The trainer on TRL: whole groups reach the objective, its advantages reach the loss, and a killed run goes on."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig
from training.setting import PROBLEMS, Recording, after, make_trainer, policy
from trl import GRPOTrainer

from satisfice.reinforcement.objective import Condition, Need, ObjectiveError, Rollouts, over_tokens
from satisfice.reinforcement.objectives.aalc import AALC
from satisfice.reinforcement.objectives.adaptthink import AdaptThink
from satisfice.reinforcement.objectives.crt import CRT
from satisfice.reinforcement.objectives.dapo_overlong import DAPOOverlong
from satisfice.reinforcement.objectives.depo import DEPO
from satisfice.reinforcement.objectives.dr_grpo import DrGRPO
from satisfice.reinforcement.objectives.smartthinker import SmartThinker
from satisfice.trace import Grade
from satisfice.training.checkpoints import STATE_FILE, newest_checkpoint
from satisfice.training.grpo import training_set
from satisfice.training.recipe import Exploration
from satisfice.training.step import without_padding

# -- the contract with TRL


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_tokenize_prompts", ["self", "prompts"]),
        ("_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_compute_loss", ["self", "model", "inputs"]),
    ],
)
def test_trl_still_has_the_methods_that_are_extended(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == parameters


def test_trl_still_generates_from_the_prompt_ids_that_it_is_given() -> None:
    names = list(inspect.signature(GRPOTrainer._generate_single_turn).parameters)
    assert names[:5] == ["self", "prompt_ids", "images", "multimodal_fields", "num_generations"]


def captured(trainer: Any) -> list[dict[str, Any]]:
    """What the loss is computed from, step by step."""
    batches: list[dict[str, Any]] = []
    inner = trainer._compute_loss

    def compute(model: Any, inputs: dict[str, Any]) -> Any:
        batches.append({key: value for key, value in inputs.items() if torch.is_tensor(value)})
        return inner(model, inputs)

    trainer._compute_loss = compute
    return batches


# -- the loss without padding


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_type": "dr_grpo"},
        {"loss_type": "grpo", "steps_per_generation": 4, "num_iterations": 2},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"loss_type": "cispo", "top_entropy_quantile": 0.5},
        {"loss_type": "dapo", "entropy_coef": 0.1},
    ],
)
def test_padding_of_other_micro_batches_changes_no_step(
    tmp_path: Path, tiny_config: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    settings = {
        "prompts": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 2,
        "max_completion_length": 40, "optim": "sgd", "learning_rate": 0.5, **settings,
    }  # fmt: skip
    weights, columns = [], list[list[int]]()
    for each in (without_padding, lambda batch: batch):
        seen: list[int] = []

        def recorded(batch: dict[str, Any], each: Any = each, seen: list[int] = seen) -> dict[str, Any]:
            given = each(batch)
            seen.append(given["prompt_ids"].shape[1] + given["completion_ids"].shape[1])
            return dict(given)

        monkeypatch.setattr("satisfice.training.grpo.without_padding", recorded)
        model = policy(tiny_config)
        make_trainer(tmp_path, model, tokenizer, Recording(), **settings).train()
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
        columns.append(seen)
    assert sum(columns[0]) < sum(columns[1])
    start = torch.cat([weight.detach().flatten() for weight in policy(tiny_config).parameters()])
    assert (weights[0] - start).abs().max() > 1e-3
    assert (weights[0] - weights[1]).abs().max() < 1e-5


def test_what_is_padding_in_every_row_is_left_out() -> None:
    batch = {
        "prompt_ids": torch.tensor([[0, 0, 5, 6], [0, 7, 8, 9]]),
        "prompt_mask": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]),
        "completion_ids": torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]),
        "old_per_token_logps": torch.arange(8.0).view(2, 4),
        "advantages": torch.tensor([1.0, -1.0]),
        "num_items_in_batch": torch.tensor(3),
    }
    given = without_padding(batch)
    assert given["prompt_ids"].tolist() == [[0, 5, 6], [7, 8, 9]]
    assert given["prompt_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert given["completion_ids"].tolist() == [[1, 2], [3, 0]]
    assert given["old_per_token_logps"].tolist() == [[0.0, 1.0], [4.0, 5.0]]
    assert given["advantages"].tolist() == [1.0, -1.0]
    nothing = without_padding({**batch, "completion_mask": torch.zeros(2, 4, dtype=torch.long)})
    assert nothing["completion_ids"].shape == (2, 1)


# -- from prompts to advantages


def test_the_objective_sees_whole_groups_of_one_condition(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    objective = Recording(conditions=[Condition("Think briefly.", "short"), Condition("Think at length.", "long", 30)])
    trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, objective, prompts=4, max_steps=2)
    asked: list[str] = []
    inner = trainer._render
    trainer._render = lambda messages: asked.append(messages[0]["content"]) or inner(messages)
    trainer.train()
    first, second = objective.seen
    assert first.lengths.shape == (2, 4)
    assert objective.updates == 2
    assert sorted([*first.problems.tolist(), *second.problems.tolist()]) == [0, 1, 2, 3]
    assert first.max_length == 12
    groups = [
        (int(problem), int(level), int(budget))
        for rollouts in objective.seen
        for problem, level, budget in zip(rollouts.problems, rollouts.levels, rollouts.budgets, strict=True)
    ]
    assert {(level, budget) for _, level, budget in groups} <= {(0, 0), (2, 30)}
    for index, (problem, level, _) in enumerate(groups):
        question = f"{PROBLEMS[problem].prompt}\n\nThink {'briefly' if level == 0 else 'at length'}."
        assert asked[4 * index : 4 * index + 4] == [question] * 4


@dataclass
class Scheduled(Recording):
    """Says how many steps it has seen."""

    def condition(self, rng: Any) -> Condition:
        return Condition("Think for at most.", budget=self.updates + 1)


def test_a_condition_follows_the_schedule(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    objective = Scheduled()
    make_trainer(tmp_path, policy(tiny_config), tokenizer, objective, prompts=6, max_steps=3).train()
    assert [rollouts.budgets.tolist() for rollouts in objective.seen] == [[1, 1], [2, 2], [3, 3]]


def test_the_objectives_advantages_reach_the_loss(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    objective = Recording()
    trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, objective)
    batches = captured(trainer)
    trainer.train()
    rollouts = objective.seen[0]
    rewards = objective.rewards(rollouts)
    wanted = (rewards - rewards.mean(dim=1, keepdim=True)).flatten()
    # TRL shuffles a batch before the loss, so rows are matched by their lengths and advantages together.
    lengths = batches[0]["completion_mask"].sum(1)
    got = sorted(zip(lengths.tolist(), batches[0]["advantages"].double().tolist(), strict=True))
    expected = sorted(zip(rollouts.lengths.flatten().tolist(), wanted.tolist(), strict=True))
    assert [length for length, _ in got] == [length for length, _ in expected]
    torch.testing.assert_close(
        torch.tensor([value for _, value in got]), torch.tensor([value for _, value in expected]), atol=1e-6, rtol=1e-5
    )


def test_a_response_without_an_end_is_truncated_and_wrong(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    objective = Recording()
    make_trainer(tmp_path, policy(tiny_config), tokenizer, objective, max_completion_length=3).train()
    rollouts = objective.seen[0]
    assert bool(rollouts.truncated.any())
    assert not bool((rollouts.truncated & rollouts.correct).any())
    assert rollouts.lengths[rollouts.truncated].unique().tolist() == [3]


@dataclass
class ByToken(Recording):
    per_token: ClassVar[bool] = True

    def token_advantages(self, rollouts: Rollouts, advantages: torch.Tensor) -> torch.Tensor:
        spread = over_tokens(advantages, rollouts.lengths)
        spread[..., 0] = 7  # the first token of each response
        return spread


def test_an_advantage_for_each_token_reaches_the_loss(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, ByToken())
    batches = captured(trainer)
    trainer.train()
    advantages, mask = batches[0]["advantages"], batches[0]["completion_mask"]
    assert advantages.shape == mask.shape
    assert advantages[:, 0].unique().tolist() == [7]
    assert bool((advantages[mask == 0] == 0).all())


@dataclass
class Cutting(Recording):
    def cut(self, rollouts: Rollouts) -> torch.Tensor:
        keep = rollouts.lengths.clone()
        keep[:, 0] = 2
        return keep


def test_what_is_cut_off_is_judged_and_trained_without(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    objective = Cutting()
    trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, objective)
    batches = captured(trainer)
    trainer.train()
    rollouts = objective.seen[-1]
    assert rollouts.lengths[:, 0].tolist() == [2, 2]
    assert sorted(batches[0]["completion_mask"].sum(1).tolist()) == sorted(rollouts.lengths.flatten().tolist())
    assert int(batches[0]["num_items_in_batch"]) == int(rollouts.lengths.sum())
    # Only what was cut counts as finished by that.
    assert bool((rollouts.truncated[:, 1:] == (rollouts.lengths[:, 1:] == 12)).all()) or not bool(
        (rollouts.truncated[:, 1:] & (rollouts.lengths[:, 1:] < 12)).any()
    )


def test_half_of_each_group_begins_by_closing_its_thinking(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, AdaptThink(), reference=[0.5] * len(PROBLEMS))
    batches, steps = captured(trainer), after(trainer, "_asked")
    trainer.train()
    first = batches[0]["completion_ids"][:, 0]
    close = tokenizer.convert_tokens_to_ids("</think>")
    assert int((first == close).sum()) == 4
    assert [step.direct for step in steps] == [[True, True, False, False] * 2]
    assert bool((batches[0]["completion_mask"][:, 0] == 1).all())  # the choice itself is trained


def test_the_engine_writes_the_responses_of_the_policy_as_it_stands(
    tmp_path: Any, tiny_config: Any, tokenizer: Any
) -> None:
    settings: dict[str, Any] = {"prompts": 4, "max_steps": 2, "options": {"in_flight": True}}
    objective = Recording()
    trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, objective, **settings)
    batches = captured(trainer)
    trainer.train()
    end = tokenizer.eos_token_id
    for batch, rollouts in zip(batches, objective.seen, strict=True):
        lengths = sorted(rollouts.lengths.flatten().tolist())
        assert len(set(lengths)) > 2
        assert lengths == sorted(batch["completion_mask"].sum(1).tolist())
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True):
            written = ids[mask.bool()].tolist()
            assert end not in written[:-1]
            assert written[-1] == end or len(written) == 12
    assert trainer.model.training
    again = Recording()
    make_trainer(tmp_path, policy(tiny_config), tokenizer, again, **settings).train()
    assert [seen.lengths.tolist() for seen in again.seen] == [seen.lengths.tolist() for seen in objective.seen]
    # With a learning rate of 0 the same prompt gets other responses in the next step.
    trainer = make_trainer(
        tmp_path, policy(tiny_config), tokenizer, Recording(), **{**settings, "prompts": 2, "learning_rate": 0.0}
    )
    batches = captured(trainer)
    trainer.train()
    assert {tuple(ids) for ids in batches[0]["completion_ids"].tolist()} != {
        tuple(ids) for ids in batches[1]["completion_ids"].tolist()
    }


def test_a_share_of_each_group_ends_its_thinking_where_the_model_would_not(
    tmp_path: Any, tiny_config: Any, tokenizer: Any
) -> None:
    options = {"in_flight": True, "explore": Exploration(share=0.5, bias=100)}
    objective = Recording()
    trainer = make_trainer(
        tmp_path, policy(tiny_config), tokenizer, objective, prompts=6, max_steps=3, options=options, learning_rate=0.0
    )
    batches, asked = captured(trainer), after(trainer, "_asked")
    trainer.train()
    # Two of each group of four, and less and less.
    steps = [[control and round(control.bias, 1) for control in step.controls] for step in asked]
    assert steps == [[None, None, bias, bias] * 2 for bias in (100.0, 66.7, 33.3)]
    close = tokenizer.convert_tokens_to_ids("</think>")
    for batch, rollouts in zip(batches, objective.seen, strict=True):
        assert int((batch["completion_ids"][:, 0] == close).sum()) == 4
        assert rollouts.lengths.shape == (2, 4)
    # A validation explores nothing.
    trainer.model.eval()
    assert trainer._asked(asked[0].rows).controls == [None] * 8


def test_every_rollout_says_who_sampled_it_and_logs_hold_the_models_own(
    tmp_path: Any, tiny_config: Any, tokenizer: Any
) -> None:
    objective = Recording()
    options = {"in_flight": True, "explore": Exploration(share=0.5, bias=100)}
    trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, objective, options=options)
    trainer.train()
    rollouts = objective.seen[0]
    assert rollouts.explored.tolist() == [[False, False, True, True]] * 2
    assert torch.equal(rollouts.own, ~rollouts.explored)
    log = next(entry for entry in trainer.state.log_history if "reward" in entry)
    for prefix, chosen in (("", rollouts.own), ("explored/", rollouts.explored)):
        assert log[f"{prefix}accuracy"] == pytest.approx(rollouts.correct[chosen].double().mean().item())
        assert log[f"{prefix}tokens"] == pytest.approx(rollouts.lengths[chosen].double().mean().item())
    assert log["tokens"] != log["explored/tokens"]
    assert "direct/accuracy" not in log
    half = make_trainer(tmp_path, policy(tiny_config), tokenizer, AdaptThink(), reference=[0.5] * len(PROBLEMS))
    half.train()
    log = next(entry for entry in half.state.log_history if "reward" in entry)
    assert {"tokens", "direct/tokens"} <= log.keys()


def test_a_problem_that_comes_again_gets_other_responses(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    def written(folder: str) -> list[list[tuple[int, ...]]]:
        trainer = make_trainer(
            tmp_path / folder, policy(tiny_config), tokenizer, Recording(), prompts=8, max_steps=2,
            per_device_train_batch_size=4, gradient_accumulation_steps=2, steps_per_generation=1, learning_rate=0.0,
            options={"in_flight": True},
        )  # fmt: skip
        trainer.train_dataset = training_set(PROBLEMS[:1], 8)
        steps = after(trainer, "_written")
        trainer.train()
        return [[tuple(ids) for ids in step.responses] for step in steps]

    batches = written("a")
    assert len(batches) == 4
    assert len({ids for batch in batches for ids in batch}) == 16
    assert written("b") == batches


def test_endings_are_tried_only_at_the_levels_that_are_named(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    close = tokenizer.convert_tokens_to_ids("</think>")
    for level, tried in (("short", 4), ("long", 0), ("", 4)):
        condition = Condition(f"Think {level}.", level) if level else Condition()
        explore = Exploration(share=0.5, bias=100, levels=("unlabelled", "short"))
        options = {"in_flight": True, "explore": explore}
        objective = Recording(conditions=[condition])
        trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, objective, options=options)
        batches = captured(trainer)
        trainer.train()
        assert int((batches[0]["completion_ids"][:, 0] == close).sum()) == tried


def test_objectives_that_read_the_text_get_what_they_need(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    for objective in (DEPO(), SmartThinker()):
        trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, objective)
        batches = captured(trainer)
        trainer.train()
        assert batches[0]["advantages"].shape == batches[0]["completion_mask"].shape
        assert bool(torch.isfinite(batches[0]["advantages"]).all())


def test_lora(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    options = {"peft_config": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")}
    trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, Recording(), options=options, learning_rate=0.1)
    trainer.train()
    moved = [value.abs().max().item() for name, value in trainer.model.named_parameters() if "lora_B" in name]
    assert moved
    assert max(moved) > 0


def test_gradient_accumulation_sees_the_same_groups(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    whole, parts = Recording(), Recording()
    make_trainer(tmp_path / "a", policy(tiny_config), tokenizer, whole).train()
    make_trainer(
        tmp_path / "b", policy(tiny_config), tokenizer, parts, per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    ).train()  # fmt: skip
    assert len(parts.seen) == 1
    torch.testing.assert_close(parts.seen[0].lengths, whole.seen[0].lengths)


# -- logs


def test_each_level_is_logged_by_itself(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    objective = Recording(conditions=[Condition("Think briefly.", "short"), Condition("Think at length.", "long")])
    trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, objective, prompts=8, max_steps=4)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    for entry, rollouts in zip(logs, objective.seen, strict=True):
        assert entry["accuracy"] == pytest.approx(rollouts.correct.double().mean().item())
        for index, level in ((0, "short"), (2, "long")):
            asked = rollouts.levels == index
            if bool(asked.any()):
                mean = rollouts.lengths[asked].double().mean().item()
                assert entry[f"levels/{level}/tokens"] == pytest.approx(mean)
            else:
                assert f"levels/{level}/tokens" not in entry
        assert "levels/ordered" not in entry


def test_the_table_of_completions_shows_the_objectives_advantages(
    tmp_path: Any, tiny_config: Any, tokenizer: Any
) -> None:
    objective = Recording()
    trainer = make_trainer(tmp_path, policy(tiny_config), tokenizer, objective)
    trainer.train()
    rewards = objective.rewards(objective.seen[0])
    wanted = (rewards - rewards.mean(dim=1, keepdim=True)).flatten()
    torch.testing.assert_close(torch.tensor(list(trainer._logs["advantages"])), wanted.float(), atol=1e-6, rtol=1e-5)


@dataclass
class Following(Recording):
    needs: ClassVar[frozenset[Need]] = frozenset({Need.VALIDATION, Need.BUDGET})

    def condition(self, rng: Any) -> Condition:
        return Condition("Think for at most 9 tokens.", budget=9)


def test_validation_is_a_mean_over_problems_and_no_business_of_the_objectives(
    tmp_path: Any, tiny_config: Any, tokenizer: Any
) -> None:
    objective = Following()
    held_out = training_set(PROBLEMS, 5)
    trainer = make_trainer(
        tmp_path, policy(tiny_config), tokenizer, objective, eval_dataset=held_out, eval_on_start=True,
        eval_strategy="steps", eval_steps=1, num_generations_eval=1, per_device_eval_batch_size=4, max_steps=2,
        prompts=4, learning_rate=0.0, options={"in_flight": True},
    )  # fmt: skip
    measured = after(trainer, "_measured")
    trainer.train()
    batches = [step.correct.flatten().tolist() for step in measured]
    assert [len(batch) for batch in batches] == [4, 1] * 3
    logged = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    expected = [sum([*batches[2 * k], *batches[2 * k + 1]]) / 5 for k in range(3)]
    assert [entry["eval_accuracy"] for entry in logged] == pytest.approx(expected)
    assert 0 < expected[0] < 1
    assert [entry["eval_reward"] for entry in logged] == pytest.approx(expected)
    # Nothing was learned, and the same random numbers are drawn each time.
    assert len(set(expected)) == 1
    # The objective saw its two steps of training, and what validation found.
    assert [rollouts.lengths.shape for rollouts in objective.seen] == [(2, 4), (2, 4)]
    assert [rollouts.validation_accuracy for rollouts in objective.seen] == pytest.approx(expected[:2])


def test_four_right_of_five_in_batches_of_four_and_one_are_four_fifths(
    tmp_path: Any, tiny_config: Any, tokenizer: Any
) -> None:
    trainer = make_trainer(
        tmp_path, policy(tiny_config), tokenizer, Recording(), eval_dataset=training_set(PROBLEMS, 5),
        num_generations_eval=1, per_device_eval_batch_size=4,
    )  # fmt: skip

    class ByProblem:
        def grade_all(self, answers: Any) -> list[Grade]:
            return [Grade(correct=given["problem_id"] != "p4") for given in answers]

        def close(self) -> None:
            pass

    trainer._reader.graders = ByProblem()
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(0.8)


def test_the_validation_accuracy_is_shown_to_the_objective(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    objective = Recording()
    held_out = training_set(PROBLEMS, 4)
    trainer = make_trainer(
        tmp_path, policy(tiny_config), tokenizer, objective, eval_dataset=held_out, eval_on_start=True,
        num_generations_eval=1, per_device_eval_batch_size=4,
    )  # fmt: skip
    trainer.train()
    before = next(entry for entry in trainer.state.log_history if "eval_accuracy" in entry)["eval_accuracy"]
    assert [rollouts.lengths.shape for rollouts in objective.seen] == [(2, 4)]
    assert objective.seen[-1].validation_accuracy == pytest.approx(before)
    assert objective.updates == 1  # validation does not move a schedule


# -- checkpoints


def weights(trainer: Any) -> list[torch.Tensor]:
    return [value.detach().clone() for value in trainer.model.parameters()]


def test_a_killed_training_goes_on_to_the_same_result(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    settings: dict[str, Any] = {"prompts": 8, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    unbroken = make_trainer(tmp_path / "a", policy(tiny_config), tokenizer, Recording(), **settings)
    unbroken.train()
    # The second one is killed after its third step and begins again, with other weights, from its checkpoint.
    resumed = make_trainer(tmp_path / "a", policy(tiny_config, seed=5), tokenizer, Recording(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert resumed.objective.updates == unbroken.objective.updates == 4
    start = policy(tiny_config).parameters()
    assert not all(torch.equal(left, right) for left, right in zip(weights(unbroken), start, strict=True))
    for left, right in zip(weights(unbroken), weights(resumed), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_a_checkpoint_of_another_objective_is_refused(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path, policy(tiny_config), tokenizer, Recording(), **settings).train()
    checkpoint = tmp_path / "checkpoint-1"
    assert json.loads((checkpoint / STATE_FILE).read_text())["state"] == {"updates": 1}
    other = make_trainer(tmp_path, policy(tiny_config), tokenizer, DEPO(), **settings)
    with pytest.raises(ObjectiveError, match="was trained with recording, not depo"):
        other.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / STATE_FILE).unlink()
    with pytest.raises(ObjectiveError, match="not written by this trainer"):
        other.train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_of_other_settings_or_problems_is_refused(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "prompts": 4}
    make_trainer(tmp_path, policy(tiny_config), tokenizer, Recording(), **settings).train()
    for changes, message in (
        ({"learning_rate": 0.5}, r"learning_rate 0\.01 -> 0\.5"),
        ({"temperature": 0.25}, r"temperature 1\.0 -> 0\.25"),
        ({"prompts": 6}, "train_dataset [0-9a-f]+ -> [0-9a-f]+"),
    ):
        other = make_trainer(tmp_path, policy(tiny_config), tokenizer, Recording(), **{**settings, **changes})
        with pytest.raises(ObjectiveError, match=message):
            other.train(resume_from_checkpoint=True)


def test_the_newest_complete_checkpoint_counts(tmp_path: Any) -> None:
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert newest_checkpoint(tmp_path) is None
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / STATE_FILE).write_text("{}")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_an_objective_that_is_described_with_another_loss_says_so(
    tmp_path: Any, tiny_config: Any, tokenizer: Any
) -> None:
    for loss_type, said in (("dapo", 1), ("dr_grpo", 0)):
        heard: list[str] = []
        make_trainer(
            tmp_path, policy(tiny_config), tokenizer, DrGRPO(), loss_type=loss_type, options={"say": heard.append}
        )
        assert len(heard) == said
        assert all("set loss_type='dr_grpo'" in sentence for sentence in heard)


# -- refusals


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (DEPO(), {"loss_type": "vespo"}, "takes one a response"),
        (DEPO(), {"importance_sampling_level": "sequence"}, "takes one a response"),
        (Recording(), {"options": {"in_flight": True}, "fsdp": "full_shard"}, "the weights are sharded"),
        (Recording(), {"options": {"explore": Exploration(bias=6)}}, "set in_flight to true"),
        (
            Recording(),
            {"options": {"in_flight": True, "explore": Exploration(share=0.1, bias=6)}},
            "of a group of 4 that is less than one response",
        ),
        (AALC(), {}, "give held-out problems"),
        (DAPOOverlong(cache=12), {}, "cache must be below the limit"),
        (
            CRT(),
            {"options": {"in_flight": True, "explore": Exploration(share=1, bias=6)}, "reference": [0.5] * 12},
            "all 4 responses of a group would explore",
        ),
        (AdaptThink(), {}, "measure its accuracy on the training problems first"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    tmp_path: Any, tiny_config: Any, tokenizer: Any, objective: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        make_trainer(tmp_path, policy(tiny_config), tokenizer, objective, **changes)
