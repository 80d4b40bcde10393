"""How many slots a step must compute so that a row's bits do not depend on the rows beside it.

A matrix product may add up in another order when it has another number of rows, so the safe answer is: always all
slots, the empty ones too. Where this machine's products are seen to give the same bits for fewer rows, a step computes
fewer once rows run out, and prompts may be read together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 8
PROBE_FEATURES = 2048


def stable_widths(model: torch.nn.Module, slots: int) -> tuple[int, ...]:
    """Return the numbers of slots that may be computed, rising, the last one `slots`.

    Multiples of 8 up to `slots`, if one product with each shape of weight in `model` gives the same bits for all of
    them; else `slots` alone. On an accelerator, where bits are not promised, the products are not tried.
    """
    unit = max(SMALLEST, slots // 8 // SMALLEST * SMALLEST)
    widths = sorted({*range(SMALLEST, min(unit, slots), SMALLEST), *range(unit, slots, unit), slots})
    weights = {(p.shape, p.dtype): p for p in model.parameters() if p.dim() == 2 and p.is_floating_point()}
    on_cpu = all(w.device.type == "cpu" for w in weights.values())
    if on_cpu and not all(_agrees(w[:PROBE_FEATURES], widths) for w in weights.values()):
        return (slots,)
    return tuple(widths)


@torch.no_grad()
def _agrees(weight: Tensor, widths: list[int]) -> bool:
    x = torch.randn(widths[-1], weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    whole = F.linear(x, weight)
    return all(torch.equal(F.linear(x[:w], weight), whole[:w]) for w in widths)
