"""A stopping rule on a share that must not fall, such as validity: declared before a run, the same for all its arms."""

from collections.abc import Sequence
from typing import Literal

Rule = Literal["first", "last"]


def kept_round(shares: Sequence[float], level: float | None, rule: Rule) -> int:
    """Return the index of the round to keep: the first, or last, of at least `level`; while there is none, the best.

    Without a level it is the newest.

    >>> kept_round([0.9, 0.98, 0.97, 0.5], 0.97, "last"), kept_round([0.9, 0.98, 0.97], 0.97, "first")
    (2, 1)
    """
    if level is None:
        return len(shares) - 1
    passed = [t for t, share in enumerate(shares) if share >= level]
    if not passed:
        return max(range(len(shares)), key=lambda t: (shares[t], t))
    return passed[0] if rule == "first" else passed[-1]


def is_over(shares: Sequence[float], level: float | None, rule: Rule) -> bool:
    """Say whether training ends: `level` was reached and, with "last", the newest round is below it.

    >>> is_over([0.9, 0.98], 0.97, "last"), is_over([0.98, 0.9], 0.97, "last"), is_over([0.98], 0.97, "first")
    (False, True, True)
    """
    if level is None or not any(share >= level for share in shares):
        return False
    return rule == "first" or shares[-1] < level
