"""Next-byte entropies from counts of byte n-grams, as one table look-up per byte."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from selftaught.errors import InputError
from selftaught.functional.patches import OFFSET
from selftaught.models.blt.configuration import ByteNgramsConfig

# Symbol 0 stands for every special id and for what lies before the text; byte b is symbol b + 1.
SYMBOLS = 257
# Entropies are stored in units of 2^-20 nats: integers stay the same whatever dtype a model is loaded in, and are exact
# in float32, so that a boundary does not depend on where it was computed.
UNIT = 2.0**-20
CHUNK = 2048


class ByteNgrams(PreTrainedModel):
    """A table of the entropy of the next byte after each context of up to 3 bytes."""

    config_class = ByteNgramsConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: ByteNgramsConfig) -> None:
        super().__init__(config)
        short = SYMBOLS ** min(config.context, 2)
        self.register_buffer("short", torch.zeros(short, dtype=torch.int32))
        self.register_buffer("codes", torch.zeros(config.contexts, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(config.contexts, dtype=torch.int32))
        self._tables: dict[Any, Tensor] = {}
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the entropies; transformers would look for it among parameters, and there are none."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where the counts lie."""
        return self.short.device

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave the counts as they are: there is nothing to draw."""

    def entropies(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return s_i, the entropy in nats of byte i + 1 after bytes 0..i: float32 [B, N].

        Args:
            input_ids: [B, N] int64.
            positions: [B, N] place of each byte in its document; bytes before its first are not part of a context.
        """
        symbols = (input_ids - (OFFSET - 1)).clamp(min=0).int()
        code, scale = torch.zeros_like(symbols), 1
        for back in range(self.config.context):
            earlier = symbols
            if back:
                earlier = torch.zeros_like(symbols)
                earlier[:, back:] = symbols[:, :-back] if back < symbols.shape[1] else 0
                if positions is not None:
                    earlier = earlier.masked_fill(positions < back, 0)
            code += earlier * scale
            scale *= SYMBOLS
        return self.table(code.device).index_select(0, code.flatten()).view(code.shape)

    def table(self, device: torch.device) -> Tensor:
        """Return the entropies of all contexts, float32 [257^context], nats; the last byte counts singly."""
        key = (device, *((x.data_ptr(), x._version) for x in (self.short, self.codes, self.values)))
        if key not in self._tables:
            full = self.short.to(device)
            if self.config.context == 3:
                full = full.repeat(SYMBOLS)
                full[self.codes.to(device).long()] = self.values.to(device)
            self._tables = {key: full * UNIT}
        return self._tables[key]


def count_ngrams(texts: Iterable[Tensor], context: int = 3) -> ByteNgrams:
    """Return the n-gram model of `texts`, ids [N] each, which begin and end a context.

    Each order is interpolated with the one below by Witten and Bell's rule: P(v | c) = (n(c, v) + t(c) P(v | c'))
    / (n(c) + t(c)), with t(c) the number of different bytes seen after c and c' one byte shorter; the lowest order is
    interpolated with the uniform distribution. An unseen context has the entropy of the shorter one.

    Raises:
        InputError: a context that is not 0 to 3 bytes, or no text.
    """
    if context not in range(4):
        raise InputError(f"context={context}: a table holds 0 to 3 bytes of context")
    rows = [np.concatenate([np.zeros(3, np.int64), np.maximum(np.asarray(t) - (OFFSET - 1), 0)]) for t in texts]
    if not sum(len(row) > 3 for row in rows):
        raise InputError("no text to count n-grams in: give at least one byte")
    lower = np.full((1, SYMBOLS), 1 / SYMBOLS)
    for order in range(min(context, 2) + 1):
        found, counts = _counts(rows, order)
        dense = lower[np.arange(SYMBOLS**order) % len(lower)]
        dense[found] = _interpolated(counts, dense[found])
        lower = dense
    short = _entropies(lower)
    codes, values = np.zeros(0, np.int64), np.zeros(0)
    if context == 3:
        codes, values = _long_contexts(rows, lower)
    model = ByteNgrams(ByteNgramsConfig(context=context, contexts=len(codes)))
    for name, column in (("short", short / UNIT), ("codes", codes), ("values", values / UNIT)):
        getattr(model, name).copy_(torch.from_numpy(np.rint(column).astype(np.int32)))
    return model.eval()


def _pairs(rows: list[np.ndarray], order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the seen contexts, and for each (context, next symbol) that occurs its code and how often it does."""
    codes = []
    for row in rows:
        code = np.zeros(len(row) - 3, np.int64)
        for back in range(order):
            code += row[2 - back : len(row) - 1 - back] * SYMBOLS**back
        codes.append(code * SYMBOLS + row[3:])
    pairs, times = np.unique(np.concatenate(codes), return_counts=True)
    return np.unique(pairs // SYMBOLS), pairs, times


def _counts(rows: list[np.ndarray], order: int) -> tuple[np.ndarray, np.ndarray]:
    found, pairs, times = _pairs(rows, order)
    counts = np.zeros((len(found), SYMBOLS))
    counts[np.searchsorted(found, pairs // SYMBOLS), pairs % SYMBOLS] = times
    return found, counts


def _long_contexts(rows: list[np.ndarray], lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the seen contexts of three bytes and their entropies, a chunk at a time: there may be millions."""
    found, pairs, times = _pairs(rows, 3)
    owner = np.searchsorted(found, pairs // SYMBOLS)
    values = np.empty(len(found))
    for begin in range(0, len(found), CHUNK):
        chunk = found[begin : begin + CHUNK]
        inside = slice(*np.searchsorted(owner, [begin, begin + len(chunk)]))
        counts = np.zeros((len(chunk), SYMBOLS))
        counts[owner[inside] - begin, pairs[inside] % SYMBOLS] = times[inside]
        values[begin : begin + len(chunk)] = _entropies(_interpolated(counts, lower[chunk % SYMBOLS**2]))
    return found, values


def _interpolated(counts: np.ndarray, lower: np.ndarray) -> np.ndarray:
    kinds = (counts > 0).sum(1, keepdims=True)
    return (counts + kinds * lower) / (counts.sum(1, keepdims=True) + kinds)


def _entropies(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(1)
