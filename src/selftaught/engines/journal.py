"""Answers kept as they arrive, so that what was paid for is not asked for again after a kill."""

import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from selftaught.store.files import explained


class Journal:
    """Rows by (prompt id, sample number) in a file of JSON lines; each is on the disk before `add` returns.

    Lines torn by a kill are left out and asked for again. `path` None keeps the rows in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = None
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        if path is None:
            return
        with explained(path):
            self._file = open(path, "ab+")  # noqa: SIM115 - lives as long as this object
            self._file.seek(0)
            whole = 0
            for line in self._file:
                if line.endswith(b"\n"):
                    whole += len(line)
                    self._read(line)
            # What follows a torn line would be torn with it.
            self._file.truncate(whole)

    def _read(self, line: bytes) -> None:
        with suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            if isinstance(row["text"], str) and row["finish"] in ("stop", "length"):
                self._rows[row["prompt_id"], int(row["k"])] = row

    def get(self, prompt_id: str, k: int) -> dict[str, Any] | None:
        """Return a row, None where there is none yet."""
        return self._rows.get((prompt_id, k))

    def add(self, prompt_id: str, k: int, **row: Any) -> None:
        """Keep a row (plain JSON)."""
        self._rows[prompt_id, k] = row = {"prompt_id": prompt_id, "k": k, **row}
        if self._file is not None and self._path is not None:
            with explained(self._path):
                self._file.write(json.dumps(row).encode() + b"\n")
                self._file.flush()
                os.fsync(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
