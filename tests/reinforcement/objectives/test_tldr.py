import random
from collections import Counter

import pytest
import torch

from satisfice.reinforcement.objective import Condition, ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.tldr import TLDR

LENGTHS = torch.tensor([[100, 50, 100, 25]])
CORRECT = torch.tensor([[True, True, False, False]])


def rollouts(level=0, **others):
    return Rollouts.of(LENGTHS, CORRECT, max_length=100, levels=torch.tensor([level]), **others)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0, [0.5, 0.75, -0.5, -0.125]),
        (1, [0.75, 0.875, -0.25, -0.0625]),
        (2, [1.0, 1.0, 0.0, 0.0]),
        (-1, [0.75, 0.875, -0.25, -0.0625]),
    ],
    ids=["short", "medium", "long", "no level"],
)
def test_each_level_has_its_price(level, expected):
    assert TLDR().rewards(rollouts(level)).tolist() == [expected]


def test_a_prompt_without_a_level_can_have_a_price_of_its_own():
    objective = TLDR(price_unlabelled=0.1)
    torch.testing.assert_close(objective.rewards(rollouts(-1))[0, 0], torch.tensor(0.9, dtype=torch.float64))
    assert objective.rewards(rollouts(1)).tolist() == TLDR().rewards(rollouts(1)).tolist()


def test_a_clipped_price_grows_no_further_beyond_the_cap():
    rewards = TLDR(shape="clipped", cap=50).rewards(rollouts())
    assert rewards.tolist() == [[0.5, 0.5, -0.5, -0.25]]


def test_a_group_relative_price_goes_from_the_shortest_to_the_longest():
    rewards = TLDR(shape="group-relative").rewards(rollouts())
    expected = torch.tensor([[1 - 0.5, 1 - 0.5 / 3, -0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(rewards, expected)


def test_wrong_answers_need_not_pay():
    assert TLDR(price_wrong=False).rewards(rollouts()).tolist() == [[0.5, 0.75, 0.0, 0.0]]


@pytest.mark.parametrize("price", [0.5, 0.999, -0.999])
@pytest.mark.parametrize("shape", [{}, {"shape": "clipped", "cap": 10}, {"shape": "group-relative"}], ids=str)
@pytest.mark.parametrize("price_wrong", [True, False])
@pytest.mark.parametrize("lengths", [[100, 0], [0, 100]])
def test_right_beats_wrong_whatever_the_lengths(lengths, price, shape, price_wrong):
    objective = TLDR(price_short=price, price_wrong=price_wrong, **shape)
    group = Rollouts.of([lengths], [[True, False]], max_length=100, levels=torch.tensor([0]))
    assert violations(objective.rewards(group), group.correct) == 0


def test_levels_pull_differently_where_all_are_right_unless_groups_are_scaled_on_their_own():
    lengths, correct = torch.tensor([[20, 40, 60], [20, 40, 60]]), torch.ones(2, 3, dtype=torch.bool)
    both = Rollouts.of(lengths, correct, max_length=100, levels=torch.tensor([0, 1]))
    batch, plain = TLDR(), TLDR(scaling="group-std")
    short, medium = batch.advantages(both, batch.rewards(both))
    torch.testing.assert_close(short, 2 * medium)
    short, medium = plain.advantages(both, plain.rewards(both))
    torch.testing.assert_close(short, medium, atol=3e-3, rtol=0)
    # Rewards 0.9, 0.8, 0.7 and 0.95, 0.9, 0.85: the deviation of all six from their groups' means is 0.0791.
    centred = torch.tensor([0.1, 0.0, -0.1, 0.05, 0.0, -0.05], dtype=torch.float64)
    expected = (centred / (centred.std() + 1e-4)).reshape(2, 3)
    torch.testing.assert_close(batch.advantages(both, batch.rewards(both)), expected)


def test_levels_are_drawn_equally_often_and_a_quarter_of_the_prompts_has_none():
    rng = random.Random(0)
    drawn = Counter(TLDR().condition(rng) for _ in range(8000))
    assert set(drawn) == {
        Condition(),
        Condition("Think briefly.", "short"),
        Condition("Think normally.", "medium"),
        Condition("Think at length.", "long"),
    }
    assert all(abs(count / 8000 - 0.25) < 0.02 for count in drawn.values())


def test_every_prompt_or_none_can_name_a_level():
    rng = random.Random(0)
    assert all(TLDR(unlabelled=0).condition(rng).level for _ in range(200))
    assert all(TLDR(unlabelled=1).condition(rng) == Condition() for _ in range(200))


def test_wordings_are_parameters():
    objective = TLDR(instruction_short="Be brief.", unlabelled=0)
    assert objective.instructions == {"short": "Be brief.", "medium": "Think normally.", "long": "Think at length."}
    drawn = {objective.condition(random.Random(seed)).instruction for seed in range(50)}
    assert drawn == set(objective.instructions.values())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"price_short": 1.0}, r"price_short is 1; it must be above -1 and below 1 \(beyond that a right answer"),
        ({"price_long": -1}, "price_long is -1; it must be above -1 and below 1"),
        ({"price_medium": float("nan")}, "price_medium is nan; it must be above -1 and below 1"),
        ({"price_unlabelled": 2}, "price_unlabelled is 2; it must be above -1 and below 1"),
        ({"unlabelled": 1.5}, r"unlabelled is 1\.5; it must be within 0\.\.1"),
        ({"shape": "clipped"}, "cap and shape=clipped go together"),
        ({"cap": 10}, "cap and shape=clipped go together"),
        ({"shape": "clipped", "cap": 0}, "cap is 0; it must be at least 1"),
        ({"shape": "quadratic"}, "shape is 'quadratic'; it must be linear, clipped or group-relative"),
        ({"scaling": "none"}, "scaling is 'none'; it must be group-std, group-mean, batch or leave-one-out"),
        ({"instruction_long": ""}, "instruction_long is ''; it must be a text of at least one character"),
        ({"instruction_long": "Think briefly."}, "must differ"),
    ],
)
def test_parameters_that_cannot_work_are_refused(parameters, message):
    with pytest.raises(ObjectiveError, match=message):
        TLDR(**parameters)


def test_a_term_that_cannot_act_is_reported():
    assert TLDR().inactive(rollouts()) == ""
    assert TLDR().inactive(rollouts(2)) == ""
    assert "every price is 0" in TLDR(price_short=0, price_medium=0).inactive(rollouts())
    assert "cap of 20 tokens" in TLDR(shape="clipped", cap=20).inactive(rollouts())
    assert TLDR(shape="clipped", cap=30).inactive(rollouts()) == ""
