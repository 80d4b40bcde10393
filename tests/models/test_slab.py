import numpy as np
import torch

from selftaught.models.slab import (
    LANES,
    ParkedPrompt,
    ParkedState,
    PromptBatch,
    Slab,
    SlabState,
    Store,
    chunk_of,
    chunks_for,
    new_owner,
    reach,
)
from selftaught.models.widths import SMALLEST, rows_agree, step_widths


def parked(slab: Slab, *lengths: int) -> ParkedState:
    """Return prompts whose key at position j of prompt i is 100 * i + j, in one layer of one head of one dimension."""
    width = max(lengths)
    key = torch.arange(width).view(1, 1, width, 1) + 100.0 * torch.arange(len(lengths)).view(-1, 1, 1, 1)
    batch = PromptBatch({0: (key, -key)})
    return ParkedState(slab, [ParkedPrompt(batch, i, n, new_owner()) for i, n in enumerate(lengths)])


def keys_of(store: Store, unit: int) -> list[float]:
    return torch.cat([keys[unit, 0, :, 0] for keys, _ in store.chunks(0)]).tolist()


def stored(slab: Slab, state: SlabState, row: int) -> list[float]:
    return keys_of(slab.blocks, state.block[row])[: state.shared[row]]


def test_chunks_double_up_to_a_largest() -> None:
    assert chunks_for(0) == chunks_for(32) == ((0, 32),)
    assert chunks_for(129) == ((0, 32), (32, 32), (64, 64), (128, 128))
    assert chunks_for(1000)[4:] == ((256, 256), (512, 256), (768, 256))
    assert chunk_of(np.array([0, 31, 32, 63, 64, 127, 128, 255, 256, 600])).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5]


def test_reach_is_the_last_unit_that_needs_a_chunk() -> None:
    assert reach(np.array([0, 2, 0, 1, 0])) == (5, 4, 2)
    assert reach(np.array([0, 0])) == (2,)


def test_a_store_grows_and_keeps_what_it_holds() -> None:
    store = Store()
    store.reserve(2, 10)
    key, value = torch.randn(2, 3, 10, 4), torch.randn(2, 3, 10, 5)
    store.fill(0, torch.tensor([1, 0]), key, value)
    store.reserve(5, 140)
    assert store.columns == 256 and store.heads(0) == 3
    keys, values = (torch.cat(side, 2) for side in zip(*store.chunks(0), strict=True))
    assert torch.equal(keys[:2, :, :10], key.flip(0)) and torch.equal(values[:2, :, :10], value.flip(0))
    assert keys[2:].abs().sum() == 0 and keys[:, :, 10:].abs().sum() == 0


def test_places_point_at_a_units_column() -> None:
    store = Store()
    store.reserve(3, 200)
    store.open(0, torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))
    unit, column = torch.tensor([2, 0, 1]), torch.tensor([5, 40, 199])
    store.layers[0][0][store.places(unit, column, 2), 0] = torch.arange(6.0) + 1
    keys = torch.cat([k for k, _ in store.chunks(0)], 2)
    assert keys[2, :, 5, 0].tolist() == [1, 2] and keys[0, :, 40, 0].tolist() == [3, 4]
    assert keys[1, :, 199, 0].tolist() == [5, 6] and (keys != 0).sum() == 6


def test_samples_of_a_prompt_share_blocks_of_eight_lanes() -> None:
    slab = Slab(32, True, (32,))
    prompts = parked(slab, 5, 3)
    state = prompts.fork(torch.tensor([0, 1]), 10)
    assert [int(np.sum(state.block == b)) for b in range(4)] == [LANES, 2, LANES, 2]
    assert stored(slab, state, 9) == [0, 1, 2, 3, 4] and stored(slab, state, 19) == [100, 101, 102]


def test_later_samples_take_vacant_lanes_of_their_prompt() -> None:
    slab = Slab(32, True, (32,))
    prompts = parked(slab, 5, 3)
    state = prompts.fork(torch.tensor([0]), 6).join(prompts.fork(torch.tensor([1, 0]), 2))
    assert state.block.tolist() == [0] * 6 + [1, 1, 0, 0]


def test_a_block_without_rows_is_used_again() -> None:
    slab = Slab(32, True, (32,))
    prompts = parked(slab, 5, 3)
    state = prompts.fork(torch.tensor([0, 1]), 2)
    state = state.select(torch.tensor([2, 3]))
    assert state.block.tolist() == [1, 1]
    state = state.join(prompts.fork(torch.tensor([1, 0]), 1))
    assert state.block.tolist() == [1, 1, 1, 0]
    assert stored(slab, state, 3) == [0, 1, 2, 3, 4]


def test_long_rows_move_to_the_low_slots() -> None:
    slab = Slab(32, True, (8, 16, 32))
    state = parked(slab, 4).fork(torch.tensor([0]), 20)
    slab.rows.reserve(32, 100)
    key = torch.arange(20.0).view(-1, 1, 1, 1).expand(-1, 1, 70, 1)
    slab.rows.fill(0, torch.arange(20), key, key)
    state = state.select(torch.arange(9, 15))
    state._lengths += np.array([3, 40, 3, 66, 40, 3])
    for _ in range(10):
        slab.arrange(state)
    assert sorted(state.slot[[1, 4]]) == [1, 2]
    assert state.slot[3] == 0 and state.slot.max() == 5 and slab.used.nonzero()[0].tolist() == [0, 1, 2, 3, 4, 5]
    for row, value in enumerate(range(9, 15)):
        n = int(state.own[row])
        assert keys_of(slab.rows, state.slot[row])[:n] == [value] * n
    assert sorted(slab.lane_slot[slab.lane_slot >= 0]) == sorted(state.slot)


def test_rows_stay_where_little_is_computed_in_vain() -> None:
    slab = Slab(8, True, (8,))
    state = parked(slab, 4).fork(torch.tensor([0]), 8)
    before = state.slot.copy()
    slab.arrange(state)
    assert state.slot.tolist() == before.tolist()


def test_copied_prompts_lie_in_the_rows() -> None:
    slab = Slab(8, False, (8,))
    state = parked(slab, 4, 40).fork(torch.tensor([1, 0]), 1)
    assert state.shared.tolist() == [0, 0]
    assert keys_of(slab.rows, state.slot[0])[:40] == [100 + j for j in range(40)]
    assert keys_of(slab.rows, state.slot[1])[:4] == [0, 1, 2, 3]


def test_step_widths_rise_to_the_slots() -> None:
    assert step_widths(8) == (8,)
    assert step_widths(64) == (8, 16, 24, 32, 40, 48, 56, 64)
    assert step_widths(256) == (8, 16, 24, 32, 64, 96, 128, 160, 192, 224, 256)
    assert all(step_widths(n)[-1] == n and step_widths(n)[0] <= SMALLEST for n in range(8, 300))


def test_rows_agree_notices_a_product_that_depends_on_the_rows() -> None:
    class Wobbling(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            out = super().__torch_function__(function, types, args, kwargs or {})
            return out + len(args[0]) * 1e-3 if function is torch.nn.functional.linear else out

    weight = torch.randn(16, 16)
    layer = torch.nn.Linear(16, 16)
    layer.weight = torch.nn.Parameter(weight.as_subclass(Wobbling))
    assert not rows_agree(layer)
