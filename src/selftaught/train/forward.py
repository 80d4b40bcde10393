"""From a batch to the log-probabilities of its targets, through any transformers causal language model."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selftaught.functional.logps import token_logps
from selftaught.objectives.base import Batch


class TargetLogps(nn.Module):
    """A causal LM seen as a function from a batch to [M] float32 target log-probabilities.

    With `chunked` the backbone gives hidden states and the LM head is applied in chunks at the source positions only;
    without, the model's own forward makes the logits at these positions (for heads that do more than a linear map).
    """

    def __init__(self, model: PreTrainedModel, *, chunked: bool = True):
        super().__init__()
        self.model = model
        self.chunked = chunked

    def forward(self, batch: Batch) -> Tensor:
        """Return log pi(target | what the source sees), in nats."""
        extra = {} if batch.layout is None else {"layout": batch.layout}
        causal_lm = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if not self.chunked:
            logits = self.model(**batch.inputs, **extra, use_cache=False).logits
            logits = logits.flatten(0, 1).index_select(0, batch.sources).float()
            return logits.log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
        hidden = causal_lm.base_model(**batch.inputs, **extra, use_cache=False)[0]
        hidden = hidden.flatten(0, 1).index_select(0, batch.sources)
        head = causal_lm.get_output_embeddings()
        softcap = getattr(causal_lm.config.get_text_config(), "final_logit_softcapping", None)
        return token_logps(hidden, head.weight, batch.targets, bias=head.bias, softcap=softcap)
