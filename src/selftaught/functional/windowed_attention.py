"""Causal self-attention within a window, a block of queries at a time, with matmuls: for long rows on CPU.

PyTorch's own attention on CPU computes every score of a masked row, and its matmuls are of the slower of two libraries
on many CPUs. Here a block reads the keys it can see, its scores stay in the processor's cache, and the backward pass
computes them again instead of keeping them, as FlashAttention does (arXiv 2205.14135).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Queries per block, and scores computed at a time: 8 MB of them in float32.
BLOCK = 128
SCORES = 2**21


def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int | None = None, positions: Tensor | None = None
) -> Tensor:
    """Return softmax(Q K^T / sqrt(D)) V, [B, H, N, D], over the keys that each query sees.

    Query i sees key j where 0 <= i - j < window, and i - j <= positions[i].

    Args:
        q: [B, H, N, D].
        k: [B, G, N, D], of G groups of H / G heads each.
        v: as k.
        window: keys seen, a query's own included; None for no limit.
        positions: [B, N] places in the documents, which see only themselves; None where rows are one document.
    """
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return _WindowedAttention.apply(q, k, v, window, positions)


class _WindowedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int | None, positions: Tensor | None) -> Tensor:
        shape = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        ctx.save_for_backward(q, k, v, positions)
        ctx.window, ctx.heads = window, shape[1]
        out = torch.empty_like(q)
        for rows, queries, keys, bias in _blocks(q, shape[1], window, positions):
            weights = _weights(q[rows, queries], k[rows, keys].contiguous(), bias)
            out[rows, queries] = torch.bmm(weights, v[rows, keys])
        return out.view(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, positions = ctx.saved_tensors
        shape, gradient = gradient.shape, gradient.flatten(0, 1)
        dq = torch.empty_like(q)
        # Several blocks add to a key: in float32, where the keys have less.
        dk, dv = (torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
        for rows, queries, keys, bias in _blocks(q, ctx.heads, ctx.window, positions):
            # oneDNN takes a contiguous matrix transposed as it is, and would copy a slice of one element by element.
            query, g = q[rows, queries].contiguous(), gradient[rows, queries].contiguous()
            key, value = k[rows, keys].contiguous(), v[rows, keys].contiguous()
            weights = _weights(query, key, bias)
            dv[rows, keys] += torch.bmm(weights.transpose(1, 2), g)
            dscores = torch._softmax_backward_data(torch.bmm(g, value.transpose(1, 2)), weights, -1, q.dtype)
            dscores *= q.shape[-1] ** -0.5
            dq[rows, queries] = torch.bmm(dscores, key)
            dk[rows, keys] += torch.bmm(dscores.transpose(1, 2), query)
        return dq.view(shape), dk.to(k.dtype).view(shape), dv.to(v.dtype).view(shape), None, None


def _weights(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """Return attention weights [R, queries, keys]."""
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return torch.softmax(scores, -1, out=scores)


def _blocks(
    q: Tensor, heads: int, window: int | None, positions: Tensor | None
) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Yield rows of [B * H, N, D], their queries, the keys these may see, and the mask as a bias [rows, queries, keys].

    Every query sees itself, so that no row of weights is empty.
    """
    count, n = len(q) // heads, q.shape[1]
    for first in range(0, n, BLOCK):
        last = min(first + BLOCK, n)
        start = max(0, first - window + 1) if window else 0
        back = torch.arange(first, last, device=q.device)[:, None] - torch.arange(start, last, device=q.device)
        seen = ((back >= 0) & (back < (window or n)))[None]
        step = max(1, SCORES // (heads * seen.numel()))
        for row in range(0, count, step):
            chunk = slice(row, min(row + step, count))
            visible = seen if positions is None else seen & (back <= positions[chunk, first:last, None])
            bias = torch.zeros(visible.shape, dtype=q.dtype, device=q.device).masked_fill_(~visible, -torch.inf)
            bias = bias[:, None].expand(chunk.stop - row, heads, -1, -1).flatten(0, 1)
            yield slice(row * heads, chunk.stop * heads), slice(first, last), slice(start, last), bias
