import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selftaught.models.blt.cache import Columns, Notes, Spans, StepSight


@pytest.mark.parametrize("heads", [2, 4])
def test_rows_attend_to_their_own_columns(heads: int) -> None:
    """Rows of equal extent side by side go together; gathering, as accelerators do, gives the same."""
    torch.manual_seed(0)
    keys, values, q = torch.randn(6, 2, 9, 8), torch.randn(6, 2, 9, 8), torch.randn(8, heads, 1, 8)
    spans = Spans(np.array([1, 2, 3, 5, 0]), np.array([4, 4, 4, 4, 8]), np.array([2, 2, 0, 0, 8]))
    assert spans.runs == [(0, 2, 1, 2, 5), (2, 3, 3, 0, 5), (3, 4, 5, 0, 5), (4, 5, 0, 8, 9)]
    found = spans.attend(q, keys, values)
    assert found.shape == (8, heads, 1, 8) and not found[5:].any()
    for row, (slot, column, first) in enumerate(zip(spans.slot, spans.column, spans.first, strict=True)):
        k, v = (x[slot, :, first : column + 1].repeat_interleave(heads // 2, 0) for x in (keys, values))
        expected = F.softmax((q[row] @ k.transpose(1, 2)) * 8**-0.5, -1) @ v
        torch.testing.assert_close(found[row], expected)
    torch.testing.assert_close(spans._gathered(q[:5], keys, values, None, heads != 2), found[:5])
    scaled = spans.attend(q, keys, values, 0.1)
    torch.testing.assert_close(spans._gathered(q[:5], keys, values, 0.1, heads != 2), scaled[:5])
    assert (scaled - found).abs().max() > 1e-2


def test_columns_keep_what_they_hold_when_they_grow() -> None:
    columns, sight_of = Columns(3), "layer.0"
    for column in (0, 1, 70, 71, 200):
        columns.reserve(column + 1)
        spans = Spans(np.array([2, 0]), np.array([column, column]), np.array([0, 0]))
        new = torch.full((2, 4, 1, 8), float(column + 1)) * torch.tensor([1.0, -1.0])[:, None, None, None]
        with torch.inference_mode():
            StepSight(columns, sight_of, spans).attend(new, new, new)
    stored = columns.tensors["layer.0.keys"]
    assert stored.shape == (3, 4, columns.capacity, 8) and 201 <= columns.capacity <= 300
    for column in (0, 1, 70, 71, 200):
        assert (stored[2, :, column] == column + 1).all() and (stored[0, :, column] == -column - 1).all()
    assert not stored[1].any() and not stored[:, :, 2:70].any()


def test_columns_have_slots_for_the_rows_that_came() -> None:
    columns, source = Columns(), Columns(2, 3)
    source.tensors["x"] = torch.arange(12.0).view(2, 2, 3, 1)
    for slot in (0, 1, 4):
        columns.copy(source, np.array([1]), np.array([slot]), 3)
    stored = columns.tensors["x"]
    assert columns.slots == len(stored) == 5
    assert all(torch.equal(stored[slot, :, :3], source.tensors["x"][1]) for slot in (0, 1, 4))
    assert not stored[2:4].any() and not stored[:, :, 3:].any()
    columns.reserve(3, 6)
    assert len(columns.tensors["x"]) == 7, "half as many again"


def test_notes_grow_together() -> None:
    notes = Notes.for_slots(2)
    for columns in (1, 65, 66, 300):
        notes.reserve(columns)
        assert len({x.shape for x in (notes.ids, notes.score, notes.closed)}) == 1 and notes.ids.shape[1] >= columns
    notes.ids[1, 7] = 9
    assert notes.at("ids", np.array([1, 1]), np.array([7, -1])).tolist() == [9, 0]
