"""KTO: losses on single completions or steps that are good or bad, unreduced: one value per completion or step."""

import torch
from torch import Tensor

from selftaught.functional.nll import sequence_sums


def kto(
    log_ratios: Tensor,
    labels: Tensor,
    z: Tensor | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the KTO loss of each completion (or step): w * [lambda - v].

    v = lambda_D sigmoid(beta (r - z)) where it is good, lambda_U sigmoid(beta (z - r)) where it is bad, so the loss is
    w lambda sigmoid(-s beta (r - z)) with s = 1 or -1. Kahneman-Tversky Optimization, arXiv 2402.01306, eq. 7-8. Its
    gradient is largest at r = z and fades on both sides. Float32 inside (float64 for float64 input).

    Args:
        log_ratios: [N], r = log pi(y|x) - log pi_ref(y|x) in nats, summed over the completion (or over the step).
        labels: [N], 1 or True where good.
        z: the reference point in nats, a scalar; no gradient passes through it.
        desirable_weight, undesirable_weight: lambda_D and lambda_U.
        weight: [N], or None for 1.

    Returns:
        [N], between 0 and w lambda.
    """
    wide = torch.promote_types(log_ratios.dtype, torch.float32)
    good = labels.to(wide)
    point = z.detach().to(wide) if isinstance(z, Tensor) else z
    weights = good * desirable_weight + (1 - good) * undesirable_weight
    loss = weights * torch.sigmoid((1 - 2 * good) * beta * (log_ratios.to(wide) - point))
    return loss if weight is None else weight * loss


def reference_point(total: Tensor, count: Tensor) -> Tensor:
    """Return z = max(0, total / count), without gradient; 0 where nothing was counted.

    `total` is a sum of log-ratios in nats over `count` mismatched completions (arXiv 2402.01306, section 4.1) or over
    steps; both are scalars.
    """
    return (total / count.clamp(min=1)).clamp(min=0).detach()


def step_means(losses: Tensor, example: Tensor, examples: int) -> Tensor:
    """Return the mean loss over the steps of each of `examples` examples: [E], 0 for one without steps.

    Args:
        losses: [T], one per step.
        example: [T] int64, the example of each step, in 0..E-1.
    """
    counts = sequence_sums(torch.ones_like(losses), example, examples)
    return sequence_sums(losses, example, examples) / counts.clamp(min=1)
