"""A reward model as a scorer: one number for a prompt with its completion, from a sequence classifier."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Any

from selftaught.errors import InputError
from selftaught.specs import ModelSpec
from selftaught.text.templates import encode_completion, encode_prompt, pad_id_for
from selftaught.types import Completion, Group, Prompt, Score

if TYPE_CHECKING:
    from torch import Tensor

GROUPS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """The logit of a transformers `AutoModelForSequenceClassification`; `label` says which, where there are several.

    Prompt and completion are rendered with `model.template` and closed with the end-of-turn token, as in training. A
    completion that does not fit into the model's context, or whose reward is not finite, has value None.
    """

    model: ModelSpec
    label: int | None = None
    batch_tokens: int = 16_384
    scorer: str = "reward_model"

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""
        return self.scorer

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Yield the rewards of each group's completions.

        Raises:
            InputError: the model cannot be opened, or has several labels and `label` names none of them.
        """

        from selftaught.models.load import (
            context_length,
            default_device,
            load_classifier,
            load_tokenizer,
            tokenizer_fingerprint,
        )

        device = default_device()
        tokenizer, model = load_tokenizer(self.model), load_classifier(self.model, device=device)
        label = _label(model.config.num_labels, self.label, self.model.source)
        limit = context_length(model.config) or 2**31
        fingerprint = tokenizer_fingerprint(tokenizer)
        stream = iter(groups)
        while some := list(islice(stream, GROUPS_AT_ONCE)):
            rows = {
                c.id: _encode(tokenizer, g.prompt, c, self.model.template, fingerprint)
                for g in some
                for c in g.completions
            }
            fitting = {name: ids for name, ids in rows.items() if len(ids) <= limit}
            rewards = dict(_rewards(model, tokenizer, fitting, label, self.batch_tokens))
            for group in some:
                yield [self._score(c.id, rewards.get(c.id), len(rows[c.id]), limit) for c in group.completions]

    def _score(self, completion_id: str, reward: float | None, length: int, limit: int) -> Score:
        note = ""
        if reward is None:
            note = f"{length} tokens do not fit into the reward model's context of {limit}"
        elif not isfinite(reward):
            reward, note = None, "the reward is not finite"
        return Score(completion_id=completion_id, scorer=self.scorer, value=reward, note=note)


def _label(labels: int, wanted: int | None, source: str) -> int:
    if wanted is None and labels == 1:
        return 0
    if wanted is None or not 0 <= wanted < labels:
        raise InputError(f"reward model {source} has {labels} labels, and label is {wanted}: give 0 to {labels - 1}")
    return wanted


def _encode(tokenizer: Any, prompt: Prompt, completion: Completion, template: str, fingerprint: str) -> list[int]:
    answer, _ = encode_completion(tokenizer, prompt, completion, template, fingerprint)
    return [*encode_prompt(tokenizer, prompt, template), *answer]


def _rewards(
    model: Any, tokenizer: Any, rows: dict[str, list[int]], label: int, budget: int
) -> Iterator[tuple[str, float]]:
    """Yield (completion id, logit), in padded batches of at most `budget` tokens, or of one row."""
    import torch

    by_length = sorted(rows, key=lambda name: (-len(rows[name]), name))
    while by_length:
        size = max(1, budget // len(rows[by_length[0]]))
        names, by_length = by_length[:size], by_length[size:]
        batch = [rows[name] for name in names]
        # A row that was cut off may end in any token.
        pad = pad_id_for(tokenizer, {row[-1] for row in batch})
        model.config.get_text_config().pad_token_id = pad
        with torch.inference_mode():
            logits = model(**_padded(batch, pad, model.device)).logits
        yield from zip(names, logits[:, label].float().tolist(), strict=True)


def _padded(batch: Sequence[Sequence[int]], pad: int, device: Any) -> "dict[str, Tensor]":
    import torch

    width = max(map(len, batch))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in batch], device=device)
    lengths = torch.tensor([len(row) for row in batch], device=device)
    return {"input_ids": ids, "attention_mask": (torch.arange(width, device=device) < lengths[:, None]).long()}
