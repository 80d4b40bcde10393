"""Tree rows: a prompt and all its completions in one row, the prompt computed once."""

import torch
from torch import Tensor

PROMPT, PADDING = 0, -1


def tree_mask(segments: Tensor, positions: Tensor, window: int | None = None) -> Tensor:
    """Return which keys each query may attend to: itself, and what came before it in its own branch.

    A token sees the prompt's and its own completion's earlier tokens, never another completion's. With a sliding
    `window` it sees those with position(query) - position(key) < window: positions, because a row holds branches side
    by side and distances in the row say nothing. A padding query sees itself only, so that no softmax is empty.

    Args:
        segments: [..., T], 0 the prompt, 1.. its completions, -1 padding.
        positions: [..., T] position ids.

    Returns:
        [..., T, T] bool, indexed [query, key], True where attention is allowed.
    """
    order = torch.arange(segments.shape[-1], device=segments.device)
    query, key = segments[..., :, None], segments[..., None, :]
    allowed = (order[:, None] >= order[None, :]) & ((key == PROMPT) | (key == query)) & (query != PADDING)
    if window is not None:
        allowed = allowed & (positions[..., :, None] - positions[..., None, :] < window)
    return allowed | (order[:, None] == order[None, :])
