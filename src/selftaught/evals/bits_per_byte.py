"""Bits per byte: what a text costs under a model, in units that models over bytes and over tokens share.

bits per byte = nats / (ln 2 * bytes), with nats = -sum ln p over the predictions that spell the text (Pagnoni et al.
2024, arXiv 2412.09871). For a byte model these are one per byte; for a model over tokens one per token of the text's
tokenization, whatever number of bytes each token stands for, over the same bytes. For a token model that is an upper
bound on what the text costs: other tokenizations of it have probability too, and are not summed.

The end: predictions of special ids (begin, end of sequence) are no part of the text and are not counted, for either
kind of model. So a text cut into windows costs the sum of its windows, and a window needs no end.

A mean over documents would weigh a short one like a long one, so sums come first: `pooled` bits per byte are all nats
over all bytes, and intervals weigh documents by their bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, log, nan, sqrt
from statistics import fmean

from selftaught.errors import InputError
from selftaught.evals.metrics import PerProblem


@dataclass(frozen=True, slots=True)
class Cost:
    """What a document of `bytes` bytes of UTF-8 costs under a model: `nats`, the end of the sequence left out."""

    nats: float
    bytes: int


Costs = Mapping[str, Cost]
"""Costs by document id, so that two models pair up."""


def bits_per_byte(cost: Cost) -> float | None:
    """Return nats / (ln 2 * bytes), None where there are no bytes.

    Worked: 4 bytes at probability 1/2 each cost 4 ln 2 nats: 1 bit per byte.

    >>> bits_per_byte(Cost(4 * log(2), 4))
    1.0
    """
    return cost.nats / (log(2) * cost.bytes) if cost.bytes else None


def gather(parts: Iterable[tuple[str, Cost]]) -> dict[str, Cost]:
    """Return each document's cost from those of its windows, given as (document id, cost) in any order."""
    nats: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for document, cost in parts:
        nats.setdefault(document, []).append(cost.nats)
        sizes[document] = sizes.get(document, 0) + cost.bytes
    return {document: Cost(fsum(values), sizes[document]) for document, values in nats.items()}


def mean_costs(parts: Sequence[Costs]) -> dict[str, Cost]:
    """Return each document's mean cost over `parts`, of the same documents and bytes each."""
    return {d: Cost(fmean(part[d].nats for part in parts), cost.bytes) for d, cost in parts[0].items()}


def per_document(costs: Costs) -> PerProblem:
    """Return bits per byte by document id; None for an empty document."""
    return {document: bits_per_byte(cost) for document, cost in costs.items()}


def pooled(costs: Costs) -> float:
    """Return the bits per byte of all documents together. Raises InputError where they have no bytes.

    Worked: 1 byte at 2 bits and 3 bytes at 1 bit: 5 bits over 4 bytes, 1.25 (a mean over documents would be 1.5).

    >>> round(pooled({"a": Cost(2 * log(2), 1), "b": Cost(3 * log(2), 3)}), 4)
    1.25
    """
    total = bits_per_byte(Cost(fsum(cost.nats for cost in costs.values()), sum(c.bytes for c in costs.values())))
    if total is None:
        raise InputError(f"{len(costs)} documents without a byte of text: give some text")
    return total


def standard_error(costs: Costs) -> float:
    """Return the standard error of `pooled` over documents, nan for one: that of a ratio, to first order.

    sqrt(n / (n - 1) * sum_d (bits_d - r bytes_d)^2) / (sum_d bytes_d), r the pooled ratio.

    Worked: 1 byte at 2 bits and 3 bytes at 1 bit: r = 1.25, residuals 0.75 and -0.75, sqrt(2 * 1.125) / 4 = 0.375.

    >>> round(standard_error({"a": Cost(2 * log(2), 1), "b": Cost(3 * log(2), 3)}), 4)
    0.375
    """
    ratio, n = pooled(costs), len(costs)
    squares = fsum((cost.nats / log(2) - ratio * cost.bytes) ** 2 for cost in costs.values())
    return sqrt(n / (n - 1) * squares) / sum(cost.bytes for cost in costs.values()) if n > 1 else nan


def excess(noised: Costs, clean: Costs) -> dict[str, Cost]:
    """Return what noise adds to each document's cost, over the bytes of the clean text.

    So `pooled` of it, times these bytes, is the number of bits that the same message costs more, for any model and any
    noise. Over the noised text's own bytes it would fall where noise adds bytes that are easy to predict (the spaces
    of AntSpeak), however much more the message costs. A document whose noised text costs less has fewer than 0 nats.

    Worked: 2 bytes at 1 bit each become 4 at 0.75: 3 - 2 = 1 bit more over 2 bytes, 0.5.

    >>> round(pooled(excess({"a": Cost(3 * log(2), 4)}, {"a": Cost(2 * log(2), 2)})), 4)
    0.5

    Raises InputError where the documents are not the same.
    """
    if odd := sorted(noised.keys() ^ clean.keys()):
        raise InputError(
            f"{len(noised)} and {len(clean)} documents do not pair: {odd[0]} is in one only; cost the same ones"
        )
    return {document: Cost(noised[document].nats - cost.nats, cost.bytes) for document, cost in clean.items()}
