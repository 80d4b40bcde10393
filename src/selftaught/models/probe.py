"""Which way of decoding is right for a model: tried on a shrunken copy before it is used.

A model may quietly ignore a mask or hand its keys on in another form, which gives wrong tokens and no error.
"""

import json
import logging
from functools import lru_cache

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from selftaught.models.decodable import Decodable, TransformersDecodable
from selftaught.models.recompute import RecomputeDecodable
from selftaught.models.shrunken import VOCABULARY, WINDOW, shrunken

TOLERANCE = 1e-4
PROMPT_LENGTHS = (2 * WINDOW + 3, 4)
STEPS = 2 * WINDOW + 2

logger = logging.getLogger(__name__)


def open_decodable(model: PreTrainedModel, slots: int, share: bool = True) -> Decodable:
    """Return the fastest `Decodable` over `model` whose logits agree with the model's own.

    A model that has a method `decodable` is asked for its own. Else, tried in turn: our attention (with shared prompts
    where `share` is set), the model's attention over our cache with 4D masks and copied prompts, no cache at all. Logs
    one line where the first does not hold.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(base, "decodable"):
        return base.decodable(slots)
    own_attention, reason = _choose(_Architecture(type(base), base.config))
    if reason:
        logger.warning("%s: %s", type(base).__name__, reason)
    if own_attention is None:
        return RecomputeDecodable(model, slots)
    return TransformersDecodable(model, slots, share=share, own_attention=own_attention)


class _Architecture:
    """A model class and its configuration, compared by contents."""

    def __init__(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
        self.model_class = model_class
        self.config = config
        # Private fields tell where a copy came from, not how it computes.
        values = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
        self.text = json.dumps(values, sort_keys=True, default=str)

    def __hash__(self) -> int:
        return hash((self.model_class, self.text))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Architecture) and (self.model_class, self.text) == (other.model_class, other.text)


@lru_cache(maxsize=32)
def _choose(architecture: _Architecture) -> tuple[bool | None, str]:
    """Return whether our attention holds, None where no cache does, and the reason where it does not."""
    # Any model code may run here, and each of its failures means the same.
    try:
        small = shrunken(architecture.model_class, architecture.config)
    except Exception as error:
        return None, f"no shrunken copy to try a cache on ({_first_line(error)}): decoding without one, slowly"
    reasons = []
    for own_attention, name in ((True, "our attention"), (False, "a cache with 4D masks")):
        try:
            difference = _difference(small, own_attention)
        except Exception as error:
            reasons.append(f"{name} fails ({_first_line(error)})")
            continue
        if difference <= TOLERANCE:
            return own_attention, f"{reasons[0]}: prompts are copied into every row" if reasons else ""
        reasons.append(f"{name} gives logits that differ by {difference:.2g}")
    return None, f"{'; '.join(reasons)}: decoding without a cache, slowly"


@torch.no_grad()
def _difference(model: PreTrainedModel, own_attention: bool) -> float:
    """Return the largest difference of log-probs from the model's own forward, prompts and steps past the window."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(VOCABULARY, (n,), generator=generator) for n in PROMPT_LENGTHS]
    steps = torch.randint(VOCABULARY, (STEPS, 2 * len(prompts)), generator=generator)
    decodable = TransformersDecodable(model, 8, own_attention=own_attention)
    logits, _, parked = decodable.prefill(prompts)
    seen = [logits.repeat_interleave(2, 0)]
    state = parked.fork(torch.arange(len(prompts)), 2)
    for inputs in steps:
        logits, _, state = decodable.step(state, inputs)
        seen.append(logits)
    ours = torch.stack(seen, 1).log_softmax(-1)
    rows = [torch.cat([prompts[i // 2], steps[:, i]]) for i in range(2 * len(prompts))]
    theirs = [model(input_ids=row[None], use_cache=False).logits[0, -STEPS - 1 :].log_softmax(-1) for row in rows]
    return float((ours - torch.stack(theirs)).abs().max())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
