"""The sizes of models, from their configurations, and of their tokens, for `functional.flops`."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from selftaught.errors import InputError
from selftaught.functional.flops import BLTSizes, Stack, blt_flops_per_byte, transformer_flops_per_byte
from selftaught.functional.patches import BY_ENTROPY
from selftaught.models.blt.configuration import BltConfig
from selftaught.types import Document

_AT_ONCE = 1000


def flops_per_byte(config: Any, context: int, length: float) -> float:
    """Return forward FLOPs per byte of a model with patches, or tokens, of `length` bytes, in `context` bytes of text.

    Raises InputError where they are not known of such a model.
    """
    if isinstance(config, BltConfig):
        return sum(blt_flops_per_byte(blt_sizes_of(config), context, length).values())
    return transformer_flops_per_byte(stack_of(config), context, length)


def bytes_per_token(tokenizer: Any, documents: Iterable[Document]) -> float | None:
    """Return the bytes of all texts over their tokens, special ones left out; None where there is no token."""
    size = tokens = 0
    stream = iter(documents)
    while texts := [document.text for document in islice(stream, _AT_ONCE)]:
        size += sum(len(text.encode()) for text in texts)
        tokens += sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    return size / tokens if tokens else None


def stack_of(config: Any) -> Stack:
    """Return the sizes of a decoder in the shape of Llama: gated feed-forward layers, grouped keys, perhaps a window.

    Raises InputError where the configuration lacks one of the names that these models share.
    """
    try:
        width, heads = config.hidden_size, config.num_attention_heads
        head = getattr(config, "head_dim", None) or width // heads
        return Stack(
            layers=config.num_hidden_layers,
            width=width,
            ffn=config.intermediate_size,
            attention=heads * head,
            keys=(getattr(config, "num_key_value_heads", None) or heads) * head,
            window=getattr(config, "sliding_window", None),
            vocabulary=config.vocab_size,
        )
    except AttributeError as error:
        raise InputError(f"{config.model_type} has no {error.name}: FLOPs are known of models like Llama") from error


def blt_sizes_of(config: BltConfig) -> BLTSizes:
    """Return the sizes of a Byte Latent Transformer.

    Its entropy model is included if it is a transformer and places the patches; given ones ("explicit") cost nothing.
    """
    encoder_cross = {"all": config.encoder_layers, "last": 1, "none": 0}[config.encoder_cross_attention]
    pools = max(encoder_cross, 1) if config.repool else 1
    is_transformer = hasattr(config.entropy_config, "num_attention_heads")
    by_transformer = is_transformer and config.patching in BY_ENTROPY
    width, window = config.hidden_size, config.window
    head = config.global_hidden_size // config.global_attention_heads
    return BLTSizes(
        encoder=Stack(
            layers=config.encoder_layers, width=width, ffn=_known(config.encoder_intermediate), window=window
        ),
        latent=Stack(
            layers=config.num_hidden_layers,
            width=config.global_hidden_size,
            ffn=_known(config.intermediate_size),
            keys=_known(config.global_key_value_heads) * head,
        ),
        decoder=Stack(
            layers=config.decoder_layers,
            width=width,
            ffn=_known(config.decoder_intermediate),
            window=window,
            vocabulary=config.vocab_size,
        ),
        slots=config.patch_width,
        encoder_cross=encoder_cross,
        decoder_cross={"all": config.decoder_layers, "first": 1, "none": 0}[config.decoder_cross_attention],
        pools=pools if config.pooled_query else 0,
        entropy=stack_of(config.entropy_config) if by_transformer else None,
    )


def _known(size: int | None) -> int:
    # `BltConfig.__post_init__` leaves none of these out.
    assert size is not None
    return size
