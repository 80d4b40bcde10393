"""DivPO in miniature (arXiv 2501.18101, the persona task): diversity and validity, offline and online, beside DPO."""

from dataclasses import replace

from selftaught.recipes import divpo
from selftaught.reproductions import Reproduction

ARMS = (
    "sft",
    "dpo_offline",
    "dpo_online",
    "divpo_freq_offline",
    "divpo_freq_online",
    "divpo_prob_offline",
    "divpo_prob_online",
    "seed_t07",
    "seed_t13",
)

REPRODUCTION = Reproduction(
    method="divpo",
    metrics=("validity", "entropy", "unique_share", "max_share", "win_rate", "unique_unigrams", "compression_ratio"),
    recipes={"small": replace(divpo.small(), arms=ARMS)},
    tried=12,
)
