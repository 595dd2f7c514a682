"""The trainer on TRL: whole groups reach the objective, its advantages reach the loss, and a killed run goes on."""

import inspect
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig
from reinforcement.training import PROBLEMS, Recording, make_trainer, policy
from trl import GRPOTrainer

from satisfice.reinforcement.adaptthink import AdaptThink
from satisfice.reinforcement.depo import DEPO
from satisfice.reinforcement.objective import Condition, ObjectiveError, Rollouts, over_tokens
from satisfice.reinforcement.recipe import Exploration
from satisfice.reinforcement.smartthinker import SmartThinker
from satisfice.reinforcement.trainer import STATE_FILE, training_set

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
    assert list(inspect.signature(GRPOTrainer._generate_single_turn).parameters)[:2] == ["self", "prompt_ids"]


def captured(trainer: Any) -> list[dict[str, Any]]:
    """What the loss is computed from, step by step."""
    batches: list[dict[str, Any]] = []
    inner = trainer._compute_loss

    def compute(model: Any, inputs: dict[str, Any]) -> Any:
        batches.append({key: value for key, value in inputs.items() if torch.is_tensor(value)})
        return inner(model, inputs)

    trainer._compute_loss = compute
    return batches


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
    batches = captured(trainer)
    trainer.train()
    first = batches[0]["completion_ids"][:, 0]
    close = tokenizer.convert_tokens_to_ids("</think>")
    assert int((first == close).sum()) == 4
    assert sum(trainer._direct) == 4
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
    batches, biases = captured(trainer), []
    inner = trainer._exploring
    trainer._exploring = lambda *row: biases.append(inner(*row)) or biases[-1]
    trainer.train()
    # Two of each group of four, and less and less.
    steps = [[control and round(control.bias, 1) for control in biases[8 * step :][:8]] for step in range(3)]
    assert steps == [[None, None, bias, bias] * 2 for bias in (100.0, 66.7, 33.3)]
    close = tokenizer.convert_tokens_to_ids("</think>")
    for batch, rollouts in zip(batches, objective.seen, strict=True):
        assert int((batch["completion_ids"][:, 0] == close).sum()) == 4
        assert rollouts.lengths.shape == (2, 4)
    trainer.model.eval()
    assert inner(3, 3) is None


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


def test_the_validation_accuracy_is_shown_to_the_objective(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    objective = Recording()
    held_out = training_set(PROBLEMS, 4)
    trainer = make_trainer(
        tmp_path, policy(tiny_config), tokenizer, objective, eval_dataset=held_out, eval_on_start=True,
        num_generations_eval=1, per_device_eval_batch_size=4,
    )  # fmt: skip
    trainer.train()
    before = next(entry for entry in trainer.state.log_history if "eval_accuracy" in entry)["eval_accuracy"]
    assert objective.seen[0].lengths.shape == (4, 1)
    assert objective.seen[-1].validation_accuracy == pytest.approx(before)
    assert objective.updates == 1  # validation does not move a schedule


# -- checkpoints


def weights(trainer: Any) -> list[torch.Tensor]:
    return [value.detach().clone() for value in trainer.model.parameters()]


def test_a_killed_training_goes_on_to_the_same_result(tmp_path: Any, tiny_config: Any, tokenizer: Any) -> None:
    settings: dict[str, Any] = {"prompts": 8, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    unbroken = make_trainer(tmp_path / "a", policy(tiny_config), tokenizer, Recording(), **settings)
    unbroken.train()
    # The second one is killed after its third step and begins anew, with other weights, from its checkpoint.
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
        (AdaptThink(), {}, "measure its accuracy on the training problems first"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    tmp_path: Any, tiny_config: Any, tokenizer: Any, objective: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        make_trainer(tmp_path, policy(tiny_config), tokenizer, objective, **changes)
