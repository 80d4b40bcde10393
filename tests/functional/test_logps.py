"""Worked example: one hidden state h = [1], head W = [[0], [ln 3]], so the logits are (0, ln 3) and the probabilities
(1/4, 3/4); log p(target 1) = ln(3/4) = -0.287682. With softcap c the second logit becomes c tanh(ln 3 / c): for c = 1,
tanh(1.098612) = 0.8, and log p = 0.8 - ln(1 + e^0.8) = -0.371101."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selftaught.functional.logps import token_logps


def example(positions: int = 11, size: int = 5, vocabulary: int = 13, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=dtype, requires_grad=True)
        for shape in ((positions, size), (vocabulary, size), (vocabulary,))
    )
    targets = torch.randint(0, vocabulary, (positions,), generator=generator)
    return hidden, weight, bias, targets


def test_worked_value():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    logps = token_logps(hidden, weight, torch.tensor([1]))
    torch.testing.assert_close(logps, torch.tensor([-0.287682]), atol=1e-6, rtol=0)
    capped = token_logps(hidden, weight, torch.tensor([1]), softcap=1.0)
    torch.testing.assert_close(capped, torch.tensor([-0.371101]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("chunk", "kept_bytes"), [(1, 0), (4, 0), (4, 10**9), (100, 0), (100, 10**9)])
def test_agrees_with_full_logits(softcap, with_bias, chunk, kept_bytes):
    hidden, weight, bias, targets = example()
    bias = bias if with_bias else None
    leaves = [x for x in (hidden, weight, bias) if x is not None]
    upstream = torch.linspace(-1, 2, len(hidden), dtype=hidden.dtype)

    logits = hidden @ weight.T + (0 if bias is None else bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = logits.log_softmax(-1)[torch.arange(len(targets)), targets]
    expected_gradients = torch.autograd.grad(expected @ upstream, leaves)

    logps = token_logps(hidden, weight, targets, bias=bias, softcap=softcap, chunk=chunk, kept_bytes=kept_bytes)
    torch.testing.assert_close(logps, expected)
    for found, wanted in zip(torch.autograd.grad(logps @ upstream, leaves), expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradient_in_float64(softcap):
    hidden, weight, bias, targets = example()
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logps(h, w, targets, bias=b, softcap=softcap, chunk=4), (hidden, weight, bias)
    )


def test_float32_inside_for_bf16():
    hidden, weight, _, targets = example(dtype=torch.float32)
    narrow = token_logps(hidden.bfloat16(), weight.bfloat16(), targets)
    wide = token_logps(hidden.bfloat16().float(), weight.bfloat16().float(), targets)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide)


def test_full_logits_are_never_in_memory():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                Largest.elements = max(Largest.elements, result.numel())
            return result

    hidden, weight, _, targets = example(positions=64, size=4, vocabulary=50)
    with Largest():
        token_logps(hidden, weight, targets, chunk=8, kept_bytes=0).sum().backward()
    assert Largest.elements <= 8 * 50


def test_no_positions():
    hidden, weight, _, _ = example(positions=0)
    logps = token_logps(hidden, weight, torch.zeros(0, dtype=torch.int64))
    logps.sum().backward()
    assert logps.shape == (0,)
    assert weight.grad.abs().sum() == 0


def test_wrong_shapes_are_named():
    hidden, weight, _, targets = example()
    with pytest.raises(ValueError, match=r"targets \(10,\)"):
        token_logps(hidden, weight, targets[:-1])
