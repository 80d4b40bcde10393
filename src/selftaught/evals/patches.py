"""Patches of texts measured: how long they are, where they grow, and what a model costs and is worth with them.

Documents carry `patch_lengths`: 1 for the begin-of-sequence id, which is a patch of its own, then the bytes of their
text's patches. Nothing is stored about the byte after the text, so the last patch counts with the bytes that the text
has of it, whether it would have gone on or not. Lengths so sum to the bytes of the text, and their mean is bytes /
patches, which is what FLOPs per byte depend on. Short texts have shorter patches for it: compare texts of equal length.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selftaught.errors import InputError
from selftaught.evals.bits_per_byte import Costs, pooled
from selftaught.evals.flops import flops_per_byte
from selftaught.functional import patches
from selftaught.models.blt.configuration import BltConfig
from selftaught.models.blt.patchers import entropies, find_starts, seen_positions
from selftaught.models.blt.tokenization import SPECIAL
from selftaught.text.patched import PatchedText
from selftaught.types import Document


@dataclass(frozen=True, slots=True)
class Patched:
    """`bytes` bytes of text in which `patches` patches begin."""

    bytes: int
    patches: int

    @property
    def mean_length(self) -> float | None:
        """Bytes per patch, None where no patch begins."""
        return self.bytes / self.patches if self.patches else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """What a model costs and what it is worth with patches of one threshold in nats, `patch_length` in bytes.

    FLOPs are of a forward pass.
    """

    threshold: float
    patch_length: float
    flops_per_byte: float
    bits_per_byte: float


def length_histogram(documents: Iterable[Document]) -> dict[int, int]:
    """Return patch length -> how many patches have it, in ascending order, of all documents together."""
    return dict(sorted(Counter(chain.from_iterable(map(_patches_of, documents))).items()))


def patched(documents: Iterable[Document]) -> Patched:
    """Return the bytes and patches of all documents together.

    Raises InputError for a document whose patch lengths are not stored, or not those of its text.
    """
    lengths = [_patches_of(document) for document in documents]
    return Patched(sum(map(sum, lengths)), sum(map(len, lengths)))


def patched_by_domain(documents: Iterable[Document]) -> dict[str, Patched]:
    """Return the bytes and patches of each domain, in the order of first appearance; "" where none is named."""
    found: dict[str, Patched] = {}
    for document in documents:
        domain, lengths = str(document.meta.get("domain", "")), _patches_of(document)
        so_far = found.get(domain, Patched(0, 0))
        found[domain] = Patched(so_far.bytes + sum(lengths), so_far.patches + len(lengths))
    return found


def patched_by_place(documents: Iterable[Document], width: int) -> dict[int, Patched]:
    """Return the bytes at places 0 to width - 1, width to 2 width - 1, ... of the documents, by the first place.

    A patch counts where it begins. If mean lengths grow with the place, patches drift: an entropy model that has seen
    the like before is surer of it, so repeated text falls into ever longer patches.

    Worked: patches of 1, 3 and 4 bytes and a width of 4: two patches begin in the first 4 bytes, one in the next.

    Raises InputError for a width below 1.
    """
    if width < 1:
        raise InputError(f"places of {width} bytes hold nothing; give a width of 1 or more")
    sizes: Counter[int] = Counter()
    begun: Counter[int] = Counter()
    for document in documents:
        at = 0
        for length in _patches_of(document):
            begun[at // width] += 1
            at += length
        for place in range(-(-at // width)):
            sizes[place] += min(width, at - place * width)
    return {place * width: Patched(sizes[place], begun[place]) for place in sorted(sizes)}


def patch_facts(documents: Sequence[Document], width: int) -> dict[str, Any]:
    """Return what a report draws of patches: mean length, histogram, mean length by domain and by `width` bytes."""
    return {
        "patch_length": patched(documents).mean_length,
        "lengths": {str(length): count for length, count in length_histogram(documents).items()},
        "domains": mean_lengths(patched_by_domain(documents)),
        "drift": mean_lengths(patched_by_place(documents, width)),
    }


def mean_lengths(parts: Mapping[Any, Patched]) -> dict[str, float | None]:
    """Return the mean patch length of each part of a text, its name as JSON wants it."""
    return {str(name): part.mean_length for name, part in parts.items()}


def trade_off(config: BltConfig, documents: Iterable[Document], costs: Costs, context: int) -> Trade:
    """Return what the model of `config` costs and is worth on documents with stored patches of its threshold.

    `costs` are those of the documents under the model, read with these patches. `context` is in bytes, as in
    `functional.flops.blt_flops_per_byte`.

    Raises InputError where the documents have no text.
    """
    bits, length = pooled(costs), patched(documents).mean_length
    assert length is not None  # where there are bytes, a patch begins with the first
    flops = flops_per_byte(config, context, length)
    return Trade(threshold=config.patching_threshold, patch_length=length, flops_per_byte=flops, bits_per_byte=bits)


def patched_text(
    ids: Sequence[int],
    rules: Mapping[str, BltConfig | Sequence[int]],
    model: PreTrainedModel | None,
) -> PatchedText:
    """Return one text with its patches by each of `rules`, and the entropies of its bytes under `model`.

    Args:
        ids: the begin-of-sequence id and the bytes of the text.
        rules: name -> configuration or, for patches found otherwise, such as tokens, bytes of each patch of the text.
            The threshold is that of the first configuration, where it has one for entropies.
        model: the entropy model, None for none; rules by entropy need one.
    """
    row = torch.tensor([list(ids)], dtype=torch.int64)
    configs = (rule for rule in rules.values() if isinstance(rule, BltConfig))
    first = next(configs, BltConfig(patching="explicit"))
    values = [] if model is None else entropies(model, row, seen_positions(first, row))[0, :-1].tolist()
    return PatchedText(
        items=[SPECIAL[i] if i < patches.OFFSET else i - patches.OFFSET for i in ids[1:]],
        entropies=values,
        threshold=first.patching_threshold if values and first.patching in ("entropy", "both") else None,
        schemes={
            name: _text_patches(find_starts(rule, model, row[:, :-1])) if isinstance(rule, BltConfig) else list(rule)
            for name, rule in rules.items()
        },
    )


def changed(config: BltConfig, **values: Any) -> BltConfig:
    """Return a copy of `config` with `values` set, checked like a new one."""
    return BltConfig.from_dict({**config.to_dict(), **values})


def _text_patches(starts: Tensor) -> list[int]:
    """Return the patches of the text of one row of N ids from the starts [1, N] that all but the last id decide."""
    return patches.patch_lengths(starts)[0, 1:].tolist()


def _patches_of(document: Document) -> tuple[int, ...]:
    lengths, size = document.patch_lengths[1:], len(document.text.encode())
    if sum(lengths) != size or not document.patch_lengths:
        raise InputError(
            f"document {document.id} has {size} bytes and stored patches of {sum(lengths)}: patch it by a rule first"
        )
    return lengths
