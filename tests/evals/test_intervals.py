import numpy as np
import pytest
from scipy import stats

from selftaught.errors import InputError
from selftaught.evals.intervals import paired_bootstrap, paired_t, ratio_of_means


def test_student_interval_agrees_with_scipy():
    source = np.random.default_rng(0)
    ours, baseline = source.normal(1, 1, 7), source.normal(0, 1, 7)
    expected = stats.ttest_rel(ours, baseline).confidence_interval(0.95)
    interval = paired_t(list(ours), list(baseline))
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.over == "seeds" and interval.n == 7


def test_bootstrap_interval():
    """100 differences, 60 of 1 and 40 of 0: mean 0.6, standard error 0.049, so about 0.6 +- 0.096."""
    interval = paired_bootstrap([1.0] * 60 + [0.0] * 40, [0.0] * 100)
    assert interval.estimate == 0.6
    assert (interval.low, interval.high) == pytest.approx((0.504, 0.696), abs=0.012)
    assert interval == paired_bootstrap([1.0] * 60 + [0.0] * 40, [0.0] * 100)


def test_a_weighted_interval_by_hand():
    """Differences of -1 and 2/3 weighing 1 and 3: (-1 + 2) / 4. Draws give -1 (twice the first), 1/4 or 2/3 (twice the
    second), so the interval is from -1 to 2/3. One problem has no spread.
    """
    interval = paired_bootstrap([1.0, 5 / 3], [2.0, 1.0], [1, 3])
    assert [interval.estimate, interval.low, interval.high] == pytest.approx([0.25, -1.0, 2 / 3])
    assert (interval.over, interval.n) == ("problems", 2)
    alone = paired_bootstrap([0.5], [1.0], [7.0])
    assert [alone.estimate, alone.low, alone.high] == pytest.approx([-0.5] * 3)


def test_equal_weights_are_none():
    ours, baseline = np.random.default_rng(5).normal(2, 0.3, (2, 80))
    weighted, known = paired_bootstrap(ours, baseline, [7.0] * 80), paired_bootstrap(ours, baseline)
    assert [weighted.estimate, weighted.low, weighted.high] == pytest.approx([known.estimate, known.low, known.high])


def test_ratio_of_means():
    """Means 0.1 and 0.125: ratio 0.8. Proportional gains have no spread."""
    interval = ratio_of_means([0.08, 0.12], [0.1, 0.15])
    assert [interval.estimate, interval.low, interval.high] == pytest.approx([0.8, 0.8, 0.8])
    wide = ratio_of_means([0.08, 0.12, 0.02, 0.2], [0.1, 0.15, 0.12, 0.11])
    assert wide.low < wide.estimate < wide.high


def test_a_denominator_near_zero_opens_the_interval():
    assert ratio_of_means([0.1, 0.1, 0.1], [0.3, -0.1, -0.1]).high == float("inf")


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_t([1.0], [0.0]),
        lambda: paired_t([1.0, 2.0], [0.0]),
        lambda: paired_bootstrap([], []),
        lambda: paired_bootstrap([1.0], [0.0], [0.0]),
        lambda: paired_bootstrap([1.0], [0.0], [1.0, 2.0]),
        lambda: paired_bootstrap([1.0], [0.0], [float("nan")]),
        lambda: ratio_of_means([1.0], [0.0]),
        lambda: ratio_of_means([], []),
    ],
)
def test_bad_input(call):
    with pytest.raises(InputError):
        call()
