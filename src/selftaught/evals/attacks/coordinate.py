"""Searches for a suffix of the request that makes a model begin its answer as the attacker wants.

Greedy coordinate gradient (Zou et al. 2023, arXiv 2307.15043, algorithm 1): the gradient at the one-hot vectors of the
suffix says which tokens might raise the objective, a batch of such swaps is read by the model, the best is taken. Two
departures: a swap is taken only where it is better than what stands, so that the objective never falls; and swaps are
drawn without repetition. `Search.exact` reads every swap in place of those the gradient proposes: no gradient, for
small vocabularies.

The adaptive attack (Backtracking, arXiv 2409.14586) knows of [RESET]: its objective also makes that token improbable
all along the target, and the target grows step by step, so that it is blocked at one position after the other. The
paper's own algorithm was not at hand; this is what its description asks for.

The budget of both is in sequences that the model reads. A search works on ids. A text that is sent to a tokenizer may
come back as other ids: `keep=keeps_ids(...)` leaves out suffixes with which that happens.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selftaught.errors import InputError
from selftaught.evals.attacks.attempts import Attacked, Attempt
from selftaught.functional.attack import greedily_reached, target_objective
from selftaught.models.load import context_length
from selftaught.text.templates import CHAT, PLAIN, encode_prompt, harmless_pieces, render
from selftaught.text.tokens import HALF
from selftaught.types import Prompt

TOKENS_AT_ONCE = 16_384
_FIRST_TRIES = 1000
_SLOT = "\u2063\u2063suffix\u2063\u2063"

Keep = Callable[[tuple[int, ...]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What an attack starts from, in ids: the model reads head, suffix, tail; its answer shall begin as `target`."""

    head: tuple[int, ...]
    tail: tuple[int, ...] = ()
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How long to search: `budget` sequences read by the model, a gradient being one, in rounds of up to `batch` swaps.

    Swaps are drawn among the `top_k` tokens that the gradient likes best at each position or, with `exact`, all swaps
    are tried and the search ends where none helps. `length` is that of a suffix drawn by `seed`, where none is given.
    """

    length: int = 20
    budget: int = 10_000
    batch: int = 256
    top_k: int = 64
    exact: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("budget", "batch", "top_k"):
            if getattr(self, name) < 1:
                raise InputError(f"attack: {name}={getattr(self, name)} finds nothing; give 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best suffix, its objective (nats) and how it got there.

    `history` starts with the objective of the first suffix and has one entry per round more, `spent` counts the
    sequences read. `reached`: greedy decoding gives the target. The adaptive attack's numbers are of its last stage,
    the whole target, `spent` apart.
    """

    suffix: tuple[int, ...]
    value: float
    history: tuple[float, ...]
    reached: bool
    spent: int


def make_case(model: Attacked, prompt: Prompt, target: str, at: int | None = None) -> Case:
    """Return the case of a suffix behind the last turn of `prompt`, or behind its first `at` characters.

    Raises:
        InputError: the template does not show that turn as it is, once.
    """
    *turns, last = prompt.messages
    place = len(last.content) if at is None else at
    content = last.content[:place] + _SLOT + last.content[place:]
    marked = replace(prompt, messages=(*turns, replace(last, content=content)), id="")
    parts = render(marked, model.template, model.tokenizer).split(_SLOT)
    if len(parts) != 2:
        raise InputError(f"prompt {prompt.id}: template {model.template} shows its last turn {len(parts) - 1} times")
    head = [] if model.template == CHAT else encode_prompt(model.tokenizer, Prompt.from_text(""), PLAIN)
    return Case(
        head=(*head, *_ids(model.tokenizer, parts[0])),
        tail=_ids(model.tokenizer, parts[1]),
        target=_ids(model.tokenizer, target),
    )


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    pieces = harmless_pieces(tokenizer, text)
    return tuple(i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"])


def with_suffix(prompt: Prompt, case: Case, suffix: Sequence[int]) -> Attempt:
    """Return the attempt that shows the model the request with `suffix`."""
    return Attempt(prompt=prompt, ids=(*case.head, *suffix, *case.tail))


def ordinary_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids a user can write: no special or added token, [RESET] least of all, and none without whole text."""
    barred = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    texts = {i: tokenizer.decode([i]) for i in sorted(set(tokenizer.get_vocab().values()) - barred)}
    return tuple(i for i, text in texts.items() if text and HALF not in text)


def keeps_ids(tokenizer: Any, case: Case) -> Keep:
    """Return a filter: does the text of the whole request with a suffix come back as the same ids?"""

    def keep(suffix: tuple[int, ...]) -> bool:
        ids = [*case.head, *suffix, *case.tail]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return tokenizer(text, add_special_tokens=False)["input_ids"] == ids

    return keep


def coordinate_attack(
    network: PreTrainedModel,
    case: Case,
    search: Search,
    *,
    allowed: Sequence[int],
    start: Sequence[int] | None = None,
    keep: Keep | None = None,
) -> Found:
    """Search for the suffix that maximises the log-probability of the target.

    Args:
        network: any transformers causal language model that takes `inputs_embeds`, in eval mode.
        case: the request and the target.
        search: budget and batch.
        allowed: the ids a suffix may hold (`ordinary_tokens`).
        start: the first suffix; by default one drawn from `allowed`.
        keep: suffixes for which it is False are never proposed.

    Raises:
        InputError: there is nothing to search or to aim at, or no room in the context for it.
    """
    suffix = _first_suffix(case, search, allowed, start, keep)
    _check(network, case, len(suffix))
    return _climb(_Reader(network, case), suffix, search, allowed, keep, budget=search.budget, until_reached=False)


def adaptive_attack(
    network: PreTrainedModel,
    case: Case,
    search: Search,
    *,
    reset: int,
    allowed: Sequence[int],
    weight: float = 1.0,
    step: int = 1,
    start: Sequence[int] | None = None,
    keep: Keep | None = None,
) -> Found:
    """Search for the suffix that maximises log p(target) + `weight` * sum_t log(1 - p_t(`reset`)), stage by stage.

    A stage aims at the first `step`, 2 `step`, ... tokens of the target. It ends early once greedy decoding gives them
    and no `reset`, and leaves what it saved of its share of the budget to the later ones. Arguments and errors are
    those of `coordinate_attack`.
    """
    if step < 1 or weight < 0:
        raise InputError(f"adaptive attack: step={step}, weight={weight}; give a step from 1, a weight from 0")
    suffix = _first_suffix(case, search, allowed, start, keep)
    _check(network, case, len(suffix), reset)
    lengths = [*range(step, len(case.target), step), len(case.target)]
    if search.budget < len(lengths):
        raise InputError(f"adaptive attack: budget={search.budget} is less than its {len(lengths)} stages; give more")
    spent = 0
    for stage, length in enumerate(lengths):
        stages_left = len(lengths) - stage
        reader = _Reader(network, replace(case, target=case.target[:length]), reset, weight)
        share = (search.budget - spent) // stages_left
        seeded = replace(search, seed=search.seed + stage)
        found = _climb(reader, suffix, seeded, allowed, keep, budget=share, until_reached=stages_left > 1)
        suffix, spent = torch.tensor(found.suffix), spent + found.spent
    return replace(found, spent=spent)


class _Reader:
    """Reads suffixes with the model and counts how many it has read."""

    def __init__(self, network: PreTrainedModel, case: Case, reset: int | None = None, weight: float = 0.0) -> None:
        if network.training:
            raise InputError(f"{type(network).__name__} is in training mode, with dropout: call model.eval() first")
        self.network, self.case, self.reset, self.weight = network, case, reset, weight
        self.read = 0
        self._device = network.get_input_embeddings().weight.device
        self._target = torch.tensor(case.target, device=self._device)
        # Not every model knows how to leave out the logits of the request.
        known = "logits_to_keep" in inspect.signature(network.forward).parameters
        self._fewer = {"logits_to_keep": len(case.target) + 1} if known else {}

    @torch.no_grad()
    def values(self, suffixes: Tensor) -> tuple[Tensor, Tensor]:
        """Return objective and `reached` [B] of suffixes [B, S], which are read in batches."""
        rows = self._rows(suffixes)
        some = max(1, TOKENS_AT_ONCE // rows.shape[1])
        values, reached = [], []
        for part in rows.split(some):
            logits = self._logits(part)
            values.append(self._objective(logits))
            reached.append(greedily_reached(logits, self._target, suppressed=self.reset))
        if torch.cat(values).isnan().any():
            raise InputError("the model's logits are not finite for an attacked prompt: check its weights and dtype")
        return torch.cat(values), torch.cat(reached)

    def gradient(self, suffix: Tensor) -> Tensor:
        """Return d objective / d one-hot [S, V]: by the chain rule, the gradient of the vectors times all vectors."""
        embed, vectors = self.network.get_input_embeddings(), list[Tensor]()

        def free(module: torch.nn.Module, arguments: Any, output: Tensor) -> Tensor:
            vectors.append(output.detach().requires_grad_())
            return vectors[-1]

        # Not every model takes vectors in place of ids.
        hook = embed.register_forward_hook(free)
        try:
            with torch.enable_grad():
                objective = self._objective(self._logits(self._rows(suffix[None]))).sum()
                (found,) = torch.autograd.grad(objective, vectors)
        finally:
            hook.remove()
        first = len(self.case.head)
        vocabulary = embed(torch.arange(embed.weight.shape[0], device=self._device)).detach()
        return found[0, first : first + len(suffix)].float() @ vocabulary.float().T

    def _objective(self, logits: Tensor) -> Tensor:
        return target_objective(logits, self._target, suppressed=self.reset, weight=self.weight)

    def _rows(self, suffixes: Tensor) -> Tensor:
        self.read += len(suffixes)
        sides = [torch.tensor(ids) for ids in (self.case.head, (*self.case.tail, *self.case.target))]
        head, rest = (side.long().expand(len(suffixes), -1) for side in sides)
        return torch.cat([head, suffixes, rest], 1).to(self._device)

    def _logits(self, ids: Tensor) -> Tensor:
        logits = self.network(input_ids=ids, **self._fewer, use_cache=False).logits
        return logits[:, -len(self.case.target) - 1 :]


def _climb(
    reader: _Reader,
    suffix: Tensor,
    search: Search,
    allowed: Sequence[int],
    keep: Keep | None,
    *,
    budget: int,
    until_reached: bool,
) -> Found:
    """Take the best swap of each round while the budget lasts."""
    source = torch.Generator().manual_seed(search.seed)
    choices = torch.tensor(allowed)
    (value,), (reached,) = (x.cpu() for x in reader.values(suffix[None]))
    history = [float(value)]
    while reader.read < budget and not (until_reached and reached):
        swaps = _all_swaps(suffix, choices) if search.exact else _promising(reader, suffix, choices, search, source)
        rows = list(_kept(swaps, suffix, keep, reader, budget, None if search.exact else search.batch))
        improved = False
        if rows:
            values, reached_by = (x.cpu() for x in reader.values(torch.stack(rows)))
            best = int(values.argmax())
            improved = bool(values[best] > value)
            if improved:
                suffix, value, reached = rows[best], values[best], reached_by[best]
        history.append(float(value))
        if search.exact and not improved:
            break
    return Found(
        suffix=tuple(suffix.tolist()),
        value=float(value),
        history=tuple(history),
        reached=bool(reached),
        spent=reader.read,
    )


def _all_swaps(suffix: Tensor, choices: Tensor) -> Iterable[tuple[int, int]]:
    return product(range(len(suffix)), choices.tolist())


def _promising(
    reader: _Reader, suffix: Tensor, choices: Tensor, search: Search, source: torch.Generator
) -> list[tuple[int, int]]:
    """Return (position, token), in random order, of each position's best tokens by the gradient."""
    slopes = reader.gradient(suffix).cpu()[:, choices]
    best = choices[slopes.topk(min(search.top_k, len(choices))).indices]
    picks = (divmod(pick, best.shape[1]) for pick in torch.randperm(best.numel(), generator=source).tolist())
    return [(place, int(best[place, rank])) for place, rank in picks]


def _kept(
    swaps: Iterable[tuple[int, int]], suffix: Tensor, keep: Keep | None, reader: _Reader, budget: int, most: int | None
) -> Iterator[Tensor]:
    """Yield the suffixes after these swaps, as many as the round and the budget allow."""
    left = budget - reader.read if most is None else min(most, budget - reader.read)
    for place, token in swaps:
        if left < 1:
            return
        swapped = suffix.clone()
        swapped[place] = token
        if token != suffix[place] and (keep is None or keep(tuple(swapped.tolist()))):
            left -= 1
            yield swapped


def _first_suffix(
    case: Case, search: Search, allowed: Sequence[int], start: Sequence[int] | None, keep: Keep | None
) -> Tensor:
    if not allowed:
        raise InputError("attack: no token is allowed in the suffix; give ordinary_tokens(tokenizer)")
    if (search.length if start is None else len(start)) < 1:
        raise InputError("attack: a suffix of 0 tokens has nothing to swap; give a length of 1 or more, or a start")
    if barred := {*(start or ())} - {*allowed}:
        raise InputError(f"attack: token {min(barred)} of the first suffix is not allowed in it; start from others")
    source = torch.Generator().manual_seed(search.seed)
    for _ in range(_FIRST_TRIES):
        drawn = torch.tensor(allowed)[torch.randint(len(allowed), (search.length,), generator=source)]
        suffix = drawn if start is None else torch.tensor(start)
        if keep is None or keep(tuple(suffix.tolist())):
            return suffix
    raise InputError("attack: `keep` is False for the first suffix, so that no swap would pass; start from another")


def _check(network: PreTrainedModel, case: Case, length: int, reset: int | None = None) -> None:
    if not case.target:
        raise InputError("attack: the target is empty; give the unsafe beginning of an answer")
    if reset in case.target:
        raise InputError(f"attack: the target holds the reset token {reset}; give an answer without it")
    size, limit = len(case.head) + length + len(case.tail) + len(case.target), context_length(network.config)
    if limit is not None and size > limit:
        raise InputError(
            f"attack: request, suffix and target have {size} tokens, and the model's context is {limit}: shorten one"
        )
