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

from selftaught.models.slab import LANES, PromptBatch, SlabState, Store, round_up

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
class Lanes:
    """Where the prompts of a step's slots lie: queries go to the lanes of their prompt's block and results come back.

    `lane_slot` [blocks * LANES] is the slot that each lane serves, `slot_lane` [width] the lane of each slot; what is
    vacant points at 0 and is computed for nothing. `columns` are the prompt columns computed.
    """

    store: Store
    columns: int
    lane_slot: Tensor
    slot_lane: Tensor
    indices: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def scores(self, layer: int, query: Tensor, kv_heads: int) -> Tensor:
        """Multiply queries [width * H_kv, repeats, d] with their prompts' keys: [width * H_kv, repeats, columns]."""
        return self._through(self._stored(layer)[0].transpose(1, 2), query, kv_heads)

    def mix(self, layer: int, weights: Tensor, kv_heads: int) -> Tensor:
        """Add up prompts' values by weights [width * H_kv, repeats, columns]: [width * H_kv, repeats, d_v]."""
        return self._through(self._stored(layer)[1], weights, kv_heads)

    def _through(self, stored: Tensor, x: Tensor, kv_heads: int) -> Tensor:
        to_lane, to_slot = self._index(kv_heads)
        picked = x.index_select(0, to_lane).view(-1, LANES * x.shape[1], x.shape[2])
        return torch.bmm(picked, stored).view(-1, x.shape[1], stored.shape[2]).index_select(0, to_slot)

    def _stored(self, layer: int) -> list[Tensor]:
        blocks = len(self.lane_slot) // LANES
        return [x[:blocks, :, : self.columns].flatten(0, 1) for x in self.store.layers[layer]]

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

    store: Store
    columns: int
    positions: Tensor
    write_column: Tensor
    shared: Tensor
    lanes: Lanes | None
    full: bool
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    indices: dict[int, Tensor] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Slots computed."""
        return len(self.positions)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store one key and value [width, H_kv, 1, d] per slot; return them, or the whole rows where `full` is set."""
        stored = self.store.layer(layer, key, value)
        for x, new in zip(stored, (key, value), strict=True):
            x.view(-1, x.shape[-1])[self._index(x.shape[1])] = new.reshape(-1, x.shape[-1])
        if self.full:
            key, value = (x[: self.width, :, : self.columns] for x in stored)
        return key, value

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the additive mask [width, 1, 1, prompt columns + columns]; distances are in position ids."""
        if window not in self.masks:
            own = torch.arange(self.columns, device=self.positions.device)
            prompt = torch.arange(self.lanes.columns if self.lanes else 0, device=self.positions.device)
            shared = self.shared.unsqueeze(1)
            seen = torch.cat([prompt < shared, own <= self.write_column.unsqueeze(1)], 1)
            if window is not None:
                position = torch.cat([prompt.expand(self.width, -1), shared + own], 1)
                seen &= position > self.positions.unsqueeze(1) - window
            self.masks[window] = _additive(seen, dtype)[:, None, None]
        return self.masks[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, score: "Score") -> Tensor:
        """Return [width, 1, H, d_v]. Prompt and own columns share one softmax."""
        width, heads, _, dim = query.shape
        keys, values = (x[:width, :, : self.columns].flatten(0, 1) for x in self.store.layers[layer])
        kv_heads = len(keys) // width
        q = query.reshape(len(keys), heads // kv_heads, dim)
        products = torch.bmm(q, keys.transpose(1, 2))
        prompt = 0
        if self.lanes is not None:
            prompt = self.lanes.columns
            products = torch.cat([self.lanes.scores(layer, q, kv_heads), products], -1)
        mask = self.mask(score.window, query.dtype)
        weights = score.softmax(products.view(width, kv_heads, -1, prompt + self.columns), mask).view(products.shape)
        out = torch.bmm(weights[..., prompt:], values)
        if self.lanes is not None:
            out += self.lanes.mix(layer, weights[..., :prompt], kv_heads)
        return out.view(width, 1, heads, -1)

    def _index(self, heads: int) -> Tensor:
        if heads not in self.indices:
            unit = torch.arange(self.width * heads, device=self.positions.device).view(-1, heads)
            self.indices[heads] = (unit * self.store.columns + self.write_column.unsqueeze(1)).flatten()
        return self.indices[heads]


Plan = PrefillPlan | StepPlan


def plan_step(state: SlabState, device: torch.device, full: bool = False) -> StepPlan:
    """Lay out the next step of all rows of a slab, and make room for it.

    Raises:
        RuntimeError: other states of the slab hold slots, whose first column this step would overwrite.
    """
    slab = state.slab
    if int(slab.used.sum()) != len(state.slot):
        raise RuntimeError("the slab holds rows of another state: join all states before stepping")
    width = slab.width_for(int(state.slot.max()) + 1)
    position, column, shared = (np.zeros(width, np.int64) for _ in range(3))
    position[state.slot] = state.lengths.numpy()
    shared[state.slot] = state.shared
    column[state.slot] = state.lengths.numpy() - state.shared
    columns = round_up(int(column.max()) + 1)
    slab.rows.reserve(slab.slots, columns)
    return StepPlan(
        store=slab.rows,
        columns=columns,
        positions=torch.from_numpy(position).to(device),
        write_column=torch.from_numpy(column).to(device),
        shared=torch.from_numpy(shared).to(device),
        lanes=_lanes(state, width, device) if slab.share else None,
        full=full,
    )


def _lanes(state: SlabState, width: int, device: torch.device) -> Lanes:
    slab = state.slab
    lane_slot = slab.lane_slot[: int(state.block.max()) + 1].reshape(-1)
    slot_lane = np.zeros(width, np.int64)
    taken = np.flatnonzero(lane_slot >= 0)
    slot_lane[lane_slot[taken]] = taken
    return Lanes(
        slab.blocks,
        round_up(int(state.shared.max())),
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
