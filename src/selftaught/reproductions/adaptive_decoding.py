"""Adaptive Decoding in miniature (arXiv 2411.09661, tables 2 to 4): a head against every fixed temperature."""

from dataclasses import replace

from selftaught.methods.adaptive_decoding import known_arms
from selftaught.recipes import adaptive_decoding
from selftaught.reproductions import Reproduction

_SMALL = adaptive_decoding.small()

REPRODUCTION = Reproduction(
    method="adaptive_decoding",
    metrics=(
        "reward",
        "over_best_fixed",
        "of_oracle",
        "oracle_lead",
        "temperature",
        "temperature_starts",
        "temperature_elsewhere",
        "temperature_gap",
    ),
    recipes={"small": replace(_SMALL, arms=tuple(known_arms(_SMALL)))},
    tried=9,
)
