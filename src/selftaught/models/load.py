"""Opening a model and its tokenizer from a `ModelSpec`: a Hub id or a directory, with an optional LoRA adapter."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

# Makes the Auto classes know what this package's own models are called.
import selftaught.models.blt  # noqa: F401
from selftaught.errors import InputError
from selftaught.models.endpoint import is_endpoint, parse_endpoint
from selftaught.specs import ModelSpec
from selftaught.store.files import hash_file
from selftaught.store.manifest import MANIFEST, read_manifest


def default_device() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `spec`; a missing pad token is set to EOS (padding is always masked, never read).

    Raises:
        InputError: nothing can be opened there, or the tokenizer has neither a pad nor an EOS token.
    """
    with _opening(spec, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(_source(spec), **_hub_arguments(spec))
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of {spec.source} has neither a pad nor an EOS token: set tokenizer.eos_token and save "
                "it again"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    spec: ModelSpec, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Return the causal language model of `spec` on `device`, in eval mode, its adapter applied.

    `dtype` overrides `spec.dtype`; "auto" keeps the dtype the weights were saved in.

    Raises:
        InputError: nothing can be opened there, or it is not a causal language model with all its weights.
    """
    with _opening(spec, "causal language model"):
        model, missing = _open(AutoModelForCausalLM, spec, dtype)
        _refuse(missing)
        if spec.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, spec.adapter)
    return model.to(device).eval()


def load_classifier(spec: ModelSpec, *, device: str | torch.device = "cpu") -> PreTrainedModel:
    """Return the sequence classifier (a reward model) of `spec` on `device`, in eval mode, its adapter applied.

    The source may be a language model where the adapter holds a head with one label.

    Raises:
        InputError: nothing can be opened there, or it is not a sequence classifier with all its weights.
    """
    with _opening(spec, "sequence classifier"):
        model, missing = _open_classifier(spec, None)
        _refuse(missing)
    return model.to(device).eval()


def load_reward_model(
    spec: ModelSpec, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, bool]:
    """Return a sequence classifier with one label, to be trained, and whether its head is new.

    A language model is given a head, drawn from torch's random state; a classifier keeps its own.

    Raises:
        InputError: nothing can be opened there, weights other than the head's are missing, or it has several labels.
    """
    with _opening(spec, "reward model"):
        model, missing = _open_classifier(spec, dtype)
        if model.config.num_labels != 1:
            raise InputError(
                f"{spec.source} is a classifier with {model.config.num_labels} labels, and a reward model has one: "
                "start from its language model, or from a classifier with num_labels=1"
            )
        inside = model.get_base_model() if spec.adapter else model
        _refuse({name for name in missing if name.startswith(f"{inside.base_model_prefix}.")})
    return model.to(device).eval(), bool(missing)


def _open_classifier(spec: ModelSpec, dtype: torch.dtype | None) -> tuple[PreTrainedModel, set[str]]:
    """Return the classifier of `spec`, its adapter applied, and the names of the weights that neither holds."""
    known = load_config(spec).architectures or ()
    # The configuration of a language model says 2 labels, for nobody set them.
    labels = {} if any("ForSequenceClassification" in name for name in known) else {"num_labels": 1}
    with _without_report():
        model, missing = _open(AutoModelForSequenceClassification, spec, dtype, **labels)
    return _with_head_and_adapter(model, missing, spec.adapter) if spec.adapter else (model, missing)


def _with_head_and_adapter(model: PreTrainedModel, missing: set[str], adapter: str) -> tuple[PreTrainedModel, set[str]]:
    """Return the classifier with an adapter, which may hold its head, and which of the `missing` weights still are."""
    from peft import PeftConfig, PeftModelForSequenceClassification, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(adapter)
    # The adapter of a language model has no head: with this task, peft trains and saves one beside it.
    config.task_type, config.inference_mode = "SEQ_CLS", True
    held, inside = load_peft_weights(adapter, device="cpu"), f"{model.base_model_prefix}."
    # peft takes only adapters that have the head.
    head = {f"base_model.model.{k}": v for k, v in model.state_dict().items() if not k.startswith(inside)}
    adapted = PeftModelForSequenceClassification(model, config)
    found = set_peft_model_state_dict(adapted, {**head, **held})
    _refuse({name for name in found.missing_keys if "lora_" in name})
    return adapted, {name for name in missing if f"base_model.model.{name}" not in held}


def _open(kind: Any, spec: ModelSpec, dtype: torch.dtype | None, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    quiet_loading()
    wanted = dtype or ("auto" if spec.dtype == "auto" else getattr(torch, spec.dtype))
    model, info = kind.from_pretrained(
        _source(spec), dtype=wanted, output_loading_info=True, **options, **_hub_arguments(spec)
    )
    return model, set(info["missing_keys"])


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from warning of missing weights: callers say which may be missing."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _refuse(missing: set[str]) -> None:
    if missing:
        raise ValueError(f"it holds no weights for {min(missing)}, which would be random")


def quiet_loading() -> None:
    """Switch off transformers' bars for loading and writing weights; downloads keep theirs."""
    transformers_logging.disable_progress_bar()


def load_config(spec: ModelSpec):
    """Return the transformers configuration of `spec` without its weights."""
    with _opening(spec, "configuration"):
        return AutoConfig.from_pretrained(_source(spec), **_hub_arguments(spec))


def count_parameters(spec: ModelSpec) -> int:
    """Return the number of parameters of `spec`, read from its configuration without loading weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(spec), trust_remote_code=spec.trust_remote_code)
    return sum(p.numel() for p in model.parameters())


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of the vocabulary and merges: equal fingerprints mean that ids can be exchanged."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # Truncation and padding are per-call settings that transformers writes into the backend.
        text = json.dumps({k: v for k, v in state.items() if k not in ("truncation", "padding")}, sort_keys=True)
    else:
        text = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def model_key(spec: ModelSpec) -> str:
    """Return what identifies the weights of `spec` in stage keys, wherever they lie.

    The key of the stage that trained them; for other directories a hash of all files;
    for the Hub the id with its revision. An adapter is part of it.
    """
    parts = [place_key(spec.source, spec.revision), spec.dtype]
    if spec.adapter:
        parts.append(place_key(spec.adapter))
    return "+".join(parts)


def place_key(source: str, revision: str | None = None) -> str:
    """Return what identifies the files at `source`, a directory or a Hub id, as `model_key` says.

    A server's model is its URL and name.
    """
    if is_endpoint(source):
        return str(parse_endpoint(source))
    path = Path(source).expanduser()
    if not path.is_dir():
        return f"{source}@{revision or 'main'}"
    for parent in (path, *path.parents):
        if (parent / MANIFEST).is_file():
            return f"{read_manifest(parent)['key']}/{path.relative_to(parent).as_posix()}"
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}:{hash_file(file)}".encode())
    return digest.hexdigest()


def context_length(config) -> int | None:
    """Return how many positions a model of this configuration can hold, None where it sets no bound."""
    text_config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if getattr(text_config, name, None):
            return int(getattr(text_config, name))
    return None


def _source(spec: ModelSpec) -> str:
    if is_endpoint(spec.source):
        raise InputError(
            f"{spec.source!r} is a server's model, which can only be sampled from: pass a directory or a Hub id"
        )
    path = Path(spec.source).expanduser()
    looks_local = spec.source.startswith((".", "/", "~")) or spec.source.count("/") > 1
    if looks_local and not path.is_dir():
        raise InputError(
            f"model directory {spec.source} does not exist: pass a directory that holds config.json, or a Hub id"
        )
    return str(path) if path.is_dir() else spec.source


def _hub_arguments(spec: ModelSpec) -> dict:
    return {"revision": spec.revision or "main", "trust_remote_code": spec.trust_remote_code}


@contextmanager
def _opening(spec: ModelSpec, what: str) -> Iterator[None]:
    """Turn whatever a model's own files and code raise into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"no {what} can be opened from {spec.source!r}: {reason} (pass a save_pretrained directory or a Hub id)"
        ) from error
