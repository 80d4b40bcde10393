"""Attention over the slab: the function registered with transformers, and what one forward pass must know.

A pass is a `PrefillPlan` (right-padded prompts, causal) or a `StepPlan` (one query per computed slot). The plan is
handed to the model as its cache; the attention function finds it in a context variable, because not every model passes
extra arguments down. A model that does not use transformers' attention interface can take the plan's 4D masks instead.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from selftaught.models.slab import LANES, PromptBatch, SlabState, Store, chunk_of, chunks_for, reach

NAME = "selftaught_slab"
QUERY_CHUNK = 256

active_plan: ContextVar["Plan"] = ContextVar("active_plan")


@dataclass(slots=True)
class PrefillPlan:
    """Prompts [n, width], right-padded: a causal mask keeps real positions away from the padding."""

    width: int
    device: torch.device
    batch: PromptBatch = field(default_factory=PromptBatch)
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the layer's keys and values [n, H_kv, width, d]; attention reads them as they are."""
        self.batch.layers[layer] = (key, value)
        return key, value

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the additive causal mask [1, 1, width, width]."""
        if window not in self.masks:
            position = torch.arange(self.width, device=self.device)
            distance = position.unsqueeze(1) - position
            seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            self.masks[window] = _additive(seen, dtype)[None, None]
        return self.masks[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, score: "Score") -> Tensor:
        """Return [n, width, H, d_v]; queries go in chunks, so that scores stay small for long prompts."""
        n, heads, width, dim = query.shape
        kv_heads = key.shape[1]
        repeats = heads // kv_heads
        out = query.new_empty(n, width, heads, value.shape[-1])
        mask = self.mask(score.window, query.dtype)
        for start in range(0, width, QUERY_CHUNK):
            end = min(start + QUERY_CHUNK, width)
            q = query[:, :, start:end].reshape(n * kv_heads, repeats * (end - start), dim)
            k, v = (x[:, :, :end].reshape(n * kv_heads, end, -1) for x in (key, value))
            scores = torch.bmm(q, k.transpose(1, 2)).view(n, heads, end - start, end)
            weights = score.softmax(scores, mask[..., start:end, :end]).view(n * kv_heads, repeats * (end - start), end)
            out[:, start:end] = torch.bmm(weights, v).view(n, heads, end - start, -1).transpose(1, 2)
        return out


@dataclass(slots=True)
class Columns:
    """The part of a store that a step reads: chunk by chunk, how many leading units."""

    store: Store
    reach: tuple[int, ...]

    @property
    def count(self) -> int:
        """Columns computed."""
        return sum(chunks_for(self.store.columns)[len(self.reach) - 1])

    def products(self, layer: int, query: Tensor) -> Tensor:
        """Multiply queries [unit * H_kv, m, d] with the keys of their units: [unit * H_kv, m, count]."""
        out = query.new_zeros(*query.shape[:2], self.count)
        for rows, columns, keys, _ in self._chunks(layer):
            out[:rows, :, columns] = torch.bmm(query[:rows], keys.transpose(1, 2))
        return out

    def mix(self, layer: int, weights: Tensor) -> Tensor:
        """Add up values by weights [unit * H_kv, m, count]: [unit * H_kv, m, d_v]."""
        (_, columns, _, values), *rest = self._chunks(layer)
        out = torch.bmm(weights[..., columns], values)
        for rows, columns, _, values in rest:
            out[:rows].baddbmm_(weights[:rows, :, columns], values)
        return out

    def whole(self, layer: int) -> list[Tensor]:
        """Return keys and values [unit, H_kv, count, d] in one piece, for a model that attends itself."""
        chunks = self.store.chunks(layer)[: len(self.reach)]
        return [torch.cat([x[: self.reach[0]] for x in side], 2) for side in zip(*chunks, strict=True)]

    def _chunks(self, layer: int) -> list[tuple[int, slice, Tensor, Tensor]]:
        """Return per chunk how many rows [unit * H_kv] read it, which columns it is, and its keys and values."""
        bounds, heads, found = chunks_for(self.store.columns), self.store.heads(layer), []
        for units, (start, size), (keys, values) in zip(self.reach, bounds, self.store.chunks(layer), strict=False):
            flat = keys[:units].flatten(0, 1), values[:units].flatten(0, 1)
            found.append((units * heads, slice(start, start + size), *flat))
        return found


@dataclass(slots=True)
class Lanes:
    """Where the prompts of a step's slots lie: queries go to the lanes of their prompt's block and results come back.

    `lane_slot` [blocks * LANES] is the slot that each lane serves, `slot_lane` [width] the lane of each slot; what is
    vacant points at 0 and is computed for nothing.
    """

    prompts: Columns
    lane_slot: Tensor
    slot_lane: Tensor
    indices: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def products(self, layer: int, query: Tensor, kv_heads: int) -> Tensor:
        """Multiply queries [width * H_kv, repeats, d] with their prompts' keys: [width * H_kv, repeats, count]."""
        return self._to_slots(self.prompts.products(layer, self._to_lanes(query, kv_heads)), query, kv_heads)

    def mix(self, layer: int, weights: Tensor, kv_heads: int) -> Tensor:
        """Add up prompts' values by weights [width * H_kv, repeats, count]: [width * H_kv, repeats, d_v]."""
        return self._to_slots(self.prompts.mix(layer, self._to_lanes(weights, kv_heads)), weights, kv_heads)

    def _to_lanes(self, x: Tensor, kv_heads: int) -> Tensor:
        return x.index_select(0, self._index(kv_heads)[0]).view(-1, LANES * x.shape[1], x.shape[2])

    def _to_slots(self, x: Tensor, like: Tensor, kv_heads: int) -> Tensor:
        return x.view(-1, like.shape[1], x.shape[2]).index_select(0, self._index(kv_heads)[1])

    def _index(self, heads: int) -> tuple[Tensor, Tensor]:
        if heads not in self.indices:
            head = torch.arange(heads, device=self.lane_slot.device)
            to_lane = self.lane_slot.view(-1, 1, LANES) * heads + head.unsqueeze(1)
            block, lane = self.slot_lane.unsqueeze(1) // LANES, self.slot_lane.unsqueeze(1) % LANES
            self.indices[heads] = (to_lane.flatten(), ((block * heads + head) * LANES + lane).flatten())
        return self.indices[heads]


@dataclass(slots=True, kw_only=True)
class StepPlan:
    """One query per computed slot; the column each slot writes and those it sees. Built by `plan_step`.

    `positions`, `write_column` and `shared` [width]: the position id of the query, where its key goes, and how many
    positions lie in the prompt's block. `full`: hand whole rows to the model, which attends itself.
    """

    rows: Columns
    positions: Tensor
    write_column: Tensor
    shared: Tensor
    lanes: Lanes | None
    full: bool
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    places: dict[int, Tensor] = field(default_factory=dict)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store one key and value [width, H_kv, 1, d] per slot; return them, or the whole rows where `full` is set."""
        store, heads = self.rows.store, key.shape[1]
        store.open(layer, key, value)
        if heads not in self.places:
            slot = torch.arange(len(self.positions), device=self.positions.device)
            self.places[heads] = store.places(slot, self.write_column, heads)
        for x, new in zip(store.layers[layer], (key, value), strict=True):
            x[self.places[heads]] = new.reshape(-1, x.shape[-1])
        if self.full:
            key, value = self.rows.whole(layer)
        return key, value

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the additive mask [width, 1, 1, prompt columns + own columns]; distances are in position ids."""
        if window not in self.masks:
            own = torch.arange(self.rows.count, device=self.positions.device)
            prompt = torch.arange(self.lanes.prompts.count if self.lanes else 0, device=self.positions.device)
            shared = self.shared.unsqueeze(1)
            seen = torch.cat([prompt < shared, own <= self.write_column.unsqueeze(1)], 1)
            if window is not None:
                position = torch.cat([prompt.expand(len(shared), -1), shared + own], 1)
                seen &= position > self.positions.unsqueeze(1) - window
            self.masks[window] = _additive(seen, dtype)[:, None, None]
        return self.masks[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, score: "Score") -> Tensor:
        """Return [width, 1, H, d_v]. Prompt and own columns share one softmax."""
        width, heads, _, dim = query.shape
        kv_heads = self.rows.store.heads(layer)
        q = query.reshape(width * kv_heads, heads // kv_heads, dim)
        products, prompt = self.rows.products(layer, q), 0
        if self.lanes is not None:
            prompt = self.lanes.prompts.count
            products = torch.cat([self.lanes.products(layer, q, kv_heads), products], -1)
        mask = self.mask(score.window, query.dtype)
        weights = score.softmax(products.view(width, kv_heads, -1, products.shape[-1]), mask).view(products.shape)
        out = self.rows.mix(layer, weights[..., prompt:])
        if self.lanes is not None:
            out += self.lanes.mix(layer, weights[..., :prompt], kv_heads)
        return out.view(width, 1, heads, -1)


Plan = PrefillPlan | StepPlan


def plan_step(state: SlabState, device: torch.device, full: bool = False) -> StepPlan:
    """Lay out the next step of all rows of a slab, and make room for it.

    Raises:
        RuntimeError: other states of the slab hold slots, whose first column this step would overwrite.
    """
    slab = state.slab
    if int(slab.used.sum()) != len(state.slot):
        raise RuntimeError("the slab holds rows of another state: join all states before stepping")
    slab.rows.reserve(slab.slots, int(state.own.max()) + 1)
    slab.arrange(state)
    width = slab.width_for(int(state.slot.max()) + 1)
    position, column, shared = (np.zeros(width, np.int64) for _ in range(3))
    position[state.slot] = state.lengths.numpy()
    shared[state.slot] = state.shared
    column[state.slot] = state.own
    return StepPlan(
        rows=Columns(slab.rows, (width, *reach(chunk_of(column))[1:])),
        positions=torch.from_numpy(position).to(device),
        write_column=torch.from_numpy(column).to(device),
        shared=torch.from_numpy(shared).to(device),
        lanes=_lanes(state, width, device) if slab.share else None,
        full=full,
    )


def _lanes(state: SlabState, width: int, device: torch.device) -> Lanes:
    slab, blocks = state.slab, int(state.block.max()) + 1
    last = np.zeros(blocks, np.int64)
    np.maximum.at(last, state.block, np.maximum(state.shared - 1, 0))
    lane_slot = slab.lane_slot[:blocks].reshape(-1)
    slot_lane = np.zeros(width, np.int64)
    taken = np.flatnonzero(lane_slot >= 0)
    slot_lane[lane_slot[taken]] = taken
    return Lanes(
        Columns(slab.blocks, (blocks, *reach(chunk_of(last))[1:])),
        torch.from_numpy(np.maximum(lane_slot, 0)).to(device),
        torch.from_numpy(slot_lane).to(device),
    )


@dataclass(frozen=True, slots=True)
class Score:
    """How a layer turns products of queries and keys into weights."""

    scale: float
    softcap: float | None
    window: int | None

    def softmax(self, products: Tensor, mask: Tensor) -> Tensor:
        """Scale, cap, mask and normalise over the last dimension."""
        if self.softcap is None:
            return torch.add(mask, products, alpha=self.scale).softmax(-1)
        capped = torch.tanh(products * (self.scale / self.softcap)) * self.softcap
        return (capped + mask).softmax(-1)


def slab_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **unsupported: Any,
) -> tuple[Tensor, None]:
    """Attend under the active plan. query [n, H, q, d], key and value [n, H_kv, q, d] -> [n, q, H, d_v].

    Raises:
        NotImplementedError: the model asks for something this function does not compute (the probe then falls back).
    """
    odd = [name for name in ("s_aux", "position_bias", "attn_bias") if unsupported.get(name) is not None]
    if odd:
        raise NotImplementedError(f"slab attention does not compute {odd[0]}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = cast(int, module.layer_idx)
    return active_plan.get().attend(layer, query, key, value, Score(scale, softcap, sliding_window)), None


class PlanCache:
    """What a model takes for its key-value cache: it writes to the plan of the pass."""

    is_compileable = False

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store this layer's new keys and values and return those to attend to."""
        return self.plan.write(layer_idx, key, value)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are always given explicitly."""
        return 0


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


AttentionInterface.register(NAME, slab_attention)
