"""From bytes to patch boundaries as a configuration says, with its entropy model; and patches from BPE tokens."""

import codecs
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, Cache, PreTrainedConfig, PreTrainedModel

from selftaught.errors import InputError
from selftaught.functional import patches
from selftaught.models.blt.configuration import BltConfig, ByteNgramsConfig
from selftaught.models.blt.layers import attention_mask
from selftaught.models.blt.ngram_entropy import ByteNgrams

NEWLINE = 10 + patches.OFFSET


def build_entropy_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return an entropy model with new weights: n-gram counts, or any causal language model of transformers."""
    return ByteNgrams(config) if isinstance(config, ByteNgramsConfig) else AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def entropies(
    model: PreTrainedModel, input_ids: Tensor, positions: Tensor | None = None, cache: Cache | None = None
) -> Tensor:
    """Return s_i, the entropy in nats of byte i + 1 after bytes 0..i, float32 [B, N].

    Args:
        model: as `build_entropy_model` gives it.
        input_ids: [B, N] int64, padded on the right with any ids.
        positions: [B, N] places; a byte sees that many bytes before it. None: all of its row.
        cache: keeps the keys and values of a transformer, where it is given.
    """
    if isinstance(model, ByteNgrams):
        return model.entropies(input_ids, positions)
    if not input_ids.numel():
        return torch.zeros(input_ids.shape, device=input_ids.device)
    n = input_ids.shape[1]
    mask = None
    if positions is not None:
        mask = attention_mask(n, getattr(model.config, "sliding_window", None), positions, input_ids.device)
    kept = {"past_key_values": cache, "use_cache": cache is not None}
    # Rounded entropies would place other boundaries in training than in decoding.
    with torch.autocast(input_ids.device.type, enabled=False):
        logits = model(input_ids=input_ids, attention_mask=mask, **kept).logits
    return patches.next_byte_entropies(logits)


def find_starts(
    config: BltConfig, model: PreTrainedModel | None, input_ids: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """Return where the patches of `input_ids` [B, N] begin: starts [B, N + 1], as in `functional.patches`.

    Args:
        config: rule and thresholds.
        model: the entropy model; rules that need none ignore it.
        input_ids: padded on the right.
        lengths: [B] bytes of each row; None where there is no padding.

    Raises:
        InputError: the rule is "explicit", which only `patch_lengths` can follow.
    """
    if config.patching == "explicit":
        raise InputError("patching='explicit' finds no boundaries: pass patch_lengths, or choose another rule")
    scores = None
    if config.patching in patches.BY_ENTROPY:
        if model is None:
            raise InputError(f"patching={config.patching!r} without an entropy model: give entropy_config")
        scores = entropies(model, input_ids, seen_positions(config, input_ids))
    return starts_by(config, input_ids, scores, lengths)


def starts_by(config: BltConfig, input_ids: Tensor, scores: Tensor | None, lengths: Tensor | None = None) -> Tensor:
    """Return the same from known entropies `scores` [B, N], which rules that read none ignore."""
    starts = _follow_rule(config, input_ids, scores, lengths)
    if config.documents:
        starts = patches.close_patches(starts, patches.document_begins(input_ids) | (input_ids == patches.EOS))
    return patches.split_patches(starts, config.max_patch_length) if config.max_patch_length else starts


def seen_positions(config: BltConfig, input_ids: Tensor) -> Tensor | None:
    """Return how many earlier bytes the entropy model sees at each byte, int64 [B, N], as documents and lines say.

    None where every byte sees all of its row.
    """
    begins = torch.zeros_like(input_ids, dtype=torch.bool)
    if config.documents:
        begins |= patches.document_begins(input_ids)
    if config.entropy_resets_at_newline:
        begins[:, 1:] |= input_ids[:, :-1] == NEWLINE
    return patches.positions_since(begins) if begins[:, 1:].any() else None


def bpe_patch_lengths(tokenizer: Tokenizer, input_ids: Sequence[Tensor]) -> Tensor:
    """Return bytes per token of a BPE tokenizer for rows of ids [n] each, int64 [B, P]: `patch_lengths`.

    Special ids are patches of their own, and invalid UTF-8 is read as one replacement character per byte. A later byte
    can change the tokens before it, so these patches are for comparison only: a model cannot generate with them.
    """
    rows = [torch.tensor(_bpe_lengths(tokenizer, row.tolist()), dtype=torch.int64) for row in input_ids]
    return pad_sequence(rows, batch_first=True)


def _follow_rule(config: BltConfig, ids: Tensor, scores: Tensor | None, lengths: Tensor | None) -> Tensor:
    if config.patching == "space":
        return patches.space_starts(ids)
    if config.patching == "stride":
        begins = patches.document_begins(ids) & config.documents
        return patches.stride_starts(patches.positions_since(begins), int(config.patch_size))
    if config.patching == "byte":
        return patches.byte_starts(ids)
    assert scores is not None  # all other rules read them
    if config.patching == "top_k":
        return patches.top_k_starts(scores, config.patch_size, lengths)
    if config.patching == "monotonic":
        return patches.monotonic_starts(scores, config.patching_threshold)
    if config.patching == "both":
        return patches.combined_starts(scores, config.patching_threshold, config.patching_rise)
    return patches.threshold_starts(scores, config.patching_threshold)


def _bpe_lengths(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    lengths: list[int] = []
    run = bytearray()
    for i in [*ids, -1]:
        if i >= patches.OFFSET:
            run.append(i - patches.OFFSET)
            continue
        lengths += _token_lengths(tokenizer, bytes(run))
        run.clear()
        lengths += [1] * (i >= 0)
    return lengths


def _token_lengths(tokenizer: Tokenizer, text: bytes) -> list[int]:
    characters = codecs.decode(text, "utf-8", "surrogateescape")
    sizes = [1 if "\udc80" <= c <= "\udcff" else len(c.encode()) for c in characters]
    readable = "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in characters)
    # Tokens of one character's bytes have the same offsets: they are one patch.
    ends = sorted({end for _, end in tokenizer.encode(readable, add_special_tokens=False).offsets} | {len(sizes)})
    begins = [0, *ends[:-1]]
    return [sum(sizes[a:b]) for a, b in zip(begins, ends, strict=True) if a < b]
