"""Worked example: 10 updates, warm-up ratio 0.2 (2 updates), lr 1: 0.5, 1, then from 1 down over 8 updates.

Linear after half of them (update 6) is 0.5; cosine too; towards min_lr_ratio 0.2 both are 0.6.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.specs import Training
from selftaught.train.schedule import batch_indices, learning_rate, steps_per_epoch, total_steps


@pytest.mark.parametrize(("schedule", "minimum", "expected"), [
    ("linear", 0.0, 0.5), ("cosine", 0.0, 0.5), ("linear", 0.2, 0.6), ("cosine", 0.2, 0.6), ("constant", 0.2, 1.0),
])  # fmt: skip
def test_worked_values(schedule, minimum, expected):
    settings = Training(lr=1.0, schedule=schedule, warmup_ratio=0.2, min_lr_ratio=minimum)
    assert [learning_rate(step, 10, settings) for step in (0, 1, 2)] == pytest.approx([0.5, 1.0, 1.0])
    assert learning_rate(6, 10, settings) == pytest.approx(expected)


@given(st.integers(1, 50), st.floats(0, 1), st.sampled_from(["cosine", "linear", "constant"]))
def test_rates_are_positive_and_at_most_lr(total, warmup, schedule):
    settings = Training(lr=0.3, schedule=schedule, warmup_ratio=warmup)
    rates = [learning_rate(step, total, settings) for step in range(total)]
    assert all(0 < rate <= 0.3 + 1e-12 for rate in rates)


def test_updates():
    assert steps_per_epoch(10, 4) == 3
    assert total_steps(10, Training(epochs=2, batch_size=4)) == 6
    assert total_steps(10, Training(epochs=0.5, batch_size=4)) == 2
    assert total_steps(10, Training(epochs=9, batch_size=4, max_steps=5)) == 5


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32))
def test_every_epoch_sees_each_example_once(examples, batch_size, seed):
    settings = Training(batch_size=batch_size)
    per_epoch = steps_per_epoch(examples, batch_size)
    for epoch in range(2):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = np.concatenate([batch_indices(step, examples, settings, seed) for step in steps])
        assert sorted(seen.tolist()) == list(range(examples))


def test_epochs_and_seeds_differ():
    settings = Training(batch_size=50)
    orders = [batch_indices(step, 50, settings, seed).tolist() for step, seed in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] and orders[0] != orders[2]
