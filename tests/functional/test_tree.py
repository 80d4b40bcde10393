"""Worked example: a prompt of 2 tokens with completions of 2 and 1 tokens and one place of padding.

    place      0 1 2 3 4 5
    segment    0 0 1 1 2 -
    position   0 1 2 3 2 0

Token 4, the second completion's, sees the prompt and itself. With a window of 2 it sees positions above 0: token 1 and
itself; token 3 sees tokens 2 and 3.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st

from selftaught.functional.tree import tree_mask

SEGMENTS = torch.tensor([0, 0, 1, 1, 2, -1])
POSITIONS = torch.tensor([0, 1, 2, 3, 2, 0])


def rows(*lines: str) -> torch.Tensor:
    return torch.tensor([[c == "x" for c in line] for line in lines])


def test_worked_mask():
    expected = rows("x.....", "xx....", "xxx...", "xxxx..", "xx..x.", ".....x")
    assert torch.equal(tree_mask(SEGMENTS, POSITIONS), expected)


def test_worked_mask_with_a_window():
    expected = rows("x.....", "xx....", ".xx...", "..xx..", ".x..x.", ".....x")
    assert torch.equal(tree_mask(SEGMENTS, POSITIONS, window=2), expected)


@given(st.integers(1, 6), st.lists(st.integers(0, 5), min_size=1, max_size=3), st.none() | st.integers(1, 6))
def test_every_branch_sees_what_it_would_see_alone(prompt, completions, window):
    lengths = [prompt, *completions]
    segments = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    positions = torch.cat([torch.arange(n) + (prompt if i else 0) for i, n in enumerate(lengths)])
    mask = tree_mask(segments, positions, window)
    for branch in range(1, len(completions) + 1):
        places = ((segments == 0) | (segments == branch)).nonzero().squeeze(1)
        alone = torch.arange(len(places))
        distance = alone[:, None] - alone[None, :]
        expected = (distance >= 0) & (distance < (window or len(places)))
        assert torch.equal(mask[places][:, places], expected)
        others = ((segments > 0) & (segments != branch)).nonzero().squeeze(1)
        own = (segments == branch).nonzero().squeeze(1)
        assert not mask[own][:, others].any()


def test_batched_masks_are_those_of_the_rows():
    both = tree_mask(torch.stack([SEGMENTS, SEGMENTS.flip(0).abs()]), torch.stack([POSITIONS, POSITIONS]))
    assert torch.equal(both[0], tree_mask(SEGMENTS, POSITIONS))
