"""Configurations to and from plain data: YAML files, `--field value` overrides, and the resolved copy in a run.

A configuration is a frozen dataclass of frozen dataclasses. Unknown keys and values of the wrong type are errors that
name the key.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import cattrs
import yaml

from selftaught.errors import InputError

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """Return `config` as plain data that YAML and JSON can hold."""
    return _converter().unstructure(config)


def from_dict(kind: type[Config], data: Mapping[str, Any]) -> Config:
    """Return a `kind` made from plain data.

    Raises:
        InputError: a key is unknown or a value has the wrong type; every such key is named.
    """
    _refuse_unknown(kind, data, "")
    try:
        return _converter().structure(data, kind)
    except Exception as error:
        if refusal := _find_refusal(error):
            raise refusal from None
        problems = "; ".join(cattrs.transform_error(error, format_exception=_explain)).replace(" @ $.", " at ")
        raise InputError(f"configuration: {problems}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values in a YAML file, for example a run's `config.yaml`."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}: pass --config an existing YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold keys and values, not {type(data).__name__}")
    return data


def override(config: Config, arguments: Sequence[str]) -> Config:
    """Return `config` with `--dotted.field value` arguments applied; tuples are written `0.5,0.7`.

    Raises:
        InputError: a field is unknown, a value is missing or has the wrong type.
    """
    return from_dict(type(config), _apply(type(config), to_dict(config), arguments))


def build(kind: type[Config], arguments: Sequence[str]) -> Config:
    """Return a `kind` made of `--dotted.field value` arguments and its defaults; InputError as in `override`."""
    return from_dict(kind, _apply(kind, {}, arguments))


def _apply(kind: type, data: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    for key, text in _parse_arguments(arguments):
        target, inner = data, kind
        *parents, leaf = key.replace("-", "_").split(".")
        for depth, part in enumerate(parents):
            _known_field(inner, part, parents[:depth])
            kind_of_part = _types(inner)[part]
            given = target[part] if target.get(part) is not None else {}
            chooses = [*parents[depth + 1 :], leaf] == ["kind"] and len(_dataclasses(kind_of_part)) > 1
            if chooses and given.get("kind") != text:
                given = {"kind": text}  # another kind has other fields
            field = None if typing.get_origin(kind_of_part) is tuple else _dataclass_in(kind_of_part, given)
            if field is None:
                path = ".".join(parents[: depth + 1])
                raise InputError(f"--{key}: {path} has no fields of its own; give it whole, --{path} VALUE")
            inner = field
            target[part] = target = given
        _known_field(inner, leaf, parents)
        target[leaf] = _parse_value(text, _types(inner)[leaf])
    return data


def describe(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted field of `config` with its value: what `--help` lists."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from describe(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _parse_arguments(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--"):
            raise InputError(f"{name!r} is not an option: write --field value")
        key, equals, text = name[2:].partition("=")
        if not equals:
            if not rest:
                raise InputError(f"--{key} needs a value")
            text = rest.pop(0)
        yield key, text


def _parse_value(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        return [_parse_value(part, typing.get_args(kind)[0]) for part in text.split(",") if part != ""]
    options = _options(kind)
    if type(None) in options and text.lower() in ("none", "null"):
        return None
    if str in options:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _refuse_unknown(kind: Any, data: Any, path: str) -> None:
    declared, kind = kind, _dataclass_in(kind, data)
    if kind is not None and isinstance(data, list | tuple):
        for i, item in enumerate(data):
            _refuse_unknown(declared, item, f"{path}{i}.")
    if kind is None or not isinstance(data, Mapping):
        return
    for key, value in data.items():
        _known_field(kind, str(key), path.split(".")[:-1])
        wanted = _types(kind)[key]
        _refuse_shape(wanted, value, f"{path}{key}")
        _refuse_unknown(wanted, value, f"{path}{key}.")


def _refuse_shape(kind: Any, value: Any, path: str) -> None:
    """Refuse one value where several are wanted: cattrs would take a text as the list of its letters."""
    origins = [typing.get_origin(option) or option for option in _options(kind)]
    if tuple in origins and not isinstance(value, list | tuple):
        raise InputError(f"{path} = {value!r}: write a list, [{value!r}]")
    holds_fields = any(isinstance(o, type) and (issubclass(o, Mapping) or dataclasses.is_dataclass(o)) for o in origins)
    if holds_fields and not isinstance(value, Mapping) and not (value is None and type(None) in origins):
        raise InputError(f"{path} = {value!r}: write keys and values, {{key: value}}")


def _known_field(kind: type, name: str, parents: Sequence[str]) -> None:
    names = [f.name for f in dataclasses.fields(kind)]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
        raise InputError(f"unknown key {'.'.join([*parents, name])!r}: {hint}")


def _find_refusal(error: BaseException) -> InputError | None:
    """Return the InputError that a configuration class itself raised, from among the causes cattrs collects."""
    if isinstance(error, InputError):
        return error
    return next(filter(None, map(_find_refusal, getattr(error, "exceptions", ()))), None)


def _explain(error: BaseException, kind: type | None) -> str:
    if isinstance(error, KeyError):
        return f"required field {error.args[0]!r} is missing"
    return str(error)


def _types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _options(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type that `kind` is."""
    return typing.get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _dataclasses(kind: Any) -> list[type]:
    return [k for k in typing.get_args(kind) or (kind,) if isinstance(k, type) and dataclasses.is_dataclass(k)]


def _dataclass_in(kind: Any, data: Any) -> type | None:
    """Return the dataclass in `kind`, which may be optional; of several the one that `kind` in the data names.

    Raises:
        InputError: there are several and the data names none of them.
    """
    options = _dataclasses(kind)
    if len(options) < 2 or not isinstance(data, Mapping):
        return options[0] if options else None
    named = {typing.get_args(_types(option)["kind"])[0]: option for option in options}
    if data.get("kind") not in named:
        raise InputError(f"kind = {data.get('kind')!r}: give one of {', '.join(named)}")
    return named[data["kind"]]


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    for kind, accepted in ((int, (int,)), (float, (int, float)), (str, (str,)), (bool, (bool,))):
        converter.register_structure_hook(kind, _strict(kind, accepted))
    return converter


def _strict(kind: type, accepted: tuple[type, ...]):
    def structure(value: Any, _: Any) -> Any:
        if kind is float and isinstance(value, str):
            return float(value)  # YAML 1.1 reads 1e-4 as a string
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{value!r} is not of type {kind.__name__}")
        return kind(value)

    return structure
