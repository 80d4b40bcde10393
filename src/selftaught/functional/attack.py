"""What a searched suffix is to maximise: the log-probability of an unsafe beginning, and no [RESET] on the way."""

import torch
from torch import Tensor


def target_objective(logits: Tensor, target: Tensor, *, suppressed: int | None = None, weight: float = 0.0) -> Tensor:
    """Return J = sum_{t < T} log p_t(target_t) + weight * sum_{t <= T} log(1 - p_t(suppressed)), for each row.

    With weight 0 it is minus the loss of the greedy coordinate gradient attack (arXiv 2307.15043). The
    second sum is what an attacker adds who knows that the token `suppressed` takes an answer back (Backtracking, arXiv
    2409.14586, the adaptive attack): it also counts the position behind the target, where the model would else reset.

    log(1 - p) is the log-sum-exp of the other logits minus that of all, so that it is exact where p is near 1.

    Args:
        logits: [..., T + 1, V]; those at position t are of the token behind target[:t].
        target: [T] int64 ids.
        suppressed: the id that is to be improbable; needed where `weight` is not 0, and none of `target`.
        weight: how much that counts, 0 or more.

    Returns:
        [...] in nats, at most 0; float32, or float64 for float64 logits.

    Raises:
        ValueError: the shapes do not belong together, or `suppressed` is missing or part of the target.
    """
    if logits.ndim < 2 or logits.shape[-2] != len(target) + 1 or target.ndim != 1:
        raise ValueError(f"a target of {tuple(target.shape)} needs logits [..., T + 1, V], not {tuple(logits.shape)}")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logps = logits[..., :-1, :].log_softmax(-1)
    index = target.expand(logps.shape[:-1]).unsqueeze(-1)
    total = logps.gather(-1, index).squeeze(-1).sum(-1)
    if not weight:
        return total
    if suppressed is None or bool((target == suppressed).any()):
        raise ValueError(f"suppressed={suppressed} is missing or stands in the target: name another token")
    rest = logits.index_fill(-1, torch.tensor([suppressed], device=logits.device), -torch.inf)
    absent = rest.logsumexp(-1) - logits.logsumexp(-1)
    return total + weight * absent.sum(-1)


def greedily_reached(logits: Tensor, target: Tensor, *, suppressed: int | None = None) -> Tensor:
    """Return which rows decode greedily to `target`, and then to anything but `suppressed`.

    Shapes are those of `target_objective`; returns [...] bool.
    """
    chosen = logits.argmax(-1)
    reached = (chosen[..., :-1] == target).all(-1)
    return reached if suppressed is None else reached & (chosen[..., -1] != suppressed)
