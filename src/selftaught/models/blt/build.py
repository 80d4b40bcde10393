"""Byte Latent Transformers made from specs and documents: entropy models, calibrated models, stored patches."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from selftaught.errors import InputError
from selftaught.functional import patches
from selftaught.models.blt.byteify import byteify
from selftaught.models.blt.configuration import BltConfig, ByteNgramsConfig, byte_transformer_config
from selftaught.models.blt.modeling import BltForCausalLM
from selftaught.models.blt.ngram_entropy import count_ngrams
from selftaught.models.blt.patchers import bpe_patch_lengths, entropies, seen_positions
from selftaught.models.blt.tokenization import ByteTokenizer
from selftaught.models.load import default_device, load_model, place_key, quiet_loading
from selftaught.specs import ByteLatent, EntropyModel, ModelSpec
from selftaught.store.stage import Stage, open_stage
from selftaught.types import Document

FACTS = "patches.json"
"""The file beside a model that says what its patches turned out to be."""
CALIBRATION_BYTES = 2 << 20
BATCH_BYTES = 1 << 16
_DOCUMENTS_AT_ONCE = 4096


def build_entropy_model(*, spec: EntropyModel, positions: int, documents: Path, out: Path, seed: int) -> None:
    """Fill `out` with the entropy model of `spec`, and with a byte tokenizer beside a transformer.

    N-grams are counted in the stage of `documents`. A transformer reads up to `positions` ids and has random weights
    that `seed` fixes; its recipe is that of any language model, training on documents.

    Raises:
        InputError: sizes that do not fit each other, or documents without text.
    """
    quiet_loading()
    if spec.kind == "ngrams":
        texts = (patches.byte_ids(text.encode()) for text in _texts(open_stage(documents)))
        count_ngrams(texts, spec.context).save_pretrained(out)
        return
    if spec.width % (2 * spec.heads):
        raise InputError(f"width={spec.width} gives {spec.heads} heads no even width each: change one of them")
    config = byte_transformer_config(
        width=spec.width, layers=spec.layers, heads=spec.heads, window=spec.window, context=positions
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(out)
    ByteTokenizer().save_pretrained(out)


def open_entropy_model(directory: Path | str) -> PreTrainedModel:
    """Return the entropy model in a directory that `build_entropy_model` filled, or a training of it, in eval mode."""
    config = AutoConfig.from_pretrained(directory)
    kind: Any = AutoModel if isinstance(config, ByteNgramsConfig) else AutoModelForCausalLM
    return kind.from_pretrained(directory, dtype=torch.float32).eval().requires_grad_(False)


def build_blt(
    *,
    spec: ByteLatent,
    entropy: Path | str | None,
    documents: Path,
    out: Path,
    seed: int,
    start: ModelSpec | None = None,
) -> None:
    """Fill `out` with the model of `spec`, weights drawn from `seed`, its byte tokenizer, and the file `FACTS`.

    The threshold is calibrated on up to 2 MB of the stage of `documents`, evenly spaced, which should be cut as those
    trained on are: every document begins two patches whatever its bytes. `FACTS` holds that `threshold` (nats; null for
    rules without one), and what came out on the same documents: `bytes`, the begin symbols counted, in `patches`, and
    `mean_patch_length`, the one over the other.

    Args:
        spec: sizes and rule.
        entropy: directory of the entropy model; None for rules that need none.
        documents: directory of a stage of documents.
        out: directory to fill.
        seed: of the weights; the entropy model and the documents do not change them.
        start: a language model over tokens whose layers the global transformer starts from, see `byteify`.

    Raises:
        InputError: a rule by entropy without a model, a patch size that no threshold gives, or sizes that do not fit.
    """
    if spec.patching in patches.BY_ENTROPY and entropy is None:
        raise InputError(f"patching={spec.patching!r} needs the entropies of a model: give one")
    quiet_loading()
    config = BltConfig(**asdict(spec))
    model = _new_model(config, seed) if start is None else byteify(load_model(start), config, seed)
    config, stage = model.config, open_stage(documents)
    if spec.ngram_table == "frequency":
        model.model.set_frequent_ngrams(patches.byte_ids(text.encode()) for text in _texts(stage))
    if entropy is not None:
        model.model.set_entropy_model(open_entropy_model(entropy))
    model, sample = model.to(default_device()), calibration_sample(stage)
    calibrated = spec.patching in patches.BY_THRESHOLD
    if calibrated:
        config.patching_threshold = calibrate(config, model.model.entropy_model, [d.text for d in sample])
    facts = _facts(sample if spec.patching == "explicit" else list(_patched(model, sample)))
    model.cpu().save_pretrained(out)
    ByteTokenizer().save_pretrained(out)
    facts = {"threshold": config.patching_threshold if calibrated else None, **facts}
    (out / FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def _new_model(config: BltConfig, seed: int) -> BltForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BltForCausalLM(config)


@torch.no_grad()
def calibrate(config: BltConfig, model: PreTrainedModel, texts: Sequence[str]) -> float:
    """Return the threshold with which patches of `texts` have `config.patch_size` bytes on average, begin symbols too.

    Of each text, patches begin at the begin symbol and at the first byte under any threshold; the others take the
    quantile that makes the mean right. Splits at `max_patch_length` come on top.

    Raises:
        InputError: no threshold gives that mean.
    """
    found, size = [], 0
    for _, ids, lengths in _batches(texts, model.device):
        scores = entropies(model, ids, seen_positions(config, ids))
        rises = scores.diff(dim=1, prepend=scores[:, :1])
        place = torch.arange(ids.shape[1], device=ids.device)
        # Byte 0 is followed by a start whatever its score, so it does not compete.
        free = (place > 0) & (place < lengths[:, None])
        if config.patching == "both":
            free &= rises > config.patching_rise
        found.append((rises if config.patching == "monotonic" else scores)[free].cpu())
        size += int(lengths.sum()) + len(ids)
    scores, wanted = torch.cat(found), size / config.patch_size - 2 * len(texts)
    if not 0 < wanted < len(scores):
        fixed = f"{2 * len(texts)} patches of {size} bytes are fixed and {len(scores)} can be chosen"
        raise InputError(
            f"patch_size={config.patch_size}: {fixed}: give between {size / (2 * len(texts) + len(scores)):.3g} and "
            f"{size / (2 * len(texts)):.3g}, or longer documents"
        )
    try:
        return patches.calibrate_threshold(scores, len(scores) / wanted)
    except ValueError as error:
        raise InputError(f"no threshold gives patch_size={config.patch_size}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchDocuments:
    """Documents with the patches that the model in directory `model` finds, for `Lab.stage`.

    `threshold` (nats) replaces the model's own. `content` identifies the model's files in the stage's key.
    """

    model: str
    threshold: float | None = None
    content: str = ""

    def __post_init__(self) -> None:
        _identify(self, self.model)

    def __call__(self, documents: Iterable[Document], counts: Counter[str]) -> Iterator[Document]:
        """Yield `documents` in their order with `patch_lengths`."""
        model = AutoModelForCausalLM.from_pretrained(self.model).to(default_device()).eval()
        if self.threshold is not None:
            model.config.patching_threshold = self.threshold
        return _patched(model, documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPatches:
    """Documents with a patch for each token of the tokenizer in directory `tokenizer`, for `Lab.stage`.

    For comparison: no model can generate with such patches. `content` is as in `PatchDocuments`.
    """

    tokenizer: str
    content: str = ""

    def __post_init__(self) -> None:
        _identify(self, self.tokenizer)

    def __call__(self, documents: Iterable[Document], counts: Counter[str]) -> Iterator[Document]:
        """Yield `documents` in their order with `patch_lengths`."""
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer).backend_tokenizer
        for document in documents:
            lengths = bpe_patch_lengths(tokenizer, [patches.byte_ids(document.text.encode())])[0].tolist()
            yield replace(document, patch_lengths=tuple(lengths))


def _identify(rule: PatchDocuments | TokenPatches, directory: str) -> None:
    if not rule.content:
        object.__setattr__(rule, "content", place_key(directory))


def _patched(model: BltForCausalLM, documents: Iterable[Document]) -> Iterator[Document]:
    stream, blt = iter(documents), model.model
    while chunk := list(islice(stream, _DOCUMENTS_AT_ONCE)):
        found: dict[int, list[int]] = {}
        for places, ids, lengths in _batches([d.text for d in chunk], model.device):
            starts = blt.find_starts(ids, lengths)
            found |= zip(places, patches.patch_lengths(starts, lengths).tolist(), strict=True)
        for i, document in enumerate(chunk):
            yield replace(document, patch_lengths=tuple(n for n in found[i] if n))


def _batches(texts: Sequence[str], device: torch.device) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield (places in `texts`, ids [B, N], lengths [B]) of what a model reads of them: all but each last byte."""
    rows = [patches.byte_ids(text.encode())[:-1] for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        width = len(rows[order[-1]])
        count = max(1, BATCH_BYTES // max(width, 1))
        places, order = order[-count:], order[:-count]
        lengths = torch.tensor([len(rows[i]) for i in places], device=device)
        yield places, pad_sequence([rows[i] for i in places], batch_first=True).to(device), lengths


def _texts(stage: Stage[Document]) -> Iterator[str]:
    return (text for (column,) in stage.columns("text") for text in column)


def calibration_sample(stage: Stage[Document]) -> list[Document]:
    """Return evenly spaced documents of about `CALIBRATION_BYTES` together, all of them where they are fewer bytes."""
    if not len(stage):
        raise InputError(f"{stage.path} holds no document to find patches in: give some text")
    size = sum(len(text.encode()) for text in _texts(stage))
    every = max(1, math.ceil(size / CALIBRATION_BYTES))
    return list(islice(stage, 0, None, every))


def _facts(documents: Sequence[Document]) -> dict[str, Any]:
    counts = [len(d.patch_lengths) for d in documents]
    if not all(counts):
        bare = documents[counts.index(0)].id
        raise InputError(f"document {bare} has no patch_lengths, which patching='explicit' needs: store some first")
    size = sum(sum(d.patch_lengths) for d in documents)
    return {"bytes": size, "patches": sum(counts), "mean_patch_length": size / sum(counts)}
