"""Bits per byte: what a text costs under a model, in units that models over bytes and over tokens share.

bits per byte = nats / (ln 2 * bytes), with nats = -sum ln p over the predictions that spell the text (Pagnoni et al.
2024, arXiv 2412.09871). For a byte model these are one per byte; for a model over tokens one per token of the text's
tokenization, whatever number of bytes each token stands for, over the same bytes. For a token model that is an upper
bound on what the text costs: other tokenizations of it have probability too, and are not summed.

The end: predictions of special ids (begin, end of sequence) are no part of the text and are not counted, for either
kind of model. So a text cut into windows costs the sum of its windows, and a window needs no end.

A mean over documents would weigh a short one like a long one, so sums come first: `pooled` bits per byte are all nats
over all bytes, and intervals are of that ratio, over documents drawn again with replacement.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isfinite, log, nan, sqrt

import numpy as np

from selftaught.errors import InputError
from selftaught.evals.intervals import Interval
from selftaught.evals.metrics import PerProblem

_DRAWS = 10_000
_BLOCK = 500


@dataclass(frozen=True, slots=True)
class Cost:
    """What a document of `bytes` bytes of UTF-8 costs under a model: `nats`, the end of the sequence left out."""

    nats: float
    bytes: int


Costs = Mapping[str, Cost]
"""Costs by document id, so that two models pair up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """How many bits per byte noise adds, pooled over documents.

    `per_original_byte` is the one to report: both terms are divided by the bytes of the clean text, so that times these
    bytes it is the number of bits that the same message costs more, for any model and any noise. `per_own_byte` divides
    the noised text's nats by its own bytes, and falls where noise adds bytes that are easy to predict (the spaces of
    AntSpeak), however much more the message costs.
    """

    per_original_byte: float
    per_own_byte: float


def bits_per_byte(cost: Cost) -> float | None:
    """Return nats / (ln 2 * bytes), None where there are no bytes.

    Worked: 4 bytes at probability 1/2 each cost 4 ln 2 nats: 1 bit per byte.

    >>> bits_per_byte(Cost(4 * log(2), 4))
    1.0
    """
    return cost.nats / (log(2) * cost.bytes) if cost.bytes else None


def cost_of(text: str, nats: Sequence[float], *, per_byte: bool) -> Cost:
    """Return the cost of `text` from the nats of its predictions in order, without those of special ids.

    With `per_byte` they are a byte model's, and there must be as many as the text has bytes.

    Worked: "é" and "a" are 3 bytes; two tokens at 1 and 2 nats cost 3 nats over these 3 bytes, 1.4427 bits per byte.

    >>> round(bits_per_byte(cost_of("éa", [1.0, 2.0], per_byte=False)), 4)
    1.4427

    Raises InputError for a value that is no finite number of nats of 0 or more, for a wrong number of values, and for a
    text with none.
    """
    size = len(text.encode())
    wrong = next((i for i, value in enumerate(nats) if not (isfinite(value) and value >= 0)), None)
    if wrong is not None:
        raise InputError(f"prediction {wrong} of {text[:40]!r} costs {nats[wrong]} nats: give -ln p, finite, 0 or more")
    if (len(nats) != size) if per_byte else ((len(nats) > 0) != (size > 0)):
        raise InputError(f"{len(nats)} predictions for the {size} bytes of {text[:40]!r}: leave out special ids only")
    return Cost(fsum(nats), size)


def gather(parts: Iterable[tuple[str, Cost]]) -> dict[str, Cost]:
    """Return each document's cost from those of its windows, given as (document id, cost) in any order."""
    nats: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for document, cost in parts:
        nats.setdefault(document, []).append(cost.nats)
        sizes[document] = sizes.get(document, 0) + cost.bytes
    return {document: Cost(fsum(values), sizes[document]) for document, values in nats.items()}


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

    `pooled` of it is `Rise.per_original_byte`. A document whose noised text costs less has fewer than 0 nats.

    Raises InputError where the documents are not the same.
    """
    _check_documents(noised, clean)
    return {document: Cost(noised[document].nats - cost.nats, cost.bytes) for document, cost in clean.items()}


def difference(ours: Costs, baseline: Costs, seed: int = 0) -> Interval:
    """Return `pooled(ours) - pooled(baseline)` on the same documents, with its 95% interval over documents.

    The interval is a percentile bootstrap of the ratio (sum of nats' differences) / (ln 2 * sum of bytes) over 10,000
    draws of documents. It is about these two models: it says nothing of other training seeds.

    Raises InputError where the two are not of the same documents with the same bytes.
    """
    _check_paired(ours, baseline)
    gaps = np.array([ours[document].nats - baseline[document].nats for document in ours]) / log(2)
    return _interval(gaps, np.array([cost.bytes for cost in ours.values()], float), seed)


def rise(noised: Costs, clean: Costs) -> Rise:
    """Return how many bits per byte noise adds; document ids are those of the clean documents in both.

    Worked: 2 bytes at 1 bit each become 4 at 0.75: 3 - 2 = 1 bit more over 2 bytes, 0.5; per own byte -0.25.

    >>> rise({"a": Cost(3 * log(2), 4)}, {"a": Cost(2 * log(2), 2)})
    Rise(per_original_byte=0.5, per_own_byte=-0.25)

    Raises InputError where the documents are not the same.
    """
    _check_documents(noised, clean)
    return Rise(
        per_original_byte=pooled(_over_clean_bytes(noised, clean)) - pooled(clean),
        per_own_byte=pooled(noised) - pooled(clean),
    )


def rise_difference(ours: tuple[Costs, Costs], baseline: tuple[Costs, Costs], seed: int = 0) -> Interval:
    """Return our rise per original byte minus the baseline's, each given as (noised, clean), with its 95% interval.

    Below 0: noise costs our model fewer bits. Documents and draws are those of `difference`.
    """
    (ours_noised, ours_clean), (base_noised, base_clean) = ours, baseline
    _check_paired(ours_clean, base_clean)
    _check_paired(ours_noised, base_noised)
    _check_documents(ours_noised, ours_clean)
    gaps = [(ours_noised[d].nats - ours_clean[d].nats) - (base_noised[d].nats - base_clean[d].nats) for d in ours_clean]
    return _interval(np.array(gaps) / log(2), np.array([c.bytes for c in ours_clean.values()], float), seed)


def _over_clean_bytes(noised: Costs, clean: Costs) -> dict[str, Cost]:
    return {document: Cost(noised[document].nats, cost.bytes) for document, cost in clean.items()}


def _interval(gaps: np.ndarray, sizes: np.ndarray, seed: int) -> Interval:
    if not sizes.sum():
        raise InputError(f"{len(sizes)} documents without a byte of text: give some text")
    filled = sizes > 0
    gaps, sizes = gaps[filled], sizes[filled]
    source = np.random.default_rng(seed)
    ratios = []
    for _ in range(_DRAWS // _BLOCK):
        rows = source.integers(0, len(gaps), (_BLOCK, len(gaps)))
        ratios.append(gaps[rows].sum(axis=1) / sizes[rows].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), (0.025, 0.975))
    estimate = float(gaps.sum() / sizes.sum())
    return Interval(estimate=estimate, low=float(low), high=float(high), over="problems", n=len(gaps))


def _check_documents(ours: Costs, others: Costs) -> None:
    if ours.keys() != others.keys():
        odd = sorted(ours.keys() ^ others.keys())[0]
        raise InputError(
            f"{len(ours)} and {len(others)} documents do not pair: {odd} is in one only; cost the same ones"
        )


def _check_paired(ours: Costs, baseline: Costs) -> None:
    _check_documents(ours, baseline)
    odd = next((d for d in ours if ours[d].bytes != baseline[d].bytes), None)
    if odd is not None:
        sizes = f"{ours[odd].bytes} and {baseline[odd].bytes}"
        raise InputError(f"document {odd} has {sizes} bytes: cost the same text under both models")
