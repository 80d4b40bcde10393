"""Thought PO in miniature (arXiv 2410.10630, table 2 and section 4): thinking hurts at first, then overtakes."""

from selftaught.recipes import thought_po
from selftaught.reproductions import Reproduction

METRICS = ("accuracy", "accuracy_samples4", "format_errors", "thought_chars", "response_chars")

REPRODUCTION = Reproduction(
    method="thought_po",
    metrics=METRICS,
    recipes={"small": thought_po.small(), "gpu": thought_po.gpu()},
    tried=9,
)
