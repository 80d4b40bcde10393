"""Keys of stages: a hash of what makes a stage what it is, and of nothing else."""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from selftaught.errors import InputError
from selftaught.types import content_id


def stage_key(function: str, version: int, params: Any, parents: Sequence[str], seed: int) -> str:
    """Return the key of the stage that `function` makes of `params`, the stages `parents` and `seed`.

    `version` is raised by hand when the function changes what it makes. 24 hexadecimal digits, equal on every machine
    and Python version. InputError names the parameter that has no canonical form.
    """
    return content_id("stage", function, version, canonical(params), list(parents), seed)


def hash_rows(rows: Iterable[Any]) -> str:
    """Return a hash of all fields of rows: an id leaves out some, such as a pair's weight."""
    digest = hashlib.blake2b(digest_size=12)
    for row in rows:
        digest.update(f"{row!r}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def canonical(value: Any, where: str = "params") -> Any:
    """Return `value` as plain JSON: dataclasses by name and fields, tuples as lists, paths as text.

    Values that differ in meaning stay different (1 and 1.0, two dataclasses with equal fields). What has no form
    that is equal in every process, such as a set, a function or a NaN, is an InputError that names its place.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where} = {value} cannot be part of a stage key; give a finite number or None")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: canonical(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
        return {"dataclass": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {key!r}, which cannot be part of a stage key; use text as keys")
        return {key: canonical(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, PurePath):
        return value.as_posix()
    raise InputError(f"{where} = {value!r:.80} cannot be part of a stage key; {_advice(value)}")


def _advice(value: Any) -> str:
    if isinstance(value, set | frozenset):
        return "give it as a sorted tuple"
    if callable(value):
        return "name it as 'module:function'"
    return f"give text, numbers, tuples or a dataclass in place of a {type(value).__name__}"
