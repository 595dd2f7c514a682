import json
import math
from dataclasses import replace

import pytest
import torch

from satisfice.reinforcement.objective import ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.crt import CRT


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def rollouts(lengths, right=1.0, reference=1.0, problems=None):
    """Groups of which the first share `right` of the responses is right."""
    lengths = torch.as_tensor(lengths)
    correct = torch.arange(lengths.shape[1]) < right * lengths.shape[1]
    others = {} if problems is None else {"problems": torch.tensor(problems)}
    return Rollouts.of(
        lengths,
        correct.expand_as(lengths),
        reference_accuracy=torch.full((len(lengths),), reference, dtype=torch.float64),
        **others,
    )


def after(objective, *steps):
    for step in steps:
        objective.update(step)
    return objective


def test_a_step_on_length_rewards_all_responses():
    # mean 20, population std 10
    given = rollouts([[10, 30]], right=0.5, reference=0.5)
    objective = after(CRT(), given)
    assert objective.on_length
    rewards = objective.rewards(given)
    assert rewards.dtype is torch.float64
    assert rewards.tolist() == [pytest.approx([-sigmoid(-1), -sigmoid(1)])]


def test_a_step_on_accuracy_rewards_correctness():
    given = rollouts([[10, 30]], right=0.5, reference=0.9)
    objective = after(CRT(), given)
    assert not objective.on_length
    assert objective.rewards(given).tolist() == [[1.0, 0.0]]
    assert "spent on accuracy" in objective.inactive(given)


def test_length_rewards_may_put_wrong_above_right():
    given = Rollouts.of([[30, 10]], [[True, False]], reference_accuracy=torch.tensor([0.5]))
    assert violations(after(CRT(), given).rewards(given), given.correct) == 1


@pytest.mark.parametrize(
    ("accuracy", "on_length"),
    [(0.70, True), (0.68, True), (0.67, True), (0.66, False)],
    ids=["as good", "within eps", "just within eps + eta", "below"],
)
def test_the_threshold_is_eps_plus_eta(accuracy, on_length):
    lengths = torch.arange(100)[None] + 1
    assert after(CRT(eps=0.02, eta=0.01), rollouts(lengths, accuracy, 0.70)).on_length is on_length


def test_accuracy_is_compared_over_the_whole_batch():
    correct = torch.tensor([[True, True], [False, False]])
    given = Rollouts.of([[10, 30], [10, 30]], correct, reference_accuracy=torch.tensor([0.0, 1.0]))
    assert after(CRT(eps=0, eta=0), given).on_length


def test_hysteresis_works_on_a_broken_constraint_until_it_holds_without_slack():
    lengths = torch.arange(100)[None] + 1
    steps = [rollouts(lengths, accuracy, 0.70) for accuracy in (0.66, 0.67, 0.68, 0.67)]
    for hysteresis, expected in ((False, [False, True, True, True]), (True, [False, False, True, True])):
        objective = CRT(hysteresis=hysteresis)
        assert [after(objective, step).on_length for step in steps] == expected


def test_equal_lengths_have_no_advantage():
    given = rollouts([[50, 50, 50]])
    objective = after(CRT(), given)
    rewards = objective.rewards(given)
    assert rewards.tolist() == [[-0.5] * 3]
    assert objective.advantages(given, rewards).tolist() == [[0.0] * 3]


def test_a_batch_without_a_right_answer_has_no_gradient_and_says_that_length_rests():
    given = rollouts([[10, 30]], right=0, reference=0.5)
    objective = after(CRT(), given)
    assert objective.advantages(given, objective.rewards(given)).tolist() == [[0.0, 0.0]]
    assert objective.inactive(given) != ""


def test_stage_two_begins_when_lengths_stop_falling():
    objective = CRT(window=2, plateau=0.01)
    falling = [rollouts([[length, length]]) for length in (100, 90, 80, 70)]  # 150 against 190
    assert after(objective, *falling).stage == 1
    assert after(objective, rollouts([[70, 70]])).stage == 1  # 140 against 170
    assert after(objective, rollouts([[70, 69]])).stage == 1  # 139.5 against 150
    assert after(objective, rollouts([[70, 69]])).stage == 2  # 139 against 140: 0.7 % less


def test_steps_on_accuracy_are_no_plateau():
    objective = CRT(window=2)
    assert after(objective, *[rollouts([[50, 50]], right=0, reference=1)] * 10).stage == 1
    assert after(objective, *[rollouts([[50, 50]])] * 4).stage == 2


def test_stage_two_begins_at_a_given_step():
    objective = CRT(window=1, switch_at=3)
    stages = [after(objective, rollouts([[50, 50]])).stage for _ in range(3)]
    assert stages == [1, 1, 2]


def test_stage_two_compares_with_the_frozen_lengths():
    # problem 7 took 10 and 30 tokens in stage I: mean 20, std 10, l on average exactly one half
    objective = after(CRT(switch_at=1, delta=0.02, eta=0.01), rollouts([[10, 30]], problems=[7]))
    assert objective.stage == 2
    assert not objective.on_length
    assert "stage II" in objective.inactive(rollouts([[10, 30]], problems=[7]))

    longer = rollouts([[30, 50]], problems=[7])
    assert after(objective, longer).on_length
    assert objective.rewards(longer).tolist() == [pytest.approx([-sigmoid(1), -sigmoid(3)])]
    # sigmoid(z) = 0.53 at z = 0.12: 21.2 tokens is the limit
    assert not after(objective, rollouts([[21, 21]], problems=[7])).on_length
    assert after(objective, rollouts([[22, 22]], problems=[7])).on_length
    assert objective.rewards(rollouts([[20, 20]], problems=[7])).tolist() == [[-0.5, -0.5]]


def test_stage_two_never_returns_and_freezes_once():
    objective = after(CRT(switch_at=1), rollouts([[10, 30]], problems=[7]))
    frozen = objective.state_dict()["profile"]
    after(objective, rollouts([[500, 900]], right=0, reference=1, problems=[7]))
    assert objective.stage == 2
    assert objective.state_dict()["profile"] == frozen


def test_a_problem_without_a_profile_is_measured_by_all_lengths_together():
    objective = after(CRT(switch_at=1), rollouts([[10, 30], [50, 70]], problems=[1, 2]))
    # all lengths: mean 40, population std sqrt((900 + 100 + 100 + 900) / 4)
    new = rollouts([[90, 90]], problems=[3])
    assert after(objective, new).on_length
    assert objective.rewards(new).tolist() == [pytest.approx([-sigmoid(50 / math.sqrt(500))] * 2)]


def test_a_problem_whose_lengths_did_not_differ_takes_the_scale_of_all():
    objective = after(CRT(switch_at=1), rollouts([[20, 20], [40, 40]], problems=[1, 2]))
    # its own mean 20, the overall std 10
    new = rollouts([[30, 30]], problems=[1])
    assert after(objective, new).on_length
    assert objective.rewards(new).tolist() == [pytest.approx([-sigmoid(1)] * 2)]


def test_the_profile_holds_recent_lengths_only():
    # window 1: what was seen two updates before the switch is forgotten
    objective = CRT(window=1, switch_at=3)
    for problem, lengths in ((1, [1000, 3000]), (2, [10, 30]), (2, [20, 40])):
        after(objective, rollouts([lengths], problems=[problem]))
    profile = {problem: numbers for problem, *numbers in objective.state_dict()["profile"]}
    assert profile.keys() == {None, 2}
    assert profile[2] == pytest.approx([30, 10, 0.5])


def test_a_problem_that_is_asked_twice_in_a_step_is_remembered_whole():
    objective = after(CRT(switch_at=1), rollouts([[10, 10], [30, 30]], problems=[5, 5]))
    profile = {problem: numbers for problem, *numbers in objective.state_dict()["profile"]}
    assert profile[5] == pytest.approx([20, 10, 0.5])


@pytest.mark.parametrize("done", range(8))
def test_it_goes_on_from_json_as_if_it_had_not_been_interrupted(done):
    generator = torch.Generator().manual_seed(0)
    steps = [
        rollouts(
            torch.randint(10, 100, (4, 8), generator=generator),
            right=torch.rand((), generator=generator).item(),
            reference=0.6,
            problems=torch.randint(0, 9, (4,), generator=generator).tolist(),
        )
        for _ in range(8)
    ]
    whole, first = CRT(window=1, hysteresis=True), CRT(window=1, hysteresis=True)
    expected = [(after(whole, step).stage, whole.on_length, whole.rewards(step)) for step in steps]
    after(first, *steps[:done])
    second = CRT(window=1, hysteresis=True)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    for step, (stage, on_length, rewards) in zip(steps[done:], expected[done:], strict=True):
        after(second, step)
        assert (second.stage, second.on_length) == (stage, on_length)
        assert torch.equal(second.rewards(step), rewards)
    assert expected[-1][0] == 2


def test_bad_states():
    with pytest.raises(ObjectiveError, match="no state of crt: it has nothing"):
        CRT().load_state_dict({})
    with pytest.raises(ObjectiveError, match="no state of crt: it has targets"):
        CRT().load_state_dict({"targets": 1})


def test_it_asks_for_the_reference():
    with pytest.raises(ObjectiveError, match="accuracy of the model before the training"):
        CRT().update(Rollouts.of([[1, 2]], [[True, True]]))


def test_a_group_of_one():
    given = rollouts([[50]])
    objective = after(CRT(), given)
    assert objective.advantages(given, objective.rewards(given)).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"eps": -0.1}, "eps"),
        ({"eta": 1}, "eta"),
        ({"delta": float("nan")}, "delta"),
        ({"window": 0}, "window"),
        ({"plateau": 1}, "plateau"),
        ({"switch_at": -1}, "switch_at"),
    ],
)
def test_bad_parameters(parameters, named):
    with pytest.raises(ObjectiveError, match=f"crt: {named} is"):
        CRT(**parameters)


def test_what_was_explored_says_nothing_of_the_model():
    """Own responses are as good as the reference; those with tried endings are short and half of them wrong."""
    correct = torch.tensor([[True, True, True, False], [True, True, False, True]])
    explored = torch.tensor([[False, False, True, True]] * 2)
    given = Rollouts.of(
        [[100, 120, 20, 10], [90, 110, 15, 25]],
        correct,
        explored=explored,
        reference_accuracy=torch.tensor([1.0, 1.0], dtype=torch.float64),
    )
    objective = after(CRT(), given)
    assert objective.on_length
    assert objective._fallen == [105.0]
    assert {problem: lengths for problem, (_, lengths) in objective._seen.items()} == {0: [100, 120], 1: [90, 110]}
    # Counted along, as if the model had written them, they would break the constraint.
    assert not after(CRT(), replace(given, explored=torch.zeros_like(explored))).on_length
    # Direct ones are no more its own than explored ones.
    assert after(CRT(), replace(given, explored=torch.zeros_like(explored), direct=explored)).on_length
    with pytest.raises(ObjectiveError, match="leave some of each group to the model"):
        CRT().update(replace(given, explored=torch.ones_like(explored)))


def test_stage_two_compares_the_models_own_lengths():
    lengths, explored = [[100, 120, 20, 10]], torch.tensor([[False, False, True, True]])
    given = replace(rollouts(lengths), explored=explored)
    objective = after(CRT(switch_at=1), given)
    assert objective.stage == 2
    # The profile is that of 100 and 120, and so is what is compared with it.
    assert objective._frozen(0)[:2] == (110.0, 10.0)
    assert not objective.violated
    longer = replace(rollouts([[140, 150, 20, 10]]), explored=explored)
    assert after(objective, longer).violated
