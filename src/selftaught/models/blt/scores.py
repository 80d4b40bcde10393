"""The entropies s_i that place patches, for whole prompts and then byte by byte."""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, MistralForCausalLM, PreTrainedModel

from selftaught.errors import InputError
from selftaught.functional.patches import BY_THRESHOLD, next_byte_entropies
from selftaught.models import attention
from selftaught.models.attention import Plan, PlanCache, Score, active_plan
from selftaught.models.blt.cache import Columns, Spans, StepSight
from selftaught.models.blt.configuration import BltConfig
from selftaught.models.blt.ngram_entropy import ByteNgrams
from selftaught.models.blt.patchers import entropies, seen_positions, starts_by


class NgramScores:
    """Entropies from a table over the last bytes."""

    def __init__(self, model: ByteNgrams) -> None:
        self.model = model

    def read(self, config: BltConfig, ids: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return starts [B, N + 1] and s_i [B, N] of ids [B, N], and what of them to store per byte."""
        scores = entropies(self.model, ids, seen_positions(config, ids))
        return starts_by(config, ids, scores, lengths), scores, {}

    def step(self, recent: Tensor, seen: np.ndarray, columns: Columns, spans: Spans) -> Tensor:
        """Return s_i [R] after the last of the bytes `recent` [R, M], which sees `seen` [R] of those before it."""
        places = torch.from_numpy(seen).to(recent.device)[:, None].expand_as(recent)
        return self.model.entropies(recent, places)[:, -1]


class TransformerScores:
    """Entropies from a Mistral, its keys and values among the columns of the bytes."""

    def __init__(self, model: MistralForCausalLM, widths: tuple[int, ...]) -> None:
        self.model = model
        self.widths = widths
        self.configs = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())

    def read(self, config: BltConfig, ids: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return starts [B, N + 1] and s_i [B, N] of ids [B, N], and what of them to store per byte."""
        # Without a configuration it keeps every column, which a row that is cut back needs.
        cache = DynamicCache()
        scores = entropies(self.model, ids, seen_positions(config, ids), cache)
        layers = enumerate(cache.layers)
        kept = {f"entropy.{i}.{kind}": getattr(layer, kind) for i, layer in layers for kind in ("keys", "values")}
        return starts_by(config, ids, scores, lengths), scores, kept

    def step(self, recent: Tensor, seen: np.ndarray, columns: Columns, spans: Spans) -> Tensor:
        """Return s_i [R] after the last of the bytes `recent` [R, M]; `spans` has what each would see without windows.

        Each of the R rows reads only the `seen` [R] bytes before it.
        """
        rows = len(recent)
        width = next(w for w in self.widths if w >= rows)
        ids, places = (recent.new_zeros(width, 1) for _ in range(2))
        ids[:rows, 0] = recent[:, -1]
        places[:rows, 0] = torch.from_numpy(spans.column).to(recent.device)
        plan = _StepPlan(columns, Spans(spans.slot, spans.column, spans.column - seen))
        token = active_plan.set(cast(Plan, plan))
        before = [c._attn_implementation for c in self.configs]
        try:
            for config in self.configs:
                config._attn_implementation = attention.NAME
            logits = self._logits(ids, places, PlanCache(cast(Plan, plan)))
        finally:
            for config, name in zip(self.configs, before, strict=True):
                config._attn_implementation = name
            active_plan.reset(token)
        return next_byte_entropies(logits[:, 0])[:rows]

    def _logits(self, ids: Tensor, places: Tensor, cache: Any) -> Tensor:
        """Return the logits [W, 1, V]; the model's own `forward` would first build a mask that is not read."""
        core: Any = self.model.model
        x = core.embed_tokens(ids)
        rotations = core.rotary_emb(x, position_ids=places)
        for layer in core.layers:
            x = layer(x, position_embeddings=rotations, past_key_values=cache)
        return self.model.lm_head(core.norm(x))


Scores = NgramScores | TransformerScores


def open_scores(config: BltConfig, model: PreTrainedModel | None, widths: tuple[int, ...]) -> Scores | None:
    """Return what scores bytes one by one, None where the rule of the patches asks for no scores.

    Raises:
        InputError: there is no entropy model, or it is one that is not decoded here.
    """
    if config.patching not in BY_THRESHOLD:
        return None
    if model is None:
        raise InputError(f"patching={config.patching!r} without an entropy model: give entropy_config")
    if isinstance(model, ByteNgrams):
        return NgramScores(model)
    if not isinstance(model, MistralForCausalLM):
        raise InputError(
            f"the entropy model is a {type(model).__name__}, which cannot be read byte by byte here: generate with "
            "n-gram counts or a byte_transformer_config"
        )
    return TransformerScores(model, widths)


class _StepPlan:
    """What `models.attention` asks for the keys and values of a step."""

    def __init__(self, columns: Columns, spans: Spans) -> None:
        self.columns = columns
        self.spans = spans
        self.windows: dict[int | None, Spans] = {None: spans}

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new keys and values as they are; `attend` stores them."""
        return key, value

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, score: Score) -> Tensor:
        """Return [W, 1, H, D] for queries [W, H, 1, D], new keys and values [W, G, 1, D]."""
        if score.window not in self.windows and score.window is not None:
            s = self.spans
            self.windows[score.window] = Spans(s.slot, s.column, np.maximum(s.first, s.column + 1 - score.window))
        sight = StepSight(self.columns, f"entropy.{layer}", self.windows[score.window])
        return sight.attend(query, key, value, score.scale).transpose(1, 2)
