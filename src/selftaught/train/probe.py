"""Which way of computing target log-probs is right for a model: tried on a shrunken copy before training.

A mask or a head that a model quietly ignores gives wrong losses and no error, so nothing is taken on trust.
"""

import inspect
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from selftaught.models.shrunken import VOCABULARY, shrunken
from selftaught.train.attention import NAME
from selftaught.train.batching import collate, make_items
from selftaught.train.encoding import Encoded
from selftaught.train.forward import TargetLogps

TOLERANCE = 1e-4
NO_PACKED_ROWS = "this model takes no packed rows"


@dataclass(frozen=True, slots=True)
class Mode:
    """`packed`: rows end to end and trees allowed; else ordinary padded rows. `chunked`: the LM head in chunks."""

    packed: bool
    chunked: bool


def choose_mode(model: PreTrainedModel) -> tuple[Mode, str]:
    """Return the fastest mode that agrees with separate rows and the model's own logits to 1e-4 in float32, and why.

    One row is longer than twice the sliding window. The reason is one line, empty where the fastest mode holds.
    """
    try:
        small = shrunken(type(model), model.config)
    except Exception as error:
        return Mode(
            False, False
        ), f"no shrunken copy for the probe ({_first_line(error)}): training on separate rows with full logits"
    examples = _examples()
    truth = _logps(small, examples, Mode(packed=False, chunked=False))
    reasons = [] if _takes_packed_rows(small) else [NO_PACKED_ROWS]
    for mode in (Mode(True, True), Mode(True, False), Mode(False, True))[2 * len(reasons) :]:
        try:
            difference = float(np.abs(_logps(small, examples, mode) - truth).max())
        except Exception as error:
            reasons.append(_first_line(error))
            continue
        if difference <= TOLERANCE:
            return mode, _reason(mode, reasons)
        reasons.append(f"log-probs differ by {difference:.2g}")
    return Mode(False, False), _reason(Mode(False, False), reasons)


def _reason(mode: Mode, reasons: list[str]) -> str:
    if mode == Mode(True, True):
        return ""
    rows = "tree rows" if mode.packed else "separate rows"
    # Not to take packed rows is no failure, and what else failed says more.
    failures = [r for r in reasons if r != NO_PACKED_ROWS]
    why = f"the probe failed ({failures[0]})" if failures else NO_PACKED_ROWS
    return f"{why}: training on {rows}{'' if mode.chunked else ' with full logits'}"


def _takes_packed_rows(model: PreTrainedModel) -> bool:
    """Return whether the backbone can be told positions and a layout, by name or among what it passes on."""
    known = inspect.signature(model.base_model.forward).parameters.values()
    return any(p.name == "position_ids" or p.kind is p.VAR_KEYWORD for p in known)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


def _examples() -> list[Encoded]:
    draw = np.random.default_rng(0)
    shapes = (((9, 8, 7)), (5, 3, 9), (2, 1, 4))
    examples = []
    for i, (prompt, *completions) in enumerate(shapes):
        ids = tuple(draw.integers(5, VOCABULARY, n) for n in completions)
        names = tuple(f"{i}-{k}" for k in range(len(ids)))
        finished = (True,) * len(ids)
        examples.append(
            Encoded(
                id=str(i),
                weight=1.0,
                prompt=draw.integers(5, VOCABULARY, prompt),
                completions=ids,
                completion_ids=names,
                finished=finished,
                retokenised=0,
            )
        )
    return examples


@torch.no_grad()
def _logps(model: PreTrainedModel, examples: list[Encoded], mode: Mode) -> np.ndarray:
    model.set_attn_implementation(NAME if mode.packed else "eager")
    batch = collate(make_items(examples, tree=mode.packed), packed=mode.packed, pad_id=0)
    logps = TargetLogps(model, chunked=mode.chunked)(batch)
    # Rows differ between modes, targets of a completion do not: order them by completion.
    return logps[torch.argsort(batch.owner, stable=True)].double().numpy()
