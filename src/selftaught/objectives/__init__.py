"""Objectives: (model, batch) -> terms of a loss, built from `specs`."""

from selftaught.objectives.base import Baseline, Batch, LogpsFn, Objective, Term
from selftaught.objectives.preference import PreferenceObjective
from selftaught.objectives.sft import SFTObjective
from selftaught.specs import SFT, ObjectiveSpec, Preference

__all__ = ["Baseline", "Batch", "LogpsFn", "Objective", "Term", "build_objective"]


def build_objective(spec: ObjectiveSpec) -> Objective:
    """Return the objective that `spec` describes."""
    match spec:
        case SFT():
            return SFTObjective(spec)
        case Preference():
            return PreferenceObjective(spec)
    raise TypeError(f"no objective for {type(spec).__name__}")
