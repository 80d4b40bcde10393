"""RIP in miniature (arXiv 2501.18578, Tables 1, 2 and 6, Figure 1): filters at equal updates, and Self-RIP."""

from dataclasses import replace

from selftaught.recipes import rip
from selftaught.reproductions import Reproduction

CLAIMED = ("no_filter", "random", "rejected_reward", "rip", "oracle", "self_instruct", "self_rip")
ARMS = (
    "no_filter",
    "random",
    "jaccard",
    "perplexity",
    "ifd",
    "rejected_reward",
    "rejected_length",
    "gap",
    "rip",
    "oracle",
    "bottom25",
    "self_instruct",
    "self_instruct_filtered",
    "self_rip_unfiltered",
    "self_rip",
)

REPRODUCTION = Reproduction(
    method="rip",
    metrics=("clean_reward", "accuracy", "auc_removed", "auc_unseen", "kept", "well_formed", "well_formed_kept"),
    recipes={"small": replace(rip.small(), arms=CLAIMED), "arms": replace(rip.small(), arms=ARMS)},
    tried=21,
)
"""`arms` has every filter."""
