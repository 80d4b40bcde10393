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
from selftaught.store.groups import Groups, Source
from selftaught.store.stage import Stage, Store, open_stage

_STATE = "state.json"


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
        text = _as_yaml(config)
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

    def finished(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the summary of a run with this configuration that is finished here, None where there is none."""
        summary = self.path / "summary.json"
        if not summary.exists() or self.read_config() != yaml.safe_load(_as_yaml(config)):
            return None
        return json.loads(summary.read_text(encoding="utf-8"))

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

    def clear_metrics(self) -> None:
        """Empty `metrics.jsonl`: a run that passes through its stages again notes them again."""
        with explained(self.path):
            (self.path / "metrics.jsonl").unlink(missing_ok=True)

    def write_state(self, **names: Any) -> None:
        """Note what single commands made here (plain JSON), for the next command to start from."""
        write_json(self.path / _STATE, {**self._state(), **names})

    def read_groups(self) -> Groups:
        """Return the groups that were generated and scored here last; InputError if there are none."""
        names = self._state().get("groups")
        if names is None:
            raise InputError(f"{self.path} holds no completions: make them with selftaught generate --out {self.path}")
        tables = {role: tuple(open_stage(self.path / "stages" / n) for n in names[role]) for role in names}
        return Groups(prompts=tables["prompts"][0], completions=tables["completions"], scores=tables["scores"])

    def write_groups(self, groups: Groups) -> None:
        """Note which stages make up `groups`."""
        roles = {"prompts": (groups.prompts,), "completions": groups.completions, "scores": groups.scores}
        self.write_state(groups={role: [_stage_name(table) for table in tables] for role, tables in roles.items()})

    def read_selection(self) -> Path:
        """Return the stage that was selected here last; InputError if there is none."""
        name = self._state().get("selection")
        if name is None:
            raise InputError(f"{self.path} holds no selected examples: make them with selftaught select {self.path}")
        return self.path / "stages" / name

    def _state(self) -> dict[str, Any]:
        file = self.path / _STATE
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def add_seconds(self, seconds: float) -> float:
        """Add what one pass over the run took, and return the total of all passes that did not end in a kill.

        A run that is finished keeps its total: another pass only reads its stages.
        """
        file = self.path / "summary.json"
        if file.exists():
            return float(json.loads(file.read_text(encoding="utf-8"))["wall_seconds"])
        total = self._state().get("seconds", 0.0) + seconds
        self.write_state(seconds=total)
        return total

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, atomically."""
        write_json(self.path / "summary.json", dict(summary))


_ABSENT = object()


def _as_yaml(config: Mapping[str, Any]) -> str:
    try:
        return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the configuration has no YAML form: {reason}; use text, numbers and lists") from error


def _stage_name(table: Source) -> str:
    if isinstance(table, Stage):
        return table.path.name
    raise InputError(f"{len(table)} rows in memory cannot be found by the next command; store them as a stage first")


def _ends_with_newline(file: Path) -> bool:
    with open(file, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"
