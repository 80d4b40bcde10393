"""Step-KTO in miniature (arXiv 2501.10799, Table 3): wrong steps inside right solutions."""

from dataclasses import replace

from selftaught.recipes import step_kto
from selftaught.reproductions import Reproduction

ARMS = ("rft", "irpo", "kto", "kto_beta1", "step_kto", "process_only", "step_kto_noise20", "flattened_kto")

REPRODUCTION = Reproduction(
    method="step_kto",
    metrics=("accuracy", "accuracy_samples4", "step_error_share", "greedy_step_error_share", "step_accuracy", "length"),
    recipes={"small": replace(step_kto.small(), arms=ARMS)},
    tried=7,
)
