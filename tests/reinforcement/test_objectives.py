"""What every objective owes, whatever its formula."""

import itertools
import json
import random
from dataclasses import replace

import pytest
import torch

from satisfice.levels import LEVELS
from satisfice.reinforcement import OBJECTIVES, ObjectiveError, objective_from
from satisfice.reinforcement.objective import Rollouts, Step, normalise, violations

LIMIT = 12_000

VIOLATES = {
    "l1-exact": "a right answer far off its budget",
    "l1-max": "a right answer far above its budget earns nothing",
    "shorter-better": "a right answer far longer than the shortest",
    "dler": "a right answer beyond the limit counts as wrong",
    "thinkprune": "a right answer beyond the limit counts as wrong",
    "crt": "a step on length rewards a short wrong answer",
}
"""Whose own formula can put a wrong answer above a right one, or level with it."""

NO_LENGTH_TERM = {
    "dr-grpo": "the loss, not the reward, stops favouring length",
    "dot": "outliers are cut",
    "adaptthink": "the bonus is for answering without thinking",
}

CHANGING = {
    "kimi": {"warmup": 3},
    "thinkprune": {"limits": [6000, 5000, 4000], "steps_per_round": 2},
    "laser-d": {"every": 3},
    "crt": {"window": 2, "plateau": 0.9, "hysteresis": True},
}
"""Parameters under which state changes within a few steps."""

every = pytest.mark.parametrize("name", OBJECTIVES)


def roll(objective, lengths, correct, truncated=None, *, seed=0, **others):
    """Rollouts with everything an objective may need, under the conditions it draws."""
    rng = random.Random(seed)
    lengths, correct = torch.as_tensor(lengths), torch.as_tensor(correct)
    prompts, size = lengths.shape
    conditions = [objective.condition(rng) for _ in range(prompts)]
    direct = torch.zeros(prompts, size, dtype=torch.bool)
    if "direct" in objective.needs:
        direct[:, : size // 2] = True
    given = {
        "max_length": LIMIT,
        "levels": torch.tensor([LEVELS.index(c.level) if c.level else -1 for c in conditions]),
        "budgets": torch.tensor([c.budget or 0 for c in conditions]),
        "direct": direct,
        "boundaries": torch.where(correct, lengths // 2, -1),
        "redundancy": torch.where(correct, lengths % 5, 0),
        "steps": [[thinking(length, rng) for length in group] for group in lengths.tolist()],
        "reference_accuracy": torch.tensor([rng.random() / 2 for _ in range(prompts)], dtype=torch.float64),
        "validation_accuracy": 0.99,
        **others,
    }
    return Rollouts.of(lengths, correct, truncated, **given)


def thinking(length, rng):
    ends = sorted({rng.randint(1, length) for _ in range(rng.randint(0, 4))})
    return [Step(end, rng.choice([0.0, rng.random()])) for end in ends]


def draw(objective, seed, prompts=4, size=6, **others):
    """Random rollouts: long and short, right, wrong and truncated."""
    rng = random.Random(seed)
    lengths = [[rng.randint(1, LIMIT) for _ in range(size)] for _ in range(prompts)]
    correct = [[rng.random() < 0.6 for _ in range(size)] for _ in range(prompts)]
    truncated = [[not right and rng.random() < 0.3 for right in group] for group in correct]
    lengths = [
        [LIMIT if cut else length for length, cut in zip(*both, strict=True)]
        for both in zip(lengths, truncated, strict=True)
    ]
    return roll(objective, lengths, correct, truncated, seed=seed, **others)


def outcome(objective, rollouts):
    """Rewards, advantages and token advantages, as a trainer asks for them."""
    objective.update(rollouts)
    rewards = objective.rewards(rollouts)
    advantages = objective.advantages(rollouts, rewards)
    return rewards, advantages, objective.token_advantages(rollouts, advantages)


# -- right and wrong


@every
def test_wrong_answers_stay_below_right_ones_or_are_counted(name):
    total = 0
    for seed in range(60):
        objective = objective_from(name, {})
        rollouts = draw(objective, seed)
        rewards, _, _ = outcome(objective, rollouts)
        counted = 0
        for group, right in zip(rewards.tolist(), rollouts.correct.tolist(), strict=True):
            lowest = min(itertools.compress(group, right), default=float("inf"))
            counted += sum(reward >= lowest for reward, good in zip(group, right, strict=True) if not good)
        assert violations(rewards, rollouts.correct) == counted
        total += counted
    assert (total > 0) == (name in VIOLATES)


@every
def test_a_truncated_response_has_no_bonus_for_being_short(name):
    objective = objective_from(name, {})
    cut = [[False, False, False, True]] * 2
    rollouts = roll(
        objective,
        [[300, 500, 400, LIMIT]] * 2,
        [[True, True, False, False], [False] * 4],
        cut,
        direct=torch.tensor(cut),
    )
    rewards, _, _ = outcome(objective, replace(rollouts, direct=torch.zeros(2, 4, dtype=torch.bool)))
    assert bool((rewards[:, 3] <= 0).all())
    assert bool((rewards[:, 3] <= rewards[:, 2]).all())
    assert rewards[0, 3] < rewards[0, :2].min()


# -- degenerate groups

LENGTHS = [[10, 4000, 7000, 11_999], [1, 2, 3, 4], [5000] * 4]
CASES = {
    "none right": (LENGTHS, [[False] * 4] * 3, None),
    "one right": (LENGTHS, [[False, True, False, False]] * 3, None),
    "all right": (LENGTHS, [[True] * 4] * 3, None),
    "all truncated": ([[LIMIT] * 4] * 3, [[False] * 4] * 3, [[True] * 4] * 3),
    "of everything": (LENGTHS, [[False] * 4, [True] * 4, [True, False, False, True]], None),
    "groups of one": ([[10], [5000], [LIMIT]], [[True], [False], [False]], [[False], [False], [True]]),
    "a batch of one": ([[100]], [[True]], None),
    "very long": ([[10**7, 1, 10**7]], [[True, True, False]], None),
}


@every
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_ever_infinite_or_missing(name, case):
    objective = objective_from(name, {})
    lengths, correct, truncated = CASES[case]
    longest = torch.tensor(lengths).max().item()
    rollouts = roll(objective, lengths, correct, truncated, max_length=max(LIMIT, longest))
    assert "\n" not in objective.inactive(rollouts)
    if case == "very long" and objective.per_token:
        rollouts = roll(objective, [[10**5, 1, 10**5]], correct, truncated, max_length=10**5)
    rewards, advantages, per_token = outcome(objective, rollouts)
    for values in (rewards, advantages, *([] if per_token is None else [per_token])):
        assert values.dtype == torch.float64
        assert bool(values.isfinite().all())
        assert values.shape[:2] == rollouts.lengths.shape
    if rollouts.lengths.shape[1] == 1 and name != "adaptthink":  # which has no group baseline
        assert not bool(advantages.any())


@every
def test_equal_lengths_carry_no_length_signal(name):
    objective = objective_from(name, {})
    correct = torch.tensor([[True] * 6, [True, True, True, False, False, True]])
    rollouts = roll(
        objective,
        torch.full((2, 6), 4321),
        correct,
        steps=[[[]] * 6] * 2,
        redundancy=torch.zeros(2, 6, dtype=torch.int64),
        direct=torch.zeros(2, 6, dtype=torch.bool),
    )
    rewards, advantages, per_token = outcome(objective, rollouts)
    for values in (rewards, advantages, *([] if per_token is None else [per_token])):
        for group, right in zip(values, correct, strict=True):
            assert bool((group[right] == group[right][0]).all())
    if name != "adaptthink":  # whose baseline is the untrained model
        assert bool((advantages[0].abs() < 1e-9).all())


def test_groups_of_equal_rewards_have_no_advantage_however_they_round():
    rewards = torch.tensor([[0.95] * 3, [0.1] * 3, [0.3, 0.1, 0.2]], dtype=torch.float64)
    for how in ("group-std", "group-mean", "batch", "leave-one-out"):
        advantages = normalise(rewards, how)
        assert not bool(advantages[:2].any())
        assert bool(advantages[2, 0] > 0)


# -- what only order or scale could break


@every
def test_the_order_of_responses_and_prompts_does_not_matter(name):
    for seed in range(5):
        objective, other = objective_from(name, {}), objective_from(name, {})
        rollouts = draw(objective, seed, steps=[[[]] * 6] * 4)
        rng = random.Random(seed)
        rows = torch.tensor(rng.sample(range(4), 4))
        columns = torch.tensor([rng.sample(range(6), 6) for _ in range(4)])

        def shuffled(values, rows=rows, columns=columns):
            values = values[rows]
            if values.ndim == 1:
                return values
            return torch.stack([group[order] for group, order in zip(values, columns, strict=True)])

        tensors = {field: shuffled(value) for field, value in vars(rollouts).items() if isinstance(value, torch.Tensor)}
        steps = [[rollouts.steps[row][column] for column in order] for row, order in zip(rows, columns, strict=True)]
        straight = outcome(objective, rollouts)
        mixed = outcome(other, replace(rollouts, **tensors, steps=steps))
        for values, expected in zip(mixed, straight, strict=True):
            if expected is None:
                assert values is None
            else:
                torch.testing.assert_close(values, shuffled(expected))


@every
def test_the_length_term_is_not_lost_in_the_normalisation(name):
    objective = objective_from(name, {"l_max": LIMIT} if name == "aalc" else {})
    lengths = torch.tensor([[1000, 2500, 3800, 4200, 6000, 8000, 9000, 11_000]])
    rollouts = roll(
        objective,
        lengths,
        torch.ones_like(lengths, dtype=torch.bool),
        levels=torch.tensor([LEVELS.index("short")]),
        budgets=torch.tensor([4000]),
        direct=torch.zeros(1, 8, dtype=torch.bool),
        boundaries=torch.full((1, 8), -1),
        steps=[[[]] * 8],
        validation_accuracy=1.0,
    )
    rewards, advantages, _ = outcome(objective, rollouts)
    spread = (advantages.max() - advantages.min()).item()
    if name in NO_LENGTH_TERM:
        assert spread == 0
        return
    assert spread > 1e-2
    assert rewards[0, 0] >= rewards[0, -1] or name == "l1-exact"
    if name == "l1-exact":
        assert rewards[0].argmax() == 2, "3800 tokens come nearest to 4000"


# -- token advantages and cuts


@every
def test_token_advantages_end_with_their_response(name):
    objective = objective_from(name, {})
    rollouts = draw(objective, 3)
    _, _, per_token = outcome(objective, rollouts)
    if not objective.per_token:
        assert per_token is None
        return
    assert per_token.shape == (*rollouts.lengths.shape, int(rollouts.lengths.max()))
    after = torch.arange(per_token.shape[-1]) >= rollouts.lengths[..., None]
    assert not bool(per_token[after].any())
    assert bool(per_token.any())


@every
def test_a_cut_only_shortens(name):
    objective = objective_from(name, {})
    lengths = torch.full((2, 16), 1000)
    lengths[:, 0] = 9000
    rollouts = roll(objective, lengths, torch.tensor([[True] * 16, [True] * 15 + [False]]))
    cut = objective.cut(rollouts)
    if cut is None:
        assert name != "dot"
        return
    assert (cut.dtype, cut.shape) == (torch.int64, lengths.shape)
    assert bool((cut >= 1).all())
    assert bool((cut <= lengths).all())
    assert bool((cut < lengths).any())


# -- state and randomness


@every
def test_rewarding_changes_neither_the_rollouts_nor_the_state(name):
    objective = objective_from(name, CHANGING.get(name, {}))
    rollouts = draw(objective, 1)
    before = {field: value.clone() for field, value in vars(rollouts).items() if isinstance(value, torch.Tensor)}
    first = outcome(objective, rollouts)
    state = json.dumps(objective.state_dict())
    rewards = objective.rewards(rollouts)
    objective.inactive(rollouts)
    objective.cut(rollouts)
    assert torch.equal(rewards, first[0])
    assert json.dumps(objective.state_dict()) == state
    assert all(torch.equal(getattr(rollouts, field), value) for field, value in before.items())


@every
def test_a_saved_state_goes_on_as_if_nothing_had_happened(name):
    def made():
        return objective_from(name, CHANGING.get(name, {}))

    def went(objective, rollouts):
        # The condition of a step is drawn before its update.
        return objective.condition(random.Random(0)), *outcome(objective, rollouts)

    steps = [draw(made(), seed, problems=torch.arange(4) + seed % 2) for seed in range(8)]
    straight, saved, expected = made(), [], []
    for rollouts in steps:
        state = straight.state_dict()
        saved.append(json.dumps(state))
        assert json.loads(saved[-1]) == state, "not plain JSON data"
        expected.append(went(straight, rollouts))
        assert json.dumps(state) == saved[-1], "what was saved changes with the objective"
    assert (len(set(saved)) > 1) == (name in CHANGING)
    for start, state in enumerate(saved):
        resumed = made()
        resumed.load_state_dict(json.loads(state))
        for rollouts, (condition, *values) in zip(steps[start:], expected[start:], strict=True):
            again, *others = went(resumed, rollouts)
            assert again == condition
            for ours, theirs in zip(values, others, strict=True):
                assert (ours is None and theirs is None) or torch.equal(ours, theirs)
        assert resumed.state_dict() == straight.state_dict()


@every
def test_a_foreign_state_is_refused(name):
    with pytest.raises(ObjectiveError):
        objective_from(name, {}).load_state_dict({"something": "else"})


@every
def test_conditions_depend_on_the_seed_alone(name):
    def drawn(seed):
        rng = random.Random(seed)
        objective = objective_from(name, {})
        return [objective.condition(rng) for _ in range(50)]

    assert drawn(7) == drawn(7)
    for condition in drawn(7):
        assert condition.level in (None, *LEVELS)
        assert condition.budget is None or (condition.budget > 0 and str(condition.budget) in condition.instruction)
        assert bool(condition.instruction) == (condition.level is not None or condition.budget is not None)
    if name in ("tldr", "l1-exact", "l1-max"):
        assert drawn(7) != drawn(8)
