"""Users' own data files: JSON lines (as .gz and .xz too), JSON, CSV and Parquet, read as rows of named fields.

Whatever is wrong with a file is an InputError that names the file, the line (or the row, for Parquet and JSON), what
was found and what is wanted.
"""

import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selftaught.errors import InputError

Fields = Mapping[str, type | tuple[type, ...]]

_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
_OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
_TRUE_FALSE = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file. `where` says file and line, for error messages."""

    where: str
    fields: dict[str, Any]


def read_table(path: Path | str, required: Fields, optional: Fields | None = None) -> Iterator[Record]:
    """Yield the rows of a file, or of all files in a directory in the order of their names.

    `required` and `optional` map a field's name to its type or types; other fields are passed on unchecked. An
    optional field that is missing, null or (in CSV) empty is left out. CSV text becomes a number or truth value where
    one is wanted.
    """
    count = 0
    for file in _files(Path(path)):
        for record in _read_file(file):
            count += 1
            yield _checked(record, required, optional or {})
    if not count:
        raise InputError(f"{path} holds no rows; give a file with at least one")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [p for p in sorted(path.iterdir()) if p.is_file() and _reader(p) and not p.name.startswith(".")]
        if not found:
            raise InputError(f"{path} holds no data file; put one there ending in {', '.join(_READERS)}")
        return found
    if not path.exists():
        raise InputError(f"{path} does not exist; give a data file or a directory of them")
    if _reader(path) is None:
        raise InputError(f"{path} is of no known type; give a file ending in {', '.join(_READERS)}")
    return [path]


def _read_file(path: Path) -> Iterator[Record]:
    reader = _reader(path)
    assert reader is not None
    try:
        yield from reader(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} cannot be read: {error}; check that it is whole") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, line); text that is not UTF-8 is an error of its line."""
    opener = _OPENERS.get(path.suffix, open)
    with opener(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{path}, line {number}"
            try:
                yield where, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _json_lines(path: Path) -> Iterator[Record]:
    for where, line in _lines(path):
        if line.strip():
            yield Record(where, _object(where, _parsed(where, line)))


def _json_document(path: Path) -> Iterator[Record]:
    """A list of objects, or, as some name them, JSON lines."""
    lines = list(_lines(path))
    if not "".join(line for _, line in lines[:1]).lstrip().startswith("["):
        yield from _json_lines(path)
        return
    rows = _parsed(str(path), "".join(line for _, line in lines))
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        yield Record(where, _object(where, row))


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"character {error.colno}" if error.lineno == 1 else f"line {error.lineno}, character {error.colno}"
        raise InputError(f"{where}: not JSON ({error.msg} at {place}); write one object per line") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not usable JSON ({error}); write one flat object per line") from error


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f'{where}: {_shown(value)} is {_kind(value)}; write an object such as {{"prompt": "..."}}')
    return value


def _csv(path: Path) -> Iterator[Record]:
    # The default limit of 128 KiB is less than a long document.
    csv.field_size_limit(1 << 30)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise InputError(f"{path}, line 1: a column is named twice ({', '.join(header)}); rename one")
        for values in reader:
            where = f"{path}, line {reader.line_num}"
            if values and len(values) != len(header):
                raise InputError(f"{where}: {len(values)} values for {len(header)} columns; quote text with commas")
            if values:
                yield Record(where, {k: _Cell(v) for k, v in zip(header, values, strict=True)})
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error}); mend the quotes") from error


class _Cell(str):
    """Text of a CSV cell, which may stand for a number."""


def _parquet(path: Path) -> Iterator[Record]:
    # Imported late: tasks import this module, and the command line must answer at once.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}, row {number}", row)
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is not a readable Parquet file ({reason}); check that it is whole") from error


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".jsonl.xz": _json_lines,
    ".json": _json_document,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _reader(path: Path) -> Callable[[Path], Iterator[Record]] | None:
    return next((reader for suffix, reader in _READERS.items() if path.name.lower().endswith(suffix)), None)


def _checked(record: Record, required: Fields, optional: Fields) -> Record:
    fields = record.fields
    for name, types in required.items():
        if fields.get(name) is None:
            found = ", ".join(fields) or "none"
            state = "is null" if name in fields else f"is missing (fields: {found})"
            raise InputError(f"{record.where}: {name!r} {state}; it must be {_wanted(types)}")
    checked = {k: str(v) if isinstance(v, _Cell) else v for k, v in fields.items()}
    for name, types in {**required, **optional}.items():
        value = fields.get(name)
        if value is None or (value == "" and isinstance(value, _Cell) and name in optional):
            checked.pop(name, None)
        else:
            checked[name] = _typed(record.where, name, value, types if isinstance(types, tuple) else (types,))
    _check_text(record.where, checked)
    return Record(record.where, checked)


def _typed(where: str, name: str, value: Any, types: tuple[type, ...]) -> Any:
    if isinstance(value, _Cell):
        value = _from_cell(value, types)
    # A truth value is an int to Python, and a whole number is fine where a number is wanted.
    if isinstance(value, bool):
        fits = bool in types
    else:
        fits = isinstance(value, types) or (isinstance(value, int) and float in types)
    if not fits:
        raise InputError(f"{where}: {name!r} = {_shown(value)} is {_kind(value)}; it must be {_wanted(types)}")
    return value


def _from_cell(cell: _Cell, types: tuple[type, ...]) -> Any:
    text = str(cell)
    if bool in types and text.strip().lower() in _TRUE_FALSE:
        return _TRUE_FALSE[text.strip().lower()]
    for kind in (int, float):
        if kind in types and str not in types:
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def _check_text(where: str, fields: Mapping[str, Any]) -> None:
    """JSON can escape half of a surrogate pair, which no UTF-8 file and no tokenizer takes."""
    for name, value in fields.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise InputError(f"{where}: {name!r} holds the lone surrogate {half}; replace or remove it") from error


def _wanted(types: type | tuple[type, ...]) -> str:
    return " or ".join(_NAMES[t] for t in (types if isinstance(types, tuple) else (types,)))


def _kind(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
