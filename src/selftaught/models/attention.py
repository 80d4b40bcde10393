"""Attention over the slab: the function registered with transformers, and what one forward pass must know.

A pass is a `PrefillPlan` (right-padded prompts, causal) or a `StepPlan` (one query per computed slot). The plan is handed
to the model as its cache; the attention function finds it in a context variable, because not every model passes extra
arguments down. A model that does not go through transformers' attention interface can take the plan's 4D masks instead.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from selftaught.models.slab import PromptBatch, Slab, SlabState, round_up

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
class StepPlan:
    """One query per computed slot; the columns every slot writes and sees. Built by `plan_step`."""

    slab: Slab
    width: int
    columns: int
    prompt_columns: int
    positions: Tensor
    write_column: Tensor
    shared: Tensor
    lane_slot: Tensor | None
    slot_lane: Tensor | None
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    indices: dict[int, tuple[Tensor, Tensor | None, Tensor | None]] = field(default_factory=dict)
    full: bool = False

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store one key and value [width, H_kv, 1, d] per slot; return them, or the whole rows where `full` is set."""
        stored = self.slab.rows.layer(layer, key, value)
        index = self._index(key.shape[1])[0]
        for x, new in zip(stored, (key, value), strict=True):
            x.view(-1, x.shape[-1])[index] = new.reshape(-1, x.shape[-1])
        if self.full:
            key, value = (x[: self.width, :, : self.columns] for x in stored)
        return key, value

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the additive mask [width, 1, 1, prompt columns + columns]; distances are in position ids."""
        if window not in self.masks:
            own, prompt = (torch.arange(n, device=self.positions.device) for n in (self.columns, self.prompt_columns))
            shared, last = self.shared.unsqueeze(1), self.write_column.unsqueeze(1)
            seen = torch.cat([prompt < shared, own <= last], 1)
            if window is not None:
                position = torch.cat([prompt.expand(self.width, -1), shared + own], 1)
                seen &= position > self.positions.unsqueeze(1) - window
            self.masks[window] = _additive(seen, dtype)[:, None, None]
        return self.masks[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, score: "Score") -> Tensor:
        """Return [width, 1, H, d_v]. Prompt and own columns share one softmax."""
        keys, values = self.slab.rows.layers[layer]
        width, heads, _, dim = query.shape
        kv_heads = keys.shape[1]
        repeats = heads // kv_heads
        k, v = (x[:width, :, : self.columns].flatten(0, 1) for x in (keys, values))
        q = query.reshape(width * kv_heads, repeats, dim)
        scores = torch.bmm(q, k.transpose(1, 2))
        if self.lane_slot is None:
            weights = score.softmax(scores.view(width, kv_heads, repeats, -1), self.mask(score.window, query.dtype))
            out = torch.bmm(weights.view(width * kv_heads, repeats, -1), v)
            return out.view(width, 1, heads, -1)
        prompt_keys, prompt_values = self._prompt(layer)
        prompt_scores = self._to_slots(torch.bmm(self._to_lanes(q), prompt_keys.transpose(1, 2)), q.shape)
        scores = torch.cat([prompt_scores, scores], -1).view(width, kv_heads, repeats, -1)
        weights = score.softmax(scores, self.mask(score.window, query.dtype)).view(width * kv_heads, repeats, -1)
        out = torch.bmm(weights[..., self.prompt_columns :], v)
        shared = torch.bmm(self._to_lanes(weights[..., : self.prompt_columns]), prompt_values)
        return (out + self._to_slots(shared, q.shape)).view(width, 1, heads, -1)

    def _prompt(self, layer: int) -> tuple[Tensor, Tensor]:
        blocks = len(self.lane_slot) // self.slab.lanes
        keys, values = self.slab.blocks.layers[layer]
        return tuple(x[:blocks, :, : self.prompt_columns].flatten(0, 1) for x in (keys, values))

    def _to_lanes(self, x: Tensor) -> Tensor:
        """[width * H_kv, repeats, n] in slot order -> [blocks * H_kv, lanes * repeats, n]."""
        heads = len(x) // self.width
        lanes = self.slab.lanes
        picked = x.index_select(0, self._index(heads)[1])
        return picked.view(-1, lanes * x.shape[1], x.shape[2])

    def _to_slots(self, x: Tensor, shape: torch.Size) -> Tensor:
        """[blocks * H_kv, lanes * repeats, n] -> [width * H_kv, repeats, n] in slot order."""
        heads = shape[0] // self.width
        return x.view(-1, shape[1], x.shape[-1]).index_select(0, self._index(heads)[2])

    def _index(self, heads: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return, for this many key heads, where slots write, which slot a lane reads and which lane a slot reads."""
        if heads not in self.indices:
            head = torch.arange(heads, device=self.positions.device)
            unit = torch.arange(self.width, device=head.device).unsqueeze(1) * heads + head
            write = unit * self.slab.rows.columns + self.write_column.unsqueeze(1)
            to_lane = to_slot = None
            if self.lane_slot is not None:
                lanes = self.slab.lanes
                by_block = self.lane_slot.view(-1, 1, lanes) * heads + head.view(-1, 1)
                to_lane = by_block.flatten()
                block, lane = self.slot_lane // lanes, self.slot_lane % lanes
                to_slot = ((block.unsqueeze(1) * heads + head) * lanes + lane.unsqueeze(1)).flatten()
            self.indices[heads] = (write.flatten(), to_lane, to_slot)
        return self.indices[heads]


Plan = PrefillPlan | StepPlan


def plan_step(state: SlabState, device: torch.device) -> StepPlan:
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
    on_device = [torch.from_numpy(x).to(device) for x in (position, column, shared)]
    if not slab.lanes:
        return StepPlan(slab, width, columns, 0, *on_device, None, None)
    blocks = int(state.block.max()) + 1
    lane_slot = slab.lane_slot[:blocks].reshape(-1)
    slot_lane = np.zeros(width, np.int64)
    taken = np.flatnonzero(lane_slot >= 0)
    slot_lane[lane_slot[taken]] = taken
    lanes = [torch.from_numpy(x).to(device) for x in (np.maximum(lane_slot, 0), slot_lane)]
    return StepPlan(slab, width, columns, round_up(int(state.shared.max())), *on_device, *lanes)


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
    return active_plan.get().attend(module.layer_idx, query, key, value, Score(scale, softcap, sliding_window)), None


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
