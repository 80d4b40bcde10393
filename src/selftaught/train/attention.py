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

# Up to this width of a row, scores as plain matmuls beat CPU's fused attention (6 times in bf16, whose fused backward is
# slow), and keeping them for the backward pass costs less memory than the other activations of a layer.
MATMUL_WIDTH = 1024


@dataclass(slots=True, kw_only=True)
class Layout:
    """How N packed tokens form R rows of width T.

    `token` [R * T] holds the token that lies in each place (token 0 for padding), `place` [N] the place of each token,
    `padding` the places without one. `segments` and `positions` [R, T] are those of `functional.tree`. Where `is_tree` is
    false every row is one branch, and a causal mask does, because padding comes last.
    """

    rows: int
    width: int
    token: Tensor
    place: Tensor
    padding: Tensor
    positions: Tensor
    segments: Tensor
    is_tree: bool
    _cache: dict[Any, Any] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """Return the [R, T, T] mask for this window, or None where a causal mask is the same."""
        if not self.is_tree and (window is None or window >= self.width):
            return None
        if window not in self._cache:
            self._cache[window] = tree_mask(self.segments, self.positions, window)
        return self._cache[window]

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the mask as an addend, [R or 1, T, T]: 0 where attention is allowed, minus infinity elsewhere."""
        if (window, dtype) not in self._cache:
            mask = self.mask(window)
            if mask is None:
                mask = torch.ones(1, self.width, self.width, dtype=torch.bool, device=self.token.device).tril()
            zero = torch.zeros((), dtype=dtype, device=self.token.device)
            self._cache[window, dtype] = torch.where(mask, zero, -torch.inf)
        return self._cache[window, dtype]

    def index(self, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return row numbers between [N * heads, D] and [heads * R * T, D]: into rows, back, and those of padding."""
        if heads not in self._cache:
            head = torch.arange(heads, device=self.token.device)
            offset = head * (self.rows * self.width)
            into = self.token * heads + head[:, None]
            back, padding = self.place[:, None] + offset, self.padding + offset[:, None]
            self._cache[heads] = (into.flatten(), back.flatten(), padding.flatten())
        return self._cache[heads]

    def in_rows(self, values: Tensor) -> Tensor:
        """Return per-token `values` [1, N, D] as [R, T, D]; the same tensor, given again, costs nothing."""
        if id(values) not in self._cache:
            rows = values[0].index_select(0, self.token).view(self.rows, self.width, -1)
            self._cache[id(values)] = (rows, values)
        return self._cache[id(values)][0]


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
    odd = sorted(name for name in ("softcap", "s_aux", "position_bias") if unsupported.get(name) is not None)
    if layout is None or odd or attention_mask is not None:
        raise NotImplementedError(f"packed attention got {odd or 'a mask or no layout'}")
    q, k, v = (to_rows(x[0].transpose(0, 1), layout) for x in (query, key, value))
    return from_rows(attend(q, k, v, layout, sliding_window, scaling), layout)[None], None


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, window: int | None, scaling: float | None) -> Tensor:
    """Return softmax(scaling * q k^T + mask) v within each row; q [H, R, T, D], k and v [H_kv, R, T, D] -> [H, R, T, D]."""
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    if q.device.type == "cpu" and layout.width <= MATMUL_WIDTH:
        return _MatmulAttention.apply(q, k, v, layout.bias(window, q.dtype), scaling)
    mask = layout.mask(window)
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if mask is None else mask.unsqueeze(1),
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.transpose(0, 1)


def to_rows(tokens: Tensor, layout: Layout, cos: Tensor | None = None, sin: Tensor | None = None, rotated: int = 0) -> Tensor:
    """Return [N, heads, D] as [heads, R, T, D], with rotary positions applied to the first `rotated` heads.

    `cos` and `sin` are [1, N, D] (RoFormer, arXiv 2104.09864, in the half-split form of transformers).
    """
    return _ToRows.apply(tokens, layout, cos, sin, rotated)


def from_rows(rows: Tensor, layout: Layout) -> Tensor:
    """Return [heads, R, T, D] as [N, heads, D]; padding is dropped."""
    return _FromRows.apply(rows, layout)


class _ToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layout: Layout, cos: Tensor | None, sin: Tensor | None, rotated: int) -> Tensor:
        ctx.layout, ctx.cos, ctx.sin, ctx.rotated = layout, cos, sin, rotated
        heads, size = tokens.shape[1:]
        rows = tokens.reshape(-1, size).index_select(0, layout.index(heads)[0])
        rows = rows.view(heads, layout.rows, layout.width, size)
        if rotated:
            _rotate(rows[:rotated], layout.in_rows(cos), layout.in_rows(sin), 1)
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        heads, size = grad.shape[0], grad.shape[-1]
        tokens = grad.reshape(-1, size).index_select(0, ctx.layout.index(heads)[1]).view(-1, heads, size)
        if ctx.rotated:
            _rotate(tokens[:, : ctx.rotated], ctx.cos[0].unsqueeze(1), ctx.sin[0].unsqueeze(1), -1)
        return tokens, None, None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> None:
    """Rotate pairs (i, i + D/2) of `x` in place by their angle, or back with direction -1."""
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    before = low.clone()
    low.mul_(cos[..., :half]).addcmul_(high, sin[..., :half], value=-direction)
    high.mul_(cos[..., half:]).addcmul_(before, sin[..., half:], value=direction)


class _FromRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        heads, size = rows.shape[0], rows.shape[-1]
        return rows.reshape(-1, size).index_select(0, layout.index(heads)[1]).view(-1, heads, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        heads, size = grad.shape[1:]
        into, _, padding = ctx.layout.index(heads)
        rows = grad.reshape(-1, size).index_select(0, into).index_fill_(0, padding, 0)
        return rows.view(heads, ctx.layout.rows, ctx.layout.width, size), None


class _MatmulAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> Tensor:
        scaled = (q * scaling).flatten(0, 1)
        groups = q.shape[0] // k.shape[0]
        wide_k, wide_v = (x.repeat_interleave(groups, 0).flatten(0, 1) for x in (k, v))
        scores = torch.bmm(scaled, wide_k.transpose(1, 2))
        scores.view(*q.shape[:2], *scores.shape[1:]).add_(bias)
        weights = scores.softmax(-1)
        ctx.save_for_backward(scaled, wide_k, wide_v, weights)
        ctx.scaling, ctx.groups, ctx.shape = scaling, groups, q.shape
        return torch.bmm(weights, wide_v).view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        scaled, k, v, weights = ctx.saved_tensors
        grad = grad.flatten(0, 1)
        d_v = torch.bmm(weights.transpose(1, 2), grad)
        d_weights = torch.bmm(grad, v.transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        d_q = torch.bmm(d_scores, k).mul_(ctx.scaling)
        d_k = torch.bmm(d_scores.transpose(1, 2), scaled)
        d_k, d_v = (_sum_groups(x.view(ctx.shape), ctx.groups) for x in (d_k, d_v))
        return d_q.view(ctx.shape), d_k, d_v, None, None


def _sum_groups(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.unflatten(0, (-1, groups)).sum(1)


AttentionInterface.register(NAME, packed_attention)
