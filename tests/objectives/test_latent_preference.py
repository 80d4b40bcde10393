"""Worked example, one decision per completion: the head says (0.8, 0.2) for the pair's prompt, the chosen completion
drew choice 0 and the rejected one choice 1, weight 0.5, beta 0.5.

The margin of log-probs is log 0.8 - log 0.2 = log 4 = 1.386294, rewards are 0.5 * log 0.8 = -0.111572 and
0.5 * log 0.2 = -0.804719, and the loss is 0.5 * log(1 + e^-0.693147) = 0.5 * log 1.5 = 0.202733. NLL: 0.5 * -log 0.8 =
0.111572. The entropy of (0.8, 0.2) is 0.500402.

Latent, with text probabilities (0.5, 0.1) and (0.2, 0.4): R is log 1.4 and log 0.8 (`tests/functional`), the margin
log 1.75, and the loss 0.5 * log(1 + 1.75^-0.5) = 0.281499.
"""

import math
from dataclasses import replace

import pytest
import torch
from tests.objectives.batches import batch

from selftaught.objectives import Choices, build_objective
from selftaught.specs import LatentPreference

HEAD = [[0.8, 0.2], [0.8, 0.2]]
TEXT = torch.tensor([[0.5, 0.1], [0.2, 0.4]]).log()


def evaluate(spec, head, drawn, weights, lengths=None, text=None):
    """Return the loss, every term's mean, and the loss's gradient with regard to the head's log-probs."""
    lengths = lengths or [1] * len(head)
    made, _ = batch([[0.0] * n for n in lengths], weights)
    made = replace(made, choices=torch.tensor(drawn))
    logps = torch.tensor(head).log().requires_grad_()
    objective = build_objective(spec)
    found = Choices(logps=logps, owner=made.owner, text_logps=text)
    terms, counts = objective(lambda _: found, made, None), objective.counts(made)
    assert terms.keys() == counts.keys() == set(objective.terms)
    loss = sum(term.sum * term.weight / counts[name] for name, term in terms.items() if counts[name])
    loss.backward()
    return loss.item(), {name: t.sum.item() / counts[name] for name, t in terms.items()}, logps.grad


@pytest.mark.parametrize(
    ("loss", "expected"), [("separate", 0.202733), ("token", 0.202733), ("nll", 0.111572), ("latent", 0.281499)]
)
def test_worked_value(loss, expected):
    found = evaluate(LatentPreference(loss=loss, beta=0.5), HEAD, [0, 1], [0.5], text=TEXT)[0]
    assert found == pytest.approx(expected, abs=2e-6)


def test_metrics_have_the_ecosystems_names_and_values():
    _, means, _ = evaluate(LatentPreference(beta=0.5), HEAD, [0, 1], [0.5])
    assert means == pytest.approx(
        {
            "latent_preference_loss": 0.202733,
            "rewards/chosen": -0.111572,
            "rewards/rejected": -0.804719,
            "rewards/margins": 0.693147,
            "rewards/accuracies": 1.0,
            "choice_entropy": 0.500402,
        },
        abs=2e-6,
    )


TOKENS = [[0.5, 0.5], [0.9, 0.1], [0.6, 0.4]]


@pytest.mark.parametrize(
    ("normalised", "chosen"), [(True, (math.log(0.5) + math.log(0.1)) / 2), (False, math.log(0.05))]
)
def test_a_choice_per_token_is_averaged_or_summed(normalised, chosen):
    """The chosen completion has two decisions, 0 and 1, the rejected one a single 0."""
    spec = LatentPreference(beta=1.0, length_normalize=normalised)
    loss, means, gradient = evaluate(spec, TOKENS, [0, 1, 0], [1.0], lengths=[2, 1])
    margin = chosen - math.log(0.6)
    assert loss == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-6)
    assert means["rewards/margins"] == pytest.approx(margin, abs=1e-6)
    assert means["choice_entropy"] == pytest.approx((math.log(2) + 0.325083 + 0.673012) / 3, abs=1e-6)
    assert (gradient != 0).tolist() == [[True, False], [False, True], [True, False]]


@pytest.mark.parametrize("normalised", [True, False])
def test_latent_per_token(normalised):
    """Python floats: R = sum of log(sum_k p_k T_k / mean_k T_k) over each completion's tokens."""
    text = [[0.5, 0.1], [0.2, 0.4], [0.3, 0.6]]
    ratios = [
        math.log(sum(p * t for p, t in zip(*row, strict=True)) / (sum(row[1]) / 2))
        for row in zip(TOKENS, text, strict=True)
    ]
    chosen = (ratios[0] + ratios[1]) / (2 if normalised else 1)
    spec = LatentPreference(loss="latent", beta=0.3, length_normalize=normalised)
    loss, means, _ = evaluate(spec, TOKENS, [1, 1, 1], [1.0], lengths=[2, 1], text=torch.tensor(text).log())
    assert loss == pytest.approx(math.log1p(math.exp(-0.3 * (chosen - ratios[2]))), abs=1e-6)
    assert means["rewards/chosen"] == pytest.approx(0.3 * chosen, abs=1e-6)


def test_what_was_drawn_does_not_matter_to_the_latent_loss():
    spec = LatentPreference(loss="latent")
    first, second = (evaluate(spec, HEAD, drawn, [1.0], text=TEXT)[0] for drawn in ([0, 1], [1, 0]))
    assert first == second


@pytest.mark.parametrize("loss", ["token", "separate"])
def test_two_completions_with_the_same_choice_are_a_tie_that_pulls_on_nothing(loss):
    """At the sequence level both decisions are the prompt's, so their pushes cancel."""
    value, means, gradient = evaluate(LatentPreference(loss=loss), HEAD, [1, 1], [1.0])
    assert value == pytest.approx(math.log(2))
    assert (means["rewards/margins"], means["rewards/accuracies"]) == (0.0, 0.0)
    assert torch.equal(gradient[0], -gradient[1]) and gradient.any()


def test_nll_reads_chosen_completions_alone():
    _, _, gradient = evaluate(LatentPreference(loss="nll"), HEAD, [1, 0], [1.0])
    assert gradient.tolist() == [[0.0, -1.0], [0.0, 0.0]]


def test_the_mean_divides_by_pairs_and_weight_zero_gives_no_gradient():
    four = HEAD + HEAD
    half = evaluate(LatentPreference(), four, [0, 1, 0, 1], [1.0, 0.0])
    assert half[0] == pytest.approx(evaluate(LatentPreference(), HEAD, [0, 1], [1.0])[0] / 2)
    assert not half[2][2:].any() and half[2][:2].any()


def test_order_of_pairs_does_not_matter():
    head = [[0.8, 0.2], [0.8, 0.2], [0.3, 0.7], [0.3, 0.7]]
    found = evaluate(LatentPreference(), head, [0, 1, 1, 0], [0.5, 1.0])[0]
    assert found == pytest.approx(evaluate(LatentPreference(), head[2:] + head[:2], [1, 0, 0, 1], [1.0, 0.5])[0])


def test_it_reads_choices_and_needs_nothing_beforehand():
    objective = build_objective(LatentPreference())
    assert objective.reads == "choices" and not objective.needs_reference and not objective.needs_mismatched
    assert objective.prepare(None, []) is None


def test_batches_without_what_it_needs_are_refused():
    made, _ = batch([[0.0], [0.0]], [1.0])
    objective = build_objective(LatentPreference())
    with pytest.raises(ValueError, match=r'latents\["choice"\]'):
        objective.counts(made)
    with pytest.raises(ValueError, match="log-probs of the text"):
        evaluate(LatentPreference(loss="latent"), HEAD, [0, 1], [1.0])
