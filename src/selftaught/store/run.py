"""The directory of a run: its lock, configuration, stages, metrics and summary."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from selftaught.errors import InputError
from selftaught.store.files import Lock, explained, make_directory, write_atomic, write_json
from selftaught.store.stage import Store


class RunDirectory:
    """A run on disk, held by one process.

    `with RunDirectory(path) as run:` makes the directory and takes its lock; a second process gets RunLocked naming
    the first. The lock ends with its process, however that ends, so a killed run is resumed without further ado.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.stages = Store(self.path / "stages")
        self._lock = Lock(self.path / ".lock")

    def __enter__(self) -> "RunDirectory":
        make_directory(self.path)
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `config.yaml`; InputError if the directory holds a run with another configuration."""
        try:
            text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the configuration has no YAML form: {reason}; use text, numbers and lists") from error
        resolved = yaml.safe_load(text)
        if (self.path / "config.yaml").exists():
            before = self.read_config()
            changed = [k for k in {**before, **resolved} if before.get(k, _ABSENT) != resolved.get(k, _ABSENT)]
            if changed:
                key = changed[0]
                raise InputError(
                    f"{self.path} holds a run with {key} = {before.get(key)!r}, not {resolved.get(key)!r}; "
                    f"resume it as it is, or choose another directory"
                )
            return
        write_atomic(self.path / "config.yaml", text)

    def read_config(self) -> dict[str, Any]:
        """Return the configuration; InputError if there is none or it is not a mapping."""
        file = self.path / "config.yaml"
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{self.path} is not a run: it has no config.yaml; give the --out of a run") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{file} is not YAML: {reason}; mend it or start a new run") from error
        if not isinstance(config, dict):
            raise InputError(f"{file} holds a {type(config).__name__}, not keys and values; mend it or start a new run")
        return config

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        line = json.dumps(dict(row), ensure_ascii=False) + "\n"
        file = self.path / "metrics.jsonl"
        with explained(file), open(file, "ab") as stream:
            # A process killed while writing may have left a line without its end.
            torn = stream.tell() > 0 and not _ends_with_newline(file)
            stream.write(("\n" * torn + line).encode())

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of `metrics.jsonl`, leaving out lines torn by a kill."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        with open(file, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, atomically."""
        write_json(self.path / "summary.json", dict(summary))


_ABSENT = object()


def _ends_with_newline(file: Path) -> bool:
    with open(file, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"
