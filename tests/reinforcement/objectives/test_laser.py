import pytest

from satisfice.reinforcement.objective import ObjectiveError, Rollouts
from satisfice.reinforcement.objectives.laser import LASER


def test_the_bonus_is_for_right_answers_within_the_target():
    group = Rollouts.of([[8192, 8193, 10, 9000]], [[True, True, False, False]])
    assert LASER().rewards(group).tolist() == [[1.5, 1.0, -0.5, -0.5]]
    assert LASER(target=9, bonus=0.25).rewards(group).tolist() == [[1.0, 1.0, -0.5, -0.5]]


def test_a_target_that_divides_no_group_is_reported():
    near, far = Rollouts.of([[10, 90]], [[True, True]]), Rollouts.of([[10, 90]], [[True, False]])
    assert LASER(target=50).inactive(near) == ""
    for objective, group in ((LASER(), near), (LASER(target=5), near), (LASER(target=50), far)):
        assert "no group has right responses on both sides of the target" in objective.inactive(group)


@pytest.mark.parametrize("parameters", [{"target": 0}, {"bonus": 0}, {"bonus": float("nan")}])
def test_parameters_that_cannot_work_are_refused(parameters):
    with pytest.raises(ObjectiveError, match=next(iter(parameters))):
        LASER(**parameters)
