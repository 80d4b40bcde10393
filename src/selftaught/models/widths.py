"""Whether a row's bits depend on how many rows are computed beside it, and how many slots a step must compute.

A matrix product may add up in another order when it has another number of rows, so the safe answer is: always all
slots, the empty ones too, and one prompt at a time. Where this machine's products are seen to give the same bits for
any multiple of 8 rows, a step computes fewer slots once rows run out, and prompts are read together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 8
TRIED = (8, 16, 24, 32, 64, 96, 128, 256, 512)
PROBE_FEATURES = 2048


def step_widths(slots: int) -> tuple[int, ...]:
    """Return the numbers of slots that a step may compute where bits allow it, rising, the last one `slots`."""
    unit = max(SMALLEST, slots // 8 // SMALLEST * SMALLEST)
    return tuple(sorted({*range(SMALLEST, min(unit, slots), SMALLEST), *range(unit, slots, unit), slots}))


@torch.no_grad()
def rows_agree(model: torch.nn.Module) -> bool:
    """Return whether a product with each shape of weight in `model` gives the same bits for every number of rows tried.

    On an accelerator, where bits are not promised anyway, nothing is tried and the answer is yes.
    """
    weights = {(p.shape, p.dtype): p for p in model.parameters() if p.dim() == 2 and p.is_floating_point()}
    return all(w.device.type != "cpu" or _agrees(w[:PROBE_FEATURES]) for w in weights.values())


def _agrees(weight: Tensor) -> bool:
    x = torch.randn(TRIED[-1], weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    whole = F.linear(x, weight)
    return all(torch.equal(F.linear(x[:n], weight), whole[:n]) for n in TRIED)
