"""Objectives as verl's advantage estimators: on a stub of verl's registry, and on verl itself where it is installed."""

import importlib
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from satisfice.lab import WEIGHTS
from satisfice.problems import Problem, grade_answer
from satisfice.reinforcement import OBJECTIVES, Objective, ObjectiveError, objective_from
from satisfice.reinforcement.objective import Rollouts, over_tokens
from satisfice.training.responses import training_rows, with_conditions

COMMAND = [
    "algorithm.adv_estimator=satisfice-tldr",
    "actor_rollout_ref.model.external_lib=satisfice.training.verl",
    "+algorithm.satisfice.max_length=${data.max_response_length}",
    "+algorithm.satisfice.parameters.price_short=0.6",
    "trainer.checkpoint_callback_class=satisfice.training.verl.SaveState",
    "reward.custom_reward_function.path=pkg://satisfice.training.verl",
    "reward.custom_reward_function.name=compute_score",
    "+reward.custom_reward_function.reward_kwargs.model=${actor_rollout_ref.model.path}",
    "+reward.custom_reward_function.reward_kwargs.max_length=${data.max_response_length}",
]
"""What docs/training-verl.md says to add to verl's command."""

UNSUITABLE = {
    "depo": "needs boundary",
    "smartthinker": "needs steps",
    "crt": "needs reference",
    "aalc": "needs validation",
    "adaptthink": "needs direct and reference",
    "dot": "cuts responses",
    "thinkprune": "changes what prompts say",
}
SUITABLE = sorted(set(OBJECTIVES) - set(UNSUITABLE))


def _stub() -> dict[str, ModuleType]:
    """verl's registry of estimators, which refuses a second function of one name."""
    names = ("verl", "verl.trainer", "verl.trainer.ppo", "verl.trainer.ppo.core_algos")
    modules = {name: ModuleType(name) for name in names}
    registry: dict[str, Any] = {}

    def register_adv_est(name: str) -> Any:
        def decorator(function: Any) -> Any:
            if name in registry and registry[name] != function:
                raise ValueError(f"{name} has already been registered")
            registry[name] = function
            return function

        return decorator

    modules[names[-1]].ADV_ESTIMATOR_REGISTRY = registry  # type: ignore[attr-defined]
    modules[names[-1]].register_adv_est = register_adv_est  # type: ignore[attr-defined]
    return modules


@pytest.fixture(scope="module")
def core_algos() -> Iterator[Any]:
    """verl's module, or a stub of it where verl is not installed."""
    try:
        yield importlib.import_module("verl.trainer.ppo.core_algos")
        return
    except ImportError:
        stub = _stub()
    sys.modules.update(stub)
    yield stub["verl.trainer.ppo.core_algos"]
    for name in [*stub, "satisfice.training.verl"]:
        sys.modules.pop(name, None)


@pytest.fixture
def bridge(core_algos: Any) -> Any:
    return importlib.import_module("satisfice.training.verl")


class Config(dict):  # type: ignore[type-arg]
    """As OmegaConf's: entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def algorithm(max_length: int = 10, parameters: dict[str, Any] | None = None, **others: Any) -> Config:
    return Config(satisfice={"max_length": max_length, "parameters": parameters or {}}, **others)


def batch(lengths: list[int], scores: list[float], width: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores at each response's last token, and the mask."""
    mask = torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]
    rewards = torch.zeros(mask.shape)
    for row, (length, score) in enumerate(zip(lengths, scores, strict=True)):
        rewards[row, max(length - 1, 0)] = score
    return rewards, mask.long()


def estimate(estimator: Any, lengths: list[int], scores: list[float], prompts: str, config: Any, **more: Any) -> Any:
    rewards, mask = batch(lengths, scores)
    index = np.array(list(prompts), dtype=object)
    return estimator(token_level_rewards=rewards, response_mask=mask, config=config, index=index, **more)[0]


# -- registration


def test_every_objective_is_registered_and_a_second_time_changes_nothing(core_algos: Any, bridge: Any) -> None:
    registered = {name: core_algos.ADV_ESTIMATOR_REGISTRY[f"satisfice-{name}"] for name in OBJECTIVES}
    bridge.register()
    assert all(core_algos.ADV_ESTIMATOR_REGISTRY[f"satisfice-{name}"] is registered[name] for name in OBJECTIVES)


def test_without_verl_one_sentence_says_so(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verl.trainer.ppo.core_algos", None)
    with pytest.raises(ImportError, match="without verl, train with `satisfice train`"):
        bridge.register()


def test_the_documentation_says_what_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training-verl.md").read_text()
    assert [option for option in COMMAND if option not in page] == []
    table = page.partition("## Which objectives")[2].partition("## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    named = {name: "not in verl" in line for line in lines for name in line.split("|")[1].strip().split(", ")}
    assert named == {name: name in UNSUITABLE for name in OBJECTIVES}


# -- groups


def test_groups_may_be_interleaved_and_tokens_after_the_end_get_nothing(bridge: Any) -> None:
    estimator = bridge.Estimator(OBJECTIVES["dr-grpo"])
    advantages = estimate(estimator, [3, 1, 2, 4], [1, 0, 0, 1], "abab", algorithm())
    assert advantages.dtype == torch.float32
    assert advantages.tolist() == [[0.5, 0.5, 0.5, 0], [-0.5, 0, 0, 0], [-0.5, -0.5, 0, 0], [0.5, 0.5, 0.5, 0.5]]


def test_tokens_that_the_model_did_not_write_get_nothing(bridge: Any) -> None:
    rewards = torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 0]])
    mask = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 0]])  # a tool wrote two tokens of the first response
    estimator = bridge.Estimator(OBJECTIVES["shorter-better"])
    given, returns = estimator(rewards, mask, config=algorithm(), index=["a", "a"])
    wanted = objective_from("shorter-better", {})
    rollouts = Rollouts.of(torch.tensor([[2, 3]]), torch.tensor([[True, False]]), max_length=10)
    each = wanted.advantages(rollouts, wanted.rewards(rollouts)).flatten().float()
    torch.testing.assert_close(given, each[:, None] * mask)
    torch.testing.assert_close(returns, given)


@dataclass
class Watching(Objective):
    """Remembers what it was shown."""

    name: ClassVar[str] = "watching"
    summary: ClassVar[str] = "for tests"
    paper: ClassVar[str] = ""

    seen: ClassVar[list[tuple[str, tuple[int, int]]]] = []

    def update(self, rollouts: Rollouts) -> None:
        self.seen.append(("update", tuple(rollouts.lengths.shape)))

    def rewards(self, rollouts: Rollouts) -> torch.Tensor:
        self.seen.append(("rewards", tuple(rollouts.lengths.shape)))
        return rollouts.correct.double()

    def advantages(self, rollouts: Rollouts, rewards: torch.Tensor) -> torch.Tensor:
        return rollouts.lengths.double()

    def token_advantages(self, rollouts: Rollouts, advantages: torch.Tensor) -> torch.Tensor:
        return over_tokens(advantages, rollouts.lengths).cumsum(dim=2) * (over_tokens(advantages, rollouts.lengths) > 0)


@pytest.fixture
def watching(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(OBJECTIVES, "watching", Watching)
    Watching.seen.clear()
    return bridge.Estimator(Watching)


def test_groups_of_another_size_are_rewarded_apart_and_leave_the_state_alone(watching: Any) -> None:
    advantages = estimate(watching, [1, 2, 3, 4, 5, 2, 2], [0] * 7, "aabbbcc", algorithm())
    # Four responses are in groups of two, three in a group of three.
    assert watching._objective.seen == [("update", (2, 2)), ("rewards", (2, 2)), ("rewards", (1, 3))]
    assert advantages[:, 0].tolist() == [1, 2, 3, 4, 5, 2, 2]


def test_rows_without_a_token_count_nowhere(watching: Any) -> None:
    advantages = estimate(watching, [1, 2, 0, 0, 0], [0] * 5, "aappp", algorithm())
    assert watching._objective.seen[0] == ("update", (1, 2))
    assert advantages[2:].count_nonzero() == 0


def test_an_advantage_for_each_token_lands_on_its_token(watching: Any) -> None:
    rewards, mask = torch.zeros(2, 4), torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]])
    given, _ = watching(rewards, mask, config=algorithm(), index=["a", "a"])
    assert given.tolist() == [[3, 0, 6, 9], [2, 4, 0, 0]]


# -- what a response is


def test_a_response_at_the_limit_is_truncated_and_wrong(bridge: Any) -> None:
    scores = [1.0, 1.0, 0.0]
    inside = estimate(bridge.Estimator(OBJECTIVES["dr-grpo"]), [4, 2, 1], scores, "aaa", algorithm(max_length=5))
    at_limit = estimate(bridge.Estimator(OBJECTIVES["dr-grpo"]), [4, 2, 1], scores, "aaa", algorithm(max_length=4))
    third = 1 / 3
    assert inside[:, 0].tolist() == pytest.approx([third, third, -2 * third])
    assert at_limit[:, 0].tolist() == pytest.approx([-third, 2 * third, -third])


def test_the_threshold_of_a_right_answer_can_be_set(bridge: Any) -> None:
    config = algorithm()
    config["satisfice"]["threshold"] = -0.5
    advantages = estimate(bridge.Estimator(OBJECTIVES["dr-grpo"]), [1, 1], [0.0, -1.0], "aa", config)
    assert advantages[:, 0].tolist() == [0.5, -0.5]


def scored(bridge: Any, right: list[bool], level: int, budget: int) -> list[float]:
    info = {"grader": "exact", "level": level, "budget": budget}
    return [bridge.compute_score("", "x" if is_right else "y", "x", info)["score"] for is_right in right]


@pytest.mark.parametrize("route", ["score", "extra_info"])
def test_levels_reach_the_objective(bridge: Any, route: str) -> None:
    right = [[True, False, True], [True, True, False], [True, False, False]]
    lengths, levels = [[2, 5, 9], [2, 5, 9], [3, 3, 4]], [0, 2, -1]
    config = algorithm(parameters={"price_short": 0.6})
    more: dict[str, Any] = {}
    scores = [score for group, level in zip(right, levels, strict=True) for score in scored(bridge, group, level, 0)]
    if route == "extra_info":
        scores = [float(is_right) for group in right for is_right in group]
        extra = [{"level": level, "budget": 0} for level in levels for _ in range(3)]
        more["non_tensor_batch"] = {"extra_info": np.array(extra, dtype=object)}
    given = estimate(
        bridge.Estimator(OBJECTIVES["tldr"]), [length for group in lengths for length in group], scores, "aaabbbccc",
        config, **more,
    )  # fmt: skip
    objective = objective_from("tldr", {"price_short": 0.6})
    rollouts = Rollouts.of(torch.tensor(lengths), torch.tensor(right), max_length=10, levels=torch.tensor(levels))
    wanted = objective.advantages(rollouts, objective.rewards(rollouts)).flatten()
    torch.testing.assert_close(given[:, 0], wanted.float())


def test_budgets_reach_the_objective(bridge: Any) -> None:
    scores = scored(bridge, [True, False], -1, 7) + scored(bridge, [True, True], -1, 123_457)
    given = estimate(bridge.Estimator(OBJECTIVES["l1-exact"]), [7, 3, 5, 9], scores, "aabb", algorithm())
    objective = objective_from("l1-exact", {})
    rollouts = Rollouts.of(
        torch.tensor([[7, 3], [5, 9]]),
        torch.tensor([[True, False], [True, True]]),
        max_length=10,
        budgets=torch.tensor([7, 123_457]),
    )
    wanted = objective.advantages(rollouts, objective.rewards(rollouts)).flatten()
    torch.testing.assert_close(given[:, 0], wanted.float())


# -- refusals


@pytest.mark.parametrize(("name", "message"), UNSUITABLE.items())
def test_what_verl_cannot_give_is_refused(bridge: Any, name: str, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        estimate(bridge.Estimator(OBJECTIVES[name]), [1, 2], [1, 0], "aa", algorithm())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"add '\+algorithm.satisfice.max_length=\$\{data.max_response_length\}'"),
        (Config(), r"add '\+algorithm.satisfice.max_length"),
        (Config(satisfice={"max_lenght": 3}), "no parameter 'max_lenght', did you mean 'max_length'"),
        (
            Config(satisfice={"max_length": "long"}),
            "satisfice: max_length is 'long'; it must be a whole number, at least 1",
        ),
        (algorithm(max_length=0), "max_length is 0; it must be at least 1"),
        (Config(satisfice={"max_length": 3, "parameters": "price"}), "parameters is 'price'; it must be "),
        (algorithm(parameters={"weight": 2}), "laser has no parameter 'weight'"),
        (algorithm(parameters={"bonus": -1}), "laser: bonus is -1; it must be above 0"),
        (algorithm(use_kl_in_reward=True), "use actor_rollout_ref.actor.use_kl_loss=True instead"),
        (algorithm(rollout_correction={"rollout_rs": "token_k1"}), "set it to null"),
        (algorithm(max_length=1), "a response has 2 tokens, but algorithm.satisfice.max_length is 1"),
    ],
)
def test_a_configuration_that_hides_something_is_refused(bridge: Any, config: Any, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        estimate(bridge.Estimator(OBJECTIVES["laser"]), [1, 2], [1, 0], "aa", config)


def test_a_batch_without_prompt_ids_is_refused(bridge: Any) -> None:
    with pytest.raises(ObjectiveError, match="has no uid"):
        bridge.Estimator(OBJECTIVES["laser"])(*batch([1], [1.0]), config=algorithm())


@pytest.mark.parametrize("scores", [[1.0, 0.0], [1.3, -0.4], [3.0, -3.0]])
def test_scores_that_do_not_tell_the_condition_are_refused(bridge: Any, scores: list[float]) -> None:
    with pytest.raises(ObjectiveError, match="the scores of this batch do not say it"):
        estimate(bridge.Estimator(OBJECTIVES["tldr"]), [1, 2], scores, "aa", algorithm())


# -- state


def trainer_config(name: str, folder: Path, mode: str = "auto", **parameters: Any) -> Config:
    return Config(
        algorithm=algorithm(parameters=parameters, adv_estimator=f"satisfice-{name}"),
        trainer=Config(default_local_dir=str(folder), resume_mode=mode, resume_from_path=str(folder / "global_step_2")),
    )


def started(bridge: Any, monkeypatch: pytest.MonkeyPatch, config: Config) -> tuple[Any, Any]:
    """A training as verl starts it in a fresh process: the callback, and the estimator."""
    name = config.algorithm.adv_estimator
    monkeypatch.setitem(bridge.ESTIMATORS, name, bridge.Estimator(OBJECTIVES[name.removeprefix("satisfice-")]))
    return bridge.SaveState(config=config), bridge.ESTIMATORS[name]


@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_a_resumed_training_goes_on_in_its_state(
    bridge: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    config = trainer_config("kimi", tmp_path, warmup=2)
    callback, estimator = started(bridge, monkeypatch, config)
    unbroken = [estimate(estimator, [1, 3], [1, 1], "aa", config.algorithm) for _ in range(2)]
    checkpoint = tmp_path / "global_step_2"
    checkpoint.mkdir()
    callback.on_save(trainer=None, global_step=2, checkpoint_dir=str(checkpoint), async_save=False)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("2")
    unbroken.append(estimate(estimator, [1, 3], [1, 1], "aa", config.algorithm))
    assert [float(advantages.abs().sum()) > 0 for advantages in unbroken] == [False, False, True]

    resumed = trainer_config("kimi", tmp_path, mode, warmup=2)
    _, estimator = started(bridge, monkeypatch, resumed)
    torch.testing.assert_close(estimate(estimator, [1, 3], [1, 1], "aa", resumed.algorithm), unbroken[2])

    _, estimator = started(bridge, monkeypatch, trainer_config("kimi", tmp_path, "disable", warmup=2))
    torch.testing.assert_close(estimate(estimator, [1, 3], [1, 1], "aa", resumed.algorithm), unbroken[0])

    with pytest.raises(ObjectiveError, match="was trained with kimi:warmup=2, not kimi:warmup=3"):
        started(bridge, monkeypatch, trainer_config("kimi", tmp_path, mode, warmup=3))
    (checkpoint / bridge.STATE_FILE).unlink()
    with pytest.raises(ObjectiveError, match="holds no state of kimi"):
        started(bridge, monkeypatch, resumed)
    started(bridge, monkeypatch, trainer_config("laser", tmp_path, mode))  # has no state to miss


def test_the_state_file_is_plain_data(bridge: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = trainer_config("laser-d", tmp_path)
    callback, estimator = started(bridge, monkeypatch, config)
    estimate(estimator, [1, 3, 2], [1, 0, 1], "aaa", config.algorithm)
    callback.on_save(trainer=None, global_step=1, checkpoint_dir=str(tmp_path))
    saved = json.loads((tmp_path / bridge.STATE_FILE).read_text())
    assert saved["objective"] == "laser-d"
    assert saved["state"]["step"] == 1


def test_what_cannot_work_is_refused_before_anything_is_loaded(bridge: Any, tmp_path: Path) -> None:
    with pytest.raises(ObjectiveError, match=r"algorithm\.adv_estimator is grpo"):
        bridge.SaveState(Config(algorithm=Config(adv_estimator="grpo")))
    with pytest.raises(ObjectiveError, match="needs validation"):
        bridge.SaveState(trainer_config("aalc", tmp_path))


def test_a_state_that_is_not_saved_is_said_aloud(bridge: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="checkpoint_callback_class=satisfice.training.verl.SaveState"):
        estimate(bridge.Estimator(OBJECTIVES["kimi"]), [1, 3], [1, 0], "aa", algorithm())
    config = trainer_config("kimi", tmp_path)
    _, estimator = started(bridge, monkeypatch, config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate(estimator, [1, 3], [1, 0], "aa", config.algorithm)


# -- data and scores


def test_rows_carry_what_the_grader_and_the_objective_need(bridge: Any) -> None:
    problems = [Problem("p0", "What is 1 + 1?", "2"), Problem("p1", "Which?", "B", grader="choice", system="Be kind.")]
    objective = objective_from("tldr", {"unlabelled": 0.25})
    rows = bridge.verl_rows(with_conditions(training_rows(problems, 40), objective, seed=3), source="two")
    assert [row["reward_model"]["ground_truth"] for row in rows[:2]] == ["2", "B"]
    assert rows[1]["prompt"][0] == {"role": "system", "content": "Be kind."}
    assert rows[1]["extra_info"]["grader"] == "choice"
    assert {row["extra_info"]["level"] for row in rows} == {-1, 0, 1, 2}
    for row in rows:
        instruction = ["", *objective.instructions.values()][row["extra_info"]["level"] + 1]
        assert row["prompt"][-1]["content"].endswith(instruction or "?")
        assert ("Think" in row["prompt"][-1]["content"]) == bool(instruction)
    plain = bridge.verl_rows(training_rows(problems, 2))
    assert "level" not in plain[0]["extra_info"]
    with pytest.raises(ObjectiveError, match="changes what prompts say"):
        with_conditions(training_rows(problems, 2), objective_from("thinkprune", {}))


@pytest.mark.parametrize(
    ("text", "options", "right"),
    [
        ("<think>\n7? no\n</think>\n\nThe answer is 8.", {}, True),
        ("<think>\n8\n</think>\n\nThe answer is 7.", {}, False),
        ("The answer is 8.", {}, True),
        ("no opening </think> The answer is 8.", {}, True),
        ("<think>\nThe answer is 8.", {}, False),
        ("The answer is 8.", {"opened": True}, False),
        ("[THINK]The answer is 7.[/THINK]The answer is 8.", {"thinking": "magistral"}, True),
        ("(The answer is 7.) The answer is 8.", {"thinking": "(,)"}, True),
        ("\\boxed{2^3}", {}, True),  # takes algebra
        ("b)", {"grader": "choice"}, False),
    ],
)
def test_a_score_is_the_grade_of_the_answer(bridge: Any, text: str, options: dict[str, Any], right: bool) -> None:
    given = bridge.compute_score(data_source="any", solution_str=text, ground_truth="8", extra_info=None, **options)
    assert given == {"score": float(right), "acc": float(right)}


def test_thinking_that_the_template_opened_is_no_answer(bridge: Any) -> None:
    opens = str(WEIGHTS)  # the lab's template writes the opening marker itself
    for text, right in (
        ("12 + 3 = 15\n15", False),
        ("12 + 3 = 15\n</think>\n\n15", True),
        ("15\n</think>\n\n9", False),
    ):
        assert bridge.compute_score("", text, "15", {}, model=opens)["acc"] == float(right)
    # Said by hand it counts, whatever the template does.
    assert bridge.compute_score("", "15", "15", {}, model=opens, opened=False)["acc"] == 1.0


def test_a_response_that_ran_into_the_limit_is_wrong_in_acc_too(bridge: Any) -> None:
    text = "12 + 3 = 15\n</think>\n\nThe answer is 15"
    size = len(AutoTokenizer.from_pretrained(WEIGHTS)(text, add_special_tokens=False)["input_ids"]) + 1
    told = {"level": 1, "budget": 0}
    for limit, right in ((size + 1, True), (size, False), (size - 5, False)):
        given = bridge.compute_score("", text, "15", told, model=str(WEIGHTS), max_length=limit)
        assert given == {"score": 4.0 if right else -3.0, "acc": float(right)}
    with pytest.raises(ObjectiveError, match=r"give reward_kwargs\.model with max_length"):
        bridge.compute_score("", text, "15", told, max_length=100)


def test_a_score_agrees_with_the_grader(bridge: Any) -> None:
    for answer, gold in (("It is 1,000.", "1000"), ("\\boxed{\\frac{1}{2}}", "0.5"), ("no idea", "3")):
        wanted = grade_answer("math", answer, gold).correct
        assert bridge.compute_score("", answer, gold, {"num_turns": 1})["acc"] == float(wanted)


def test_conditions_never_turn_a_wrong_answer_right(bridge: Any) -> None:
    rng = random.Random(0)
    for _ in range(50):
        level, budget = rng.randrange(-1, 3), rng.choice([0, 1, 4000, 2_000_000])
        right, wrong = (torch.tensor(score) for score in scored(bridge, [True, False], level, budget))
        assert right > 1
        assert wrong < 0


# -- verl itself


@pytest.fixture
def verl(core_algos: Any) -> Any:
    """verl, where it is installed with what its trainer needs."""
    return pytest.importorskip("verl.trainer.ppo.ray_trainer", exc_type=ImportError)


def verl_batch(verl: Any, scores: list[float], lengths: list[int], prompts: str) -> Any:
    rewards, mask = batch(lengths, scores)
    return importlib.import_module("verl").DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "response_mask": mask},
        non_tensors={"uid": np.array(list(prompts), dtype=object)},
    )


@pytest.mark.parametrize("name", SUITABLE)
def test_verl_computes_the_advantages_of(
    verl: Any, bridge: Any, monkeypatch: pytest.MonkeyPatch, core_algos: Any, name: str
) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    estimator = bridge.Estimator(OBJECTIVES[name])
    monkeypatch.setitem(core_algos.ADV_ESTIMATOR_REGISTRY, f"satisfice-{name}", estimator)
    config = omegaconf.OmegaConf.create({"satisfice": {"max_length": 10}})
    omegaconf.OmegaConf.set_struct(config, True)
    right, lengths = [[True, False, True], [True, True, False]], [[2, 5, 9], [10, 3, 1]]
    budget = 6 if name.startswith("l1") else 0
    level = 1 if name == "tldr" else -1
    told = budget or level >= 0
    scores = [
        scored(bridge, [is_right], level, budget)[0] if told else float(is_right)
        for column in range(3)
        for is_right in (right[0][column], right[1][column])
    ]
    interleaved = [lengths[group][column] for column in range(3) for group in range(2)]
    given = verl.compute_advantage(
        verl_batch(verl, scores, interleaved, "ababab"), adv_estimator=f"satisfice-{name}", config=config
    )
    objective = objective_from(name, {})
    rollouts = Rollouts.of(
        torch.tensor(lengths),
        torch.tensor(right) & (torch.tensor(lengths) < 10),
        torch.tensor(lengths) == 10,
        max_length=10,
        levels=torch.full((2,), level),
        budgets=torch.full((2,), budget),
    )
    objective.update(rollouts)
    wanted = objective.advantages(rollouts, objective.rewards(rollouts)).T.flatten().float()
    mask = given.batch["response_mask"]
    torch.testing.assert_close(given.batch["advantages"], wanted[:, None] * mask)
    torch.testing.assert_close(given.batch["returns"], given.batch["advantages"])


def test_verl_reads_the_documented_command(
    verl: Any, bridge: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hydra = pytest.importorskip("hydra")
    monkeypatch.setitem(bridge.ESTIMATORS, "satisfice-tldr", bridge.Estimator(OBJECTIVES["tldr"]))
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose(
            "ppo_trainer",
            [
                *COMMAND, "data.max_response_length=700", f"trainer.default_local_dir={tmp_path}",
                f"actor_rollout_ref.model.path={WEIGHTS}",
            ],
        )  # fmt: skip
    score = importlib.import_module("verl.trainer.ppo.reward").get_custom_reward_fn(config)
    assert score("", "</think>(B)", "B", {"grader": "choice", "level": 2, "budget": 0}) == {"score": 5.0, "acc": 1.0}
    callbacks = pytest.importorskip("verl.trainer.ppo.checkpoint_callback", reason="this verl has no such callback")
    callback = callbacks.build_checkpoint_callback(config)
    estimator = bridge.ESTIMATORS["satisfice-tldr"]
    assert estimator.prepare(config.algorithm) == bridge.EstimatorSettings(
        max_length=700, parameters={"price_short": 0.6}
    )
    callback.on_save(trainer=None, global_step=1, checkpoint_dir=str(tmp_path), async_save=False)
    assert (tmp_path / bridge.STATE_FILE).is_file()


def test_verl_registers_the_estimators_of_a_module_that_its_environment_names(verl: Any) -> None:
    code = (
        "import verl, sys; from verl.trainer.ppo.core_algos import get_adv_estimator_fn as get; "
        "print(get('satisfice-tldr').__name__)"
    )
    environment = os.environ | {"VERL_USE_EXTERNAL_MODULES": "satisfice.training.verl"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("satisfice-tldr"), done.stderr
