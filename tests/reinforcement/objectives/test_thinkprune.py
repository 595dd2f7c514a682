import random

import pytest
import torch

from satisfice.reinforcement.objective import Condition, ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.thinkprune import ThinkPrune


def rollouts(lengths, correct, budget):
    return Rollouts.of(lengths, correct, max_length=5000, budgets=torch.full((len(lengths),), budget))


GROUP = rollouts([[2000, 3000, 3001, 10]], [[True, True, True, False]], 3000)


def test_a_right_answer_counts_within_the_limit_of_its_prompt():
    assert ThinkPrune().rewards(GROUP).tolist() == [[1, 1, 0, 0]]
    assert violations(ThinkPrune().rewards(GROUP), GROUP.correct) == 1


def test_the_limit_falls_in_rounds_and_stays_at_the_last():
    objective = ThinkPrune(limits=(400, 300, 200), steps_per_round=2)
    stated = []
    for _ in range(8):
        stated.append(objective.condition(random.Random(0)).budget)
        objective.update(GROUP)
    assert stated == [400, 400, 300, 300, 200, 200, 200, 200]


def test_the_limit_stands_in_the_prompt():
    assert ThinkPrune().condition(random.Random(0)) == Condition("Answer within 4000 tokens.", budget=4000)


def test_rounds_go_on_after_a_restart():
    objective, again = (ThinkPrune(limits=(400, 300), steps_per_round=2) for _ in range(2))
    objective.update(GROUP)
    again.load_state_dict(objective.state_dict())
    again.update(GROUP)
    assert again.condition(random.Random(0)).budget == 300


def test_prompts_that_were_drawn_too_early_are_reported():
    objective = ThinkPrune(limits=(3000, 1000), steps_per_round=1)
    objective.update(GROUP)
    assert objective.inactive(GROUP) == ""
    objective.update(GROUP)
    assert objective.inactive(GROUP) == (
        "the limit has fallen to 1000 tokens, but the prompts still state 3000; draw conditions as training goes on"
    )


def test_a_limit_that_nobody_reaches_is_reported():
    assert "no response is beyond the limit of 4000" in ThinkPrune().inactive(
        rollouts([[10, 20]], [[True, True]], 4000)
    )
    assert ThinkPrune().inactive(rollouts([[10, 4001]], [[True, True]], 4000)) == ""


def test_a_prompt_without_a_limit_is_refused():
    with pytest.raises(ObjectiveError, match="thinkprune rewards a response by the budget in its prompt"):
        ThinkPrune().rewards(Rollouts.of([[1, 2]], [[True, False]]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"limits": ()}, "one or more whole numbers, each at least 1"),
        ({"limits": (100, 0)}, "one or more whole numbers, each at least 1"),
        ({"limits": (100, 200)}, "must be below the one before"),
        ({"steps_per_round": 0}, "steps_per_round is 0; it must be"),
        ({"instruction": "Hurry."}, "must be a text with {budget}"),
    ],
)
def test_parameters_that_cannot_work_are_refused(parameters, message):
    with pytest.raises(ObjectiveError, match=message):
        ThinkPrune(**parameters)


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": 1, "round": 2}])
def test_a_foreign_state_is_refused(state):
    with pytest.raises(ObjectiveError, match="state of thinkprune"):
        ThinkPrune().load_state_dict(state)
