"""From a batch to the log-probabilities of its targets, through any transformers causal language model."""

import inspect
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from selftaught.functional.logps import token_logps
from selftaught.objectives.base import Batch
from selftaught.train.layout import fillers

# Inputs that rows may bring and most models do not know.
OPTIONAL_INPUTS = frozenset({"patch_lengths"})


class TargetLogps(nn.Module):
    """A causal LM seen as a function from a batch to [M] float32 target log-probabilities.

    With `chunked` the backbone gives hidden states and the LM head is applied in chunks at the source positions only;
    without, the model's own forward makes the logits at these positions (for heads that do more than a linear map).
    Of a batch's optional inputs, the model gets those that its forward names.
    """

    def __init__(self, model: PreTrainedModel, *, chunked: bool = True):
        super().__init__()
        self.model: Any = model
        self.chunked = chunked
        self._unknown = OPTIONAL_INPUTS - inspect.signature(causal_lm(model).forward).parameters.keys()

    def forward(self, batch: Batch) -> Tensor:
        """Return log pi(target | what the source sees), in nats."""
        inputs = {name: value for name, value in batch.inputs.items() if name not in self._unknown}
        inputs |= {} if batch.layout is None else {"layout": batch.layout}
        if not self.chunked:
            # Packed inputs are one row, so the model can be asked for the logits at the sources alone.
            kept = {} if batch.layout is None else {"logits_to_keep": batch.sources}
            logits = self.model(**inputs, **kept, use_cache=False).logits.flatten(0, 1)
            logits = logits if kept else logits.index_select(0, batch.sources)
            return logits.float().log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
        model = causal_lm(self.model)
        hidden = model.base_model(**inputs, use_cache=False)[0]
        # Fillers, whose log-probs are dropped, keep the number of different shapes small.
        sources, targets = (F.pad(x, (0, fillers(batch.target_count))) for x in (batch.sources, batch.targets))
        hidden = hidden.flatten(0, 1).index_select(0, sources)
        head = model.get_output_embeddings()
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        # A head whose added tokens peft trains hands out the merged weight, but hides the bias.
        bias = head.token_adapter.base_layer.bias if hasattr(head, "token_adapter") else head.bias
        logps = token_logps(hidden, head.weight, targets, bias=bias, softcap=softcap)
        return logps[: batch.target_count]


def causal_lm(model: PreTrainedModel) -> PreTrainedModel:
    """Return the transformers model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
