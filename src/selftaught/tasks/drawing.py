"""What generated worlds share: draws that every Python version repeats, and disjoint splits that problems fix."""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal, TypeVar

from selftaught.errors import InputError
from selftaught.types import content_id

Split = Literal["test", "dev", "demonstrations", "train"]
Drawn = TypeVar("Drawn")

_SPLIT_ENDS: tuple[tuple[Split, float], ...] = (("test", 0.1), ("dev", 0.15), ("demonstrations", 0.55), ("train", 1.0))
_MISSES = 20_000
"""Draws in a row without a new problem of the split after which there are held to be no more."""


def seeded(*parts: object) -> random.Random:
    """Return a source of random numbers that `parts` fix."""
    return random.Random(int(content_id(*parts), 16))


@lru_cache(maxsize=64)
def zipf_weights(count: int, exponent: float) -> list[float]:
    """Return 1 / rank**exponent for the ranks 1 to `count`."""
    return [rank**-exponent for rank in range(1, count + 1)]


def below(source: random.Random, n: int) -> int:
    """Draw from 0..n-1. Only `random()` is promised to draw the same numbers on every Python version."""
    return int(source.random() * n)


def split_at(share: float) -> Split:
    """Return the split at a share of all problems: 10% test, 5% dev, 40% demonstrations, 45% train."""
    return next(split for split, end in _SPLIT_ENDS if share < end)


def in_split(
    split: Split,
    draw: Callable[[], Drawn],
    text_of: Callable[[Drawn], str],
    split_of: Callable[[str], Split],
    complaint: str,
) -> Iterator[Drawn]:
    """Yield what `draw` gives and lies in `split`, without repeats.

    Raises:
        InputError: nothing new is left; `complaint` says so, with the number that there was as {count}.
    """
    seen: set[str] = set()
    misses = 0
    while misses < _MISSES:
        drawn = draw()
        text = text_of(drawn)
        if text in seen or split_of(text) != split:
            misses += 1
            continue
        misses = 0
        seen.add(text)
        yield drawn
    raise InputError(complaint.format(count=len(seen)))


def check_shares(world: Any, *dials: str) -> None:
    """Raise InputError where a dial of `world` is not within 0 to 1."""
    for name in dials:
        if not 0 <= getattr(world, name) <= 1:
            raise InputError(f"{world.name}: {name}={getattr(world, name)} is not a share; give 0 to 1")
