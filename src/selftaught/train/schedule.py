"""Learning rate and data order as functions of the step, so that resuming needs no state for either."""

import math
from functools import lru_cache

import numpy as np

from selftaught.specs import Training


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return how many updates see every example once; the last may be smaller."""
    return math.ceil(examples / batch_size)


def total_steps(examples: int, settings: Training) -> int:
    """Return the number of updates of the whole training."""
    if settings.max_steps is not None:
        return settings.max_steps
    return math.ceil(settings.epochs * steps_per_epoch(examples, settings.batch_size))


def learning_rate(step: int, total: int, settings: Training) -> float:
    """Return the learning rate of update `step` (from 0): linear warm-up to `lr`, then down to `min_lr_ratio * lr`."""
    warmup = math.ceil(settings.warmup_ratio * total)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    factor = shape[settings.schedule]
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * factor)


def batch_indices(step: int, examples: int, settings: Training, seed: int) -> np.ndarray:
    """Return which examples update `step` sees: a slice of its epoch's own permutation."""
    epoch, position = divmod(step, steps_per_epoch(examples, settings.batch_size))
    order = _epoch_order(examples, epoch, seed)
    return order[position * settings.batch_size : (position + 1) * settings.batch_size]


@lru_cache(maxsize=2)
def _epoch_order(examples: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(examples)
