"""Backtracking in miniature (arXiv 2409.14586): violations with and without [RESET], at equal helpfulness."""

from dataclasses import replace

from selftaught.recipes import backtracking
from selftaught.reproductions import Reproduction

ARMS = (
    "baseline_sft",
    "baseline_sft_lr8",
    "baseline_sft_dpo",
    "backtrack_sft",
    "backtrack_sft_own_prompts",
    "backtrack_sft_dpo",
    "baseline_sft_backtrack_dpo",
    "refuse_midway",
    "unmasked_prefix",
)
METRICS = (
    "violation",
    "violation_prefill",
    "violation_gradient",
    "violation_adaptive",
    "worst_of16",
    "violation_known",
    "violation_before",
    "refusals",
    "reset_rate",
    "helpfulness",
    "false_resets",
    "discarded_tokens",
    "bias",
    "bias_rise",
    "violation_log",
)

REPRODUCTION = Reproduction(
    method="backtracking",
    metrics=METRICS,
    recipes={"small": replace(backtracking.small(), arms=ARMS)},
    tried=37,
)
