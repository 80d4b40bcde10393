import pytest

from selftaught.evals.stopping import is_over, kept_round


@pytest.mark.parametrize(
    ("shares", "first", "last"),
    [
        ([0.9], 0, 0),
        ([0.9, 0.8], 0, 0),
        ([0.9, 0.9], 1, 1),
        ([0.9, 0.97, 0.98], 1, 2),
        ([0.97, 0.98, 0.2], 0, 1),
    ],
)
def test_the_round_that_is_kept(shares, first, last):
    assert kept_round(shares, 0.97, "first") == first
    assert kept_round(shares, 0.97, "last") == last
    assert kept_round(shares, None, "last") == len(shares) - 1


def test_when_training_ends():
    assert not is_over([], 0.97, "first")
    assert not is_over([0.5], 0.97, "last"), "the level has not been reached yet"
    assert not is_over([0.98, 0.97], 0.97, "last")
    assert is_over([0.98, 0.96], 0.97, "last")
    assert is_over([0.5, 0.97], 0.97, "first")
    assert not is_over([0.98, 0.1], None, "last")
