"""Worked example: log-probs -1, -2 | -3 of two completions sum to -3 and -3; their NLL per token is 3/2 and 3."""

import torch

from selftaught.functional.nll import sequence_nll, sequence_sums


def test_worked_value():
    sums = sequence_sums(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(sums, torch.tensor([-3.0, -3.0]))
    torch.testing.assert_close(sequence_nll(sums, torch.tensor([2.0, 1.0])), torch.tensor([1.5, 3.0]))


def test_order_of_tokens_does_not_matter():
    values, owner = torch.tensor([0.5, -1.0, 2.0, 4.0]), torch.tensor([2, 0, 2, 1])
    shuffled = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(sequence_sums(values, owner, 3), sequence_sums(values[shuffled], owner[shuffled], 3))


def test_an_owner_without_tokens_has_sum_and_nll_zero():
    sums = sequence_sums(torch.tensor([-1.0]), torch.tensor([1]), 2)
    assert sequence_nll(sums, torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_gradient_in_float64():
    values = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    owner, lengths = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: sequence_nll(sequence_sums(v, owner, 3), lengths), (values,))
