import numpy as np
import torch

from selftaught.models.slab import LANES, ParkedPrompt, ParkedState, PromptBatch, Slab, Store, new_owner, round_up
from selftaught.models.widths import SMALLEST, rows_agree, step_widths


def parked(slab: Slab, *lengths: int) -> ParkedState:
    """Return prompts whose key at position j of prompt i is 100 * i + j, in one layer of one head of one dimension."""
    width = round_up(max(lengths))
    key = torch.arange(width).view(1, 1, width, 1) + 100.0 * torch.arange(len(lengths)).view(-1, 1, 1, 1)
    batch = PromptBatch({0: (key, -key)})
    return ParkedState(slab, [ParkedPrompt(batch, i, n, new_owner()) for i, n in enumerate(lengths)])


def stored(slab: Slab, state, row: int) -> list[float]:
    return slab.blocks.layers[0][0][state.block[row], 0, : state.shared[row], 0].tolist()


def test_round_up() -> None:
    assert [round_up(n) for n in (0, 1, 32, 33)] == [32, 32, 32, 64]


def test_a_store_grows_and_keeps_what_it_holds() -> None:
    store = Store()
    store.reserve(2, 10)
    keys, _ = store.layer(0, torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, 5))
    keys[1, 2, 9] = 7
    store.reserve(5, 40)
    keys, values = store.layers[0]
    assert keys.shape == (5, 3, 64, 4) and values.shape == (5, 3, 64, 5)
    assert keys[1, 2, 9].tolist() == [7] * 4 and keys.sum() == 28


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


def test_rows_move_down_when_that_saves_slots() -> None:
    slab = Slab(32, True, (8, 16, 32))
    state = parked(slab, 4).fork(torch.tensor([0]), 20)
    slab.rows.layer(0, torch.zeros(20, 1, 1, 1), torch.zeros(20, 1, 1, 1))
    slab.rows.layers[0][0][:, 0, 0, 0] = torch.arange(32.0)
    state = state.select(torch.arange(9, 15))
    assert state.slot.max() < 8 and slab.used.sum() == 6
    assert slab.rows.layers[0][0][torch.from_numpy(state.slot), 0, 0, 0].tolist() == [9, 10, 11, 12, 13, 14]
    assert sorted(slab.lane_slot[slab.lane_slot >= 0]) == sorted(state.slot)


def test_copied_prompts_lie_in_the_rows() -> None:
    slab = Slab(8, False, (8,))
    state = parked(slab, 4, 40).fork(torch.tensor([1, 0]), 1)
    assert state.shared.tolist() == [0, 0]
    assert slab.rows.layers[0][0][int(state.slot[0]), 0, :40, 0].tolist() == [100 + j for j in range(40)]


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
