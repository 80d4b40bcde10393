import pytest
import torch
import torch.nn.functional as F

from selftaught.functional.rms_norm import rms_norm


def test_by_hand() -> None:
    """The mean square of 3 and 4 is 12.5; with eps 3.5 the root is 4."""
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(rms_norm(x, weight, 3.5), torch.tensor([[0.75, 2.0]]))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_gradients(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 0.1), (x, weight))


def test_bfloat16_is_computed_in_float32() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.linspace(0.5, 2, 64).bfloat16()
    expected = F.rms_norm(x.float(), (64,), weight.float(), 1e-5).bfloat16()
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, rtol=0, atol=0)


def test_the_same_with_and_without_gradients() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0.5, 2, 64, requires_grad=True)
    with torch.no_grad():
        found = rms_norm(x, weight, 1e-5)
    assert not found.requires_grad and torch.equal(found, rms_norm(x, weight, 1e-5))
