"""What the methods of one loop share: arms as changes of a configuration, rounds from model to model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from selftaught.errors import InputError, NothingToTrainOn
from selftaught.methods.method import Measured, Outcome
from selftaught.specs import ModelSpec

if TYPE_CHECKING:
    from selftaught.lab import Lab

Config = TypeVar("Config")


def check_arms(arms: tuple[str, ...], known: Mapping[str, Any], arm_lr: Mapping[str, float], rounds: int) -> None:
    """Raise InputError for an arm that is unknown or there twice, for none, and for no round."""
    if rounds < 1 or not arms or len(set(arms)) < len(arms):
        raise InputError(f"rounds={rounds}, arms={arms}: give at least one round and one arm, each arm once")
    for arm in (*arms, *arm_lr):
        if arm not in known:
            raise InputError(f"no arm is called {arm!r}: known are {', '.join(known)}")


def arm_settings(cfg: Any, arm: str, known: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return `cfg` with the changes of one arm and, where `cfg.arm_lr` has one, its learning rate."""
    changes = dict(known[arm])
    if arm in cfg.arm_lr:
        changes["training"] = replace(cfg.training, lr=cfg.arm_lr[arm])
    return replace(cfg, **changes)


def run_rounds(
    lab: "Lab",
    outcome: Outcome,
    arm: str,
    model: ModelSpec,
    rounds: int,
    train: Callable[[ModelSpec, int], ModelSpec],
    measure: Callable[[ModelSpec], Measured],
) -> None:
    """Replace `model` by `train(model, t)` for t = 0 .. rounds - 1 and add what is measured after each to `outcome`.

    Raises:
        NothingToTrainOn: in the first round; in a later one the arm keeps its model.
    """
    for t in range(rounds):
        with lab.scope(arm=arm, round=t + 1):
            try:
                model = train(model, t)
            except NothingToTrainOn as error:
                if t == 0:
                    raise
                lab.tell(f"{arm} keeps the model of round {t}: {error}")
            outcome.add(arm, model, measure(model))
