import torch

from satisfice.reinforcement.objective import Rollouts
from satisfice.reinforcement.objectives.dr_grpo import DrGRPO


def test_correctness_less_the_groups_mean():
    group = Rollouts.of([[1, 1000, 5, 7], [1, 2, 3, 4]], [[True, False, False, False], [True, True, True, True]])
    rewards = DrGRPO().rewards(group)
    assert rewards.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]], dtype=torch.float64)
    assert torch.equal(DrGRPO().advantages(group, rewards), expected)
