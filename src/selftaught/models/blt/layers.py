"""Layers of the Byte Latent Transformer: self-attention with a window, and the two cross-attentions of patches."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from selftaught.functional.patches import positions_since
from selftaught.functional.rms_norm import rms_norm
from selftaught.functional.windowed_attention import windowed_attention

# Blocks of earlier keys that a block of queries reads: more of them waste less of the window, and copy more keys.
BEFORE = 4


@dataclass(frozen=True, slots=True)
class Patches:
    """Which bytes belong to which patch, for rows of N bytes and P patches.

    Attributes:
        lengths: [B, P + 1] bytes of each patch; the last entry counts the row's padding.
        segment: [B * N] the patch of each byte, numbered over all rows, padding a patch of its own.
        complete: [B, N] number in its row of the last patch that is complete at each byte.
    """

    lengths: Tensor
    segment: Tensor
    complete: Tensor

    @property
    def count(self) -> int:
        """P, the most patches of a row."""
        return self.lengths.shape[1] - 1

    def largest(self, values: Tensor) -> Tensor:
        """Return the maximum over each patch's bytes, [B * (P + 1), ...], of values [B * N, ...]; 0 for no bytes."""
        lengths = self.lengths.flatten()
        found = torch.segment_reduce(values.flatten(1), "max", lengths=lengths, unsafe=True, initial=-torch.inf)
        return torch.where(lengths[:, None] > 0, found, 0.0).unflatten(1, values.shape[1:])

    def sums(self, values: Tensor) -> Tensor:
        """Return the sums over each patch's bytes, [B * (P + 1), ...], of values [B * N, ...]."""
        return values.new_zeros(self.lengths.numel(), *values.shape[1:]).index_add(0, self.segment, values)

    def at_bytes(self, values: Tensor) -> Tensor:
        """Return what values [B, P, ...] are for the last complete patch at each byte: [B, N, ...]."""
        rows = torch.arange(len(values), device=values.device)[:, None] * values.shape[1]
        index = (self.complete + rows).flatten()
        return values.flatten(0, 1).index_select(0, index).unflatten(0, self.complete.shape)

    def positions(self, byte_positions: Tensor) -> Tensor:
        """Return the place of each patch in its document, [B, P], of the places of bytes [B, N]."""
        begins = (self.sums((byte_positions == 0).long().flatten()) > 0).unflatten(0, self.lengths.shape)[:, :-1]
        return positions_since(begins)

    def drop_padding(self, values: Tensor) -> Tensor:
        """Return [B, P, ...] of values [B * (P + 1), ...]."""
        return values.unflatten(0, self.lengths.shape)[:, :-1]


def rope(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [..., head_dim / 2], float32, of rotary position embeddings (arXiv 2104.09864)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None].float() * theta**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, N, D], whose component i goes with component i + D / 2, in float32."""
    return _Rotation.apply(x, cos, sin) if torch.is_grad_enabled() else _rotated(x, cos, sin)


class _Rotation(torch.autograd.Function):
    """Written out because autograd would keep and add up four products of each half: a third of the time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    (a, b), (c, d) = x.to(out.dtype).chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cos, out=c).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=d).addcmul_(a, sin)
    return out.to(x.dtype)


def attention_mask(n: int, window: int | None, positions: Tensor | None, device: torch.device) -> Tensor | None:
    """Return who sees whom, bool [1 or B, 1, N, N]; None where plain causal attention is meant.

    Args:
        n: N.
        window: keys seen, one's own included; None for no limit.
        positions: [B, N] places in the documents, which see only themselves; None where rows are one document.
        device: of the mask.
    """
    if positions is None and (window is None or n <= window):
        return None
    back = torch.arange(n, device=device)[:, None] - torch.arange(n, device=device)
    seen = (back >= 0) & (back < (window or n))
    return seen[None, None] if positions is None else (seen & (back <= positions[:, :, None]))[:, None]


class Sight(Protocol):
    """Who sees whom in self-attention over N bytes or patches."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return what queries [B, H, N, D] read from keys and values [B, G, N, D], heads in G groups."""


@dataclass(frozen=True, slots=True)
class WindowSight:
    """Each one sees `window` before it, itself included, of its own document; see `windowed_attention`."""

    window: int | None
    positions: Tensor | None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Sight`."""
        return windowed_attention(q, k, v, self.window, self.positions)


@dataclass(frozen=True, slots=True)
class MaskSight:
    """The same for PyTorch's own attention, with a mask that all layers share.

    Attributes:
        mask: [1 or B, 1, N, N] bool; None for plain causal attention. In blocks: [B * N / block, 1, block, keys].
        block: bytes per block of queries, which see their own block and `BEFORE` earlier ones; None for no blocks.
    """

    mask: Tensor | None
    block: int | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Sight`."""
        if self.block is None:
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=self.mask, is_causal=self.mask is None, enable_gqa=q.shape[1] != k.shape[1]
            )
        rows, n = len(q), q.shape[2]
        parts = (self._blocks(q, 0), self._blocks(k, BEFORE), self._blocks(v, BEFORE))
        out = F.scaled_dot_product_attention(*parts, attn_mask=self.mask, enable_gqa=q.shape[1] != k.shape[1])
        return out.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3)[:, :, :n]

    def _blocks(self, x: Tensor, before: int) -> Tensor:
        """Return [B * blocks, H, (before + 1) * block, D] of [B, H, N, D]: every block after those before it."""
        size = self.block or 1
        padded = F.pad(x, (0, 0, before * size, -x.shape[2] % size)).unflatten(2, (-1, size))
        count = padded.shape[2] - before
        return torch.cat([padded[:, :, i : i + count] for i in range(before + 1)], 3).transpose(1, 2).flatten(0, 1)


def sight(rows: int, n: int, window: int | None, positions: Tensor | None, device: torch.device) -> Sight:
    """Return who sees whom among N = `n` bytes or patches of B = `rows` rows; see `attention_mask`."""
    if device.type == "cpu":
        return WindowSight(window, positions)
    return mask_sight(rows, n, window, positions, device)


def mask_sight(rows: int, n: int, window: int | None, positions: Tensor | None, device: torch.device) -> MaskSight:
    """Return the `sight` of devices with an attention of their own.

    Rows longer than the window are cut into blocks, so that work grows with N * window and not with N * N.
    """
    if window is None:
        return MaskSight(attention_mask(n, None, positions, device))
    block = -(-window // BEFORE)
    if n <= (BEFORE + 1) * block:
        return MaskSight(attention_mask(n, window, positions, device))
    back = torch.arange(block, device=device)[:, None] + BEFORE * block
    back = back - torch.arange((BEFORE + 1) * block, device=device)
    # A byte's place bounds how far back it sees, and with that keeps it from what is before the row.
    place = torch.arange(n, device=device).expand(rows, -1) if positions is None else positions
    place = F.pad(place, (0, -n % block)).unflatten(1, (-1, block))[..., None]
    return MaskSight(((back >= 0) & (back < window) & (back <= place)).flatten(0, 1)[:, None], block)


class RMSNorm(nn.RMSNorm):
    """PyTorch's, which has no kernel of its own on CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., d] to [..., d]."""
        return rms_norm(x, self.weight, self.eps or 0.0) if x.device.type == "cpu" else super().forward(x)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., d] to [..., d]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Causal self-attention with rotary positions, keys shared by groups of heads."""

    def __init__(self, width: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.q = nn.Linear(width, heads * self.head_dim, bias=False)
        self.k = nn.Linear(width, key_heads * self.head_dim, bias=False)
        self.v = nn.Linear(width, key_heads * self.head_dim, bias=False)
        self.o = nn.Linear(heads * self.head_dim, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, seen: Sight) -> Tensor:
        """Map [B, N, d] to [B, N, d]."""
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        out = seen.attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.o(out.transpose(1, 2).flatten(2))


class Block(GradientCheckpointingLayer):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, key_heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, eps)
        self.attention = Attention(width, heads, key_heads)
        self.feed_forward_norm = RMSNorm(width, eps)
        self.feed_forward = FeedForward(width, inner)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, seen: Sight) -> Tensor:
        """Map [B, N, d] to [B, N, d]."""
        x = x + self.attention(self.attention_norm(x), cos, sin, seen)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Stack(nn.Module):
    """Transformer layers that share positions and a mask."""

    def __init__(self, layers: int, width: int, heads: int, key_heads: int, inner: int, eps: float, theta: float):
        super().__init__()
        self.layers = nn.ModuleList(Block(width, heads, key_heads, inner, eps) for _ in range(layers))
        self.head_dim = width // heads
        self.theta = theta

    def rope(self, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rotations of places 0..n-1."""
        return rope(torch.arange(n, device=device), self.head_dim, self.theta)


class CrossAttention(nn.Module):
    """What both cross-attentions share: norms, projections and the residual; patches have k slots as wide as a byte."""

    def __init__(self, width: int, heads: int, eps: float, double_residual: bool) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.residual = 2 if double_residual else 1
        self.q_norm = RMSNorm(width, eps)
        self.kv_norm = RMSNorm(width, eps)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.o = nn.Linear(width, width, bias=False)

    def queries(self, x: Tensor) -> Tensor:
        """Return scaled queries [..., H, D] of x [..., d]."""
        return self.q(self.q_norm(x)).unflatten(-1, (self.heads, -1)) * self.head_dim**-0.5

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [..., H, D] of x [..., d]."""
        x = self.kv_norm(x)
        return self.k(x).unflatten(-1, (self.heads, -1)), self.v(x).unflatten(-1, (self.heads, -1))

    def add(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Return the residual sum of x [..., d] and what was attended to, [..., H, D]."""
        return self.residual * x + self.o(mixed.flatten(-2))


class PatchCrossAttention(CrossAttention):
    """Each slot of a patch attends to the bytes of the patch: a softmax over segments (section 3.2.2)."""

    def forward(self, slots: Tensor, x: Tensor, patches: Patches) -> Tensor:
        """Map slots [B, P, k, d] and byte states [B, N, d] to slots; those of patches without bytes are only kept."""
        q = F.pad(self.queries(slots), (0, 0, 0, 0, 0, 0, 0, 1)).flatten(0, 1)
        k, v = (y.flatten(0, 1) for y in self.keys_values(x))
        scores = (q.index_select(0, patches.segment) * k[:, None]).sum(-1).float()
        top = patches.largest(scores.detach())
        weights = (scores - top.index_select(0, patches.segment)).exp()
        # In float32, as the weights are: a patch may have thousands of bytes to add up.
        mixed = patches.sums(weights[..., None] * v[:, None])
        total = patches.sums(weights).clamp(min=torch.finfo(torch.float32).tiny)
        return self.add(slots, patches.drop_padding((mixed / total[..., None]).to(x.dtype)))


class ByteCrossAttention(CrossAttention):
    """Each byte attends to the k slots of the last patch that is complete at it (section 3.3.1)."""

    def forward(self, x: Tensor, slots: Tensor, patches: Patches) -> Tensor:
        """Map byte states [B, N, d] and slots [B, P, k, d] to byte states."""
        k, v = (patches.at_bytes(y) for y in self.keys_values(slots))
        weights = (self.queries(x)[:, :, None] * k).sum(-1).float().softmax(2).to(x.dtype)
        return self.add(x, (weights[..., None] * v).sum(2))
