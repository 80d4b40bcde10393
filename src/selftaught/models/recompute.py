"""Decoding without a cache: every step reads all rows again. Slow, but right for any causal model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from selftaught.models.load import context_length


@dataclass(slots=True)
class RecomputeState:
    """What every row has read: vectors [L, d] each."""

    rows: list[Tensor]

    @property
    def lengths(self) -> Tensor:
        """Positions read per row [R] int64."""
        return torch.tensor([len(x) for x in self.rows], dtype=torch.int64)

    def select(self, rows: Tensor) -> "RecomputeState":
        """Return these rows."""
        return RecomputeState([self.rows[i] for i in rows.tolist()])

    def fork(self, rows: Tensor, k: int) -> "RecomputeState":
        """Return k copies of each of these rows."""
        return RecomputeState([self.rows[i] for i in rows.tolist() for _ in range(k)])

    def join(self, other: "RecomputeState") -> "RecomputeState":
        """Return these rows followed by those of `other`."""
        return RecomputeState(self.rows + other.rows)

    def truncate(self, rows: Tensor, lengths: Tensor) -> None:
        """Forget what lies past the first `lengths` positions of `rows`."""
        for i, n in zip(rows.tolist(), lengths.tolist(), strict=True):
            self.rows[i] = self.rows[i][:n]


class RecomputeDecodable:
    """A transformers causal language model that keeps no cache we could manage (Mamba, ALiBi models)."""

    def __init__(self, model: PreTrainedModel, slots: int) -> None:
        self.model = model
        self.slots = slots
        self.context = context_length(model.config)
        self.prefill_alone = False
        self.device = model.get_input_embeddings().weight.device

    @torch.no_grad()
    def prefill(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, RecomputeState]:
        """Read prompts; see `models.decodable.Decodable`."""
        rows = [(self.embed(x) if x.dim() == 1 else x).to(self.device) for x in inputs]
        return self._read(RecomputeState(rows))

    @torch.no_grad()
    def step(self, state: RecomputeState, inputs: Tensor) -> tuple[Tensor, Tensor, RecomputeState]:
        """Read one input per row; see `models.decodable.Decodable`."""
        vectors = self.embed(inputs) if inputs.dim() == 1 else inputs.to(self.device)
        rows = [torch.cat([row, x.unsqueeze(0)]) for row, x in zip(state.rows, vectors, strict=True)]
        return self._read(RecomputeState(rows))

    def embed(self, ids: Tensor) -> Tensor:
        """Return the input vectors [R, d] of ids [R]."""
        return self.model.get_input_embeddings()(ids.to(self.device))

    def _read(self, state: RecomputeState) -> tuple[Tensor, Tensor, RecomputeState]:
        batch = pad_sequence(state.rows, batch_first=True)
        last = state.lengths.to(self.device) - 1
        mask = torch.arange(batch.shape[1], device=self.device) <= last.unsqueeze(1)
        out = self.model(inputs_embeds=batch, attention_mask=mask.long(), output_hidden_states=True, use_cache=False)
        rows = torch.arange(len(batch), device=self.device)
        return out.logits[rows, last].float(), out.hidden_states[-1][rows, last], state
