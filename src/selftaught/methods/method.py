"""What every method file exports: one record."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selftaught.evals.metrics import PerProblem
from selftaught.plan import Work
from selftaught.specs import ModelSpec
from selftaught.types import Report

if TYPE_CHECKING:
    from selftaught.lab import Lab


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """In `metric`, `arm` minus `baseline` is above `margin` or, where `lower_is_better`, below -`margin`.

    A negative margin claims that `arm` is not worse by more than that. Without a baseline it is the metric itself that
    is compared with the margin. `round` says when both are measured: 0 is before the first round of an arm that starts
    with a measurement of its own, -1 the last. With `gold`, the claim is that the gain over `baseline` is at least
    `share` of the gain of the arm `gold`.
    """

    text: str
    arm: str
    baseline: str | None
    metric: str
    margin: float = 0.0
    lower_is_better: bool = False
    round: int = -1
    gold: str | None = None
    share: float = 0.0

    def holds(self, low: float, high: float) -> bool:
        """Say whether the interval [low, high] of the difference lies where it is claimed."""
        return high < -self.margin if self.lower_is_better else low > self.margin


Measured = tuple[dict[str, Report], dict[str, PerProblem]]
"""Reports by name, and those that have them, their values per problem."""


@dataclass(kw_only=True)
class Outcome:
    """What a run returns: per arm its last model, one dict (metric -> Report) per round, last values per problem.

    `weights` are those of problems that do not count alike, such as the bytes of documents.
    """

    models: dict[str, ModelSpec] = field(default_factory=dict)
    rounds: dict[str, list[dict[str, Report]]] = field(default_factory=dict)
    values: dict[str, dict[str, PerProblem]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, arm: str, model: ModelSpec, measured: Measured) -> None:
        """Add a round of `arm`: its model, its reports and their per-problem values, which replace earlier ones."""
        reports, values = measured
        self.models[arm] = model
        self.rounds.setdefault(arm, []).append(reports)
        self.values[arm] = values


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published method.

    `config` is its frozen configuration class, `run(cfg, lab)` follows the paper's algorithm, `equations` maps a
    label of the paper to the function that implements it, `plan` lists the
    work of a configuration, `claims` are what a run of several arms can show.
    """

    name: str
    title: str
    paper: str
    claim: str
    config: type
    run: Callable[[Any, "Lab"], Outcome]
    equations: dict[str, str]
    plan: Callable[[Any], list[Work]]
    claims: tuple[Claim, ...] = ()
