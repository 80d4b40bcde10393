"""Attention over packed rows: tokens of all rows lie end to end, without padding, and are split into rows only here.

Linear layers, norms and embeddings then touch no padding at all. Registered with transformers under `NAME`; a model
that does not go through its attention interface fails the probe (`train.probe`) and trains on padded rows.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from selftaught.functional.tree import tree_mask

NAME = "selftaught_packed"
MATMUL_SCORES = 2**25


@dataclass(slots=True, kw_only=True)
class Layout:
    """How N packed tokens form R rows of width T.

    `pad` [R * T] holds for each padded place the token that lies there (token 0 for padding), `unpad` [N] the place of
    each token. `segments` and `positions` [R, T] are those of `functional.tree`, None where every row is one branch: a
    causal mask then does, because padding comes last.
    """

    rows: int
    width: int
    pad: Tensor
    unpad: Tensor
    positions: Tensor
    segments: Tensor
    is_tree: bool
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    biases: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """Return the [R, 1, T, T] mask for this window, or None where a causal mask is the same."""
        if window is not None and window >= self.width:
            window = None
        if not self.is_tree and window is None:
            return None
        if window not in self.masks:
            self.masks[window] = tree_mask(self.segments, self.positions, window).unsqueeze(1)
        return self.masks[window]

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the mask as an addend, [R or 1, T, T]: 0 where attention is allowed, minus infinity elsewhere."""
        if (window, dtype) not in self.biases:
            mask = self.mask(window)
            if mask is None:
                mask = torch.ones(1, 1, self.width, self.width, dtype=torch.bool).tril()
            zero = torch.zeros((), dtype=dtype)
            self.biases[window, dtype] = torch.where(mask.squeeze(1), zero, -torch.inf)
        return self.biases[window, dtype]


class _Rearrange(torch.autograd.Function):
    """Rows of `source` picked by `index`; each row that matters is picked once, so the gradient is a pick as well."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return source.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return grad.index_select(0, ctx.saved_tensors[1]), None, None


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    **unsupported: Any,
) -> tuple[Tensor, None]:
    """Attend within rows. query [1, H, N, D], key and value [1, H_kv, N, D] -> [1, N, H, D].

    Raises:
        NotImplementedError: the model asks for something this function does not compute (the probe then falls back).
    """
    odd = sorted(k for k in ("softcap", "s_aux", "position_bias") if unsupported.get(k) is not None)
    if layout is None or odd or attention_mask is not None:
        raise NotImplementedError(f"packed attention got layout={layout is not None}, {odd or 'a mask'}")
    rows, width = layout.rows, layout.width

    def split(x: Tensor) -> Tensor:
        tokens = x.squeeze(0).transpose(0, 1)
        padded = _Rearrange.apply(tokens, layout.pad, layout.unpad)
        return padded.view(rows, width, *tokens.shape[1:]).transpose(1, 2)

    q, k, v = split(query), split(key), split(value)
    out = _attend(q, k, v, layout, sliding_window, scaling)
    out = out.transpose(1, 2).reshape(rows * width, *out.shape[1:2], out.shape[-1])
    return _Unpad.apply(out, layout.unpad, layout.pad, rows * width).unsqueeze(0), None


def _attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, window: int | None, scaling: float | None) -> Tensor:
    mask = layout.mask(window)
    if q.device.type == "cpu" and layout.rows * q.shape[1] * layout.width**2 <= MATMUL_SCORES:
        bias = layout.bias(window, q.dtype)
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if q.shape[1] > 1 and bias.shape[0] > 1:
            bias = bias.repeat_interleave(q.shape[1], 0)
        return _MatmulAttention.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias, scale).view(
            q.shape[:3] + v.shape[-1:]
        )
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )


class _MatmulAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        weights = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return torch.bmm(weights, v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        q, k, v, weights = ctx.saved_tensors
        d_v = torch.bmm(weights.transpose(1, 2), grad)
        d_weights = torch.bmm(grad, v.transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        return torch.bmm(d_scores, k), torch.bmm(d_scores.transpose(1, 2), q), d_v, None, None


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, padded: Tensor, unpad: Tensor, pad: Tensor, places: int) -> Tensor:
        ctx.save_for_backward(unpad)
        ctx.places = places
        return padded.index_select(0, unpad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (unpad,) = ctx.saved_tensors
        full = grad.new_zeros(ctx.places, *grad.shape[1:])
        return full.index_copy_(0, unpad, grad), None, None, None


AttentionInterface.register(NAME, packed_attention)
