"""Configurations of the Byte Latent Transformer and of the n-gram model that places its patches."""

import copy
from math import isnan
from typing import Any

from transformers import AutoConfig, MistralConfig, PreTrainedConfig

from selftaught.errors import InputError
from selftaught.functional.byte_hash import PRIME
from selftaught.functional.patches import BOS, EOS, INCREMENTAL, VOCABULARY

CHOICES = {
    "patching": tuple(INCREMENTAL),
    "encoder_cross_attention": ("all", "last", "none"),
    "decoder_cross_attention": ("all", "first", "none"),
    "ngram_table": ("hash", "frequency"),
    "ngram_padding": ("omit", "zero"),
}
WHOLE = (
    "hidden_size",
    "max_position_embeddings",
    "window",
    "patch_width",
    "encoder_layers",
    "decoder_layers",
    "num_hidden_layers",
    "num_attention_heads",
    "global_attention_heads",
    "ngram_vocab",
    "encoder_intermediate",
    "decoder_intermediate",
    "intermediate_size",
)


class ByteNgramsConfig(PreTrainedConfig):
    """Counts of byte n-grams, interpolated, as a table of next-byte entropies.

    Attributes:
        context: bytes of context, 0 to 3.
        contexts: seen contexts of 3 bytes whose entropy is stored.
    """

    model_type = "selftaught_byte_ngrams"

    vocab_size: int = VOCABULARY
    context: int = 3
    contexts: int = 0


class ByteTransformerConfig(MistralConfig):
    """A Mistral over bytes; under a name of its own, transformers' Auto classes give it the byte tokenizer."""

    model_type = "selftaught_byte_transformer"


class BltConfig(PreTrainedConfig):
    """A Byte Latent Transformer (arXiv 2412.09871). Defaults are the paper's choices in a small size.

    Attributes:
        hidden_size: d_E = d_D, the width of the byte states.
        patch_width: k, how many times wider the patch states are: d_G = k * hidden_size.
        num_attention_heads: of encoder, decoder and their cross-attention.
        encoder_layers, decoder_layers, num_hidden_layers: layers of encoder, decoder and global transformer.
        encoder_intermediate, decoder_intermediate, intermediate_size: widths of their feed-forward layers.
        global_attention_heads, global_key_value_heads: of the global transformer.
        window: bytes that encoder and decoder self-attention see, the current one included.
        max_position_embeddings: bytes that fit.
        encoder_cross_attention: layers after which patches attend to their bytes: "all", "last" or "none".
        decoder_cross_attention: layers before which bytes attend to their patch: "all", "first" or "none" (the patch
            is then projected and added once).
        pooled_query: start patch queries from the maximum over their bytes; False starts all from one learned vector.
        ngram_sizes: sizes of the n-grams whose embeddings are added to a byte's; () for none.
        ngram_vocab: rows per n-gram size.
        ngram_table: "hash" (a row for each hash value modulo ngram_vocab) or "frequency" (a row for each of the most
            frequent n-grams, see `BltModel.set_frequent_ngrams`).
        ngram_prime: of the rolling hash.
        divide_embeddings: divide the sum of embeddings by the number of its terms (paper; released models do not).
        ngram_padding: "omit" n-grams that reach before the document's first byte, or pad them with "zero" (released).
        double_residual: cross-attention gives 2x + f(x) (released) instead of x + f(x).
        repool: start patch queries from the pooled bytes in every layer instead of keeping a running state.
        documents: EOS closes a patch, and BOS after EOS begins a document that sees nothing of the earlier ones (but
            "top_k" ranks the bytes of a whole row).
        patching: rule of the patches, a key of `functional.patches.INCREMENTAL`; "explicit" needs `patch_lengths`.
        patching_threshold: nats; of the entropy for "entropy" and "both", of its rise for "monotonic".
        patching_rise: nats; of the rise for "both".
        patch_size: bytes per patch for "stride", a whole number, and for "top_k".
        max_patch_length: longer patches are split; None for no limit.
        entropy_config: configuration of the entropy model (see `byte_transformer_config`, `ByteNgramsConfig`); rules by
            entropy need one wherever `patch_lengths` are not given.
        entropy_resets_at_newline: the entropy model sees nothing before the last newline.
    """

    model_type = "selftaught_blt"

    vocab_size: int = VOCABULARY
    hidden_size: int = 256
    patch_width: int = 2
    num_attention_heads: int = 4
    encoder_layers: int = 1
    decoder_layers: int = 4
    num_hidden_layers: int = 6
    encoder_intermediate: int | None = None
    decoder_intermediate: int | None = None
    intermediate_size: int | None = None
    global_attention_heads: int = 8
    global_key_value_heads: int | None = None
    window: int = 512
    max_position_embeddings: int = 8192
    rope_theta: float = 500_000.0
    global_rope_theta: float = 500_000.0
    rms_norm_eps: float = 1e-5
    encoder_cross_attention: str = "last"
    decoder_cross_attention: str = "all"
    pooled_query: bool = True
    ngram_sizes: list[int] | tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    ngram_vocab: int = 500_000
    ngram_table: str = "hash"
    ngram_prime: int = PRIME
    divide_embeddings: bool = True
    ngram_padding: str = "omit"
    double_residual: bool = False
    repool: bool = False
    documents: bool = True
    patching: str = "entropy"
    patching_threshold: float = 1.335442066192627
    patching_rise: float = 0.0
    patch_size: float = 4.0
    max_patch_length: int | None = None
    entropy_config: Any = None
    entropy_resets_at_newline: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = BOS
    eos_token_id: int | list[int] | None = EOS
    pad_token_id: int | None = None
    use_cache: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.ngram_sizes = _ngram_sizes(self.ngram_sizes)
        self.encoder_intermediate = self.encoder_intermediate or _feed_forward(self.hidden_size)
        self.decoder_intermediate = self.decoder_intermediate or _feed_forward(self.hidden_size)
        self.intermediate_size = self.intermediate_size or _feed_forward(self.global_hidden_size)
        self.global_key_value_heads = self.global_key_value_heads or self.global_attention_heads
        if isinstance(self.entropy_config, dict):
            known = dict(self.entropy_config)
            if "model_type" not in known:
                raise InputError(f"entropy_config={known}: it must name its model_type")
            self.entropy_config = AutoConfig.for_model(known.pop("model_type"), **known)
        super().__post_init__(**kwargs)
        self._check()

    @property
    def global_hidden_size(self) -> int:
        """Width of the patch states, d_G."""
        return self.patch_width * self.hidden_size

    def small_copy(self) -> "BltConfig":
        """Return the same architecture with a few thousand weights, its patches by a rule that needs no other model."""
        small = copy.deepcopy(self)
        small.num_attention_heads, small.hidden_size, small.patch_width = 2, 16, 2
        small.global_key_value_heads = 2 if self.global_key_value_heads == self.global_attention_heads else 1
        small.global_attention_heads = 2
        small.encoder_layers = small.decoder_layers = small.num_hidden_layers = 2
        small.encoder_intermediate = small.decoder_intermediate = small.intermediate_size = 32
        small.ngram_vocab, small.window = 64, 6
        small.patching, small.entropy_config = "space", None
        return small

    def _check(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(known)}")
        for name in WHOLE:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}: give a whole number, at least 1")
        for name in ("patch_size", "patching_threshold", "patching_rise"):
            if not isinstance(getattr(self, name), int | float) or isnan(getattr(self, name)):
                raise InputError(f"{name}={getattr(self, name)!r}: give a number")
        for name in ("rope_theta", "global_rope_theta", "rms_norm_eps"):
            if not isinstance(getattr(self, name), int | float) or not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)!r}: give a number above 0")
        if not isinstance(self.vocab_size, int) or self.vocab_size < VOCABULARY:
            raise InputError(f"vocab_size={self.vocab_size!r}: bytes and their special ids are {VOCABULARY}")
        if self.patch_size < 1:
            raise InputError(f"patch_size={self.patch_size}: give at least 1")
        self._check_heads()
        if self.patching == "stride" and not (
            self.patch_size <= self.max_position_embeddings and self.patch_size % 1 == 0
        ):
            raise InputError(
                f"patching='stride' with patch_size={self.patch_size}: give a whole number of bytes, at most "
                f"max_position_embeddings={self.max_position_embeddings}"
            )
        if self.encoder_cross_attention == "none" and not self.pooled_query:
            raise InputError("pooled_query=False with encoder_cross_attention='none': nothing would reach the patches")
        longest = self.max_patch_length
        if longest is not None and (not isinstance(longest, int) or longest < 1):
            raise InputError(f"max_patch_length={longest!r}: give a whole number, at least 1, or None for no limit")

    def _check_heads(self) -> None:
        # Rotary positions turn pairs of a head's components.
        if self.hidden_size % (2 * self.num_attention_heads) or self.global_hidden_size % (
            2 * self.global_attention_heads
        ):
            raise InputError(
                f"hidden_size={self.hidden_size} and patch_width={self.patch_width} cannot be divided among "
                f"{self.num_attention_heads} heads and {self.global_attention_heads} global heads of even width: "
                "change one of them"
            )
        if self.global_attention_heads % int(self.global_key_value_heads or 1):
            raise InputError(
                f"global_key_value_heads={self.global_key_value_heads} do not divide {self.global_attention_heads} "
                "global heads: give a divisor"
            )


def byte_transformer_config(
    *, width: int = 96, layers: int = 2, heads: int = 4, window: int | None = 128, context: int = 8192
) -> ByteTransformerConfig:
    """Return the configuration of a byte transformer for entropies: a Mistral over bytes, attention in a window."""
    return ByteTransformerConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=_feed_forward(width),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        sliding_window=window,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=width**-0.5,
        rms_norm_eps=1e-5,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=None,
    )


def _ngram_sizes(sizes: Any) -> list[int]:
    if not isinstance(sizes, list | tuple) or not all(isinstance(n, int) and n >= 1 for n in sizes):
        raise InputError(f"ngram_sizes={sizes!r}: give a list of whole numbers of at least 1, or an empty one")
    if list(sizes) != sorted(set(sizes)):
        raise InputError(f"ngram_sizes={sizes!r}: give them in ascending order, each once")
    return list(sizes)


def _feed_forward(width: int) -> int:
    """Return 8/3 of the width, which SwiGLU's three matrices make equal to four times in two, in steps of 32."""
    return -(-8 * width // (3 * 32)) * 32
