"""Negative log-likelihood of completions."""

import torch
from torch import Tensor


def sequence_sums(values: Tensor, owner: Tensor, sequences: int) -> Tensor:
    """Return the sum of per-token `values` [N] for each of `sequences` owners ([N] int64 in 0..sequences-1): [S]."""
    return torch.zeros(sequences, dtype=values.dtype, device=values.device).index_add(0, owner, values)


def sequence_nll(logps: Tensor, lengths: Tensor) -> Tensor:
    """Return -log pi(y|x) / |y|: the length-normalised NLL in ScPO's loss (arXiv 2411.04109, eq. 3).

    Args:
        logps: [S] summed log-probabilities, nats.
        lengths: [S] target tokens in each sum; an empty completion (0) has NLL 0.

    Returns:
        [S], nats per token.
    """
    return -logps / lengths.clamp(min=1)
