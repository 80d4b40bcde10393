"""Latent Preference Optimization of decoding choices (a temperature, say), unreduced: one value per pair.

Adaptive Decoding via Latent Preference Optimization, arXiv 2411.09661. A head gives a distribution over K choices for
each decision: one decision per completion (sequence level) or one per token (token level). Pairs are completions whose
choices are known. The equations are those of a reading note; the paper's own numbering was not seen.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.functional.nll import sequence_sums


def joint_preference(
    chosen_choices: Tensor,
    rejected_choices: Tensor,
    chosen_ratios: Tensor,
    rejected_ratios: Tensor,
    *,
    beta: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Return w * -log sigmoid(b * [(c_w + r_w) - (c_l + r_l)]): the choice is a token of its completion.

    c = log P(choice) and r = log P(text | choice) - log P_ref(text | choice), w the chosen completion and l the
    rejected one; the choice has a uniform reference. "Temperature as token" of arXiv 2411.09661. A frozen language
    model scored at the choice that was drawn is its own reference: r = 0, and the loss is `choice_preference`. Float32
    inside.

    Args:
        chosen_choices, rejected_choices: [P], nats, log-probabilities of the choices that were drawn: summed over the
            decisions of a completion, or averaged.
        chosen_ratios, rejected_ratios: [P], nats.
        weight: [P], or None for 1. A weight of 0 gives exactly zero loss and gradient.

    Returns:
        [P] float32, in nats.
    """
    chosen, rejected = _wide(chosen_choices) + chosen_ratios, _wide(rejected_choices) + rejected_ratios
    return _weighted(-F.logsigmoid(beta * (chosen - rejected)), weight)


def choice_preference(
    chosen_choices: Tensor, rejected_choices: Tensor, *, beta: float, weight: Tensor | None = None
) -> Tensor:
    """Return w * -log sigmoid(b * [log P(chosen's choice) - log P(rejected's choice)]).

    "Temperature as token, separate" of arXiv 2411.09661: only the head is in it. Float32 inside; arguments and result
    as for `joint_preference`.
    """
    return _weighted(-F.logsigmoid(beta * (_wide(chosen_choices) - _wide(rejected_choices))), weight)


def latent_preference(
    choice_logps: Tensor,
    text_logps: Tensor,
    owner: Tensor,
    *,
    beta: float,
    sequences: int,
    ref_choice_logps: Tensor | None = None,
    lengths: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Return w * -log sigmoid(b * [R_w - R_l]), where R sums over the choices that might have been drawn.

    R = sum_n log( sum_k P_n(k) T_n(k) / sum_k Pref_n(k) T_n(k) ) over the decisions n of a completion; T_n(k) is the
    probability of the text that decision n bears on. "Temperature as latent" of arXiv 2411.09661: which choice was
    drawn does not matter. With one choice it is log 2 for every pair. Float32 inside.

    Args:
        choice_logps: [N, K], nats, log P_n(k).
        text_logps: [N, K], nats, log T_n(k): of one token (token level), or of the whole completion (sequence level:
            one decision, so one row, per completion). Finite: choices that forbid a token need a floor.
        owner: [N] int64, the completion of each decision; pair p has chosen 2p and rejected 2p + 1.
        sequences: 2P, the number of completions.
        ref_choice_logps: [N, K], nats, log Pref_n(k); None for a uniform reference.
        lengths: [2P], by which R is divided; None for the sum.
        weight: [P], or None for 1.

    Returns:
        [P] float32, in nats.

    Raises:
        ValueError: an odd number of completions.
    """
    if sequences % 2:
        raise ValueError(f"latent_preference needs pairs, not {sequences} completions")
    ratios = latent_ratios(choice_logps, text_logps, owner, sequences=sequences, ref_choice_logps=ref_choice_logps)
    ratios = ratios if lengths is None else ratios / lengths.clamp(min=1)
    return choice_preference(ratios[0::2], ratios[1::2], beta=beta, weight=weight)


def latent_ratios(
    choice_logps: Tensor,
    text_logps: Tensor,
    owner: Tensor,
    *,
    sequences: int,
    ref_choice_logps: Tensor | None = None,
) -> Tensor:
    """Return R of `latent_preference` for each completion: [S], nats. Arguments as there."""
    choices, text = _wide(choice_logps), _wide(text_logps)
    if ref_choice_logps is None:
        reference = text.logsumexp(-1) - math.log(text.shape[-1])
    else:
        reference = (_wide(ref_choice_logps) + text).logsumexp(-1)
    return sequence_sums((choices + text).logsumexp(-1) - reference, owner, sequences)


def choice_nll(chosen_choices: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Return w * -log P(choice) of the chosen completions, in nats, float32: the baseline without a rejected side.

    It is biased: choices under which samples differ most are chosen (and rejected) most often. Arguments as for
    `joint_preference`.
    """
    return _weighted(-_wide(chosen_choices), weight)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _weighted(loss: Tensor, weight: Tensor | None) -> Tensor:
    return loss if weight is None else weight * loss
