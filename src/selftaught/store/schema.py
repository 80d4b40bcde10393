"""Typed Arrow tables of rows, and rows back from them, whole columns at a time.

Nested rows are flattened: a Pair's chosen completion becomes the columns `chosen` (its text), `chosen_token_ids`,
`chosen_id` and so on. Training examples carry the ecosystem's columns (`prompt`, `chosen`, `rejected`, `completion`,
`label`, `completions`, `labels`) at top level, so that other trainers read the table unchanged.

What is stored is what comes back, with these limits, each an InputError or stated here: log-probs are float32; `meta`
must be plain JSON (a tuple would come back as a list); text must be valid Unicode, for a lone surrogate has no UTF-8
form and no tokenizer takes it.
"""

import json
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from itertools import chain, pairwise, repeat
from operator import attrgetter
from types import NoneType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from selftaught.errors import InputError
from selftaught.types import (
    Completion,
    Demonstration,
    Document,
    Feedback,
    Message,
    Pair,
    Prompt,
    Report,
    Score,
    Verdict,
)

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Kind:
    """How the values of a field become an Arrow array and come back."""

    type: pa.DataType
    pack: Callable[[Sequence[Any]], pa.Array]
    unpack: Callable[[pa.Array], list[Any]]


def _validity(column: pa.Array) -> list[bool] | None:
    return column.is_valid().to_numpy(zero_copy_only=False).tolist() if column.null_count else None


def _scalars(kind: pa.DataType, blank: Any, pack: Callable[[Sequence[Any]], pa.Array] | None = None) -> Kind:
    def unpack(column: pa.Array) -> list[Any]:
        valid = _validity(column)
        values = (column if valid is None else column.fill_null(blank)).to_numpy(zero_copy_only=False).tolist()
        return values if valid is None else [v if ok else None for v, ok in zip(values, valid, strict=True)]

    return Kind(kind, pack or (lambda values: pa.array(values, kind)), unpack)


def _integers(kind: pa.DataType, code: str) -> Kind:
    def pack(values: Sequence[Any]) -> pa.Array:
        missing = [v is None for v in values]
        mask = np.array(missing) if any(missing) else None
        # pyarrow alone would cut 1.5 down to 1; `array` refuses it.
        return pa.array(
            np.array(array(code, values if mask is None else [0 if v is None else v for v in values])), kind, mask=mask
        )

    return _scalars(kind, 0, pack)


def _texts() -> Kind:
    def unpack(column: pa.Array) -> list[Any]:
        values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return values

    return Kind(pa.string(), lambda values: pa.array(values, pa.string()), unpack)


def _lists(item: Kind, build: Callable[[list[Any]], Any] = tuple) -> Kind:
    """Lists of one kind; `build` makes the field's value of a list. None stays None, apart from an empty list."""
    kind = pa.list_(item.type)

    def pack(values: Sequence[Any]) -> pa.Array:
        types = set(map(type, values))
        if not types.isdisjoint((str, bytes)):
            raise TypeError("a text is not a list")  # though Python would take its characters
        mask = None
        if NoneType in types:
            mask = pa.array([v is None for v in values], pa.bool_())
            values = [() if v is None else v for v in values]
        offsets = np.zeros(len(values) + 1, np.int32)
        np.cumsum(np.fromiter(map(len, values), np.int32, len(values)), out=offsets[1:])
        items = item.pack(list(chain.from_iterable(values)))
        return pa.ListArray.from_arrays(pa.array(offsets), items, type=kind, mask=mask)

    def unpack(column: pa.Array) -> list[Any]:
        if not len(column):
            return []
        offsets = column.offsets.to_numpy()
        items = item.unpack(column.values.slice(offsets[0], offsets[-1] - offsets[0]))
        ends = (offsets - offsets[0]).tolist()
        values = [build(items[start:end]) for start, end in pairwise(ends)] if items else _blanks(build, len(column))
        valid = _validity(column)
        return values if valid is None else [v if ok else None for v, ok in zip(values, valid, strict=True)]

    return Kind(kind, pack, unpack)


def _blanks(build: Callable[[list[Any]], Any], count: int) -> list[Any]:
    return [()] * count if build is tuple else [build([]) for _ in range(count)]


def _structs(
    fields: Mapping[str, Kind], split: Callable[[Any], Sequence[Any]] = tuple, build: Callable[..., Any] = tuple
) -> Kind:
    """Structs; `split` gives a value's fields in order, `build` makes a value of a tuple of fields."""
    kind = pa.struct([(name, field.type) for name, field in fields.items()])
    blank = (None,) * len(fields)

    def pack(values: Sequence[Any]) -> pa.Array:
        rows = [blank if v is None else split(v) for v in values]
        columns = zip(*rows, strict=True) if rows else repeat((), len(fields))
        arrays = [field.pack(column) for field, column in zip(fields.values(), columns, strict=True)]
        mask = pa.array([v is None for v in values], pa.bool_())
        return pa.StructArray.from_arrays(arrays, fields=list(kind), mask=mask)

    def unpack(column: pa.Array) -> list[Any]:
        columns = [field.unpack(column.field(i)) for i, field in enumerate(fields.values())]
        values = [build(fields) for fields in zip(*columns, strict=True)]
        valid = _validity(column)
        return values if valid is None else [v if ok else None for v, ok in zip(values, valid, strict=True)]

    return Kind(kind, pack, unpack)


def _check_json(value: Any) -> None:
    """Raise TypeError where JSON would bring back something else than `value`."""
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"the key {key!r} is not a string")
            _check_json(item)
    elif type(value) is list:
        for item in value:
            _check_json(item)
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f"{value!r} is a {type(value).__name__}, which JSON does not have")


def _json() -> Kind:
    def text(value: Mapping[str, Any]) -> str:
        if not value:
            return "{}"
        plain = dict(value)
        _check_json(plain)
        return json.dumps(plain, ensure_ascii=False)

    def unpack(column: pa.Array) -> list[Any]:
        return [{} if v == "{}" else json.loads(v) for v in _TEXT.unpack(column)]

    return Kind(pa.string(), lambda values: _TEXT.pack([text(v) for v in values]), unpack)


_TEXT = _texts()
_INTEGER = _integers(pa.int64(), "q")
_OFFSET = _integers(pa.int32(), "i")
_NUMBER = _scalars(pa.float64(), 0.0)
_FLAG = _scalars(pa.bool_(), False)
_JSON = _json()
_TEXTS = _lists(_TEXT)
_TOKENS = _lists(_integers(pa.int32(), "i"))
_LOGPROBS = _lists(_scalars(pa.float32(), 0.0))
_OFFSETS = _lists(_OFFSET)
_SPAN = _structs({"start": _OFFSET, "end": _OFFSET})
_STEPS = _lists(_structs({"start": _OFFSET, "end": _OFFSET, "label": _FLAG}))
_MESSAGES = _lists(
    _structs(
        {"role": _TEXT, "content": _TEXT},
        split=lambda message: (message.role, message.content),
        build=lambda fields: Message(role=fields[0], content=fields[1]),
    )
)
_NAMED = _lists(_structs({"name": _TEXT, "values": _lists(_NUMBER)}), build=dict)
_LATENTS = Kind(_NAMED.type, lambda values: _NAMED.pack([list(v.items()) for v in values]), _NAMED.unpack)

_LINKS = {"parents": _TEXTS, "id": _TEXT}

FIELDS: dict[type, dict[str, Kind]] = {
    Document: {"text": _TEXT, "meta": _JSON, "patch_lengths": _OFFSETS, **_LINKS},
    Prompt: {"messages": _MESSAGES, "gold": _TEXT, "meta": _JSON, "occurrence": _INTEGER, **_LINKS},
    Completion: {
        "prompt_id": _TEXT,
        "k": _INTEGER,
        "text": _TEXT,
        "token_ids": _TOKENS,
        "logprobs": _LOGPROBS,
        "finish": _TEXT,
        "discarded": _lists(_SPAN),
        "latents": _LATENTS,
        "model": _TEXT,
        "tokenizer": _TEXT,
        **_LINKS,
    },
    Score: {
        "completion_id": _TEXT,
        "scorer": _TEXT,
        "value": _NUMBER,
        "span": _SPAN,
        "note": _TEXT,
        **_LINKS,
    },
    Verdict: {
        "prompt_id": _TEXT,
        "first": _TEXT,
        "second": _TEXT,
        "winner": _TEXT,
        "scorer": _TEXT,
        "judge_completion_id": _TEXT,
        "note": _TEXT,
        **_LINKS,
    },
    Demonstration: {"weight": _NUMBER, "loss_from": _OFFSETS, "meta": _JSON, **_LINKS},
    Pair: {"weight": _NUMBER, "loss_from": _OFFSETS, "meta": _JSON, **_LINKS},
    Feedback: {"label": _FLAG, "step_labels": _STEPS, "weight": _NUMBER, "meta": _JSON, **_LINKS},
    Report: {"name": _TEXT, "mean": _NUMBER, "stderr": _NUMBER, "n": _INTEGER, "unscored": _INTEGER, **_LINKS},
}
"""The plain fields of every row type, by the kind of their column."""

NESTED: dict[type, dict[str, type]] = {
    Demonstration: {"prompt": Prompt, "completion": Completion},
    Pair: {"prompt": Prompt, "chosen": Completion, "rejected": Completion},
    Feedback: {"prompt": Prompt, "completion": Completion},
}
"""The fields that are rows themselves, flattened with the field's name as prefix."""

_EXPORTED: dict[type, dict[str, tuple[Kind, Callable[[Any], Any]]]] = {
    Demonstration: {"prompt": (_TEXT, lambda row: row.prompt.text)},
    Pair: {"prompt": (_TEXT, lambda row: row.prompt.text)},
    Feedback: {
        "prompt": (_TEXT, lambda row: row.prompt.text),
        "completions": (_TEXTS, lambda row: row.columns().get("completions")),
        "labels": (_lists(_FLAG), lambda row: row.columns().get("labels")),
    },
}
"""Columns that are only written, for other trainers: reading rebuilds the row without them."""


def _column(prefix: str, field: str) -> str:
    """A nested completion's text takes the bare name (`chosen`), all else follows it (`chosen_token_ids`)."""
    return prefix if prefix and field == "text" else f"{prefix}_{field}" if prefix else field


def _kinds(row_type: type, prefix: str = "") -> dict[str, Kind]:
    columns = {name: kind for name, (kind, _) in _EXPORTED.get(row_type, {}).items()}
    columns |= {_column(prefix, name): kind for name, kind in FIELDS[row_type].items()}
    for name, inner in NESTED.get(row_type, {}).items():
        columns |= _kinds(inner, name)
    return columns


_ECOSYSTEM = ("prompt", "completion", "chosen", "rejected", "label", "completions", "labels")
_KINDS = {row_type: _kinds(row_type) for row_type in FIELDS}


def schema_of(row_type: type) -> pa.Schema:
    """Return the Arrow schema of a row type's table, the ecosystem's columns first."""
    kinds = _KINDS[row_type]
    names = [n for n in _ECOSYSTEM if n in kinds] + [n for n in kinds if n not in _ECOSYSTEM]
    return pa.schema([(n, kinds[n].type) for n in names], metadata={"selftaught.row_type": row_type.__name__})


def row_type_named(name: str) -> type:
    """Return the row type called `name`; InputError if there is none."""
    for row_type in FIELDS:
        if row_type.__name__ == name:
            return row_type
    raise InputError(f"unknown row type {name!r}; this version knows {', '.join(t.__name__ for t in FIELDS)}")


def to_table(row_type: type, rows: Sequence[Any]) -> pa.Table:
    """Return the table of `rows`; InputError names the row, the column and the value that cannot be stored."""
    for other in set(map(type, rows)) - {row_type}:
        raise InputError(f"a table of {row_type.__name__} rows got a {other.__name__}; give one type only")
    columns = _values(row_type, rows)
    schema = schema_of(row_type)
    return pa.Table.from_arrays([_packed(row_type, name, columns[name], rows) for name in schema.names], schema=schema)


def _values(row_type: type, rows: Sequence[Any], prefix: str = "") -> dict[str, list[Any]]:
    columns = {name: [export(r) for r in rows] for name, (_, export) in _EXPORTED.get(row_type, {}).items()}
    columns |= {_column(prefix, name): list(map(attrgetter(name), rows)) for name in FIELDS[row_type]}
    for name, inner in NESTED.get(row_type, {}).items():
        columns |= _values(inner, list(map(attrgetter(name), rows)), name)
    return columns


_UNSTORABLE = (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError)


def _packed(row_type: type, name: str, values: list[Any], rows: Sequence[Any]) -> pa.Array:
    kind = _KINDS[row_type][name]
    try:
        return kind.pack(values)
    except _UNSTORABLE:
        for row, value in zip(rows, values, strict=True):
            try:
                kind.pack([value])
            except _UNSTORABLE as error:
                raise InputError(_complaint(row_type, row.id, name, value, error)) from error
        raise


def _complaint(row_type: type, row_id: str, name: str, value: Any, error: Exception) -> str:
    where = f"{row_type.__name__} {row_id}: {name}"
    if isinstance(error, UnicodeEncodeError):
        shown = repr(error.object[max(0, error.start - 20) : error.end])
        remedy = 'replace it, say with text.encode("utf-8", "replace").decode()'
        return f"{where} has a lone surrogate at character {error.start} ({shown}); {remedy}"
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    if name == "meta" or name.endswith("_meta"):
        return f"{where} = {shown} cannot be stored: {error}; use only dicts with string keys, lists, text and numbers"
    return f"{where} = {shown} is not of type {_KINDS[row_type][name].type}; convert it before writing"


def from_batch(row_type: type[Row], batch: pa.RecordBatch, without: Collection[str] = ()) -> list[Row]:
    """Return the rows of a batch of `row_type`, apart from the fields `without`.

    Fields left out have their default, and so have those that the type did not have when the batch was written;
    InputError if a required one is missing.
    """
    return _rows(row_type, batch, "", without)


def _rows(row_type: type[Row], batch: pa.RecordBatch, prefix: str, without: Collection[str] = ()) -> list[Row]:
    # Slots are filled column by column at C speed. The constructor would take several times longer, to check and
    # hash what was checked and hashed when the row was made.
    rows = list(map(object.__new__, repeat(row_type, batch.num_rows)))
    columns = frozenset(batch.schema.names)
    for name, kind in FIELDS[row_type].items():
        if name in without or _column(prefix, name) not in columns:
            _fill(row_type, name, rows, (default_of(row_type, name) for _ in rows))
        else:
            _fill(row_type, name, rows, kind.unpack(batch.column(_column(prefix, name))))
    for name, inner in NESTED.get(row_type, {}).items():
        _fill(row_type, name, rows, _rows(inner, batch, name))
    return rows


def default_of(row_type: type, name: str) -> Any:
    """Return what a field is without a value; InputError if it is required or unknown."""
    field = row_type.__dataclass_fields__.get(name)  # type: ignore[attr-defined]
    if field is not None and field.default_factory is not MISSING:
        return field.default_factory()
    if field is None or field.default is MISSING or name in ("id", "parents"):
        raise InputError(f"{row_type.__name__} rows cannot be read without {name!r}; leave out optional fields only")
    return field.default


def _fill(row_type: type, name: str, rows: Sequence[Any], values: Iterable[Any]) -> None:
    deque(map(getattr(row_type, name).__set__, rows, values), maxlen=0)


def unpack_column(row_type: type, name: str, column: pa.Array) -> list[Any]:
    """Return the values of one column as they stand in rows."""
    return _KINDS[row_type][name].unpack(column)
