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
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        rows = x.to(wide)
        scale = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (rows * scale).mul_(weight.to(wide)).to(x.dtype)

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
