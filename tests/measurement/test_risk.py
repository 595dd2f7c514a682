"""Risk: closed values, the same arrays against another library, and simulations whose true risk is known."""

import math

import numpy as np
import pytest
from scipy import stats

from satisfice.measurement.risk import (
    BettingTest,
    RiskAlarm,
    betting_p,
    binomial_p,
    certified,
    confidence_sequence,
    disagreement,
    fixed_sequence,
    harm,
    hoeffding_bentkus_p,
    net,
    problems_needed,
    upper_bound,
)


def most(violations, runs, level):
    """Whether a share of violations is compatible with at most `level`, so far as this many runs can tell."""
    return stats.binomtest(violations, runs, level, alternative="greater").pvalue > 0.001


# -- losses


def test_losses_of_a_problem_by_hand_and_in_their_order():
    baseline, method = [True, True, False, False], [True, False, True, False]
    assert net(method, baseline).tolist() == [0, 1, -1, 0]
    assert harm(method, baseline).tolist() == [0, 1, 0, 0]
    assert disagreement([True, False, False, True]).tolist() == [0, 1, 1, 0]
    # With samples: shares, and net lets one sample's gain pay for another's loss.
    assert net([[True, False]], [[False, True]]).tolist() == [0]
    assert harm([[True, False]], [[False, True]]).tolist() == [0.5]
    rng = np.random.default_rng(0)
    base, ours = rng.random((2, 300, 3)) < 0.7
    same = (base == ours) & (rng.random((300, 3)) < 0.9)  # two wrong answers may differ, too
    assert (net(ours, base) <= harm(ours, base)).all()
    assert (harm(ours, base) <= disagreement(same)).all()
    with pytest.raises(ValueError, match=r"pairs.*not \(2,\) and \(3,\)"):
        net([True, False], [True, False, True])


# -- p-values


def test_problems_needed_are_the_closed_form_and_known_values():
    assert [problems_needed(bound, 0.1) for bound in (0.05, 0.02, 0.01)] == [45, 114, 230]
    assert [problems_needed(bound, 0.05) for bound in (0.05, 0.02, 0.01)] == [59, 149, 299]
    for bound, level in ((0.03, 0.2), (0.3, 0.01)):
        assert problems_needed(bound, level) == math.ceil(math.log(1 / level) / -math.log1p(-bound))
    # 2 % seen of 132 problems and 3 % of 258 are at most 3 and 8 losses.
    assert problems_needed(0.05, 0.1, 3) == 132
    assert problems_needed(0.05, 0.1, 8) == 258


def test_p_values_by_hand():
    assert binomial_p(0, 10, 0.2) == pytest.approx(0.8**10)
    assert binomial_p(1, 10, 0.2) == pytest.approx(0.8**10 + 10 * 0.2 * 0.8**9)
    assert hoeffding_bentkus_p(0, 10, 0.2) == pytest.approx(0.8**10)  # Hoeffding's is exact without a loss
    bentkus = math.e * stats.binom.cdf(3, 40, 0.2)
    divergence = 0.075 * math.log(0.075 / 0.2) + 0.925 * math.log(0.925 / 0.8)
    assert hoeffding_bentkus_p(0.075, 40, 0.2) == pytest.approx(min(bentkus, math.exp(-40 * divergence)))
    assert hoeffding_bentkus_p(0.5, 40, 0.2) == 1
    for call in (
        lambda: binomial_p(5, 4, 0.1),
        lambda: hoeffding_bentkus_p(1.2, 9, 0.1),
        lambda: binomial_p(0, 4, 1.0),
    ):
        with pytest.raises(ValueError, match=r"cannot be|none of losses|the bound is 1"):
            call()


def test_the_same_arrays_give_the_p_values_and_the_settings_of_mapie():
    methods = pytest.importorskip("mapie.risk_control.methods")
    from mapie.risk_control.fwer_control import control_fwer

    rng = np.random.default_rng(4)
    for n in (40, 250, 1300):
        losses = np.sort(rng.binomial(n, 0.06, 12))
        # n times losses / n may come out a hair above, which MAPIE rounds up to one loss more; ours does not.
        losses = losses[np.ceil(n * (losses / n)) == losses]
        for bound in (0.02, 0.1, 0.3):
            theirs = methods.compute_hoeffding_bentkus_p_value(losses / n, n, bound)[:, 0]
            ours = [hoeffding_bentkus_p(seen / n, n, bound) for seen in losses]
            assert np.minimum(theirs, 1) == pytest.approx(ours, rel=1e-9)
            exact = methods.compute_hoeffding_bentkus_p_value(losses / n, n, bound, binary=True)[:, 0]
            assert exact == pytest.approx([binomial_p(int(seen), n, bound) for seen in losses], rel=1e-9)
            for level in (0.01, 0.1):
                assert len(control_fwer(theirs, level, "fixed_sequence")) == fixed_sequence(ours, level)


def test_the_capital_of_the_betting_test_by_hand():
    test = BettingTest(0.2, 0.0)
    for loss in (0, 1, 0):
        test.add(loss)
    stakes, shares = np.array([0.1, 0.3, 0.6, 0.97]) / 0.8, [0.15, 0.2, 0.25, 0.4]
    by_hand = sum(
        share * (1 + stake * 0.2) ** 2 * (1 - stake * 0.8) for share, stake in zip(shares, stakes, strict=True)
    )
    assert math.exp(test.log_capital) == pytest.approx(by_hand)
    after_one = sum(share * (1 + stake * 0.2) for share, stake in zip(shares, stakes, strict=True))
    assert test.p == pytest.approx(1 / max(1, after_one, by_hand)), "the largest capital counts, not the last"
    assert betting_p([0, 1, 0], 0.2, 0.0) == pytest.approx(test.p)


def test_the_test_says_how_many_more_it_needs_and_then_passes():
    for lowest in (-1.0, 0.0):
        test = BettingTest(0.05, lowest)
        for loss in (0, 0, 1, 0):
            test.add(loss)
        needed = test.needed(0.05)
        for _ in range(needed - 1):
            test.add(0)
        assert not test.passed(0.05)
        test.add(0)
        assert test.passed(0.05)
        assert test.needed(0.05) == 0
        for _ in range(50):
            test.add(1)
        assert test.passed(0.05), "what was certified once stays so"


def test_a_loss_or_a_bound_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        BettingTest(0.1, 0.0).add(-1)
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        BettingTest(0.1, 0.0).add(math.nan)
    with pytest.raises(ValueError, match=r"bound is 0; it must lie between 0 and 1"):
        BettingTest(0.0, 0.0)
    with pytest.raises(ValueError, match="between -1 and 1"):
        BettingTest(-1.0, -1.0)
    with pytest.raises(ValueError, match="outside"):
        RiskAlarm(0.1, 0.05).add(1.5)


def test_the_bound_that_was_reached_is_where_the_test_turns():
    rng = np.random.default_rng(2)
    losses = rng.choice([-1, 0, 0, 0, 0, 0, 0, 0, 1], 400)
    reached = upper_bound(losses, 0.05, -1.0)
    assert betting_p(losses, reached + 1e-3, -1.0) <= 0.05 < betting_p(losses, reached - 1e-3, -1.0)
    assert upper_bound([], 0.05, 0.0) == 1


# -- many settings


def test_a_fixed_sequence_ends_at_the_first_that_fails_and_leaves_it_out():
    assert fixed_sequence([0.01, 0.04, 0.06, 0.001], 0.05) == 2
    assert fixed_sequence([0.06, 0.0], 0.05) == 0
    assert fixed_sequence([0.05], 0.05) == 1
    assert fixed_sequence([math.nan], 0.05) == 0


def test_sequences_share_the_level_and_hand_on_what_they_no_longer_need():
    assert certified([[0.01, 0.04], [0.04]], 0.05) == ([1, 0], [0.025, 0.025])
    # The second is certified to its end, so the first is tested at the whole level.
    passed, levels = certified([[0.01, 0.04], [0.02]], 0.05)
    assert passed == [2, 1]
    assert levels[0] == pytest.approx(0.05)
    # Three: a share is divided among the two that are left.
    passed, levels = certified([[0.01], [0.02], [0.055, 0.01]], 0.06)
    assert passed == [1, 1, 2]
    assert levels[2] == pytest.approx(0.06)


CURVES = {
    "rising": [0.0, 0.005, 0.01, 0.02, 0.03, 0.05],
    "flat at the bound": [0.02] * 6,
    "U": [0.025, 0.01, 0.0, 0.01, 0.03, 0.06],
    "one bad between good": [0.0, 0.005, 0.04, 0.0, 0.0, 0.0],
}


def simulated(rng, risk, runs, n):
    """Net losses of `runs` calibrations with this mean: gains beside losses."""
    drawn, gains = rng.random((n, runs)), 0.005
    return np.where(drawn < gains + risk, 1.0, np.where(drawn < 2 * gains + risk, -1.0, 0.0))


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_few_calibrations_certify_a_setting_that_violates_its_bound(curve):
    rng, runs, n, bound, level = np.random.default_rng(7), 2000, 400, 0.02, 0.1
    p_values = []
    for risk in curve:
        test = BettingTest(bound, -1.0, shape=(runs,))
        for losses in simulated(rng, risk, runs, n):
            test.add(losses)
        p_values.append(test.p)
    violations = certifying = 0
    for each in np.array(p_values).T:
        passed = fixed_sequence(list(each), level)
        violations += any(risk >= bound for risk in curve[:passed])
        certifying += passed > 0
    assert most(violations, runs, level)
    if curve[0] == 0:
        assert certifying > 0.5 * runs, "a test that certifies nothing would violate nothing"


def test_looking_after_each_problem_and_at_the_bound_itself_costs_no_validity():
    rng, runs, level = np.random.default_rng(8), 4000, 0.05
    for lowest in (0.0, -1.0):
        test = BettingTest(0.03, lowest, shape=(runs,))
        for _ in range(800):
            drawn = rng.random(runs)
            gains = 0.0 if lowest == 0 else 0.01
            test.add(np.where(drawn < 0.03 + gains, 1.0, np.where(drawn < 0.03 + 2 * gains, -1.0, 0.0)))
        assert most(int(test.passed(level).sum()), runs, level)


def test_binomial_and_hoeffding_bentkus_hold_their_level():
    rng, runs, n = np.random.default_rng(9), 3000, 200
    for bound in (0.02, 0.1):
        losses = rng.binomial(n, bound, runs)
        assert most(sum(binomial_p(int(seen), n, bound) <= 0.1 for seen in losses), runs, 0.1)
        assert most(sum(hoeffding_bentkus_p(seen / n, n, bound) <= 0.1 for seen in losses), runs, 0.1)


# -- watching


def run_alarm(drawn, risks, bound, level):
    alarm = RiskAlarm(bound, level)
    for one, risk in zip(drawn, risks, strict=True):
        if alarm.add(float(one < risk)):
            break
    return alarm.raised_at


def test_the_alarm_is_seldom_false_and_comes_soon_after_a_change():
    rng, bound, level = np.random.default_rng(10), 0.05, 0.1
    false = [run_alarm(rng.random(1500), [bound] * 1500, bound, level) for _ in range(300)]
    assert most(sum(each is not None for each in false), 300, level)
    changed = [run_alarm(rng.random(2500), [0.02] * 800 + [0.15] * 1700, bound, level) for _ in range(60)]
    late = [each - 800 for each in changed if each is not None and each > 800]
    assert len(late) > 50
    assert np.median(late) < 250


def test_an_alarm_goes_on_from_its_state():
    rng = np.random.default_rng(11)
    losses = (rng.random(400) < 0.2).astype(float)
    whole, first = RiskAlarm(0.1, 0.05), RiskAlarm(0.1, 0.05)
    for loss in losses:
        whole.add(loss)
    for loss in losses[:150]:
        first.add(loss)
    again = RiskAlarm.from_state(first.state())
    for loss in losses[150:]:
        again.add(loss)
    assert again.state() == whole.state()
    assert whole.raised_at is not None
    with pytest.raises(TypeError, match="losses is 'many'"):
        RiskAlarm.from_state({**first.state(), "losses": "many"})
    for name, value in (("capital", math.nan), ("running", math.nan), ("n", -1), ("recent", math.inf)):
        with pytest.raises(TypeError, match=f"{name} is {value!r}"):
            RiskAlarm.from_state({**first.state(), name: value})


def test_the_confidence_sequence_covers_at_all_moments_and_shrinks():
    rng, missed = np.random.default_rng(12), 0
    for _ in range(100):
        seen = np.cumsum(rng.random(600) < 0.04)
        missed += any(
            not low <= 0.04 <= high
            for n in range(10, 601, 30)
            for low, high in [confidence_sequence(float(seen[n - 1]), n, 0.1)]
        )
    assert most(missed, 100, 0.1)
    assert confidence_sequence(0, 0, 0.05) == (0, 1)
    low, high = confidence_sequence(20, 1000, 0.05)
    assert 0.005 < low < 0.02 < high < 0.045
    assert confidence_sequence(0, 100, 0.05)[0] == 0
    assert confidence_sequence(100, 100, 0.05)[1] == 1
