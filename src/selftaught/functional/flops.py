"""Floating-point operations of a forward pass, by arithmetic: what "equal FLOPs" means in every comparison here.

A matrix product of [a, b] and [b, c] costs 2abc. Counted are the matrix products: projections, scores and their
mixture, feed-forward layers, the output layer. Embeddings, hashed n-grams and other look-ups, norms, softmax,
activations, rotations and residual sums count as 0 (Pagnoni et al. 2024, arXiv 2412.09871, and, for the convention,
Hoffmann et al. 2022, arXiv 2203.15556). Everything is per token, byte or patch as named, for one forward pass; a
training step costs three: backward is held to be twice the forward pass, and recomputation is not counted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from selftaught.errors import InputError

Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Sizes of a transformer: `layers` of width `width` with feed-forward layers `ffn` wide.

    `gated` feed-forward layers (SwiGLU) have three matrices, others two. `attention` is heads times head width, where
    it is not the width, and `keys` the same for the key-value heads, where these are fewer. `window` is how many
    positions back a query sees, itself included; None for all. `vocabulary` is the output layer's, 0 for none.
    """

    layers: int
    width: int
    ffn: int
    gated: bool = True
    attention: int | None = None
    keys: int | None = None
    window: int | None = None
    vocabulary: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BLTSizes:
    """Sizes of a Byte Latent Transformer: three stacks, and `slots` (k) vectors of the local width per patch.

    `encoder_cross` and `decoder_cross` count the layers with cross-attention; without one in the decoder, a patch is
    projected to one vector that is added to its bytes. `pools` is how often a patch's bytes are pooled and projected to
    slots (W_C): 0 where these start from learned vectors. The decoder's stack holds the output layer's vocabulary.
    `entropy` is the model that finds the patches, None where a table or a rule does.
    """

    encoder: Stack
    latent: Stack
    decoder: Stack
    slots: int
    encoder_cross: int = 1
    decoder_cross: int
    pools: int = 1
    entropy: Stack | None = None

    def __post_init__(self) -> None:
        if self.encoder_cross and self.slots * self.encoder.width != self.latent.width:
            raise InputError(
                f"{self.slots} slots of {self.encoder.width} make no patch of {self.latent.width}: "
                "slots times the encoder's width must be the latent width"
            )


def mean_keys(positions: float, window: float | None = None) -> float:
    """Return how many keys a query of causal attention sees on average over a context of `positions`, itself included.

    mean_i min(i, w) for i = 1..n: (n + 1) / 2 without a window w or with one that is not shorter than the context, else
    w - w (w - 1) / (2n). A kernel that also computes what the mask hides needs n instead.

    Worked: n = 4: (1 + 2 + 3 + 4) / 4 = 2.5; with w = 2: (1 + 2 + 2 + 2) / 4 = 1.75.

    Raises InputError for fewer than one position or a window below 1.
    """
    if positions < 1 or (window is not None and window < 1):
        raise InputError(f"a context of {positions} positions with window {window} sees nothing; give 1 or more")
    if window is None or window >= positions:
        return (positions + 1) / 2
    return window - window * (window - 1) / (2 * positions)


def transformer_flops(stack: Stack, keys: float) -> float:
    """Return forward FLOPs per position of a stack whose queries see `keys` keys on average.

    l (4da + 4dg + 4 keys a + 2mdf) + 2dV, with width d, attention width a, key-value width g, m = 3 matrices of a gated
    feed-forward layer f wide (else 2), and V outputs.

    Worked: l = 1, d = a = g = 2, f = 3 gated, V = 5, keys = 2.5: 16 + 16 + 20 + 36 + 20 = 108.
    """
    attention = stack.width if stack.attention is None else stack.attention
    key_width = attention if stack.keys is None else stack.keys
    matrices = 3 if stack.gated else 2
    projections = 4 * stack.width * (attention + key_width)
    layer = projections + 4 * keys * attention + 2 * matrices * stack.width * stack.ffn
    return stack.layers * layer + 2 * stack.width * stack.vocabulary


def cross_attention_flops(width: int, keys: float, sources: float) -> float:
    """Return forward FLOPs per query of one cross-attention layer of `width` d, without a feed-forward layer.

    4d^2 (query and output) + 4d^2 sources (keys and values) + 4 keys d. `keys` is what a query sees, `sources` how many
    positions are projected to keys and values per query: several queries share them, or each query has several.

    Worked: d = 2, keys = 3, sources = 1.5: 16 + 24 + 24 = 64.
    """
    return 4 * width**2 * (1 + sources) + 4 * keys * width


def transformer_flops_per_byte(stack: Stack, context: float, bytes_per_token: float = 1.0) -> float:
    """Return forward FLOPs per byte of a causal model over tokens: FLOPs per token / bytes per token.

    `context` is in bytes, so that models over bytes and over tokens are compared on the same text; a token model's
    queries see `context / bytes_per_token` tokens or their window. A byte model has 1 byte per token.

    Raises InputError where a token holds less than a byte, or the context less than a token.
    """
    _check_length("bytes per token", bytes_per_token, context)
    return transformer_flops(stack, mean_keys(context / bytes_per_token, stack.window)) / bytes_per_token


def blt_flops_per_byte(sizes: BLTSizes, context: float, patch_length: float) -> dict[str, float]:
    """Return forward FLOPs per byte of a Byte Latent Transformer, by part; their sum is the model's.

    With mean patch length p = `patch_length` and a context of N = `context` bytes, per byte:

        latent           FL(latent, keys of N/p patches) / p
        encoder, decoder FL(stack, keys of N bytes in the stack's window); the decoder's with its output layer
        encoder cross    layers * FL_x(d_E, keys = p, sources = p/k) * k/p     (k slots a patch, each sees its bytes)
        decoder cross    layers * FL_x(d_D, keys = k, sources = k/p)           (every byte sees one patch's k slots)
        projections      (pools * 2 d_E d_G + 2 d_G k d_D) / p                 (W_C and W_D; k is 1 without cross)
        entropy          FL(entropy model, keys of N bytes in its window); absent without one

    The paper's FL/byte (arXiv 2412.09871) has the first five; the projections and the entropy model are counted here
    too, as parts of their own that can be left out of the sum.

    Raises InputError where a patch holds less than a byte, or the context less than a patch.
    """
    _check_length("patch length", patch_length, context)
    slots, p = sizes.slots, patch_length
    encoder_query = cross_attention_flops(sizes.encoder.width, keys=p, sources=p / slots)
    decoder_query = cross_attention_flops(sizes.decoder.width, keys=slots, sources=slots / p)
    projected = sizes.pools * sizes.encoder.width + (slots if sizes.decoder_cross else 1) * sizes.decoder.width
    parts = {
        "latent": transformer_flops_per_byte(sizes.latent, context, p),
        "encoder": transformer_flops_per_byte(sizes.encoder, context),
        "decoder": transformer_flops_per_byte(sizes.decoder, context),
        "encoder cross": sizes.encoder_cross * encoder_query * slots / p,
        "decoder cross": sizes.decoder_cross * decoder_query,
        "projections": 2 * sizes.latent.width * projected / p,
    }
    return parts | ({"entropy": transformer_flops_per_byte(sizes.entropy, context)} if sizes.entropy else {})


def closest(target: float, grid: Iterable[Choice], cost: Callable[[Choice], float]) -> tuple[Choice, float]:
    """Return the member of `grid` whose cost is closest to `target`, and the relative gap, cost / target - 1.

    Of members equally close the first is taken. For a baseline of equal FLOPs per byte, the grid is of `Stack`s of
    several depths and widths, and the gap is reported with the comparison.

    Raises InputError for an empty grid or a target that is not above 0.
    """
    choices = list(grid)
    if not choices or not target > 0:
        raise InputError(f"nothing to match: a target of {target} FLOPs and {len(choices)} sizes; give some of both")
    best = min(choices, key=lambda choice: abs(cost(choice) - target))
    return best, cost(best) / target - 1


def _check_length(name: str, length: float, context: float) -> None:
    if not 1 <= length <= context:
        raise InputError(f"{name} = {length} in a context of {context} bytes: give at least 1, at most the context")
