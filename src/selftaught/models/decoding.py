"""How a directory decodes: the file `decoding.json` beside a model's weights, or in the place of an adaptive head."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from selftaught.config import from_dict
from selftaught.errors import InputError
from selftaught.models.load import place_key
from selftaught.specs import Adaptive, Decoding, EntropyTemperature, ModelSpec, Resets
from selftaught.store.files import write_json
from selftaught.text.templates import PLAIN

FILE = "decoding.json"
BASE_FIELDS = ("revision", "adapter", "dtype", "template")
"""What a head's file says of its model beside `base_model`. Whether its code is trusted is for the user to say."""
_KINDS: dict[str, type] = {"resets": Resets, "entropy_temperature": EntropyTemperature}


def write_decoding(directory: Path, decoding: Resets | EntropyTemperature) -> None:
    """Say in a model's `directory` how it decodes. A head's own directory is written by `adaptive_decoder`."""
    write_json(directory / FILE, asdict(decoding))


def read_decoding(directory: Path) -> dict[str, Any] | None:
    """Return what `directory` says of its decoding, None where it says nothing.

    Raises:
        InputError: the file is no JSON object.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}; delete it to decode by softmax") from error
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds a {type(found).__name__}: write an object, or delete it to decode by softmax")
    return dict(found)


def open_spec(source: str, template: str | None = None) -> ModelSpec:
    """Return the model at `source`, a Hub id or a directory, decoding as its `decoding.json` says.

    The directory of an adaptive head names the model that it was trained on, and the template; a `template` that is
    given is used instead. Elsewhere the template is "plain" by default.

    Raises:
        InputError: its `decoding.json` cannot be used.
    """
    directory = Path(source).expanduser()
    found = read_decoding(directory)
    if found is None:
        return ModelSpec(source=source, template=template or PLAIN)
    kind = found.get("kind")
    if kind == "adaptive":
        base = found.get("base_model")
        if not isinstance(base, str):
            raise InputError(f"{directory / FILE} names no base_model: write the id or directory of its model there")
        known = {name: found[name] for name in BASE_FIELDS if found.get(name) is not None}
        spec = from_dict(ModelSpec, {"source": base, **known})
        return replace(spec, template=template or spec.template, decoding=Adaptive(head=source))
    if kind not in _KINDS:
        raise InputError(f"{directory / FILE}: kind = {kind!r}: give one of adaptive, {', '.join(_KINDS)}")
    return ModelSpec(source=source, template=template or PLAIN, decoding=from_dict(_KINDS[kind], found))


def decoding_key(decoding: Decoding) -> dict[str, Any]:
    """Return what identifies `decoding` in stage keys: its fields, a head by its content, wherever it lies."""
    fields = asdict(decoding)
    return fields | {"head": place_key(decoding.head)} if isinstance(decoding, Adaptive) else fields
