"""Worked example: a head gives its choices probabilities 0.8 and 0.2; the chosen completion drew the first, the
rejected one the second. The margin is log 0.8 - log 0.2 = log 4, and with beta 1 the separate loss log(1 + 1/4) =
0.223144.

With text log-ratios 0.3 and 0.1 (a language model that moved) the joint margin is log 4 + 0.2 = 1.586294, the loss
log(1 + e^-0.2 / 4) = log(1.2046827) = 0.186216.

Latent, one decision each. The chosen text has probabilities 0.5 and 0.1 under the two choices, the rejected one 0.2
and 0.4:
R_w = log((0.8 * 0.5 + 0.2 * 0.1) / (0.5 * 0.5 + 0.5 * 0.1)) = log(0.42 / 0.3) = log 1.4 and
R_l = log((0.8 * 0.2 + 0.2 * 0.4) / (0.5 * 0.2 + 0.5 * 0.4)) = log(0.24 / 0.3) = log 0.8.
The margin is log 1.75, the loss log(1 + 1 / 1.75) = log(11 / 7) = 0.451985. NLL on chosen: -log 0.8 = 0.223144.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftaught.functional.latent_preference import (
    choice_nll,
    choice_preference,
    joint_preference,
    latent_preference,
    latent_ratios,
)
from selftaught.functional.sampling import FLOOR, logps_under

CHOSEN, REJECTED = torch.tensor([0.8]).log(), torch.tensor([0.2]).log()
HEAD = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log()
TEXT = torch.tensor([[0.5, 0.1], [0.2, 0.4]]).log()


def random_logps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).log_softmax(-1)


def test_worked_values() -> None:
    half = torch.tensor([0.5])
    text = torch.tensor([0.3]), torch.tensor([0.1])
    found = [
        choice_preference(CHOSEN, REJECTED, beta=1.0),
        choice_preference(CHOSEN, REJECTED, beta=1.0, weight=half),
        joint_preference(CHOSEN, REJECTED, *text, beta=1.0),
        latent_preference(HEAD, TEXT, torch.tensor([0, 1]), beta=1.0, sequences=2),
        latent_preference(HEAD, TEXT, torch.tensor([0, 1]), beta=1.0, sequences=2, weight=half),
        choice_nll(CHOSEN),
        choice_nll(CHOSEN, weight=half),
    ]
    expected = [0.223144, 0.111572, 0.186216, 0.451985, 0.225993, 0.223144, 0.111572]
    torch.testing.assert_close(torch.cat(found), torch.tensor(expected), atol=2e-6, rtol=0)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


@given(st.integers(1, 4), st.lists(st.integers(0, 5), min_size=2, max_size=6), st.floats(0.05, 2), st.booleans())
def test_latent_agrees_with_an_independent_implementation(k, lengths, beta, normalised) -> None:
    """Plain Python over probabilities, one token and one choice at a time, with a reference that is not uniform."""
    lengths = lengths[: len(lengths) // 2 * 2]
    total = sum(lengths)
    head, text, ref = (random_logps(total, k, seed=s) for s in range(3))
    text = text - 1.0
    scores, token = [], 0
    for length in lengths:
        score = 0.0
        for _ in range(length):
            p, q = (
                sum(math.exp(a[token][i]) * math.exp(text[token][i]) for i in range(k)) for a in (head.tolist(), ref)
            )
            score += math.log(p / q)
            token += 1
        scores.append(score / max(length, 1) if normalised else score)
    expected = [-log_sigmoid(beta * (w - r)) for w, r in zip(scores[0::2], scores[1::2], strict=True)]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    options = {"lengths": torch.tensor(lengths, dtype=torch.float64)} if normalised else {}
    found = latent_preference(head, text, owner, beta=beta, sequences=len(lengths), ref_choice_logps=ref, **options)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.floats(-40, 0), st.floats(-40, 0), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.05, 2), st.floats(0, 1))
def test_joint_agrees_with_an_independent_implementation(chosen, rejected, r_w, r_l, beta, weight) -> None:
    values = [torch.tensor([v], dtype=torch.float64) for v in (chosen, rejected, r_w, r_l)]
    found = joint_preference(*values, beta=beta, weight=torch.tensor([weight], dtype=torch.float64))
    assert found.item() == pytest.approx(-weight * log_sigmoid(beta * (chosen - rejected + r_w - r_l)), abs=1e-9)


def test_a_frozen_language_model_makes_the_joint_loss_the_separate_one() -> None:
    """Text and reference are the same model, each scored at the choice that was drawn."""
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(6)
    drawn = [0.4, 1.0, 1.3]
    policy, reference = (torch.stack([logps_under(logits, tokens, t) for t in drawn], 1) for _ in range(2))
    index = torch.tensor([0, 2, 1, 1, 0, 2])
    ratios = (policy - reference).gather(1, index[:, None]).squeeze(1)
    choices = random_logps(6, 3, dtype=torch.float32).gather(1, index[:, None]).squeeze(1)
    joint = joint_preference(choices[0::2], choices[1::2], ratios[0::2], ratios[1::2], beta=0.7)
    assert torch.equal(joint, choice_preference(choices[0::2], choices[1::2], beta=0.7))


def test_one_choice_is_log_2_for_every_pair_whatever_was_said() -> None:
    text = random_logps(7, 5)[:, :1]
    owner = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    found = latent_preference(torch.zeros(7, 1), text, owner, beta=0.9, sequences=4)
    torch.testing.assert_close(found, torch.full((2,), math.log(2), dtype=text.dtype))


def test_what_no_choice_allows_stays_finite_and_says_nothing() -> None:
    """A token that greedy decoding and a top-1 filter pass over has the same floor under both: R is 0."""
    logits = torch.tensor([[3.0, 1.0, 0.0]])
    token = torch.tensor([2])
    text = torch.stack([logps_under(logits, token, 0.0), logps_under(logits, token, 1.0, top_k=1)], 1)
    assert text.tolist() == [[FLOOR, FLOOR]]
    head = random_logps(1, 2, dtype=torch.float32).requires_grad_()
    ratio = latent_ratios(head, text, torch.tensor([0]), sequences=1)
    assert ratio.item() == pytest.approx(0, abs=1e-5)
    ratio.sum().backward()
    assert head.grad.isfinite().all()


def test_gradients_in_float64() -> None:
    head, text, ref = (random_logps(6, 3, seed=s).requires_grad_() for s in range(3))
    owner, weight = torch.tensor([0, 1, 1, 2, 3, 3]), torch.tensor([0.3, 1.2], dtype=torch.float64)
    lengths = torch.tensor([1, 2, 1, 2], dtype=torch.float64)
    options = {"beta": 0.6, "sequences": 4, "lengths": lengths, "weight": weight}
    assert torch.autograd.gradcheck(
        lambda a, b, c: latent_preference(a, b, owner, ref_choice_logps=c, **options), (head, text, ref)
    )
    rows = tuple(torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(4))
    assert torch.autograd.gradcheck(lambda *x: joint_preference(*x, beta=0.6, weight=weight), rows)
    assert torch.autograd.gradcheck(lambda *x: choice_preference(*x, beta=0.6, weight=weight), rows[:2])
    assert torch.autograd.gradcheck(lambda x: choice_nll(x, weight=weight), rows[:1])


def test_order_and_grouping_of_tokens_do_not_matter() -> None:
    head, text = random_logps(6, 3), random_logps(6, 3, seed=1)
    owner = torch.tensor([0, 1, 1, 2, 3, 3])
    whole = latent_preference(head, text, owner, beta=0.8, sequences=4)
    order = torch.tensor([4, 0, 2, 5, 3, 1])
    torch.testing.assert_close(latent_preference(head[order], text[order], owner[order], beta=0.8, sequences=4), whole)
    second = latent_preference(head[3:], text[3:], owner[3:] - 2, beta=0.8, sequences=2)
    torch.testing.assert_close(second, whole[1:])


def test_an_empty_completion_scores_nothing() -> None:
    """All tokens belong to the chosen completion: the rejected one's R is 0, by sum and by mean."""
    head, text = random_logps(2, 3), random_logps(2, 3, seed=1)
    owner, lengths = torch.tensor([0, 0]), torch.tensor([2.0, 0.0], dtype=torch.float64)
    ratio = latent_ratios(head, text, owner, sequences=2)
    assert ratio[1] == 0
    found = latent_preference(head, text, owner, beta=1.0, sequences=2, lengths=lengths)
    assert found.item() == pytest.approx(-log_sigmoid(ratio[0].item() / 2))


def test_weight_zero_gives_exactly_no_loss_and_no_gradient() -> None:
    values = [torch.tensor([v, v], requires_grad=True) for v in (-3.0, -900.0)]
    losses = choice_preference(*values, beta=0.5, weight=torch.tensor([0.0, 1.0]))
    losses.sum().backward()
    assert losses[0] == 0 and all(v.grad[0] == 0 for v in values)


def test_float32_inside() -> None:
    narrow, owner = HEAD.bfloat16(), torch.tensor([0, 1])
    assert latent_preference(narrow, TEXT.bfloat16(), owner, beta=1.0, sequences=2).dtype == torch.float32
    assert choice_preference(narrow[0], narrow[1], beta=1.0).dtype == torch.float32
    assert choice_nll(narrow[0]).dtype == torch.float32


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="needs pairs, not 3 completions"):
        latent_preference(HEAD, TEXT, torch.tensor([0, 1]), beta=1.0, sequences=3)


@pytest.mark.parametrize("better", [0, 1])
def test_a_bandit_with_two_arms_converges_to_the_better_one(better: int) -> None:
    """Arms win with probability 0.9 and 0.3. Of 400 pairs with two different arms and rewards, the winner is chosen."""
    generator = torch.Generator().manual_seed(0)
    arms = torch.randint(2, (400, 2), generator=generator)
    odds = torch.where(arms == better, 0.9, 0.3)
    wins = torch.rand(400, 2, generator=generator) < odds
    useful = (wins[:, 0] != wins[:, 1]) & (arms[:, 0] != arms[:, 1])
    arms, wins = arms[useful], wins[useful]
    won = wins[:, 1].long()[:, None]
    chosen, rejected = arms.gather(1, won).squeeze(1), arms.gather(1, 1 - won).squeeze(1)
    head = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([head], lr=0.1)
    for _ in range(60):
        logps = head.log_softmax(-1)
        optimizer.zero_grad()
        choice_preference(logps[chosen], logps[rejected], beta=0.5).mean().backward()
        optimizer.step()
    assert head.softmax(-1)[better] > 0.9
