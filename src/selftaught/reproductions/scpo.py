"""ScPO in miniature (arXiv 2411.04109, Tables 1 and 4): gains without labels, with gold, of LMSI, of a noisy reward."""

from dataclasses import replace

from selftaught.recipes import scpo
from selftaught.reproductions import Reproduction

ARMS = ("lmsi", "irpo_gold", "irpo_noisy_rm", "scpo_unweighted", "scpo", "scpo_semi")

REPRODUCTION = Reproduction(
    method="scpo",
    metrics=("accuracy", "accuracy_sc8"),
    recipes={"small": replace(scpo.small(), arms=ARMS)},
    tried=64,
)
