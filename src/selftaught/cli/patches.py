"""The patches of a text: printed by several rules, and drawn over the entropies of its bytes."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selftaught.cli.command import add_command
from selftaught.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from selftaught.models.blt.configuration import BltConfig
    from selftaught.text.patched import PatchedText

RULES = ("entropy", "monotonic", "both", "space", "stride", "byte", "top_k", "bpe")
SHOWN = ("entropy", "monotonic", "space", "stride", "bpe")
MOST_BYTES = 8000
"""The released models' context is 8,192."""
BPE_TOKENS = 2048
WINDOW = 512
CALIBRATION_BYTES = 65_536


def add_commands(commands) -> None:
    """Add the command of this module to a parser's subparsers."""
    parser = add_command(
        commands,
        "patches",
        _patches,
        "print the patches of a text, by several rules, and draw its entropies",
        example='selftaught patches "Patches are long where text is easy." --out patches.html',
    )
    parser.add_argument("text", nargs="?", help=f"at most {MOST_BYTES:,} bytes")
    parser.add_argument("--file", metavar="FILE|-", help="read the text from a file or, with -, from standard input")
    parser.add_argument(
        "--model", type=Path, help="directory of a BLT or of a byte model of entropies (default: n-grams of the sample)"
    )
    parser.add_argument(
        "--rule",
        action="append",
        choices=RULES,
        help=f"may be repeated; a BLT's own is shown first, and the first is drawn (default: {', '.join(SHOWN)})",
    )
    parser.add_argument(
        "--patch_size", type=float, default=4.5, metavar="BYTES", help="wanted mean length (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html|FILE.svg", help="draw them there")


def _patches(arguments) -> None:
    data = _read(arguments.text, arguments.file)
    if not 1 < arguments.patch_size < math.inf:
        raise InputError(f"--patch_size {arguments.patch_size}: give more than 1; patches of one byte are --rule byte")
    if arguments.out is not None:
        from selftaught.report.patched_text import check_suffix

        check_suffix(arguments.out)
    text = _patched(data, arguments.model, arguments.rule, arguments.patch_size)
    print("\n".join(_lines(text)))
    if arguments.out is not None:
        from selftaught.report.patched_text import write_patched_text

        write_patched_text(text, arguments.out)
        print(f"drawn: {arguments.out}", file=sys.stderr)


def _read(text: str | None, file: str | None) -> bytes:
    """Return the bytes of the text that was given one way or the other."""
    if (text is None) == (file is None):
        raise InputError("give either a text or --file FILE (- reads standard input)")
    if text is not None:
        try:
            # What was no UTF-8 on the command line is there as lone surrogates.
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InputError(f"character {error.start} is a lone surrogate: leave it out, or give --file") from None
    elif file == "-":
        data = sys.stdin.buffer.read(MOST_BYTES + 1)
    else:
        try:
            with open(str(file), "rb") as stream:
                data = stream.read(MOST_BYTES + 1)
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}; give a file, or - for standard input") from None
    if not data:
        raise InputError("the text is empty: give at least one byte")
    if len(data) > MOST_BYTES:
        raise InputError(f"the text has more than {MOST_BYTES:,} bytes, too many to show: give a part of it")
    return data


def _patched(data: bytes, directory: Path | None, rules: Sequence[str] | None, size: float) -> "PatchedText":
    """Return the text by `rules`: a BLT's own as it is, others for patches of `size` bytes on average on the sample."""
    from selftaught.evals.patches import patched_text
    from selftaught.functional.patches import byte_ids
    from selftaught.models.blt import BltConfig

    opened = _open_model(directory) if directory else None
    own = opened.config if opened is not None and isinstance(opened.config, BltConfig) else None
    model: PreTrainedModel = _entropy_model(opened)
    ids = byte_ids(data).tolist()
    limit = getattr((own or model.config), "max_position_embeddings", len(ids))
    if len(ids) > limit:
        raise InputError(f"{len(data)} bytes are more than the {limit - 1} that {directory} reads: give a part of them")
    names = list(dict.fromkeys(rules or SHOWN))
    wanted: dict[str, BltConfig | list[int]] = {}
    if own and (rules is None or own.patching in names):
        wanted[own.patching] = own
    for name in names:
        if name not in wanted:
            wanted[name] = _bpe_patches(ids) if name == "bpe" else _config(name, model, size)
    return patched_text(ids, wanted, model)


def _open_model(directory: Path) -> "PreTrainedModel":
    """Return the BLT, the byte transformer or the counts of n-grams in `directory`.

    Raises:
        InputError: there is none of them.
    """
    from transformers import AutoConfig

    from selftaught.functional.patches import VOCABULARY
    from selftaught.models.blt import BltConfig
    from selftaught.models.blt.build import open_entropy_model
    from selftaught.models.load import load_model, quiet_loading
    from selftaught.specs import ModelSpec

    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot open {directory}: {reason}; give the directory of a byte model") from None
    if getattr(config, "vocab_size", None) != VOCABULARY:
        raise InputError(
            f"{directory} is a {config.model_type} that reads tokens: give a BLT, or a byte model of {VOCABULARY} ids"
        )
    quiet_loading()
    if isinstance(config, BltConfig):
        return load_model(ModelSpec(source=str(directory)))
    return open_entropy_model(directory)


def _entropy_model(opened: "PreTrainedModel | None") -> "PreTrainedModel":
    """Return what finds entropies: a BLT's own model, the model itself or, where there is none, n-grams counted."""
    from selftaught.functional.patches import byte_ids
    from selftaught.models.blt import BltForCausalLM, count_ngrams
    from selftaught.tasks.text_corpora import TextCorpus

    model = opened.model.entropy_model if isinstance(opened, BltForCausalLM) else opened
    if model is not None:
        return model
    return count_ngrams(byte_ids(d.text.encode())[1:] for d in TextCorpus().documents("train"))


def _config(rule: str, model: "PreTrainedModel", size: float) -> "BltConfig":
    """Return a rule for patches of `size` bytes on average on the sample's dev split: no n-gram was counted there."""
    from selftaught.evals.patches import changed
    from selftaught.functional.patches import BY_THRESHOLD
    from selftaught.models.blt import BltConfig
    from selftaught.models.blt.build import calibrate
    from selftaught.tasks.text_corpora import TextCorpus, windows

    config = BltConfig(patching=rule, patch_size=max(1, round(size)) if rule == "stride" else size)
    if rule not in BY_THRESHOLD:
        return config
    found = windows(TextCorpus().documents("dev", CALIBRATION_BYTES), WINDOW)
    return changed(config, patching_threshold=calibrate(config, model, [window.data.decode() for window in found]))


def _bpe_patches(ids: Sequence[int]) -> list[int]:
    """Return the bytes of each token of a BPE tokenizer that is trained on the sample."""
    import torch

    from selftaught.models.blt.patchers import bpe_patch_lengths
    from selftaught.models.scratch import train_tokenizer
    from selftaught.specs import Scratch
    from selftaught.tasks.text_corpora import TextCorpus

    texts = (document.text for document in TextCorpus().documents("train"))
    tokenizer = train_tokenizer(Scratch(tokenizer="bpe", vocab_size=BPE_TOKENS), texts).backend_tokenizer
    return bpe_patch_lengths(tokenizer, [torch.tensor(ids[1:])])[0].tolist()


def _lines(text: "PatchedText") -> list[str]:
    """Return a line for each rule: its name, the mean length of its patches, and the text with `|` between them."""
    from selftaught.report.text import columns
    from selftaught.text.patched import separated

    size = len(text.items)
    rows = [
        (name, f"{size / len(lengths):.2f}", separated(text.patches(name))) for name, lengths in text.schemes.items()
    ]
    return columns([("rule", "mean bytes", "patches"), *rows], right=frozenset({1}))
