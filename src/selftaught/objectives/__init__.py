"""Objectives: (model, batch) -> terms of a loss, built from `specs`."""

from selftaught.objectives.base import (
    Baseline,
    Batch,
    Choices,
    ChoicesFn,
    LogpsFn,
    Objective,
    Reads,
    RewardsFn,
    Steps,
    Term,
)
from selftaught.objectives.bradley_terry import BradleyTerryObjective
from selftaught.objectives.kto import KTOObjective
from selftaught.objectives.latent_preference import LatentPreferenceObjective
from selftaught.objectives.preference import PreferenceObjective
from selftaught.objectives.sft import SFTObjective
from selftaught.objectives.step_kto import StepKTOObjective
from selftaught.specs import KTO, SFT, BradleyTerry, LatentPreference, ObjectiveSpec, Preference, StepKTO

__all__ = [
    "Baseline",
    "Batch",
    "Choices",
    "ChoicesFn",
    "LogpsFn",
    "Objective",
    "Reads",
    "RewardsFn",
    "Steps",
    "Term",
    "build_objective",
]


def build_objective(spec: ObjectiveSpec) -> Objective:
    """Return the objective that `spec` describes."""
    match spec:
        case SFT():
            return SFTObjective(spec)
        case Preference():
            return PreferenceObjective(spec)
        case KTO():
            return KTOObjective(spec)
        case StepKTO():
            return StepKTOObjective(spec)
        case BradleyTerry():
            return BradleyTerryObjective(spec)
        case LatentPreference():
            return LatentPreferenceObjective(spec)
    raise TypeError(f"no objective for {type(spec).__name__}")
