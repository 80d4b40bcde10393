"""Packed attention beside attention written out token by token in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selftaught.functional.tree import tree_mask
from selftaught.train import attention, layout
from selftaught.train.attention import packed_attention
from selftaught.train.layout import fillers, make_layout

MODULE = SimpleNamespace()


def tree(parts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and segments of one row with these part lengths."""
    segments = np.repeat(np.arange(len(parts)), parts)
    positions = np.concatenate([np.arange(n) + (parts[0] if i else 0) for i, n in enumerate(parts)])
    return positions, segments


def packed(rows: list[tuple[int, ...]]):
    positions, segments = (np.concatenate(x) for x in zip(*map(tree, rows), strict=True))
    return make_layout(rows, positions, segments)


def reference(q, k, v, rows, window):
    """Attend row by row with a dense mask."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out, start = [], 0
    for parts in rows:
        span = slice(start, start + sum(parts))
        start += sum(parts)
        positions, segments = (torch.from_numpy(x) for x in tree(parts))
        mask = tree_mask(segments, positions, window)
        scores = q[0, :, span] @ k[0, :, span].transpose(1, 2) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        out.append((weights @ v[0, :, span]).transpose(0, 1))
    return torch.cat(out)[None]


def states(tokens: int, heads: int = 4, key_heads: int = 2, size: int = 3):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, h, tokens, size, dtype=torch.float64, generator=generator).requires_grad_()
        for h in (heads, key_heads, key_heads)
    ]


TREES = [(4, 3, 2), (2, 1, 5), (1, 0, 1), (3, 2, 2)]
LINES = [(5,), (1,), (3,), (2,)]


@pytest.mark.parametrize("rows", [TREES, LINES, [(9, 7, 8)], [(3, 0, 0), (2, 0, 0)]], ids=str)
@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("group_scores", [1, 10**6])
@pytest.mark.parametrize("keys", [0, 1024], ids=["fused kernel", "matmul"])
def test_agrees_with_dense_masks(monkeypatch, rows, window, group_scores, keys):
    monkeypatch.setattr(layout, "GROUP_SCORES", group_scores)
    monkeypatch.setattr(attention, "MATMUL_KEYS", keys)
    made, tokens = packed(rows), sum(map(sum, rows))
    q, k, v = states(len(made.place))
    upstream = torch.randn(1, tokens, q.shape[1], q.shape[3], dtype=q.dtype)
    found = packed_attention(MODULE, q, k, v, None, layout=made, sliding_window=window)[0][:, :tokens]
    expected = reference(q, k, v, rows, window)
    torch.testing.assert_close(found, expected)
    for mine, wanted in zip(
        torch.autograd.grad((found * upstream).sum(), (q, k, v)),
        torch.autograd.grad((expected * upstream).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)


def test_gradient_in_float64():
    made = packed([(2, 1, 2), (1, 2, 1)])
    inputs = states(len(made.place), heads=2, key_heads=1, size=2)
    assert torch.autograd.gradcheck(lambda *x: packed_attention(MODULE, *x, None, layout=made)[0][:, :9], inputs)


def test_a_second_use_of_a_layout_gives_the_same():
    made = packed(TREES)
    q, k, v = states(len(made.place), heads=1, key_heads=1)
    first, second = (packed_attention(MODULE, q, k, v, None, layout=made)[0] for _ in range(2))
    assert torch.equal(first, second)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_every_token_has_a_place_of_its_own(rows):
    made = packed(rows)
    tokens = len(made.place)
    assert tokens - sum(map(sum, rows)) in (0, fillers(sum(map(sum, rows))))
    assert made.token[made.place].tolist() == list(range(tokens))
    assert sorted([*made.place.tolist(), *made.padding.tolist()]) == list(range(len(made.token)))
    for heads in (1, 3):
        into, back, padding = made.index(heads)
        assert into[back].tolist() == list(range(tokens * heads))
        assert sorted([*back.tolist(), *padding.tolist()]) == list(range(len(into)))


@pytest.mark.parametrize("asked", [{"softcap": 5.0}, {"s_aux": torch.zeros(1)}])
def test_what_it_cannot_compute_it_refuses(asked):
    q, k, v = states(5)
    with pytest.raises(NotImplementedError, match=next(iter(asked))):
        packed_attention(MODULE, q, k, v, None, layout=packed([(5,)]), **asked)
    with pytest.raises(NotImplementedError):
        packed_attention(MODULE, q, k, v, torch.zeros(1, 1, 5, 5), layout=packed([(5,)]))


def test_few_shapes_occur():
    for count in range(1, 5000):
        assert 0 <= fillers(count) <= max(7, 0.032 * count)
    assert len({count + fillers(count) for count in range(2048, 4096)}) <= 33
    rows = packed([(1 + i % 30,) for i in range(100)]).groups
    assert all(group.rows.bit_count() == 1 for group in rows)


def test_fillers_take_no_part():
    made = packed([(5, 2, 4), (3, 1, 3)])
    q, k, v = states(len(made.place))
    changed = [x.detach().clone() for x in (q, k, v)]
    for x in changed:
        x[:, :, 18:] = 100.0
    first, second = (packed_attention(MODULE, *x, None, layout=made)[0][:, :18] for x in ((q, k, v), changed))
    assert len(made.place) > 18
    torch.testing.assert_close(first, second)
