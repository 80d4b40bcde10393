"""What the sampler drives: `Decodable` models and the `State` of their rows, and the implementation for transformers.

A state is used up by `select` and `join`: go on with what they return. `fork` leaves the state it reads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from selftaught.errors import InputError
from selftaught.models import attention
from selftaught.models.attention import Plan, PlanCache, PrefillPlan, active_plan, plan_step
from selftaught.models.load import context_length
from selftaught.models.slab import ParkedPrompt, ParkedState, Slab, SlabState, new_owner
from selftaught.models.widths import SMALLEST, rows_agree, step_widths

PREFILL_STEP = 32


class State(Protocol):
    """Cached rows of a model, in an order the caller chose."""

    @property
    def lengths(self) -> Tensor:
        """Positions cached per row [R] int64, on the CPU."""

    def select(self, rows: Tensor) -> "State":
        """Return these rows (all different, [n] int64 on the CPU) in this order; the others are released."""

    def fork(self, rows: Tensor, k: int) -> "State":
        """Return k new rows for each of `rows` (repeats allowed), those of one row side by side."""

    def join(self, other: Any) -> "State":
        """Return these rows followed by those of `other`."""

    def truncate(self, rows: Tensor, lengths: Tensor) -> None:
        """Forget, in place, what lies past the first `lengths` positions of `rows`."""


class Decodable(Protocol):
    """A model that decodes row by row.

    Attributes:
        slots: rows that can decode at once.
        context: positions that fit a row; None where there is no limit.
        prefill_alone: whether prompts must be read one at a time for a row's bits not to depend on the others.
    """

    slots: int
    context: int | None
    prefill_alone: bool

    def prefill(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Any]:
        """Read prompts: ids [L] or vectors [L, d] each, of any lengths.

        Returns:
            logits [R, V] float32 and hidden [R, d] at the last position of each, and their state. What is decoded are
            forks of that state, so that a prompt is read once for all its samples.
        """

    def step(self, state: Any, inputs: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Read one input per row, ids [R] or vectors [R, d], and return logits, hidden and state as `prefill` does."""

    def embed(self, ids: Tensor) -> Tensor:
        """Return the input vectors [R, d] of ids [R]."""


class TransformersDecodable:
    """A transformers causal language model over a slab.

    Args:
        model: in eval mode.
        slots: rows that decode at once, at least 8; a step computes empty ones too (fewer where `rows_agree` found that
            this changes no bit).
        share: let the samples of a prompt share its keys; False copies them into every row.
        own_attention: False leaves attention to the model and gives it 4D masks (implies `share=False`).
    """

    def __init__(self, model: PreTrainedModel, slots: int, *, share: bool = True, own_attention: bool = True) -> None:
        if slots < 8:
            raise InputError(
                f"slots is {slots}: use at least 8, below that a row's numbers depend on how many run beside it"
            )
        self.model = model
        self.slots = slots
        self.own_attention = own_attention
        self.context = context_length(model.config)
        self.device = model.get_input_embeddings().weight.device
        stable = rows_agree(model)
        self.prefill_alone = not stable
        self.slab = Slab(slots, share and own_attention, step_widths(slots) if stable else (slots,))
        self._head = model.get_output_embeddings()
        configs = (getattr(m, "config", None) for m in model.modules())
        self._configs = list({id(c): c for c in configs if isinstance(c, PreTrainedConfig)}.values())
        self._masks = _mask_windows(model.config)
        self._last = self._hidden = torch.empty(0)

    @torch.no_grad()
    def prefill(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, ParkedState]:
        """Read prompts; see `Decodable`. Their state holds no slots until it is forked."""
        lengths = [len(x) for x in inputs]
        plan = PrefillPlan(-(-max(lengths) // PREFILL_STEP) * PREFILL_STEP, self.device)
        batch = inputs[0].new_zeros(len(inputs), plan.width, *inputs[0].shape[1:])
        for row, x in zip(batch, inputs, strict=True):
            row[: len(x)] = x
        positions = torch.arange(plan.width, device=self.device).expand(len(inputs), -1)
        # A product with fewer rows than this may add up in another order.
        last = [n - 1 for n in lengths] + [0] * (-len(lengths) % SMALLEST)
        logits, hidden = self._forward(plan, batch.to(self.device), positions, torch.tensor(last, device=self.device))
        parked = [ParkedPrompt(plan.batch, i, n, new_owner()) for i, n in enumerate(lengths)]
        return logits[: len(inputs)], hidden[: len(inputs)], ParkedState(self.slab, parked)

    @torch.no_grad()
    def step(self, state: SlabState | ParkedState, inputs: Tensor) -> tuple[Tensor, Tensor, SlabState]:
        """Read one input per row; see `Decodable`."""
        if isinstance(state, ParkedState):
            state = state.fork(torch.arange(len(state.prompts)), 1)
        plan = plan_step(state, self.device, full=not self.own_attention)
        slot = torch.from_numpy(state.slot).to(self.device)
        spread = torch.zeros(len(plan.positions), *inputs.shape[1:], dtype=inputs.dtype, device=self.device)
        spread[slot] = inputs.to(self.device)
        last = torch.zeros(len(plan.positions), dtype=torch.int64, device=self.device)
        logits, hidden = self._forward(plan, spread.unsqueeze(1), plan.positions.unsqueeze(1), last)
        state.advance()
        return logits.index_select(0, slot), hidden.index_select(0, slot), state

    def embed(self, ids: Tensor) -> Tensor:
        """Return the input vectors [R, d] of ids [R]."""
        return self.model.get_input_embeddings()(ids.to(self.device))

    def _forward(self, plan: Plan, inputs: Tensor, positions: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model on [n, L] ids or [n, L, d] vectors; return logits and hidden at `last` of each row."""
        name = "input_ids" if inputs.dim() == 2 else "inputs_embeds"
        mask = None if self.own_attention else self._mask(plan, len(inputs))
        self._last = last
        with self._prepared(plan):
            out = self.model(
                **{name: inputs},
                attention_mask=mask,
                position_ids=positions,
                past_key_values=PlanCache(plan),
                use_cache=True,
            )
        return out.logits[:, 0].float(), self._hidden

    @contextmanager
    def _prepared(self, plan: Plan) -> Iterator[None]:
        hook = self._head.register_forward_pre_hook(self._keep_last)
        token = active_plan.set(plan)
        before = [c._attn_implementation for c in self._configs]
        try:
            if self.own_attention:
                for config in self._configs:
                    config._attn_implementation = attention.NAME
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation = name
            active_plan.reset(token)
            hook.remove()

    def _keep_last(self, head: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # The output layer is as large as the rest of a small model, so it reads only the positions that are asked for.
        hidden = args[0]
        rows = torch.arange(len(self._last), device=hidden.device).clamp(max=len(hidden) - 1)
        self._hidden = hidden[rows, self._last]
        return (self._hidden.unsqueeze(1), *args[1:])

    def _mask(self, plan: Plan, rows: int) -> Tensor | dict[str, Tensor]:
        dtype = self.model.get_input_embeddings().weight.dtype
        masks = {kind: plan.mask(window, dtype).expand(rows, -1, -1, -1) for kind, window in self._masks.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))


def _mask_windows(config: Any) -> dict[str, int | None]:
    """Return the window of each kind of mask the model's layers ask for."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds <= {"full_attention"}:
        return {"full_attention": None if kinds else window}
    return {"full_attention": None, "sliding_attention": window}
