import json

import pytest
import torch

from satisfice.reinforcement.objective import ObjectiveError, Rollouts
from satisfice.reinforcement.objectives.laser_d import LASERD


def group(right, lengths):
    """One group of eight of which the first `right` are right."""
    return Rollouts.of([lengths], [[i < right for i in range(8)]], max_length=1000)


def targets(objective):
    return objective.state_dict()["targets"]


@pytest.mark.parametrize(
    ("size", "bands"),
    [
        (8, [2, 2, 2, 1, 1, 1, 0, 0, 0]),  # below 1/3: 0 to 2; below 2/3: 3 to 5
        (6, [2, 2, 1, 1, 0, 0, 0]),  # exactly 1/3 is medium, exactly 2/3 is easy
        (3, [2, 1, 0, 0]),
        (1, [2, 0]),
    ],
)
def test_bands_begin_at_a_third_and_two_thirds(size, bands):
    correct = torch.tensor([[i < right for i in range(size)] for right in range(size + 1)])
    found = LASERD()._bands(Rollouts.of(torch.full((size + 1, size), 9), correct))
    assert found.tolist() == bands


def test_a_target_is_the_first_grid_length_that_covers_one_in_n():
    lengths = [100, 200, 300, 400, 500, 600, 700, 800]
    # Grid 100, 200, ...: easy needs 1 in 5 (two of eight), medium 1 in 2 (four), hard all.
    for right, band, target in ((8, 0, 200), (4, 1, 400), (0, 2, 800)):
        objective = LASERD(lower=100, interval=100)
        objective.update(group(right, lengths))
        assert targets(objective) == [target if index == band else None for index in range(3)]


def test_between_two_grid_lengths_the_upper_one_covers():
    objective = LASERD(lower=100, interval=100)
    objective.update(group(8, [101, 150, 200, 201, 500, 600, 700, 800]))
    assert targets(objective)[0] == 200
    objective = LASERD(lower=100, interval=100)
    objective.update(group(8, [1, 2, 3, 201, 500, 600, 700, 800]))
    assert targets(objective)[0] == 100, "the smallest target is lower"


def test_smaller_groups_ask_for_proportionally_less():
    objective = LASERD(lower=100, interval=100)
    # Of 4: easy 1 in 2, medium 1 in 1, hard 1 in 1.
    objective.update(Rollouts.of([[100, 200, 300, 400]] * 3, [[True] * 4, [True, True, False, False], [False] * 4]))
    assert targets(objective) == [200, 400, 400]


def test_truncated_responses_keep_the_hard_target_at_the_limit():
    objective = LASERD(lower=100, interval=100)
    hard = Rollouts.of([[300, 1000]], [[False, False]], [[False, True]], max_length=1000)
    objective.update(hard)
    assert targets(objective)[2] == 1000


def test_rewards_go_by_the_target_of_the_band():
    objective = LASERD(lower=100, interval=100)
    objective.update(group(8, [100, 200, 300, 400, 500, 600, 700, 800]))
    easy = group(7, [200, 201, 100, 800, 150, 300, 300, 10])
    assert objective.rewards(easy).tolist() == [[1.5, 1.0, 1.5, 1.0, 1.5, 1.0, 1.0, -0.5]]
    # No hard group has been seen, so nothing is too long for one.
    assert objective.rewards(group(1, [800] * 8))[0, 0] == 1.5


def test_before_any_measurement_every_right_answer_has_the_bonus():
    assert LASERD().rewards(group(2, [900] * 8)).tolist() == [[1.5, 1.5, *[-0.5] * 6]]


def test_targets_are_measured_again_on_what_came_since():
    objective = LASERD(lower=100, interval=100, every=2)
    seen = []
    for length in (500, 300, 200, 100, 100):
        objective.update(group(8, [length] * 8))
        seen.append(targets(objective)[0])
    # The first step alone, then steps 2 and 3 together (one in five is within 200), then 4 and 5.
    assert seen == [500, 500, 200, 200, 100]


def test_a_restart_in_the_middle_of_a_window_changes_nothing():
    steps = [group(8, [length] * 8) for length in (900, 700, 400, 300, 200)]
    straight, resumed = LASERD(lower=100, interval=100, every=3), LASERD(lower=100, interval=100, every=3)
    for step in steps:
        straight.update(step)
    for step in steps:
        after = LASERD(lower=100, interval=100, every=3)
        after.load_state_dict(json.loads(json.dumps(resumed.state_dict())))
        resumed = after
        resumed.update(step)
    assert resumed.state_dict() == straight.state_dict()
    assert targets(resumed)[0] == 300, "a third of the responses of steps 2 to 4 is within 300"


@pytest.mark.parametrize("state", [{}, {"step": 1}, {"step": 1, "targets": [1], "counts": [[], [], []]}])
def test_a_foreign_state_is_refused(state):
    with pytest.raises(ObjectiveError, match="state of laser-d"):
        LASERD().load_state_dict(state)


@pytest.mark.parametrize("parameters", [{"lower": 0}, {"interval": 0}, {"every": 0}, {"bonus": -1}])
def test_parameters_that_cannot_work_are_refused(parameters):
    with pytest.raises(ObjectiveError, match=next(iter(parameters))):
        LASERD(**parameters)


def test_targets_that_divide_no_group_are_reported():
    objective = LASERD(lower=100, interval=100)
    easy = group(8, [100, 200, 300, 400, 500, 600, 700, 800])
    objective.update(easy)
    assert objective.inactive(easy) == ""
    assert objective.inactive(group(8, [50] * 8)) == (
        "no group has right responses on both sides of its target, 200 (easy), the token limit (medium), "
        "the token limit (hard), so none is preferred"
    )


def test_bands_and_targets_are_those_of_the_models_own_responses():
    # Of four own responses three are right: easy. With the explored ones it would be three of eight: medium.
    correct = [[True, True, True, False, False, False, False, False]]
    explored = torch.tensor([[False] * 4 + [True] * 4])
    given = Rollouts.of([[500, 600, 700, 800, 10, 10, 10, 10]], correct, explored=explored, max_length=1000)
    objective = LASERD(lower=100, interval=100)
    assert objective._bands(given).tolist() == [0]
    assert objective._bands(Rollouts.of(given.lengths, correct, max_length=1000)).tolist() == [1]
    objective.update(given)
    # One in five of the own four: the shortest of them, not the explored 10.
    assert objective._targets == [500, None, None]
    # A group of nothing but explored responses is still in some band.
    assert objective._bands(Rollouts.of([[5, 5]], [[True, True]], explored=torch.ones(1, 2).bool())).tolist() == [0]
