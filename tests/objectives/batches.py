"""A batch without a model: log-probs are given, and the objective's `model` returns them."""

from collections.abc import Sequence

import torch

from selftaught.objectives import Batch


def batch(
    token_logps: Sequence[Sequence[float]],
    weights: Sequence[float],
    reference: Sequence[float] | None = None,
) -> tuple[Batch, torch.Tensor]:
    """Return a batch of completions with these log-probs per token, and the log-probs as one leaf tensor."""
    lengths = [len(values) for values in token_logps]
    flat = torch.tensor([v for values in token_logps for v in values], requires_grad=True)
    made = Batch(
        inputs={},
        layout=None,
        sources=torch.arange(len(flat)),
        targets=torch.zeros(len(flat), dtype=torch.int64),
        owner=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        lengths=torch.tensor(lengths, dtype=torch.float32),
        weights=torch.tensor(weights, dtype=torch.float32),
        reference=None if reference is None else torch.tensor(reference),
        example_ids=tuple(str(i) for i in range(len(weights))),
        example_weights=tuple(weights),
        target_count=len(flat),
    )
    return made, flat
