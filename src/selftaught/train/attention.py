"""Attention over packed rows: tokens of all rows lie end to end, without padding, and are split into rows only here.

Linear layers, norms and embeddings then touch no padding at all, and a completion's queries meet the prompt's keys and
their own, never another completion's. Registered with transformers under `NAME`; a model that does not go through its
attention interface fails the probe (`train.probe`) and trains on padded rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from selftaught.train.layout import Layout

NAME = "selftaught_packed"

# Up to this many keys, scores as plain matmuls beat CPU's fused attention (6 times in bf16, whose fused backward is
# slow), and keeping them for the backward pass costs less memory than the other activations of a layer.
MATMUL_KEYS = 1024


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
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = [_by_group(x[0], layout) for x in (query, key, value)]
    outputs = [
        _attend_group(q, k, v, layout, i, sliding_window, scaling)
        for i, (q, k, v) in enumerate(zip(*grouped, strict=True))
    ]
    return _FromPlaces.apply(torch.cat(outputs), query.shape[1], layout)[None], None


def _by_group(heads: Tensor, layout: Layout) -> list[Tensor]:
    """[H, N, D] -> per group [H, rows, T, D]. By one split: a slice's gradient would be as large as the whole."""
    count = heads.shape[0]
    places = _ToPlaces.apply(heads.transpose(0, 1), layout).split([g.rows * g.width * count for g in layout.groups])
    return [x.view(count, g.rows, g.width, -1) for x, g in zip(places, layout.groups, strict=True)]


def _attend_group(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, index: int, window: int | None, scaling: float
) -> Tensor:
    """Return [H * rows * T, D]: every part of the group's rows attends to the prompt and itself."""
    parts = layout.groups[index].parts
    queries, keys, values = (x.split(parts, 2) for x in (q, k, v))
    outputs = []
    for part, own in enumerate(queries):
        if not parts[part]:
            continue
        seen_k = keys[0] if part == 0 else torch.cat([keys[0], keys[part]], 2)
        seen_v = values[0] if part == 0 else torch.cat([values[0], values[part]], 2)
        bias = layout.bias(index, part, window, q.dtype)
        outputs.append(_attend(own, seen_k, seen_v, bias, scaling))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)).reshape(-1, q.shape[-1])


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """Return softmax(scaling q k^T + bias) v, [H, R, T, D].

    q [H, R, T, D], k and v [H_kv, R, S, D], bias [R or 1, T, S].
    """
    if q.device.type == "cpu" and k.shape[2] <= MATMUL_KEYS:
        return _MatmulAttention.apply(q, k, v, bias, scaling)
    grouped = q.shape[0] != k.shape[0]
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(1), scale=scaling, enable_gqa=grouped)
    return out.transpose(0, 1)


class _ToPlaces(torch.autograd.Function):
    """[N, heads, D] -> [heads * P, D], group by group. A token lies in one place: the gradient is a pick as well."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layout: Layout) -> Tensor:
        ctx.layout, ctx.shape = layout, tokens.shape
        return tokens.reshape(-1, tokens.shape[-1]).index_select(0, layout.index(tokens.shape[1])[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return grad.index_select(0, ctx.layout.index(ctx.shape[1])[1]).view(ctx.shape), None


class _FromPlaces(torch.autograd.Function):
    """[heads * P, D] -> [N, heads, D]; padding is dropped, and gets gradient 0."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, heads: int, layout: Layout) -> Tensor:
        ctx.layout, ctx.heads = layout, heads
        return places.index_select(0, layout.index(heads)[1]).view(-1, heads, places.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        into, _, padding = ctx.layout.index(ctx.heads)
        return grad.reshape(-1, grad.shape[-1]).index_select(0, into).index_fill_(0, padding, 0), None, None


class _MatmulAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> Tensor:
        heads, rows, width, _ = q.shape
        groups = heads // k.shape[0]
        wide_q = q.reshape(heads * rows, width, -1)
        wide_k, wide_v = ((x if groups == 1 else x.repeat_interleave(groups, 0)).flatten(0, 1) for x in (k, v))
        scores = bias.new_empty(heads, rows, *bias.shape[1:]).copy_(bias).flatten(0, 1)
        weights = scores.baddbmm_(wide_q, wide_k.transpose(1, 2), alpha=scaling).softmax(-1)
        ctx.save_for_backward(wide_q, wide_k, wide_v, weights)
        ctx.scaling, ctx.groups, ctx.heads = scaling, groups, heads
        return torch.bmm(weights, wide_v).view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        q, k, v, weights = ctx.saved_tensors
        grad = grad.reshape(q.shape)
        d_v = torch.bmm(weights.transpose(1, 2), grad)
        d_weights = torch.bmm(grad, v.transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        d_q = torch.bmm(d_scores, k).mul_(ctx.scaling)
        d_k = torch.bmm(d_scores.transpose(1, 2), q).mul_(ctx.scaling)
        d_k, d_v = (x.unflatten(0, (ctx.heads, -1)) for x in (d_k, d_v))
        if ctx.groups > 1:
            d_k, d_v = (x.unflatten(0, (-1, ctx.groups)).sum(1) for x in (d_k, d_v))
        return d_q.unflatten(0, (ctx.heads, -1)), d_k, d_v, None, None


AttentionInterface.register(NAME, packed_attention)
