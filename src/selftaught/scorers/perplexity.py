"""What a language model finds likely: mean negative log-likelihood of completions, with and without their prompt."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Any

from selftaught.errors import InputError
from selftaught.specs import ModelSpec
from selftaught.text.templates import encode_completion, encode_prompt
from selftaught.types import Completion, Group, Score

if TYPE_CHECKING:
    from torch import Tensor

GIVEN, ALONE = "nll", "nll_alone"
_GROUPS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionNLL:
    """Mean over a completion's tokens of -log p(token | before) in nats, its end-of-turn token included.

    With `given` the prompt comes first (score "nll": its exponential is the perplexity); without, the completion
    stands alone (score "nll_alone"), after the BOS token where there is one; without, its first token, which nothing
    precedes, is left out. The ratio nll / nll_alone is the instruction-following difficulty of
    arXiv 2308.12032. `best_by` names a score: only the completions where it is highest in their group are looked at.
    Completions longer than the model's context, without a token to score, or whose likelihood is not finite, are
    unscored.
    """

    model: ModelSpec
    given: bool = True
    best_by: str = ""
    batch_tokens: int = 2048

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""
        return GIVEN if self.given else ALONE

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Yield the scores of each group's completions."""
        from selftaught.models.load import default_device, load_model, load_tokenizer, tokenizer_fingerprint

        tokenizer = load_tokenizer(self.model)
        model = load_model(self.model, device=default_device())
        scored = _Reader(self, model, tokenizer, tokenizer_fingerprint(tokenizer))
        stream = iter(groups)
        while part := list(islice(stream, _GROUPS_AT_ONCE)):
            yield from scored(part)


def best_completions(group: Group, scorer: str) -> tuple[Completion, ...]:
    """Return the completions with the group's highest score by `scorer`; none where nothing is scored.

    Raises:
        InputError: the group has no score by that name.
    """
    scores = group.scores_by(scorer)
    if not scores:
        raise InputError(f"prompt {group.id} has no score by {scorer!r}: score it first, or leave best_by out")
    values = {name: score.value for name, score in scores.items() if score.value is not None}
    best = max(values.values(), default=None)
    return tuple(c for c in group.completions if c.id in values and values[c.id] == best)


@dataclass(frozen=True, slots=True)
class _Reader:
    scorer: CompletionNLL
    model: Any
    tokenizer: Any
    fingerprint: str

    def __call__(self, groups: Sequence[Group]) -> Iterator[list[Score]]:
        wanted = [self._wanted(group) for group in groups]
        encoded = {
            c.id: self._encode(group, c)
            for group, chosen in zip(groups, wanted, strict=True)
            for c in group.completions
            if c.id in chosen
        }
        usable = {name: row for name, row in encoded.items() if not self._objection(row)}
        values = self._values(usable)
        for group in groups:
            yield [self._score(c.id, encoded.get(c.id), values.get(c.id)) for c in group.completions]

    def _wanted(self, group: Group) -> set[str]:
        if not self.scorer.best_by:
            return {c.id for c in group.completions}
        return {c.id for c in best_completions(group, self.scorer.best_by)}

    def _encode(self, group: Group, completion: Completion) -> tuple[list[int], int]:
        """Return the ids and the position of the first that is scored."""
        template = self.scorer.model.template
        ids, _ = encode_completion(self.tokenizer, group.prompt, completion, template, self.fingerprint)
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        before = encode_prompt(self.tokenizer, group.prompt, template) if self.scorer.given else bos
        return [*before, *ids], max(1, len(before))

    def _objection(self, row: tuple[list[int], int]) -> str:
        from selftaught.models.load import context_length

        ids, first = row
        limit = context_length(self.model.config)
        if first >= len(ids):
            return "no token to score"
        return f"longer than {limit} tokens" if limit is not None and len(ids) > limit else ""

    def _score(self, completion_id: str, row: tuple[list[int], int] | None, value: float | None) -> Score:
        note = "not the best completion" if row is None else self._objection(row)
        if value is not None and not isfinite(value):
            value, note = None, "its likelihood is not finite"
        return Score(completion_id=completion_id, scorer=self.scorer.name, value=value, note=note)

    def _values(self, rows: dict[str, tuple[list[int], int]]) -> dict[str, float]:
        values: dict[str, float] = {}
        order = sorted(rows, key=lambda name: len(rows[name][0]))
        while order:
            # Longest first: what fits then fits for all.
            width = len(rows[order[-1]][0])
            count = max(1, self.scorer.batch_tokens // width)
            batch, order = order[-count:], order[:-count]
            values |= zip(batch, self._means([rows[name] for name in batch], width).tolist(), strict=True)
        return values

    def _means(self, rows: list[tuple[list[int], int]], width: int) -> "Tensor":
        import torch

        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows], device=self.model.device)
        lengths = torch.tensor([len(row) for row, _ in rows], device=ids.device)
        firsts = torch.tensor([first for _, first in rows], device=ids.device)
        position = torch.arange(width, device=ids.device)
        with torch.no_grad():
            logits = self.model(input_ids=ids, attention_mask=(position < lengths[:, None]).long()).logits
            nll = torch.nn.functional.cross_entropy(logits[:, :-1].float().mT, ids[:, 1:], reduction="none")
        scored = (position[1:] >= firsts[:, None]) & (position[1:] < lengths[:, None])
        return (nll * scored).sum(1) / scored.sum(1)
