"""A head on a frozen language model, for pairs of completions that were decoded by recorded choices.

The head reads what the output layer reads: at the last position of the prompt for a choice per completion, at the
position that each token was drawn from for a choice per token.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from selftaught.errors import InputError
from selftaught.models.adaptive_decoder import AdaptiveHead, choice_logps
from selftaught.objectives.base import Batch, Choices
from selftaught.train.batching import Item, make_items
from selftaught.train.encoding import Encoded
from selftaught.train.forward import causal_lm
from selftaught.train.layout import fillers

Output = Callable[[Tensor], Tensor]


class HeadChoices(nn.Module):
    """A head (`model`, which is trained) on a language model (`base`, which is not) as a function of a batch.

    Args:
        head: in float32.
        base: in eval mode, without gradients; its attention takes packed rows where batches are packed.
        chunked: the output layer is a linear map and may be applied in chunks; else the model's own forward makes the
            logits, where they are needed.
        with_text: give the log-probs of the text under every choice too.
    """

    def __init__(self, head: AdaptiveHead, base: PreTrainedModel, *, chunked: bool, with_text: bool) -> None:
        super().__init__()
        self.model = head
        self.base: Any = base
        self.chunked, self.with_text = chunked, with_text

    def forward(self, batch: Batch) -> Choices:
        """Return what the head says of the batch's decisions: one per target or one per completion."""
        with torch.no_grad():
            hidden, text_logps = self._read(batch)
        if self.model.per_token:
            return Choices(logps=self._head(hidden), owner=batch.owner, text_logps=text_logps)
        # A completion's first target is predicted from the last position of the prompt.
        lengths = batch.lengths.long()
        first = lengths.cumsum(0) - lengths
        if text_logps is not None:
            sums = text_logps.new_zeros(batch.sequences, text_logps.shape[1])
            text_logps = sums.index_add(0, batch.owner, text_logps)
        owner = torch.arange(batch.sequences, device=batch.owner.device)
        return Choices(logps=self._head(hidden[first]), owner=owner, text_logps=text_logps)

    def _head(self, hidden: Tensor) -> Tensor:
        # Fillers keep the number of different shapes small.
        return self.model(F.pad(hidden, (0, 0, 0, fillers(len(hidden)))))[: len(hidden)]

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the hidden states [M, d] at the sources, and if asked for the targets' log-probs [M, K]."""
        inputs: dict[str, Any] = {**batch.inputs, "use_cache": False}
        if batch.layout is not None:
            inputs["layout"] = batch.layout
        model = causal_lm(self.base)
        output, choices = model.get_output_embeddings(), self.model.choices
        if self.chunked:
            hidden = model.base_model(**inputs)[0].flatten(0, 1).index_select(0, batch.sources)
            if not self.with_text:
                return hidden, None
            softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
            return hidden, choice_logps(hidden, output, batch.targets, choices, softcap=softcap)
        hidden, logits = self._own_logits(inputs, batch.sources, output)
        return hidden, choice_logps(logits, nn.Identity(), batch.targets, choices) if self.with_text else None

    def _own_logits(self, inputs: dict[str, Any], sources: Tensor, output: nn.Module) -> tuple[Tensor, Tensor]:
        """Return what the output layer reads at the sources, [M, d], and the model's own logits there.

        The logits are those of one source where nobody asks for them.
        """
        read: list[Tensor] = []

        def pick(layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            read.append(arguments[0].flatten(0, 1).index_select(0, sources))
            return (read[0][None] if self.with_text else read[0][None, :1], *arguments[1:])

        hook = output.register_forward_pre_hook(pick)
        try:
            logits = self.base(**inputs).logits[0]
        finally:
            hook.remove()
        return read[0], logits


def choice_items(examples: Sequence[Encoded], head: AdaptiveHead, tree: bool, with_text: bool) -> list[Item]:
    """Return the pairs with their rows, and with their choices as the indices that `head` counts by.

    Where nothing is read behind the prompt, completions are cut to their first token.

    Raises:
        InputError: a completion has no choices, not as many as it should, or one that the head does not know.
    """
    kept = [_checked(example, head) for example in examples]
    if not head.per_token and not with_text:
        kept = [replace(e, completions=tuple(c[:1] for c in e.completions)) for e in kept]
    return make_items(kept, tree)


def _checked(example: Encoded, head: AdaptiveHead) -> Encoded:
    count = len(head.choices)
    choices = []
    for name, tokens, found in zip(example.completion_ids, example.completions, example.choices, strict=True):
        where = f"example {example.id}: completion {name}"
        if not len(found):
            raise InputError(f'{where} has no latents["choice"]: sample it from a model that decodes with a head')
        wanted = len(tokens) if head.per_token else 1
        if len(found) != wanted:
            raise InputError(
                f"{where} has {len(found)} choices, and a head at the {head.spec.level} level makes {wanted}: keep the "
                "token ids that were sampled, without stop strings, and the level"
            )
        bad = [c for c in found.tolist() if c not in range(count)]
        if bad:
            raise InputError(
                f"{where} has choice {bad[0]:g}, and the head has 0 to {count - 1}: train the head that chose it"
            )
        choices.append(found.astype(np.int64))
    return replace(example, choices=tuple(choices))
