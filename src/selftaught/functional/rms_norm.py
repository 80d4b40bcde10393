"""Root-mean-square normalisation (arXiv 1910.07467) in few passes over memory: PyTorch has no fused one for CPU."""

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps), [..., d] in x's dtype, computed in float32 at least.

    Args:
        x: [..., d].
        weight: [d].
        eps: added to the mean square.
    """
    # Decoding makes thousands of small calls, of which autograd's bookkeeping is a third.
    return _RMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _normed(x, weight, eps)[0]


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the result and each row's scale [..., 1]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = x.to(wide)
    scale = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (rows * scale).mul_(weight.to(wide)).to(x.dtype), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        rows, g, w = (y.to(scale.dtype) for y in (x, gradient, weight))
        # With r = scale: dx = r g w - x r^3 (g w . x) / d, dw = sum over rows of r g x.
        products = (g * rows).view(-1, x.shape[-1])
        dw = products.T @ scale.flatten()
        shared = (products @ w).view(scale.shape).mul_(scale**3).div_(-x.shape[-1])
        dx = (g * w).mul_(scale).addcmul_(rows, shared)
        return dx.to(x.dtype), dw.to(weight.dtype), None
