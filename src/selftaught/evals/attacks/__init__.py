"""Attacks on a model that should refuse: forced beginnings of an answer, and searched suffixes of a request."""

from selftaught.evals.attacks.attempts import Attacked, Attempt, answers, ask, force_start, open_attacked
from selftaught.evals.attacks.coordinate import (
    Case,
    Found,
    Search,
    adaptive_attack,
    coordinate_attack,
    keeps_ids,
    make_case,
    ordinary_tokens,
    with_suffix,
)
from selftaught.evals.attacks.prompts import SuffixAttack

__all__ = [
    "Attacked",
    "Attempt",
    "Case",
    "Found",
    "Search",
    "SuffixAttack",
    "adaptive_attack",
    "answers",
    "ask",
    "coordinate_attack",
    "force_start",
    "keeps_ids",
    "make_case",
    "open_attacked",
    "ordinary_tokens",
    "with_suffix",
]
