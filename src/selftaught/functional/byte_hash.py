"""Rolling polynomial hashes of byte n-grams (Byte Latent Transformer, arXiv 2412.09871, section 3.2.1)."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

PRIME = 1_000_000_007


def ngram_hashes(ids: Tensor, sizes: Sequence[int], positions: Tensor | None = None, prime: int = PRIME) -> Tensor:
    """Return RollPoly(x_(i-n+1), ..., x_i) = sum_j x_(i-n+1+j) a^j mod 2^64 for every byte i and size n.

    All sizes come from one pass, as h_n(i) = x_(i-n+1) + a h_(n-1)(i).

    Args:
        ids: [B, N] int64.
        sizes: n-gram sizes n, at least 1, ascending.
        positions: [B, N] place of each byte in its document; bytes before its first count as 0. None: a row is one.
        prime: a.

    Returns:
        [B, N, len(sizes)] int64, wrapped.

    Raises:
        ValueError: sizes that are not ascending from at least 1.
    """
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"n-gram sizes {list(sizes)}: give ascending sizes of at least 1")
    n = ids.shape[1]
    place = torch.arange(n, device=ids.device).expand_as(ids) if positions is None else positions
    value, hashes = torch.zeros_like(ids), []
    for back in range(sizes[-1]):
        earlier = torch.zeros_like(ids)
        earlier[:, back:] = ids[:, : max(n - back, 0)]
        value = value * prime + earlier.masked_fill(place < back, 0)
        if back + 1 in sizes:
            hashes.append(value)
    return torch.stack(hashes, -1)


def next_ngram_hashes(recent: Tensor, sizes: Sequence[int], prime: int = PRIME) -> Tensor:
    """Return the hashes [B, len(sizes)] that end in the last of the bytes `recent` [B, M], with 0 for missing ones.

    The same numbers as the last column of `ngram_hashes`, when M is at least the largest size (or all there is).
    """
    recent = recent[:, -sizes[-1] :]
    powers = _powers(tuple(sizes), prime)[sizes[-1] - recent.shape[1] :].to(recent.device)
    return (recent[:, :, None] * powers).sum(1)


@lru_cache
def _powers(sizes: tuple[int, ...], prime: int) -> Tensor:
    """Return what a byte counts in the hash of each size, oldest byte first: [largest size, len(sizes)] int64."""
    largest = sizes[-1]
    # The newest byte counts a^(n-1), the oldest of its n bytes 1, and those before it nothing.
    rows = [[pow(prime, n - largest + i, 2**64) if n - largest + i >= 0 else 0 for n in sizes] for i in range(largest)]
    return torch.tensor([[x - (x >> 63 << 64) for x in row] for row in rows])
