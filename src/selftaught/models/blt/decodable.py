"""Decoding a Byte Latent Transformer byte by byte, with caches for all of its parts (arXiv 2412.09871, section 2.3.1).

A step reads one byte per row: encoder, then the entropy model, which says whether the open patch ends with this byte;
rows whose patch does are gathered, and only they go through the global transformer; then the decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from selftaught.errors import InputError
from selftaught.functional import patches as boundaries
from selftaught.functional.byte_hash import next_ngram_hashes
from selftaught.models.blt.cache import BltState, Cache, KeptSight, Notes, Spans, StepSight
from selftaught.models.blt.configuration import BltConfig
from selftaught.models.blt.layers import ByteCrossAttention, Patches, rope
from selftaught.models.blt.modeling import BltForCausalLM, Sights, as_bytes, patches_of
from selftaught.models.blt.patchers import NEWLINE, seen_positions
from selftaught.models.blt.scores import open_scores
from selftaught.models.load import context_length
from selftaught.models.matmul import decoding_matmul
from selftaught.models.widths import SMALLEST, rows_agree, step_widths

# Bytes that the n-gram entropy model reads.
RECENT = 3


@dataclass(frozen=True, slots=True)
class _New:
    """The bytes that R rows read in a step, on the CPU: all [R] int64; `before` are the ids of the bytes before them.

    `begin` and `closed` are what `Notes` said of the byte before.
    """

    slot: np.ndarray
    index: np.ndarray
    ids: np.ndarray
    before: np.ndarray
    place: np.ndarray
    seen: np.ndarray
    begin: np.ndarray
    closed: np.ndarray


class BltDecodable:
    """A Byte Latent Transformer and the caches of the rows it decodes; see `models.decodable.Decodable`.

    Args:
        model: in eval mode.
        slots: rows that decode at once, at least 8.

    Raises:
        InputError: too few slots, patches that need bytes still to come, or an entropy model that cannot be stepped.
    """

    def __init__(self, model: BltForCausalLM, slots: int) -> None:
        if slots < SMALLEST:
            raise InputError(
                f"slots is {slots}: use at least {SMALLEST}, below that a row's numbers depend on how many run beside "
                "it"
            )
        self.config: BltConfig = model.config
        if not boundaries.INCREMENTAL[self.config.patching]:
            raise InputError(
                f"patching={self.config.patching!r} needs the bytes still to come: generate with another rule"
            )
        self.model = model
        self.slots = slots
        self.context = context_length(self.config)
        self.device = model.get_input_embeddings().weight.device
        # Attention over a whole prompt may add up in another order when longer prompts are beside it.
        self.prefill_alone = self.device.type == "cpu"
        self._byte_matmul = decoding_matmul(model.model.decoder)
        self._patch_matmul = decoding_matmul(model.model.global_stack)
        with self._byte_matmul():
            self._stable = rows_agree(model)
        with self._patch_matmul():
            self._stable &= rows_agree(model.model.global_stack)
        self._widths = step_widths(slots) if self._stable else (slots,)
        self._cache = Cache(slots)
        self._scores = open_scores(self.config, model.model.entropy_model, self._widths)

    def embed(self, ids: Tensor) -> Tensor:
        """Raise InputError: what this model reads are bytes with their n-grams, not vectors."""
        raise InputError("a Byte Latent Transformer reads bytes, not vectors: choose a way of decoding that feeds ids")

    @torch.no_grad()
    def prefill(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, BltState]:
        """Read prompts; see `Decodable`.

        Raises:
            InputError: vectors, or a prompt without a byte.
        """
        for row in inputs:
            self._check_ids(row)
            if not len(row):
                raise InputError("a prompt without bytes: give at least the BOS token")
        ids = pad_sequence([row.to(self.device) for row in inputs], batch_first=True)
        lengths = np.array([len(row) for row in inputs])
        sizes = None if (lengths == ids.shape[1]).all() else torch.from_numpy(lengths).to(self.device)
        starts, scores, of_bytes = self._place_patches(ids, sizes)
        core, patches = self.model.model, patches_of(starts, sizes)
        positions = core.places(ids, starts, sizes)
        seen = core.sights(ids, patches, positions)
        kept = [KeptSight(x) for x in (seen.encoder, seen.across, seen.decoder)]
        with self._patch_matmul():
            reading = core.read(ids, patches, positions, Sights(*kept))
        of_bytes |= kept[0].named("encoder") | kept[2].named("decoder")
        of_bytes["states"] = torch.cat(reading.states, -1).unsqueeze(1)
        of_patches = {**kept[1].named("global"), "readable": self._readable(reading.latents).unsqueeze(1)}
        cache = Cache.of_prompts(self._notes(ids, starts, positions, scores), of_bytes, of_patches)
        hidden = reading.hidden[torch.arange(len(ids), device=self.device), torch.from_numpy(lengths - 1)]
        state = BltState(self._cache, cache, np.arange(len(ids)), lengths)
        return self.model.lm_head(hidden).float(), hidden, state

    def step(self, state: BltState, inputs: Tensor) -> tuple[Tensor, Tensor, BltState]:
        """Read one byte per row; see `Decodable`.

        Raises:
            InputError: vectors.
        """
        self._check_ids(inputs)
        with torch.inference_mode(), self._byte_matmul():
            state = state.brought_home()
            hidden = self._read(state, inputs.cpu().numpy())
            logits = self.model.lm_head(hidden).float()
            state.advance()
        # Copied, so that who decodes may write into them.
        return logits[: len(inputs)].clone(), hidden[: len(inputs)].clone(), state

    def _read(self, state: BltState, ids: np.ndarray) -> Tensor:
        """Read and store the bytes `ids` [R]; return the final states [W, d]."""
        self._cache.reserve(state.lengths.numpy())
        new = self._note(state, ids)
        core, width = self.model.model, next(w for w in self._widths if w >= len(new.ids))
        spans = Spans(new.slot, new.index, new.index - np.minimum(new.place, self.config.window - 1))
        cos, sin = self._rotations(new.index, width, core.encoder.stack)
        x, states = self._padded(self._embed(new), width), []
        for i, layer in enumerate(core.encoder.stack.layers):
            x = layer(x, cos, sin, StepSight(self._cache.bytes, f"encoder.{i}", spans))
            states.append(x)
        kept = torch.cat(states[-max(len(core.encoder.cross), 1) :], -1)
        self._cache.bytes.write("states", spans, kept[: len(new.ids)])
        closing = self._closing(new, spans)
        if len(closing):
            # Products of other sizes may give other bits: then each patch is read as if it were alone.
            for rows in [closing] if self._stable else closing[:, None]:
                self._close(new, rows)
        return self._decode(x, new, spans, cos, sin)

    def _check_ids(self, inputs: Tensor) -> None:
        if inputs.dim() != 1:
            self.embed(inputs)

    # --- prompts -----------------------------------------------------------------------------------------------------

    def _place_patches(self, ids: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return where patches begin, the scores, and what the entropy model wants stored per byte."""
        if self._scores is None:
            return self.model.model.find_starts(ids, sizes), torch.zeros(ids.shape), {}
        return self._scores.read(self.config, as_bytes(ids), sizes)

    def _notes(self, ids: Tensor, starts: Tensor, positions: Tensor | None, scores: Tensor) -> Notes:
        index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        seen = seen_positions(self.config, ids)
        columns = {
            "ids": ids,
            "place": index if positions is None else positions,
            "seen": index if seen is None else seen,
            "score": scores,
            "begin": index + 1 - boundaries.positions_since(starts)[:, 1:],
            "closed": boundaries.complete_patches(starts) + 1,
        }
        return Notes(**{name: x.cpu().numpy() for name, x in columns.items()})

    # --- one byte per row --------------------------------------------------------------------------------------------

    def _note(self, state: BltState, ids: np.ndarray) -> _New:
        """Write down the new bytes, with their places, and return what the step must know of them."""
        notes, slot, index = self._cache.notes, state.slot, state.lengths.numpy().copy()
        names = ("ids", "place", "seen", "begin", "closed")
        before, place, seen, begin, closed = (notes.at(name, slot, index - 1) for name in names)
        anew = index == 0
        if self.config.documents:
            anew = anew | ((ids == boundaries.BOS) & (before == boundaries.EOS) & ~anew)
        unseen = anew | (before == NEWLINE) if self.config.entropy_resets_at_newline else anew
        place, seen = np.where(anew, 0, place + 1), np.where(unseen, 0, seen + 1)
        for name, values in (("ids", ids), ("place", place), ("seen", seen)):
            getattr(notes, name)[slot, index] = values
        return _New(slot, index, ids, before, place, seen, begin, closed)

    def _recent(self, new: _New, count: int) -> Tensor:
        """Return the last bytes [R, count] of each row, 0 for those before its document."""
        back = np.arange(count)[::-1]
        column = np.maximum(new.index[:, None] - back, 0)
        recent = np.where(back > new.place[:, None], 0, self._cache.notes.ids[new.slot[:, None], column])
        return torch.from_numpy(recent).to(self.device)

    def _embed(self, new: _New) -> Tensor:
        """Return the embeddings [R, 1, d]."""
        encoder, found = self.model.model.encoder, None
        ids = torch.from_numpy(new.ids[:, None]).to(self.device)
        if encoder.ngrams is not None:
            sizes = encoder.ngrams.sizes
            hashes = next_ngram_hashes(self._recent(new, sizes[-1]), sizes, self.config.ngram_prime)
            found = encoder.ngrams.look_up(hashes[:, None], torch.from_numpy(new.place[:, None]).to(self.device))
        return encoder.with_ngrams(ids, found)

    def _rotations(self, positions: np.ndarray, width: int, stack: Any) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [W, 1, 1, D / 2] at positions [R]."""
        place = self._padded(torch.from_numpy(positions).to(self.device), width)
        cos, sin = rope(place, stack.head_dim, stack.theta)
        return cos[:, None, None], sin[:, None, None]

    def _padded(self, x: Tensor, width: int) -> Tensor:
        """Return [W, ...] of x [R, ...], with zeros."""
        if len(x) == width:
            return x
        padded = x.new_zeros(width, *x.shape[1:])
        padded[: len(x)] = x
        return padded

    def _closing(self, new: _New, spans: Spans) -> np.ndarray:
        """Decide and write down whether the byte to come begins a patch; return the rows where it does."""
        notes, config = self._cache.notes, self.config
        score, before = np.zeros(len(new.ids), np.float32), notes.at("score", new.slot, new.index - 1)
        if self._scores is not None:
            recent = as_bytes(self._recent(new, RECENT))
            score = self._scores.step(recent, new.seen, self._cache.bytes, spans).cpu().numpy()
        ids, scores = (torch.from_numpy(np.stack(x, 1)) for x in ((new.before, new.ids), (before, score)))
        begins = _begins_after(config, as_bytes(ids), scores, torch.from_numpy(new.place)).numpy()
        begins = begins | (new.place == 0)
        if config.documents:
            begins |= new.ids == boundaries.EOS
        if config.max_patch_length:
            begins |= new.index + 1 - new.begin >= config.max_patch_length
        for name, values in (
            ("score", score),
            ("begin", np.where(begins, new.index + 1, new.begin)),
            ("closed", new.closed + begins),
        ):
            getattr(notes, name)[new.slot, new.index] = values
        return np.flatnonzero(begins)

    def _close(self, new: _New, rows: np.ndarray) -> None:
        """Read the patches that end with the new bytes of `rows` [n], and store what bytes may read of them."""
        slot, number, core = new.slot[rows], new.closed[rows], self.model.model
        self._cache.patches.reserve(int(number.max()) + 1)
        width = -(-len(rows) // SMALLEST) * SMALLEST
        # A document's first byte begins a patch: those that were complete before it are not its own.
        first = self._cache.notes.at("closed", slot, new.index[rows] - new.place[rows] - 1)
        spans = Spans(slot, number, first)
        cos, sin = self._rotations(number, width, core.global_stack)
        x = self._pool(slot, new.begin[rows], new.index[rows] + 1, width)
        with self._patch_matmul():
            for i, layer in enumerate(core.global_stack.layers):
                x = layer(x, cos, sin, StepSight(self._cache.patches, f"global.{i}", spans))
        self._cache.patches.write("readable", spans, self._readable(x)[: len(rows)])

    def _pool(self, slot: np.ndarray, begin: np.ndarray, end: np.ndarray, width: int) -> Tensor:
        """Return the patches' states [W, 1, k * d] of bytes `begin` to before `end` [n] of their rows."""
        sizes = end - begin
        owner = np.repeat(np.arange(len(sizes)), sizes)
        column = np.arange(len(owner)) - (sizes.cumsum() - sizes)[owner] + begin[owner]
        padding = -len(owner) % SMALLEST
        index = np.pad(slot[owner] * self._cache.bytes.capacity + column, (0, padding))
        stored = self._cache.bytes.tensors["states"]
        states = stored.view(-1, stored.shape[3])[torch.from_numpy(index).to(self.device)]
        lengths = torch.zeros(1, width + 1, dtype=torch.int64)
        lengths[0, : len(sizes)], lengths[0, width] = torch.from_numpy(sizes), padding
        segment = torch.from_numpy(np.pad(owner, (0, padding), constant_values=width))
        patches = Patches(lengths.to(self.device), segment.to(self.device), segment[:0])
        parts = states[None].split(self.config.hidden_size, -1)
        return self.model.model.encoder.read_patches(list(parts), patches)[0].flatten(1)[:, None]

    def _readable(self, latents: Tensor) -> Tensor:
        """Return what bytes read of patches with these latents [W, P, k * d], for all decoder layers: [W, P, ...].

        Keys and values of their slots; without cross-attention, what is added to bytes.
        """
        decoder = self.model.model.decoder
        projected = decoder.patch_projection(latents)
        if not len(decoder.cross):
            return projected
        slots = projected.unflatten(-1, (-1, self.config.hidden_size))
        return torch.cat([x.flatten(2) for cross in decoder.cross for x in _across(cross).keys_values(slots)], -1)

    def _decode(self, x: Tensor, new: _New, spans: Spans, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the final states [W, d] of the encoder's [W, 1, d], each reading its last complete patch."""
        decoder, notes = self.model.model.decoder, self._cache.notes
        stored = self._cache.patches.tensors["readable"]
        last = new.slot * self._cache.patches.capacity + notes.closed[new.slot, new.index] - 1
        readable = self._padded(stored.view(-1, stored.shape[3])[torch.from_numpy(last).to(self.device)], len(x))
        if not len(decoder.cross):
            x = x + readable[:, None]
        # [layer, keys or values, W, slot, head, dim]
        heads = (2, -1, self.config.num_attention_heads, self.config.hidden_size // self.config.num_attention_heads)
        parts = readable.unflatten(-1, (len(decoder.cross), *heads)) if len(decoder.cross) else None
        for i, layer in enumerate(decoder.stack.layers):
            if parts is not None and i < len(decoder.cross):
                x = _read_patch(_across(decoder.cross[i]), x, parts[:, i, 0], parts[:, i, 1])
            x = layer(x, cos, sin, StepSight(self._cache.bytes, f"decoder.{i}", spans))
        return decoder.norm(x)[:, 0]


def _begins_after(config: BltConfig, ids: Tensor, scores: Tensor, place: Tensor) -> Tensor:
    """Return whether the rule begins a patch after the last byte, bool [R].

    Args:
        config: names the rule.
        ids: [R, 2] the byte before the last, and the last.
        scores: [R, 2] theirs.
        place: [R] of the last byte in its document.
    """
    if config.patching == "stride":
        return place % int(config.patch_size) == 0
    starts = {
        "entropy": lambda: boundaries.threshold_starts(scores, config.patching_threshold),
        "monotonic": lambda: boundaries.monotonic_starts(scores, config.patching_threshold),
        "both": lambda: boundaries.combined_starts(scores, config.patching_threshold, config.patching_rise),
        "space": lambda: boundaries.space_starts(ids),
        "byte": lambda: boundaries.byte_starts(ids),
    }[config.patching]()
    return starts[:, 2]


def _read_patch(cross: ByteCrossAttention, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return x [W, 1, d] after it read the keys and values [W, k, H, D] of one patch, as the layer itself does."""
    weights = (cross.queries(x) * keys).sum(-1).float().softmax(1).to(x.dtype)
    return cross.add(x, (weights[..., None] * values).sum(1, keepdim=True))


def _across(module: torch.nn.Module) -> ByteCrossAttention:
    return cast(ByteCrossAttention, module)
