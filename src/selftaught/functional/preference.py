"""Preference losses on pairs, unreduced: one value per pair."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the DPO loss of each pair: w * [-(1 - e) log sigmoid(h) - e log sigmoid(-h)].

    h = beta * [(chosen - ref chosen) - (rejected - ref rejected)] is the reward margin. Direct Preference Optimization,
    arXiv 2305.18290, eq. 7; label smoothing e as in conservative DPO (Mitchell 2023, eq. 3); the weight as in ScPO,
    arXiv 2411.04109, eq. 2. Float32 inside.

    Args:
        chosen_logps, rejected_logps: [P], log-probabilities under the policy in nats: summed over the completion, or
            averaged where the objective is length-normalised.
        ref_chosen_logps, ref_rejected_logps: [P], the same under the reference.
        weight: [P], or None for 1. A weight of 0 gives exactly zero loss and gradient.

    Returns:
        [P] float32, in nats.
    """
    margin = beta * log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    loss = -F.logsigmoid(margin) if label_smoothing == 0 else _smoothed(margin, label_smoothing)
    return loss if weight is None else weight * loss


def ipo(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the IPO loss of each pair: w * (m - (1 - 2e) / (2 beta))^2, with m the margin of log-ratios.

    A General Theoretical Paradigm to Understand Learning from Human Preferences, arXiv 2310.12036, eq. 17, with its
    tau called beta. With probability e a label is flipped, and the minimum moves to (1 - 2e) / (2 beta); the constant
    that the flipped square adds has no gradient and is left out. Arguments and result as for `dpo`, in nats squared;
    the authors' log-ratios are averaged over tokens, so pass means.
    """
    margin = log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    loss = (margin - (1 - 2 * label_smoothing) / (2 * beta)) ** 2
    return loss if weight is None else weight * loss


def log_ratio_margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """Return (chosen - ref_chosen) - (rejected - ref_rejected), [P], in at least float32."""
    dtype = torch.promote_types(chosen.dtype, torch.float32)
    return (chosen.to(dtype) - ref_chosen.to(dtype)) - (rejected.to(dtype) - ref_rejected.to(dtype))


def _smoothed(margin: Tensor, e: float) -> Tensor:
    return -(1 - e) * F.logsigmoid(margin) - e * F.logsigmoid(-margin)
