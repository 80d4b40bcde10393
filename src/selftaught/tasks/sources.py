"""Where a task's rows and functions come from: files of a directory, the Hub, a user's module."""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

from selftaught.errors import InputError
from selftaught.store.tables import Fields, Record
from selftaught.types import content_id

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


def split_file(directory: Path, split: str) -> Path | None:
    """Return a directory's file for a split, None where it has none."""
    files = [directory / f"{split}{suffix}" for suffix in _SUFFIXES]
    return next((file for file in files if file.is_file()), None)


def read_hub(
    data: str, name: str | None, split: str, columns: Fields, *, directory: str | None = None
) -> Iterator[Record]:
    """Yield the rows of a split of the Hub data set `data`, configuration `name`, or of the files in its `directory`.

    Raises InputError where `data` is no id, the split cannot be had, or a row lacks one of `columns`.
    """
    if not _HUB_ID.fullmatch(data) or data.startswith("."):
        raise InputError(f"{data} does not exist: give a directory or the Hub id of a data set, owner/name")
    part = name or directory
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(f"{data} is no directory, and to read it from the Hub: pip install datasets") from None
    try:
        rows = load_dataset(data, name, split=split, **({"data_dir": directory} if directory else {}))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{data} ({part}, {split}): {reason}; check the id, or pass a directory") from error
    for number, row in enumerate(rows, 1):
        where = f"{data} ({part}, {split}), row {number}"
        wrong = next((column for column, kind in columns.items() if not isinstance(row.get(column), kind)), None)
        if wrong is not None:
            raise InputError(f"{where}: {wrong!r} = {row.get(wrong)!r:.60}; the columns must be {', '.join(columns)}")
        yield Record(where, dict(row))


def code_of(name: str) -> str:
    """Return a hash of the module that defines "module:function", so that an edited function makes new scores."""
    module = inspect.getmodule(load_function(name))
    try:
        return content_id("code", inspect.getsource(module)) if module else ""
    except (OSError, TypeError):
        return ""  # a built-in function has no source


@lru_cache(maxsize=16)
def load_function(name: str) -> Callable[..., Any]:
    """Return the function that "module:function" names; modules in the working directory are found too."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise InputError(f"{name!r} names no function: write module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module_name), attribute, None)
    except Exception as error:
        raise InputError(f"{name}: importing {module_name} failed: {type(error).__name__}: {error}; mend it") from error
    if not callable(function):
        raise InputError(f"{name}: {module_name} has no function {attribute!r}; name one it defines")
    return function


def call_for_numbers(name: str, *arguments: Any, where: str, count: int | None = None) -> list[float | None]:
    """Call "module:function" and return the number, or None, that it returns; with `count`, as many from its iterable.

    Raises:
        InputError: it fails on `where`, or returns anything else, such as a number that is not finite.
    """
    try:
        returned = load_function(name)(*arguments)
        values = [returned] if count is None else list(returned)
        finite = all(value is None or isfinite(value) for value in values)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{name} failed on {where} with {reason}; mend it") from error
    if not finite or len(values) != (1 if count is None else count):
        each = "" if count is None else f", for each of {count}"
        raise InputError(f"{name} returned {returned!r:.60} for {where}; it must return a number, or None{each}")
    return [None if value is None else float(value) for value in values]
