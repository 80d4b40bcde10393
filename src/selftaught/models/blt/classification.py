"""A Byte Latent Transformer that gives a text labels, or with one label a reward."""

import torch
from torch import Tensor, nn

from selftaught.models.blt.configuration import BltConfig
from selftaught.models.blt.modeling import BltModel, BltOutput, BltPreTrainedModel, check_unset


class BltForSequenceClassification(BltPreTrainedModel):
    """A linear head on the state of each row's last byte."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = BltModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        patch_lengths: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **unset: None,
    ) -> BltOutput | tuple[Tensor, ...]:
        """Return logits [B, labels] of rows [B, N]; a row ends where `attention_mask` does. See `BltModel.forward`."""
        check_unset(unset)
        out = self.model(input_ids, attention_mask, patch_lengths)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = torch.where(mask.bool(), place, 0).argmax(1)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        logits = self.score(out.last_hidden_state[rows, last])
        result = BltOutput(logits=logits, patch_lengths=out.patch_lengths)
        return result.to_tuple() if return_dict is False else result
