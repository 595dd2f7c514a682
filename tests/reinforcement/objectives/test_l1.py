import random

import pytest
import torch

from satisfice.reinforcement.objective import Condition, ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.l1 import L1Exact, L1Max


def rollouts(lengths, correct, *budgets):
    return Rollouts.of(lengths, correct, budgets=torch.tensor(budgets))


def test_exact_charges_every_token_above_or_below():
    group = rollouts([[1000, 1100, 700, 1000]], [[True, True, True, False]], 1000)
    expected = torch.tensor([[1.0, 0.97, 0.91, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(L1Exact().rewards(group), expected)


def test_exact_is_violated_from_3333_tokens_off():
    def count(length):
        group = rollouts([[length, 100]], [[True, False]], 100)
        return violations(L1Exact().rewards(group), group.correct)

    assert (count(3433), count(3434)) == (0, 1)


def test_exact_scales_its_slope_with_the_budgets():
    assert L1Exact().slope == pytest.approx(0.0003)
    assert L1Exact(max_budget=400).slope == pytest.approx(0.003)
    assert L1Exact(max_budget=400, alpha=0.0003).slope == 0.0003


def test_max_pays_half_at_the_budget_and_nothing_500_tokens_above():
    group = rollouts([[1000, 900, 500, 400, 1400, 1500, 2000, 100]], [[True] * 7 + [False]], 1000)
    expected = torch.tensor([[0.5, 0.6, 1.0, 1.0, 0.1, 0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(L1Max().rewards(group), expected)


def test_max_counts_ties_of_right_answers_that_earn_nothing():
    group = rollouts([[1499, 1500, 10]], [[True, True, False]], 1000)
    assert violations(L1Max().rewards(group), group.correct) == 1
    group = rollouts([[1499, 1400, 10]], [[True, True, False]], 1000)
    assert violations(L1Max().rewards(group), group.correct) == 0


def test_max_scales_its_slope_with_the_budgets():
    assert L1Max().slope == 0.001
    assert L1Max(max_budget=400).slope == 0.01
    group = rollouts([[110]], [[True]], 100)
    assert L1Max(alpha=0.02, delta=0.75).rewards(group).item() == pytest.approx(0.55)


def test_each_prompt_has_its_own_budget():
    group = rollouts([[100, 100], [100, 100]], [[True, False], [True, False]], 100, 200)
    expected = torch.tensor([[1.0, 0.0], [0.97, -0.03]], dtype=torch.float64)
    torch.testing.assert_close(L1Exact().rewards(group), expected)


@pytest.mark.parametrize("kind", [L1Exact, L1Max])
def test_budgets_are_drawn_uniformly_from_their_range_by_the_step(kind):
    rng = random.Random(0)
    objective = kind(min_budget=50, max_budget=100, step=25)
    drawn = [objective.condition(rng) for _ in range(3000)]
    for budget in (50, 75, 100):
        assert abs(sum(condition.budget == budget for condition in drawn) / 3000 - 1 / 3) < 0.03
    assert {condition.budget for condition in drawn} == {50, 75, 100}
    assert all(str(condition.budget) in condition.instruction for condition in drawn)


def test_wordings():
    rng = random.Random(0)
    fixed = {"min_budget": 64, "max_budget": 64}
    assert L1Exact(**fixed).condition(rng) == Condition("Think for exactly 64 tokens.", budget=64)
    assert L1Max(**fixed).condition(rng) == Condition("Think for at most 64 tokens.", budget=64)
    own = L1Max(**fixed, instruction="Use {budget} tokens and \\boxed{}.").condition(rng)
    assert own.instruction == "Use 64 tokens and \\boxed{}."


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1Exact(min_budget=0), "l1-exact: min_budget is 0; it must be at least 1"),
        (lambda: L1Max(min_budget=5000), "l1-max: budgets go from min_budget to max_budget"),
        (lambda: L1Max(step=0), "step is 0; it must be at least 1"),
        (lambda: L1Exact(alpha=0), "alpha is 0; it must be above 0 and at most 1"),
        (lambda: L1Exact(alpha=float("nan")), "alpha is nan; it must be above 0 and at most 1"),
        (lambda: L1Max(delta=0), "delta is 0; it must be above 0"),
        (lambda: L1Max(instruction="Think."), "it must be a text with {budget} where the number goes"),
    ],
)
def test_parameters_that_cannot_work_are_refused(make, message):
    with pytest.raises(ObjectiveError, match=message):
        make()


@pytest.mark.parametrize("kind", [L1Exact, L1Max])
def test_a_prompt_without_a_budget_is_refused(kind):
    group = rollouts([[10, 10], [10, 10]], [[True, False]] * 2, 100, 0)
    with pytest.raises(ObjectiveError, match="prompt 1 of this batch states none"):
        kind().rewards(group)


def test_max_reports_budgets_that_nobody_comes_near():
    assert "so far below its budget" in L1Max().inactive(rollouts([[100, 200]], [[True, True]], 4000))
    assert L1Max().inactive(rollouts([[100, 3600]], [[True, True]], 4000)) == ""
    assert L1Max().inactive(rollouts([[100, 200]], [[False, False]], 4000)) == ""
