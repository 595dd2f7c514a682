import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from satisfice import measurement as m

problems_of_samples = st.integers(1, 4).flatmap(
    lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1, max_size=12)
)


pytestmark = pytest.mark.filterwarnings("error")


def test_accuracy_of_single_samples_has_the_exact_interval() -> None:
    estimate = m.accuracy([[True]] * 8 + [[False]] * 2)
    assert estimate is not None
    assert estimate.value == 0.8
    assert (estimate.low, estimate.high) == pytest.approx((0.4439, 0.9748), abs=1e-4)  # Clopper and Pearson, tables


def test_accuracy_averages_over_problems_not_over_samples() -> None:
    # Problem shares 1, 1/2, 0 have mean 1/2; the five samples alone would give 3/5.
    estimate = m.accuracy([[True, True], [True, False], [False]])
    assert estimate is not None
    assert estimate.value == 0.5


def test_accuracy_of_several_samples_rests_on_problems() -> None:
    generator = random.Random(1)
    shares = [generator.random() for _ in range(200)]
    correct = [[generator.random() < share for _ in range(8)] for share in shares]
    estimate = m.accuracy(correct)
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    # With 200 problems it must agree with the normal approximation over problems.
    half = 1.96 * np.std([np.mean(samples) for samples in correct], ddof=1) / math.sqrt(200)
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.08)
    # The samples of one problem are not independent: the exact interval over all 1600 would be too sure.
    low, high = m.clopper_pearson(estimate.value, 1600)
    assert estimate.high - estimate.low > 1.3 * (high - low)


def test_accuracy_of_several_samples_by_hand() -> None:
    # Shares 0 and 1/2 and 1, eight of each, of two samples: variance 4/23, so 1/4 / (4/23 / 24) = 34.5 verdicts,
    # and with (t_47 / t_23)^2 = (2.0117 / 2.0687)^2 for the uncertainty 32.63.
    estimate = m.accuracy([[False, False]] * 8 + [[True, False]] * 8 + [[True, True]] * 8)
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx(m.clopper_pearson(0.5, 32.626), abs=1e-4)


def test_accuracy_at_the_edges() -> None:
    assert m.accuracy([]) is None
    one = m.accuracy([[True]])
    assert one is not None
    assert (one.value, one.low, one.high) == (1.0, pytest.approx(0.025), 1.0)
    several = m.accuracy([[True, False]])
    assert several is not None
    assert (several.low, several.high) == pytest.approx(m.clopper_pearson(0.5, 1))
    alike = m.accuracy([[True, True]] * 30)
    assert alike is not None
    assert (alike.low, alike.high) == pytest.approx(m.clopper_pearson(1.0, 30))
    assert alike.low is not None
    assert alike.low < 0.9, "30 right problems are no proof of 100 %"
    nearly = m.accuracy([[True, True]] * 29 + [[True, False]])
    assert nearly is not None
    assert (nearly.low, nearly.high) == pytest.approx(m.clopper_pearson(59 / 60, 30)), "one odd problem says little"
    with pytest.raises(ValueError, match="without a sample"):
        m.accuracy([[True], []])


@given(problems_of_samples)
def test_accuracy_lies_in_its_interval(correct: list[list[bool]]) -> None:
    estimate = m.accuracy(correct)
    assert estimate is not None
    assert estimate.value == pytest.approx(np.mean(correct))
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0 <= estimate.low <= estimate.value + 1e-12
    assert estimate.value - 1e-12 <= estimate.high <= 1


def test_accuracy_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        shares = generator.beta(2, 1, size=40)
        correct = (generator.random((40, 4)) < shares[:, None]).tolist()
        estimate = m.accuracy(correct)
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 2 / 3 <= estimate.high
    assert 88 <= covered <= 100


@given(st.integers(0, 60), st.integers(1, 60))
def test_the_exact_interval_is_scipys(successes: int, n: int) -> None:
    if successes > n:
        return
    interval = stats.binomtest(successes, n).proportion_ci(method="exact")
    assert m.clopper_pearson(successes / n, n) == pytest.approx((interval.low, interval.high), abs=1e-9)


@pytest.mark.parametrize(("share", "n"), [(0.5, 0), (-0.1, 5), (1.1, 5)])
def test_the_exact_interval_refuses_nonsense(share: float, n: int) -> None:
    with pytest.raises(ValueError, match="Clopper and Pearson"):
        m.clopper_pearson(share, n)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(numbers: tuple[int, int, int]) -> None:
    n, c, k = numbers
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert m.pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_by_hand() -> None:
    assert m.pass_at_k(4, 1, 2) == pytest.approx(1 - (3 * 2) / (4 * 3))
    assert m.pass_at_k(10, 8, 3) == 1.0
    assert m.pass_at_k(5000, 1, 2500) == pytest.approx(0.5)
    for n, c, k in [(4, 5, 1), (4, 0, 5), (4, 0, 0), (4, -1, 1)]:
        with pytest.raises(ValueError, match="pass@k needs"):
            m.pass_at_k(n, c, k)


def test_majority() -> None:
    assert m.majority_is_correct(["7", "3", "7"], [True, False, True])
    assert not m.majority_is_correct(["3", "7", "3"], [False, True, False])
    assert m.majority_is_correct(["7", "3", "3", "7"], [True, False, False, True]), "of equals the first wins"
    assert not m.majority_is_correct(["3", "7", "7", "3"], [False, True, True, False])
    assert m.majority_is_correct([None, None, "7"], [False, False, True]), "no answer, no vote"
    assert not m.majority_is_correct([None, None], [False, False])
    assert not m.majority_is_correct([], [])


def test_token_statistics_by_hand() -> None:
    tokens = m.describe_tokens([10, 20, 30, 100], [True, True, False, False])
    assert tokens == m.Tokens(mean=40.0, median=25.0, p95=pytest.approx(30 + 0.85 * 70), correct=15.0, wrong=65.0)
    assert m.describe_tokens([5], [True]).wrong is None
    assert m.describe_tokens([], []) == m.Tokens(None, None, None, None, None)


def test_repetition_share_by_hand() -> None:
    assert m.repetition_share(list(range(100))) == 0.0
    assert m.repetition_share([1, 2, 3]) == 0.0
    assert m.repetition_share([]) == 0.0
    # abab: bigrams ab, ba, ab; one of three stood there before.
    assert m.repetition_share([1, 2, 1, 2], n=2) == pytest.approx(1 / 3)
    # Ten tokens, then the same ten again: of 13 eight-grams the last three are new ones of the first pass again.
    assert m.repetition_share([*range(10), *range(10)]) == pytest.approx(3 / 13)
    assert m.repetition_share([5] * 1000) == pytest.approx(992 / 993)


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 4))
def test_repetition_share_counts_what_stood_there_before(ids: list[int], n: int) -> None:
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    seen_before = [gram in grams[:place] for place, gram in enumerate(grams)]
    assert m.repetition_share(ids, n) == pytest.approx(sum(seen_before) / len(grams) if grams else 0.0)


def test_saving_is_of_means_not_a_mean_of_savings() -> None:
    # Means 60 and 110. The savings of the two problems, -1 and 11/21, would average to a loss.
    estimate = m.saving([[20], [100]], [[10], [210]])
    assert estimate is not None
    assert estimate.value == pytest.approx(1 - 60 / 110)
    # Samples first, then problems: (10 + 30) / 2 = 20 and 80, against 40 and 160.
    estimate = m.saving([[10, 30], [80]], [[40, 40], [160]])
    assert estimate is not None
    assert estimate.value == pytest.approx(0.5)


def test_saving_of_two_problems_by_hand() -> None:
    # Without either problem the ratio is that of the other: log 0.5 and log 0.8, so the error is half their distance,
    # around log(60/90), with the t of one degree of freedom.
    estimate = m.saving([[20], [40]], [[40], [50]])
    assert estimate is not None
    half = 12.7062 * math.log(0.8 / 0.5) / 2
    assert estimate.value == pytest.approx(1 / 3)
    assert (estimate.low, estimate.high) == pytest.approx(
        (1 - 2 / 3 * math.exp(half), 1 - 2 / 3 * math.exp(-half)), rel=1e-4
    )


def test_saving_of_five_problems_by_hand() -> None:
    # A jackknife written out, with Satterthwaite's degrees of freedom from the unbiased kurtosis.
    ours, base = np.array([50.0, 70, 30, 90, 400]), np.array([100.0, 90, 80, 110, 900])
    logs = np.array([math.log(np.delete(ours, i).sum() / np.delete(base, i).sum()) for i in range(5)])
    error = math.sqrt(4 / 5 * ((logs - logs.mean()) ** 2).sum())
    excess = float(stats.kurtosis(logs, bias=False))
    assert excess > 0.5, "one long problem decides"
    half = stats.t.ppf(0.975, 2 * 5 / (2 + excess)) * error
    estimate = m.saving(ours[:, None].tolist(), base[:, None].tolist())
    assert estimate is not None
    ratio = 640 / 1280
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (0.5, 1 - ratio * math.exp(half), 1 - ratio * math.exp(-half))
    )
    strict = m.saving(ours[:, None].tolist(), base[:, None].tolist(), 0.99)
    assert strict is not None
    assert strict.low is not None
    assert estimate.low is not None
    assert strict.low < estimate.low


def test_samples_of_a_problem_are_left_out_together() -> None:
    generator = np.random.default_rng(5)
    base, ours = generator.lognormal(5, 1, (30, 1)), generator.lognormal(4.5, 1, (30, 1))
    repeated = m.saving(np.repeat(ours, 8, axis=1).tolist(), np.repeat(base, 8, axis=1).tolist())
    assert repeated == m.saving(ours.tolist(), base.tolist()), "copies of a sample make nothing surer"


def test_saving_at_the_edges() -> None:
    assert m.saving([], []) is None
    assert m.saving([[3]], [[0]]) is None
    assert m.saving([[3]], [[4]]) == m.Estimate(0.25, None, None)
    sparse = m.saving([[1], [0], [2]], [[0], [0], [4]])
    assert sparse is not None
    assert sparse.low is not None
    assert math.isfinite(sparse.low)
    with pytest.raises(ValueError, match="same problems"):
        m.saving([[1]], [[1], [2]])


@pytest.mark.parametrize("n", [2, 5, 40, 400])
def test_a_share_that_is_always_the_same_is_no_proof(n: int) -> None:
    base = [[float(4 * (place + 1))] for place in range(n)]
    same = m.saving(base, base)
    assert same is not None
    assert same.low is not None
    assert same.high is not None
    assert same.low < 0 < same.high, "n problems without a difference do not prove that there is none"
    assert same.high - same.low == pytest.approx(2 * 3.9 / n, rel=0.05) or n < 40
    quarter = m.saving([[0.75 * tokens] for [tokens] in base], base)
    assert quarter is not None
    assert quarter.low is not None
    assert quarter.value == pytest.approx(0.25)
    assert (quarter.low > 0) == (n >= 40)
    nothing = m.saving([[0.0]] * n, base)
    assert nothing is not None
    assert nothing.low is not None
    assert (nothing.value, nothing.high) == (1.0, 1.0)
    assert (nothing.low > 0) == (n >= 40)


def test_one_problem_that_differs_is_no_clear_saving() -> None:
    base = [[500.0]] * 99 + [[60_000.0]]
    estimate = m.saving([[500.0]] * 99 + [[300.0]], base)
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.value > 0.5
    assert estimate.low < 0


def test_pairing_makes_the_saving_sharper() -> None:
    generator = np.random.default_rng(0)
    base = generator.lognormal(6, 1, size=(100, 1))
    method = base * generator.normal(0.6, 0.05, size=(100, 1))
    paired = m.saving(method.tolist(), base.tolist())
    shuffled = m.saving(generator.permutation(method).tolist(), base.tolist())
    assert paired is not None
    assert shuffled is not None
    assert paired.low is not None
    assert paired.high is not None
    assert shuffled.low is not None
    assert shuffled.high is not None
    assert paired.low < 0.4 < paired.high
    assert paired.value == pytest.approx(shuffled.value)
    assert (paired.high - paired.low) < 0.2 * (shuffled.high - shuffled.low)


def test_accuracy_difference_by_hand() -> None:
    # 20 of 100 problems are gained, 10 lost: the normal approximation of paired proportions is
    # 0.1 +- 1.96 sqrt((0.3 - 0.1 ** 2) / 100), and a bootstrap must come near it.
    method = [[1]] * 20 + [[0]] * 10 + [[1]] * 70
    baseline = [[0]] * 20 + [[1]] * 10 + [[1]] * 70
    estimate = m.accuracy_difference(method, baseline)
    assert estimate is not None
    assert estimate.value == pytest.approx(0.1)
    assert (estimate.low, estimate.high) == pytest.approx((0.1 - 0.1055, 0.1 + 0.1055), abs=0.012)
    assert m.accuracy_difference([], []) is None
    with pytest.raises(ValueError, match="same problems"):
        m.accuracy_difference([[1]], [])


def test_accuracy_difference_of_several_samples_by_hand() -> None:
    # 10 problems gain 1/2, 10 lose 1/2, 20 gain 1, 40 stay: Student's t over the 80 differences.
    method = [[1, 1]] * 10 + [[0, 1]] * 10 + [[1, 1]] * 20 + [[1, 0]] * 40
    baseline = [[1, 0]] * 10 + [[1, 1]] * 10 + [[0, 0]] * 20 + [[0, 1]] * 40
    differences = [0.5] * 10 + [-0.5] * 10 + [1] * 20 + [0] * 40
    estimate = m.accuracy_difference(method, baseline)
    assert estimate is not None
    half = 1.99045 * np.std(differences, ddof=1) / math.sqrt(80)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.25, 0.25 - half, 0.25 + half), abs=1e-4)


def test_few_differing_problems_are_no_proof() -> None:
    # One problem of 60 gained: a loss was never seen, though one is quite possible.
    estimate = m.accuracy_difference([[1]] * 60, [[0]] + [[1]] * 59)
    assert estimate is not None
    assert estimate.value == pytest.approx(1 / 60)
    # Bonett and Price: shares 1/62 lost, 2/62 gained.
    half = 1.959964 * math.sqrt((3 / 62 - (1 / 62) ** 2) / 62)
    assert (estimate.low, estimate.high) == (pytest.approx(1 / 62 - half), pytest.approx(1 / 62 + half))
    assert estimate.low is not None
    assert estimate.low < -0.03
    same = m.accuracy_difference([[1]] * 50, [[1]] * 50)
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, pytest.approx(-0.0533, abs=1e-4), pytest.approx(0.0533, abs=1e-4))
    better = m.accuracy_difference([[1]] * 50, [[0]] * 50)
    assert better is not None
    assert (better.value, better.low, better.high) == (1.0, pytest.approx(0.8868, abs=1e-3), 1.0)


def test_discordant_pairs_and_mcnemar() -> None:
    assert m.discordant([True, False, True, False], [True, True, False, True]) == (2, 1)
    # 1 of 9 by chance: 2 * (1 + 9) / 2**9.
    assert m.mcnemar(1, 8) == m.mcnemar(8, 1) == pytest.approx(20 / 512)
    assert m.mcnemar(5, 5) == pytest.approx(1.0)
    assert m.mcnemar(0, 0) == 1.0


def test_accuracy_efficiency_score_by_hand() -> None:
    # Half the tokens, accuracy 0.8 -> 0.84 is 5 % better: 0.5 + 3 * 0.05.
    assert m.accuracy_efficiency_score(0.84, 500, 0.8, 1000) == pytest.approx(0.65)
    # 5 % worse costs more than it gains: 0.5 - 5 * 0.05.
    assert m.accuracy_efficiency_score(0.76, 500, 0.8, 1000) == pytest.approx(0.25)
    assert m.accuracy_efficiency_score(0.8, 1000, 0.8, 1000) == 0.0
    assert m.accuracy_efficiency_score(0.76, 500, 0.8, 1000, gamma=10) == pytest.approx(0.0)
    assert m.accuracy_efficiency_score(0.5, 500, 0.0, 1000) is None
    assert m.accuracy_efficiency_score(0.5, 500, 0.5, 0) is None


def test_pareto_front_by_hand() -> None:
    costs = [100, 50, 60, 100, 50, 10]
    accuracies = [0.9, 0.8, 0.8, 0.7, 0.8, 0.1]
    # 60/0.8 and 100/0.7 are dominated; the two equal points both stay.
    assert m.pareto_front(costs, accuracies) == [True, True, False, False, True, True]
    assert m.pareto_front([], []) == []
    with pytest.raises(ValueError, match="zip"):
        m.pareto_front([1.0], [])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_pareto_front_is_what_is_best_at_some_cost(points: list[tuple[int, int]]) -> None:
    front = m.pareto_front(*zip(*points, strict=True))
    for (cost, accuracy), member in zip(points, front, strict=True):
        best = max(other for other_cost, other in points if other_cost <= cost)
        cheapest = min(other_cost for other_cost, other in points if other >= best)
        assert member == (accuracy == best and cost == cheapest)


def test_measurement_and_reading_runs_do_not_load_a_model_library() -> None:
    script = (
        "import sys, satisfice.measurement, satisfice.runs.run_folder;"
        "print([name for name in ('torch', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
