"""The Byte Latent Transformer (arXiv 2412.09871): bytes in patches whose length follows the data, no tokenizer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, MistralConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from selftaught.errors import InputError
from selftaught.functional import patches as boundaries
from selftaught.functional.byte_hash import ngram_hashes
from selftaught.models.blt.configuration import BltConfig
from selftaught.models.blt.layers import (
    ByteCrossAttention,
    PatchCrossAttention,
    Patches,
    RMSNorm,
    Sight,
    Stack,
    sight,
)
from selftaught.models.blt.patchers import build_entropy_model, find_starts

NO_NGRAM = torch.iinfo(torch.int64).max


@dataclass
class BltOutput(ModelOutput):
    """What a model returns.

    Attributes:
        last_hidden_state: [B, N, d_E], after the final norm (`BltModel` only).
        loss: mean cross-entropy of the labelled bytes, nats; None without labels.
        logits: [B, N, 260] float32 (`BltForCausalLM` only).
        patch_lengths: [B, P] that were used, each row summing to its bytes + 1.
    """

    last_hidden_state: Tensor | None = None
    loss: Tensor | None = None
    logits: Tensor | None = None
    patch_lengths: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one pass over rows of N bytes and P patches found.

    Attributes:
        states: byte states [B, N, d] after each encoder layer whose bytes patches attend to, the last layer's last.
        latents: [B, P, k * d], what the global transformer says of each patch.
        hidden: [B, N, d], the decoder's byte states after the final norm.
    """

    states: list[Tensor]
    latents: Tensor
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class Sights:
    """Who sees whom in the self-attention of each of the three stacks."""

    encoder: Sight
    across: Sight
    decoder: Sight


class NgramEmbedding(nn.Module):
    """A row of a table for each n-gram that ends in a byte (section 3.2.1), by its hash or among the frequent ones."""

    codes: Tensor

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        self.config = config
        self.sizes = tuple(config.ngram_sizes)
        self.weight = nn.Parameter(torch.empty(len(self.sizes) * config.ngram_vocab, config.hidden_size))
        if config.ngram_table == "frequency":
            self.register_buffer("codes", torch.full((len(self.sizes), config.ngram_vocab), NO_NGRAM))

    def forward(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        """Return the sum over sizes of the n-grams' embeddings, [B, N, d], of ids [B, N]."""
        return self.look_up(ngram_hashes(ids, self.sizes, positions, self.config.ngram_prime), positions)

    def look_up(self, hashes: Tensor, positions: Tensor | None) -> Tensor:
        """Return the same from hashes [B, N, sizes]; `positions` [B, N] are places in the document."""
        rows = self.config.ngram_vocab
        offsets = torch.arange(len(self.sizes), device=hashes.device)
        present = None
        if self.config.ngram_table == "frequency":
            columns = hashes.flatten(0, 1).T.contiguous()
            index = torch.searchsorted(self.codes, columns).clamp(max=rows - 1)
            present = (self.codes.gather(1, index) == columns).T
            index = index.T
        else:
            index = hashes.flatten(0, 1) % rows
        if self.config.ngram_padding == "omit":
            place = torch.arange(hashes.shape[1], device=hashes.device).expand(hashes.shape[:2])
            place = (place if positions is None else positions).flatten()
            whole = place[:, None] >= torch.tensor(self.sizes, device=hashes.device) - 1
            present = whole if present is None else present & whole
        weights = None if present is None else present.to(self.weight.dtype)
        found = F.embedding_bag(index + offsets * rows, self.weight, mode="sum", per_sample_weights=weights)
        return found.unflatten(0, hashes.shape[:2])


class LocalEncoder(nn.Module):
    """Byte embeddings and layers, and the patch states that attend to them (section 3.2)."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, eps = config.hidden_size, config.num_attention_heads, config.rms_norm_eps
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.ngrams = NgramEmbedding(config) if config.ngram_sizes else None
        self.stack = Stack(
            config.encoder_layers, width, heads, heads, cast(int, config.encoder_intermediate), eps, config.rope_theta
        )
        if config.pooled_query:
            self.patch_projection = nn.Linear(width, config.global_hidden_size, bias=False)
        else:
            self.query = nn.Parameter(torch.empty(config.patch_width, width))
        count = {"all": config.encoder_layers, "last": 1, "none": 0}[config.encoder_cross_attention]
        self.cross = nn.ModuleList(PatchCrossAttention(width, heads, eps, config.double_residual) for _ in range(count))

    def embed(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        """Return byte embeddings [B, N, d] of ids [B, N], their n-grams included."""
        return self.with_ngrams(ids, None if self.ngrams is None else self.ngrams(ids, positions))

    def with_ngrams(self, ids: Tensor, ngrams: Tensor | None) -> Tensor:
        """Return the same, given the sums of their n-grams' embeddings [B, N, d] (None without n-grams)."""
        x = self.embed_tokens(ids)
        if self.ngrams is None or ngrams is None:
            return x
        return (x + ngrams) / (len(self.ngrams.sizes) + 1) if self.config.divide_embeddings else x + ngrams

    def forward(self, x: Tensor, seen: Sight, patches: Patches) -> tuple[list[Tensor], Tensor]:
        """Return states of bytes (see `Reading`) and of patches [B, P, k, d], of embeddings [B, N, d]."""
        cos, sin = self.stack.rope(x.shape[1], x.device)
        states = []
        for layer in self.stack.layers:
            x = layer(x, cos, sin, seen)
            states.append(x)
        states = states[-max(len(self.cross), 1) :]
        return states, self.read_patches(states, patches)

    def read_patches(self, states: list[Tensor], patches: Patches) -> Tensor:
        """Return patch states [B, P, k, d] of the byte states [B, N, d] that patches attend to."""
        slots = None
        for cross, x in zip(self.cross, states, strict=False):
            slots = self.first_slots(x, patches) if slots is None or self.config.repool else slots
            slots = cross(slots, x, patches)
        return self.first_slots(states[-1], patches) if slots is None else slots

    def first_slots(self, x: Tensor, patches: Patches) -> Tensor:
        """Return what patch states [B, P, k, d] are before they attend to anything."""
        if not self.config.pooled_query:
            return self.query.expand(len(x), patches.count, -1, -1)
        pooled = patches.drop_padding(patches.largest(x.flatten(0, 1)))
        return self.patch_projection(pooled).unflatten(-1, (self.config.patch_width, -1))


class LocalDecoder(nn.Module):
    """Layers over bytes that attend to the last complete patch (section 3.3)."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, eps = config.hidden_size, config.num_attention_heads, config.rms_norm_eps
        self.stack = Stack(
            config.decoder_layers, width, heads, heads, cast(int, config.decoder_intermediate), eps, config.rope_theta
        )
        count = {"all": config.decoder_layers, "first": 1, "none": 0}[config.decoder_cross_attention]
        self.patch_projection = nn.Linear(
            config.global_hidden_size, config.patch_width * width if count else width, bias=False
        )
        self.cross = nn.ModuleList(ByteCrossAttention(width, heads, eps, config.double_residual) for _ in range(count))
        self.norm = RMSNorm(width, eps)

    def forward(self, x: Tensor, latents: Tensor, seen: Sight, patches: Patches) -> Tensor:
        """Return byte states [B, N, d], normed, of the encoder's [B, N, d] and the global model's [B, P, k * d]."""
        cos, sin = self.stack.rope(x.shape[1], x.device)
        projected = self.patch_projection(latents)
        if not self.cross:
            x = x + patches.at_bytes(projected)
        slots = projected.unflatten(-1, (-1, x.shape[-1]))
        for i, layer in enumerate(self.stack.layers):
            if i < len(self.cross):
                x = self.cross[i](x, slots, patches)
            x = layer(x, cos, sin, seen)
        return self.norm(x)


class BltPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of every model here."""

    config_class = BltConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)
    _supports_sdpa = True
    # Boundaries must not depend on the dtype that the rest is opened in.
    _keep_in_fp32_modules_strict = ("entropy_model",)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Open a saved model as every model of transformers is; its entropy model is frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.base_model.entropy_model is not None:
            model.base_model.entropy_model.requires_grad_(False)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normals, std = fan-in^-0.5 (tables: width^-0.5), cut at 3 std; norms are 1."""
        if isinstance(module, nn.Linear):
            _draw(module.weight, module.in_features)
        elif isinstance(module, nn.Embedding | NgramEmbedding):
            _draw(module.weight, module.weight.shape[1])
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, LocalEncoder) and not module.config.pooled_query:
            _draw(module.query, module.query.shape[1])
        if isinstance(module, NgramEmbedding) and module.config.ngram_table == "frequency":
            init.constant_(module.codes, NO_NGRAM)


class BltModel(BltPreTrainedModel):
    """Encoder, global transformer and decoder, and the entropy model that places the patches, which stays frozen."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__(config)
        self.encoder = LocalEncoder(config)
        self.global_stack = Stack(
            config.num_hidden_layers,
            config.global_hidden_size,
            config.global_attention_heads,
            cast(int, config.global_key_value_heads),
            cast(int, config.intermediate_size),
            config.rms_norm_eps,
            config.global_rope_theta,
        )
        self.decoder = LocalDecoder(config)
        self.entropy_model: PreTrainedModel | None = None
        if config.entropy_config is not None:
            self.entropy_model = build_entropy_model(config.entropy_config).requires_grad_(False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings of single bytes."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embeddings of single bytes."""
        self.encoder.embed_tokens = value

    def train(self, mode: bool = True) -> Self:
        """Train or evaluate; the entropy model is never trained, so its dropout is off in both."""
        super().train(mode)
        if self.entropy_model is not None:
            self.entropy_model.eval()
        return self

    def set_entropy_model(self, model: PreTrainedModel) -> None:
        """Use a trained entropy model; it is saved with this one and never trained by it."""
        self.entropy_model = model.float().eval().requires_grad_(False)
        self.config.entropy_config = model.config

    def set_frequent_ngrams(self, texts: Iterable[Tensor]) -> None:
        """Give each of the most frequent n-grams of `texts`, ids [N] each, a row of the table.

        Raises:
            InputError: the table is one of hashes.
        """
        table = self.encoder.ngrams
        if table is None or self.config.ngram_table != "frequency":
            raise InputError("this model's n-grams are not found by frequency: build it with ngram_table='frequency'")
        rows = [ngram_hashes(text[None], table.sizes, prime=self.config.ngram_prime)[0] for text in texts]
        for i, size in enumerate(table.sizes):
            codes, counts = torch.cat([row[size - 1 :, i] for row in rows]).unique(return_counts=True)
            kept = codes[counts.argsort(descending=True, stable=True)[: self.config.ngram_vocab]]
            table.codes[i] = F.pad(kept, (0, self.config.ngram_vocab - len(kept)), value=NO_NGRAM).sort().values

    def find_starts(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return where patches begin by the model's own rule: [B, N + 1], see `patchers.find_starts`."""
        return find_starts(self.config, self.entropy_model, as_bytes(input_ids), lengths)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        patch_lengths: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> BltOutput | tuple[Tensor, ...]:
        """Return the hidden state at every byte.

        Args:
            input_ids: [B, N] int64.
            attention_mask: [B, N], 0 for padding before or after a row; None where there is none.
            patch_lengths: [B, P], padded with 0, each row summing to its bytes or to its bytes + 1 (then the byte still
                to come counts). None: found by the configuration's rule.
            use_cache: accepted for callers that say it of every model; this forward pass keeps none.
            return_dict: False for a tuple of the outputs that are not None.

        Returns:
            `last_hidden_state` [B, N, d] (padding holds finite numbers without a meaning) and `patch_lengths`.

        Raises:
            InputError: patch lengths that do not fit the rows or their bytes, or padding inside a row.
        """
        rows, lengths, first = _padded_right(input_ids, attention_mask)
        starts = (
            self.find_starts(rows, lengths) if patch_lengths is None else _given_starts(rows, lengths, patch_lengths)
        )
        found = boundaries.patch_lengths(starts, lengths)
        if not rows.shape[1]:
            hidden = self.encoder.embed_tokens(rows)
        else:
            patches, positions = patches_of(starts, lengths), self.places(rows, starts, lengths)
            hidden = self.read(rows, patches, positions, self.sights(rows, patches, positions)).hidden
        if first is not None:
            place = (torch.arange(rows.shape[1], device=rows.device) - first[:, None]) % rows.shape[1]
            hidden = hidden.gather(1, place[:, :, None].expand_as(hidden))
        out = BltOutput(last_hidden_state=hidden, patch_lengths=found)
        return out.to_tuple() if return_dict is False else out

    def sights(self, ids: Tensor, patches: Patches, positions: Tensor | None) -> Sights:
        """Return who sees whom among ids [B, N] at `positions` [B, N] in their documents, and among their patches."""
        seen = sight(len(ids), ids.shape[1], self.config.window, positions, ids.device)
        patch_positions = None if positions is None else patches.positions(positions)
        return Sights(seen, sight(len(ids), patches.count, None, patch_positions, ids.device), seen)

    def read(self, ids: Tensor, patches: Patches, positions: Tensor | None, seen: Sights) -> Reading:
        """Return what encoder, global transformer and decoder make of ids [B, N]."""
        states, slots = self.encoder(self.encoder.embed(ids, positions), seen.encoder, patches)
        cos, sin = self.global_stack.rope(patches.count, ids.device)
        latents = slots.flatten(2)
        for layer in self.global_stack.layers:
            latents = layer(latents, cos, sin, seen.across)
        return Reading(states, latents, self.decoder(states[-1], latents, seen.decoder, patches))

    def places(self, ids: Tensor, starts: Tensor, lengths: Tensor | None) -> Tensor | None:
        """Return the place of each byte in its document, [B, N], None where every row is one.

        Raises:
            InputError: the patches of `starts` do not begin where documents do.
        """
        begins = boundaries.document_begins(ids)
        if not self.config.documents or not begins[:, 1:].any():
            return None
        positions = boundaries.positions_since(begins)
        valid = boundaries.patch_ids(starts, lengths) >= 0
        if (valid & (positions < 2) & ~starts[:, :-1]).any():
            raise InputError("patch_lengths: a patch must begin at the first and at the second byte of every document")
        return positions


class BltForCausalLM(BltPreTrainedModel, GenerationMixin):
    """A Byte Latent Transformer that predicts the next byte."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__(config)
        self.model = BltModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        patch_lengths: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **unset: None,
    ) -> BltOutput | tuple[Tensor, ...]:
        """Return logits [B, N, 260] float32 and, with labels [B, N] (-100: none), the mean loss per byte in nats.

        `labels` are the ids themselves: byte i + 1 is what the logits at byte i are for. `logits_to_keep` are the last
        so many positions (0: all), or their indices. The rest is as in `BltModel.forward`.

        Raises:
            InputError: another argument of transformers' models, such as `inputs_embeds`, has a value.
        """
        check_unset(unset)
        out = self.model(input_ids, attention_mask, patch_lengths)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept]).float()
        loss = None
        if labels is not None:
            wanted = F.pad(labels, (0, 1), value=-100)[:, 1:][:, kept]
            total = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum")
            loss = total / (wanted != -100).sum().clamp(min=1)
        result = BltOutput(loss=loss, logits=logits, patch_lengths=out.patch_lengths)
        return result.to_tuple() if return_dict is False else result

    @property
    def cached_per_position(self) -> int:
        """How many numbers the sampler's caches keep of a byte, at most: where every byte is a patch."""
        config = self.config
        local = 2 * (config.encoder_layers + config.decoder_layers) + max(len(self.model.encoder.cross), 1)
        head_width = config.global_hidden_size // config.global_attention_heads
        key_width = head_width * cast(int, config.global_key_value_heads)
        readable = 2 * max(len(self.model.decoder.cross), 1) * config.global_hidden_size
        of_bytes = local * config.hidden_size + 2 * config.num_hidden_layers * key_width + readable
        scores = config.entropy_config if isinstance(config.entropy_config, MistralConfig) else None
        return of_bytes + (2 * scores.num_hidden_layers * scores.num_key_value_heads * scores.head_dim if scores else 0)

    def decodable(self, slots: int) -> Any:
        """Return what the sampler drives: this model with caches for `slots` rows.

        Raises:
            InputError: the rule of its patches needs bytes still to come, or its entropy model has no cache here.
        """
        from selftaught.models.blt.decodable import BltDecodable

        return BltDecodable(self, slots)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Return the whole row for every new byte: transformers' own `generate` knows no cache of this model.

        Raises:
            InputError: the patches would change with what comes later.
        """
        if not boundaries.INCREMENTAL[self.config.patching]:
            raise InputError(
                f"patching={self.config.patching!r} needs the bytes still to come: generate with another rule"
            )
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask"), "logits_to_keep": 1}


def check_unset(arguments: Mapping[str, Any]) -> None:
    """Raise InputError where one of these has a value: peft hands on all that transformers' models know."""
    if given := [name for name, value in arguments.items() if value is not None and value is not False]:
        raise InputError(f"a BLT takes no {given[0]}: pass input_ids")


def as_bytes(ids: Tensor) -> Tensor:
    """Return ids with those of tokens that were added to a vocabulary as delimiters: no rule of patches knows them."""
    return ids.where(ids < boundaries.VOCABULARY, boundaries.DELIMITER)


def patches_of(starts: Tensor, lengths: Tensor | None) -> Patches:
    """Return the patches that begin at `starts` [B, N + 1], of rows with `lengths` [B] bytes."""
    number = boundaries.patch_ids(starts, lengths)
    count = max(int(number.max()) + 1, 1)
    number = torch.where(number < 0, count, number)
    segment = (number + torch.arange(len(number), device=number.device)[:, None] * (count + 1)).flatten()
    sizes = torch.bincount(segment, minlength=len(number) * (count + 1)).unflatten(0, (len(number), count + 1))
    return Patches(sizes, segment, boundaries.complete_patches(starts).clamp(max=count - 1))


def _given_starts(ids: Tensor, lengths: Tensor | None, patch_lengths: Tensor) -> Tensor:
    if len(patch_lengths) != len(ids):
        raise InputError(
            f"patch_lengths of {len(patch_lengths)} rows for {len(ids)} rows of bytes: give one row of lengths for each"
        )
    n = torch.full((len(ids),), ids.shape[1], device=ids.device) if lengths is None else lengths
    extra = patch_lengths.sum(1) - n
    wrong = (extra < 0) | (extra > 1) | (patch_lengths < 0).any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise InputError(
            f"patch_lengths of row {row} sum to {int(patch_lengths[row].sum())}, and it has {int(n[row])} bytes: "
            "give lengths that sum to that, or to one more for the byte to come"
        )
    return boundaries.explicit_starts(patch_lengths, ids.shape[1])


def _padded_right(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return rows that begin at place 0 with id 0 as padding, their lengths, and where they began if not there."""
    if mask is None or bool(mask.all()):
        return ids, None, None
    lengths = mask.long().sum(1)
    first = mask.long().argmax(1)
    place = torch.arange(ids.shape[1], device=ids.device)
    shifted = (place + first[:, None]) % ids.shape[1]
    valid = place < lengths[:, None]
    if not torch.equal(mask.gather(1, shifted).bool(), valid):
        row = int((mask.gather(1, shifted).bool() != valid).any(1).nonzero()[0])
        raise InputError(f"attention_mask of row {row} has a gap: pad before or after a row, not inside")
    return ids.gather(1, shifted).masked_fill(~valid, 0), lengths, first if first.any() else None


def _draw(weight: Tensor, width: int) -> None:
    std = width**-0.5
    init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
