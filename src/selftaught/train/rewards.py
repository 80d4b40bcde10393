"""A sequence classifier as a reward model: whole rows, the end-of-turn token read with the rest, one reward for each.

Rows are ordinary and padded, and the model's own forward finds their ends: slower than packed rows, and right for every
architecture.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from selftaught.objectives.base import Batch
from selftaught.text.templates import pad_id_for
from selftaught.train.batching import Item, Row
from selftaught.train.encoding import Encoded
from selftaught.train.forward import causal_lm
from selftaught.train.preview import CLOSE, OPEN


class Rewards(nn.Module):
    """A classifier with one label seen as a function from a batch to the [S] float32 rewards of its completions.

    `pad_id` is what rows are padded with, which ends none of them: decoders read the last token that is not the pad
    token of their configuration. The configuration has its own pad token again after each call.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int):
        super().__init__()
        self.model: Any = model
        self.pad_id = pad_id
        known = inspect.signature(causal_lm(model).forward).parameters
        self._options = {"use_cache": False} if "use_cache" in known else {}

    def forward(self, batch: Batch) -> Tensor:
        """Return the logit of each completion with its prompt."""
        model = causal_lm(self.model)
        config = model.config.get_text_config()
        own = config.pad_token_id
        config.pad_token_id = self.pad_id
        try:
            return model(**batch.inputs, **self._options).logits[:, 0].float()
        finally:
            config.pad_token_id = own


def reward_items(examples: Sequence[Encoded]) -> list[Item]:
    """Return the examples with one row per completion, its last token included, and no targets."""
    return [Item(example=e, rows=tuple(_row(np.concatenate([e.prompt, c])) for c in e.completions)) for e in examples]


def _row(tokens: np.ndarray) -> Row:
    none = np.zeros(0, dtype=np.int64)
    return Row(
        tokens=tokens,
        positions=np.arange(len(tokens)),
        segments=np.zeros(len(tokens), dtype=np.int64),
        sources=none,
        targets=none,
        owner=none,
        parts=(len(tokens),),
    )


def choose_pad_id(examples: Sequence[Encoded], tokenizer: Any) -> int:
    """Return the tokenizer's pad id or, where that ends a row, the smallest id that ends none.

    Raises:
        InputError: every token of the vocabulary ends some row.
    """
    return pad_id_for(tokenizer, {int(completion[-1]) for example in examples for completion in example.completions})


def preview_rewards(examples: Sequence[Encoded], tokenizer: Any) -> str:
    """Return the examples as text, the token at which each reward is read between ⟦ and ⟧."""
    lines = []
    for example in examples:
        lines.append(f"example {example.id} (weight {example.weight:g}): {len(example.prompt)} prompt tokens")
        lines.append(f"  {_text(tokenizer, example.prompt)}")
        for tokens in example.completions:
            before, end = _text(tokenizer, tokens[:-1]), _text(tokenizer, tokens[-1:])
            lines.append(
                f"  {before}{OPEN}{end}{CLOSE} its reward is read at token {len(example.prompt) + len(tokens)}"
            )
    return "\n".join(lines)


def _text(tokenizer: Any, ids: np.ndarray) -> str:
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False).replace("\n", "\\n")
