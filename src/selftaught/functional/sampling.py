"""Drawing tokens from logits: temperature, top-k, top-p and min-p, inverse-CDF draws, untempered log-probabilities.

The filters follow the order of transformers' `generate`: temperature, top-k, top-p, min-p. Every function works row
by row: a row's result does not depend on the other rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
SMALLEST = torch.finfo(torch.float32).tiny
"""Temperatures below are 0: divided by them, the logit of the likeliest token would be no number."""
FLOOR = -30.0
"""The log-probability (nats) of what a filter drops or greedy decoding passes over, where it must be finite."""
NUCLEUS_GUESSES = (64, 512)


def draw(
    logits: Tensor, u: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    Args:
        logits: [R, V] float32.
        u: [R] float64 uniforms in [0, 1); not read where `temperature` is 0 (greedy).

    Returns:
        tokens [R] int64, and their log-probabilities [R] float32 (nats) under softmax(logits), whatever the temperature
        and the filters.
    """
    if temperature < SMALLEST:
        peak, tokens = logits.max(-1)
        return tokens, -(logits - peak.unsqueeze(-1)).exp_().sum(-1).log_()
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()
    log_total = weights.sum(-1).log_()
    if temperature != 1:
        weights = (logits - peak).div_(temperature).exp_()
    tokens = inverse_cdf(keep(weights, top_k, top_p, min_p), u)
    chosen = logits.gather(-1, tokens.unsqueeze(-1))
    return tokens, (chosen - peak).squeeze(-1) - log_total


def draw_each(
    logits: Tensor, u: Tensor, temperatures: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw one token per row, each at a temperature of its own; on CPU a row has the same bits as in `draw`.

    Args:
        logits: [R, V] float32.
        u: [R] float64 uniforms in [0, 1); not read where a temperature is 0 (greedy, whatever the filters).
        temperatures: [R], not negative.

    Returns:
        tokens [R] int64 and log-probabilities [R] float32 (nats) under softmax(logits), as `draw` does.
    """
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()
    log_total = weights.sum(-1).log_()
    temperatures = temperatures.to(logits.dtype)
    greedy = temperatures < SMALLEST
    # What a greedy row draws here is not used.
    divisor = torch.where(greedy, 1, temperatures).unsqueeze(-1)
    # In the same memory: getting as much again costs more than the arithmetic.
    weights = torch.sub(logits, peak, out=weights).div_(divisor).exp_()
    tokens = inverse_cdf(keep(weights, top_k, top_p, min_p), u)
    if greedy.any():
        tokens[greedy] = logits[greedy].max(-1).indices
    return tokens, (logits.gather(-1, tokens.unsqueeze(-1)) - peak).squeeze(-1) - log_total


def logps_under(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Return the log-probability with which `draw` would give these tokens, at least `FLOOR`.

    Args:
        logits: [R, V] float32.
        tokens: [R] int64.

    Returns:
        [R] float32, nats.
    """
    if temperature < SMALLEST:
        peak = logits.max(-1).indices
        return torch.where(tokens == peak, 0.0, FLOOR).to(logits.dtype)
    scores = (logits - logits.amax(-1, keepdim=True)).div_(temperature)
    score = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    kept = keep(scores.exp_(), top_k, top_p, min_p)
    logps = score - kept.sum(-1).log_()
    dropped = kept.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) == 0
    return logps.masked_fill_(dropped, FLOOR).clamp_(min=FLOOR)


def inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """Return per row the first index whose cumulative weight exceeds u times the total.

    Two levels (blocks of 64, then inside the chosen block) read the weights once and add up in float64, so that large
    vocabularies lose no mass to rounding. An index of weight 0 is never returned.

    Args:
        weights: [R, N], not negative, not normalised, at least one positive per row.
        u: [R] float64 in [0, 1).

    Returns:
        [R] int64.
    """
    rows, n = weights.shape
    if n <= BLOCK:
        cumulative = weights.cumsum(-1, dtype=torch.float64)
        return _first_above(cumulative, u * cumulative[:, -1])
    if n % BLOCK:
        weights = F.pad(weights, (0, BLOCK - n % BLOCK))
    blocks = weights.view(rows, -1, BLOCK)
    cumulative = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    target = u * cumulative[:, -1]
    block = _first_above(cumulative, target)
    before = F.pad(cumulative, (1, 0)).gather(-1, block.unsqueeze(-1)).squeeze(-1)
    inside = blocks[torch.arange(rows, device=weights.device), block].cumsum(-1, dtype=torch.float64)
    return block * BLOCK + _first_above(inside, target - before)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    # The second count is the last index of positive weight: rounding may put the target at or past the total.
    first = (cumulative <= target.unsqueeze(-1)).sum(-1)
    return torch.minimum(first, (cumulative < cumulative[:, -1:]).sum(-1))


def keep(weights: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Return `weights` [R, V] (not normalised) with those that the filters drop set to 0.

    A token as likely as the last one kept is kept too, so that the result does not depend on how ties are sorted.
    """
    if 0 < top_k < weights.shape[-1]:
        weights = weights * (weights >= weights.topk(top_k, -1).values[:, -1:])
    if top_p < 1:
        weights = weights * (weights >= _nucleus_threshold(weights, top_p))
    if min_p > 0:
        weights = weights * (weights >= min_p * weights.amax(-1, keepdim=True))
    return weights


def _nucleus_threshold(weights: Tensor, top_p: float) -> Tensor:
    """Return per row [R, 1] the smallest weight of the smallest set of tokens whose mass reaches top_p."""
    wanted = top_p * weights.sum(-1, keepdim=True)
    # A nucleus is usually small, and a full sort costs more than the model's step.
    for guess in (*NUCLEUS_GUESSES, weights.shape[-1]):
        values = weights.topk(min(guess, weights.shape[-1]), -1).values
        cumulative = values.cumsum(-1)
        if guess >= weights.shape[-1] or bool((cumulative[:, -1:] > wanted).all()):
            break
    # A token stays while the mass before it is below top_p, so the most likely one always does.
    kept = (cumulative - values < wanted).sum(-1, keepdim=True)
    return values.gather(-1, kept.clamp(min=1) - 1)
