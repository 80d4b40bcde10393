import pytest
import torch

from selftaught.functional import windowed_attention as module
from selftaught.functional.windowed_attention import windowed_attention


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, positions: torch.Tensor | None):
    n = q.shape[2]
    back = torch.arange(n)[:, None] - torch.arange(n)
    seen = (back >= 0) & (back < (window or n))
    mask = seen[None] if positions is None else seen & (back <= positions[:, :, None])
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~mask[:, None], -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("scores", [1, 2**21])
@pytest.mark.parametrize(("n", "window"), [(1, 4), (5, None), (17, None), (17, 1), (17, 5), (32, 8), (30, 100)])
@pytest.mark.parametrize("documents", [False, True])
def test_values_and_gradients_are_those_of_dense_attention(
    n: int, window: int | None, documents: bool, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of 4, all rows at once and one at a time, two heads to a group of keys."""
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(module, "SCORES", scores)
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(3, h, n, 6, generator=generator, dtype=torch.float64) for h in (4, 2, 2, 4))
    positions = torch.stack([torch.arange(n) % 7, torch.arange(n), torch.arange(n) % 2]) if documents else None
    inputs = [x.requires_grad_() for x in (q, k, v)]
    ours, expected = windowed_attention(q, k, v, window, positions), dense(q, k, v, window, positions)
    torch.testing.assert_close(ours, expected)
    found = torch.autograd.grad(ours, inputs, g)
    for a, b in zip(found, torch.autograd.grad(expected, inputs, g), strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_is_near_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(2, 2, 300, 16, generator=generator).bfloat16().requires_grad_() for _ in range(3)]
    wide = [y.detach().float().requires_grad_() for y in x]
    ours, expected = windowed_attention(*x, 50), windowed_attention(*wide, 50)
    torch.testing.assert_close(ours.float(), expected, rtol=0, atol=0.02)
    for a, b in zip(torch.autograd.grad(ours.sum(), x), torch.autograd.grad(expected.sum(), wide), strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, rtol=0.02, atol=0.05)
