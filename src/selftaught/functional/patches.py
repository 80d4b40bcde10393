"""Where the patches of a byte sequence begin (Byte Latent Transformer, arXiv 2412.09871, section 2).

Bytes are ids: byte b is b + 4, ids below 4 are special. Boundaries of a row of N bytes are `starts` [B, N + 1], bool:
`starts[:, i]` says that byte i begins a patch, and `starts[:, N]` says it of the byte that is still to come, which is
what the last byte's prediction needs to know. Bytes 0 and 1 always begin one. Rows are padded on the right: a row's
boundaries are those it has alone, and what lies past its end is cut off by `patch_lengths` and `patch_ids`.
"""

import torch
from torch import Tensor

BOE, BOS, EOS, DELIMITER = range(4)
OFFSET = 4
VOCABULARY = 256 + OFFSET

# Whether what has been read decides where a patch ended, so that the boundaries of a prefix are a prefix of the
# boundaries: f(x[:i]) = f(x)[:i]. Only such patches can be used while generating.
INCREMENTAL = {
    "entropy": True,
    "monotonic": True,
    "both": True,
    "space": True,
    "stride": True,
    "byte": True,
    "explicit": False,
    "top_k": False,
}


BY_THRESHOLD = ("entropy", "monotonic", "both")
"""The rules that compare entropies with a threshold, which can be calibrated for a mean patch length."""
BY_ENTROPY = (*BY_THRESHOLD, "top_k")
"""The rules that read entropies at all."""


def byte_ids(data: bytes) -> Tensor:
    """Return the ids of a text, BOS in front, int64 [len(data) + 1].

    >>> byte_ids(b"a").tolist()
    [1, 101]
    """
    ids = torch.frombuffer(bytearray(b"\0" + data), dtype=torch.uint8).long() + OFFSET
    ids[0] = BOS
    return ids


def next_byte_entropies(logits: Tensor) -> Tensor:
    """Return H_i = -sum_v p(v | x_<=i) ln p(v | x_<=i) in nats, float32 [...], of logits [..., V] (eq. 1, signed)."""
    return torch.special.entr(logits.float().softmax(-1)).sum(-1)


def threshold_starts(entropies: Tensor, threshold: float) -> Tensor:
    """Begin a patch at i + 1 where the entropy of the next byte s_i > threshold: the global rule (section 2.3).

    Args:
        entropies: [B, N] s_i, nats, of byte i + 1 after bytes 0..i were read.
        threshold: nats.

    Returns:
        starts [B, N + 1].
    """
    return _starts_after(entropies > threshold)


def monotonic_starts(entropies: Tensor, rise: float) -> Tensor:
    """Begin a patch at i + 1 where s_i - s_(i-1) > rise: the approximate monotonic rule. Shapes as above."""
    return _starts_after(_rises(entropies) > rise)


def combined_starts(entropies: Tensor, threshold: float, rise: float) -> Tensor:
    """Begin a patch at i + 1 where both rules do: s_i > threshold and s_i - s_(i-1) > rise. Shapes as above."""
    return _starts_after((entropies > threshold) & (_rises(entropies) > rise))


def space_starts(ids: Tensor) -> Tensor:
    """Begin a patch after a space-like byte that follows one which is not (SpaceByte, arXiv 2404.14408).

    Space-like is every id but Latin letters, digits and UTF-8 continuation bytes.

    Args:
        ids: [B, N] int64.

    Returns:
        starts [B, N + 1].
    """
    b = ids - OFFSET
    word = ((b >= 48) & (b <= 57)) | ((b >= 65) & (b <= 90)) | ((b >= 97) & (b <= 122)) | ((b >= 128) & (b < 192))
    after = torch.zeros_like(word)
    after[:, 1:] = ~word[:, 1:] & word[:, :-1]
    return _starts_after(after)


def stride_starts(places: Tensor, stride: int) -> Tensor:
    """Begin a patch at bytes 0, 1, 1 + stride, 1 + 2 stride, ... of each document: starts [B, N + 1].

    Args:
        places: [B, N] int64, how many bytes of its document lie before each one.
        stride: bytes.

    Raises:
        ValueError: a stride below 1.
    """
    _at_least_one("stride", stride)
    return _starts_after(places % stride == 0)


def byte_starts(ids: Tensor) -> Tensor:
    """Begin a patch at every byte of ids [B, N]: starts [B, N + 1]."""
    return _starts_after(torch.ones_like(ids, dtype=torch.bool))


def explicit_starts(patch_lengths: Tensor, n: int) -> Tensor:
    """Begin the patches of `patch_lengths` [B, P]; lengths of 0 are padding, and what lies past byte n is cut off.

    A first patch of several bytes is split after byte 0. This is also how the tokens of a BPE tokenizer become patches.
    Returns starts [B, n + 1].
    """
    begins = patch_lengths.cumsum(1) - patch_lengths
    begins = torch.where(patch_lengths > 0, begins, n + 1).clamp(max=n + 1)
    starts = torch.zeros(len(patch_lengths), n + 2, dtype=torch.bool, device=patch_lengths.device)
    return _starts_after(starts.scatter_(1, begins, True)[:, 1:-1])


def top_k_starts(entropies: Tensor, patch_size: float, lengths: Tensor | None = None) -> Tensor:
    """Begin patches after the bytes of highest entropy, as many as make the mean length `patch_size`.

    A later byte of high entropy takes the place of an earlier one: this rule is not incremental.

    Args:
        entropies: [B, N] s_i, nats.
        patch_size: bytes per patch, at least 1.
        lengths: [B] bytes of each row; None where there is no padding.

    Returns:
        starts [B, N + 1]; of equal entropies the earlier byte's is taken.

    Raises:
        ValueError: a patch size below 1.
    """
    _at_least_one("patch_size", patch_size)
    rows, n = entropies.shape
    sizes = torch.full((rows,), n, device=entropies.device) if lengths is None else lengths
    # Byte 0 is followed by a start whatever its entropy, so it does not compete.
    free = (torch.arange(n, device=entropies.device) > 0) & (torch.arange(n, device=entropies.device) < sizes[:, None])
    order = entropies.masked_fill(~free, -torch.inf).argsort(dim=1, descending=True, stable=True)
    wanted = ((sizes / patch_size).round().long() - 2).clamp(min=0)
    chosen = torch.arange(n, device=entropies.device) < wanted[:, None]
    return _starts_after(torch.zeros_like(free).scatter(1, order, chosen) & free)


def document_begins(ids: Tensor) -> Tensor:
    """Return which bytes begin a document, bool [B, N]: a row's first, and every BOS that follows EOS."""
    begins = torch.zeros_like(ids, dtype=torch.bool)
    begins[:, :1] = True
    begins[:, 1:] = (ids[:, 1:] == BOS) & (ids[:, :-1] == EOS)
    return begins


def positions_since(begins: Tensor) -> Tensor:
    """Return how many bytes lie between each one and the last that `begins` [B, N] something, int64 [B, N]."""
    place = torch.arange(begins.shape[1], device=begins.device).expand_as(begins)
    return place - torch.where(begins, place, 0).cummax(1).values if begins.shape[1] else place


def close_patches(starts: Tensor, closes: Tensor) -> Tensor:
    """Begin a patch after each byte that `closes` [B, N] one, too: starts [B, N + 1]."""
    return torch.cat([starts[:, :1], starts[:, 1:] | closes], 1)


def split_patches(starts: Tensor, max_length: int) -> Tensor:
    """Split patches longer than `max_length` bytes into pieces of that length and a rest: starts [B, N + 1].

    Raises:
        ValueError: a length below 1.
    """
    _at_least_one("max_patch_length", max_length)
    return starts | (positions_since(starts) % max_length == 0)


def patch_lengths(starts: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return how many bytes each patch has, int64 [B, P], padded with 0, P the most patches of a row.

    The byte still to come counts: a row of n bytes sums to n + 1, so that its last length tells whether that byte
    begins a patch (1) or goes on with one. A row without bytes has the one patch of length 1.

    Args:
        starts: [B, N + 1] bool.
        lengths: [B] bytes of each row; None where there is no padding.
    """
    row, place = (starts & _within(starts.shape[1], starts, lengths, 1)).nonzero(as_tuple=True)
    per_row = torch.bincount(row, minlength=len(starts))
    first = per_row.cumsum(0) - per_row
    ends = torch.full((len(starts),), starts.shape[1], device=starts.device) if lengths is None else lengths + 1
    following = torch.cat([place[1:], place[:1]])
    last = first + per_row - 1
    following[last] = ends
    padded = torch.zeros(len(starts), int(per_row.max()) if len(starts) else 0, dtype=torch.int64, device=starts.device)
    padded[row, torch.arange(len(row), device=starts.device) - first[row]] = following - place
    return padded


def patch_ids(starts: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return the number of the patch that each byte lies in, int64 [B, N], -1 past a row's end."""
    n = starts.shape[1] - 1
    return torch.where(_within(n, starts, lengths, 0), starts[:, :n].cumsum(1) - 1, -1)


def complete_patches(starts: Tensor) -> Tensor:
    """Return the number of the last patch that is complete once byte i is read, int64 [B, N].

    Byte i may attend to it when it predicts byte i + 1; byte 0 alone is patch 0, so there always is one.
    """
    return starts.cumsum(1)[:, 1:] - 2


def calibrate_threshold(scores: Tensor, mean_patch_length: float, tolerance: float = 0.01) -> float:
    """Return the threshold over which about one score in `mean_patch_length` lies.

    It is the midpoint between two neighbouring observed values: the widest gap among those whose number of patches is
    within `tolerance` (relative) of the wanted one, or as near as any is, so that rounding does not move a boundary.

    Args:
        scores: observed s_i (or, for the monotonic rule, their rises), any shape, nats.
        mean_patch_length: bytes per patch, more than 1.
        tolerance: relative.

    Raises:
        ValueError: fewer than two different finite scores, or a length of 1 or less.
    """
    if not mean_patch_length > 1:
        raise ValueError(f"mean_patch_length is {mean_patch_length}: it must be more than 1; use patches of one byte")
    values, counts = scores.double().flatten().unique(return_counts=True)
    if not values.isfinite().all():
        raise ValueError(f"{int((~values.isfinite()).sum())} scores are not finite: give entropies, in nats")
    if len(values) < 2:
        raise ValueError(f"different scores: {len(values)}; give at least two, of text that varies")
    above = counts.flip(0).cumsum(0).flip(0)[1:]
    gaps = values.diff()
    wanted = scores.numel() / mean_patch_length
    missed = (above - wanted).abs()
    near = missed <= max(float(missed.min()), tolerance * wanted)
    best = int(torch.where(near, gaps, -1.0).argmax())
    return float((values[best] + values[best + 1]) / 2)


def _rises(entropies: Tensor) -> Tensor:
    return entropies.diff(dim=1, prepend=entropies[:, :1])


def _starts_after(after: Tensor) -> Tensor:
    """Return starts [B, N + 1] from whether a patch begins after each byte [B, N]."""
    starts = torch.cat([after.new_ones(len(after), 1), after], 1)
    starts[:, 1:2] = True
    return starts


def _within(n: int, starts: Tensor, lengths: Tensor | None, more: int) -> Tensor:
    place = torch.arange(n, device=starts.device)
    if lengths is None:
        return (place >= 0).expand(len(starts), -1)
    return place < lengths[:, None] + more


def _at_least_one(name: str, value: float) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}: it must be at least 1")
