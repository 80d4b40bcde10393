"""The loss of a reward model on pairs, unreduced: one value per pair."""

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Return w * -log sigmoid(chosen - rejected - margin) of each pair, in nats. At least float32 inside.

    The negative log-likelihood of a preference under Bradley and Terry (1952), as reward models are trained in
    InstructGPT, arXiv 2203.02155, eq. 1; the margin as in Llama 2, arXiv 2307.09288, eq. 2.

    Args:
        chosen, rejected: [P], rewards.
        margin: [P], by how much the chosen reward should lead, or None for 0.
        weight: [P], or None for 1. A weight of 0 gives exactly zero loss and gradient.
    """
    dtype = torch.promote_types(chosen.dtype, torch.float32)
    lead = chosen.to(dtype) - rejected.to(dtype)
    loss = -F.logsigmoid(lead if margin is None else lead - margin)
    return loss if weight is None else weight * loss
