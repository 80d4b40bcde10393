import math

import torch

from selftaught.models.blt.layers import RMSNorm, rope, rotate


def test_a_rotation_by_hand() -> None:
    """At place 0 nothing turns; at place 1 the first pair turns by one radian, and gradients turn back."""
    x = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]], requires_grad=True)
    cos, sin = rope(torch.arange(2), 2, 10.0)
    y = rotate(x, cos, sin)
    torch.testing.assert_close(y[0, 0], torch.tensor([[1.0, 0.0], [math.cos(1.0), math.sin(1.0)]]))
    (gradient,) = torch.autograd.grad(y, x, y.detach())
    torch.testing.assert_close(gradient, x.detach())


def test_gradients_of_a_rotation_with_places_per_row() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    cos, sin = (t.double() for t in rope(torch.tensor([[0, 1, 2, 3], [0, 1, 0, 1]])[:, None], 6, 100.0))
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (x,))


def test_the_norm_is_pytorchs() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(RMSNorm(8, 1e-5)(x), torch.nn.RMSNorm(8, 1e-5)(x))
