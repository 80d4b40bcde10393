"""Log-probabilities of chosen tokens from hidden states, without the logits of all positions ever being in memory."""

from typing import Any

import torch
from torch import Tensor

CHUNK = 1024

# Exponentials of so few logits are kept for the backward pass: making them again would cost more than it saves.
KEPT_BYTES = 2**25


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int = CHUNK,
    kept_bytes: int = KEPT_BYTES,
) -> Tensor:
    """Return log softmax(f(hidden W^T + b))[targets], with f(z) = softcap * tanh(z / softcap) where `softcap` is given.

    Logits are made for `chunk` positions at a time, in float32 (float64 for float64 input). Their exponentials are kept
    for the backward pass only if they need at most `kept_bytes` and nothing caps them; else they are made again there,
    and memory is chunk x V, not N x V. Softcapping as in Gemma 2 (arXiv 2408.00118, section 2).

    Args:
        hidden: [N, d], the last hidden states at the source positions.
        weight: [V, d], the LM head.
        targets: [N] int64 ids in 0..V-1.
        bias: [V], the LM head's bias.

    Returns:
        [N] float32, in nats.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1] or weight.shape[1:] != hidden.shape[1:]:
        shapes = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(f"token_logps needs hidden [N, d], weight [V, d] and targets [N], not {shapes}")
    return _TokenLogps.apply(hidden, weight, bias, targets, softcap, chunk, kept_bytes)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, targets, softcap, chunk, kept_bytes):
        wide = _wide(weight)
        logps = hidden.new_empty(hidden.shape[0], dtype=wide.dtype)
        largest, sums = torch.empty_like(logps), torch.empty_like(logps)
        fits = len(hidden) * len(weight) * wide.element_size() <= kept_bytes
        keep = fits and softcap is None and any(ctx.needs_input_grad)
        kept = []
        for part in _parts(hidden, chunk):
            logits = _logits(hidden[part], wide, bias, softcap)
            torch.amax(logits, -1, out=largest[part])
            logps[part] = logits.gather(-1, targets[part, None]).squeeze(-1)
            exponentials = logits.sub_(largest[part, None]).exp_()
            torch.sum(exponentials, -1, out=sums[part])
            kept += [exponentials] if keep else []
        ctx.save_for_backward(hidden, weight, bias, targets, largest, sums, *kept)
        ctx.softcap, ctx.chunk = softcap, chunk
        return logps - largest - sums.log()

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        hidden, weight, bias, targets, largest, sums, *kept = ctx.saved_tensors
        wide = _wide(weight)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(wide) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=wide.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        scale = -grad / sums
        for i, part in enumerate(_parts(hidden, ctx.chunk)):
            # d logp / d logits = onehot(target) - softmax(logits)
            if kept:
                d_logits = kept[i] * scale[part, None]
            else:
                logits = _logits(hidden[part], wide, bias, ctx.softcap)
                slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap) ** 2
                d_logits = logits.sub_(largest[part, None]).exp_().mul_(scale[part, None])
            d_logits.scatter_add_(-1, targets[part, None], grad[part, None])
            if not kept and slope is not None:
                d_logits.mul_(slope)
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            narrow = d_logits.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(narrow, weight, out=d_hidden[part])
            if d_weight is not None:
                d_weight += narrow.T @ hidden[part]
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        d_bias = None if d_bias is None else d_bias.to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None


def _parts(hidden: Tensor, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, len(hidden), chunk)]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = hidden.to(weight.dtype) @ weight.T
    if bias is not None:
        logits += bias.to(weight.dtype)
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    return logits
