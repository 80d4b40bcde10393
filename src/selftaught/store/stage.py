"""Stages on disk: a directory of Parquet shards, whole when its manifest is there.

A shard is written aside, synced and renamed to a name that carries its content's hash; the manifest is written last.
So a process killed at any moment leaves complete shards, which a later writer keeps, and hidden files, which it
removes. The manifest is hidden too, for `datasets.load_dataset("parquet", data_dir=stage)` reads every visible file.
"""

import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from selftaught.errors import DamagedStage, InputError, SelftaughtError
from selftaught.store.artifact import Artifact, ArtifactWriter, open_artifact
from selftaught.store.files import check_file, explained, hash_file, remember_hash, written_aside
from selftaught.store.keys import stage_key
from selftaught.store.manifest import MANIFEST, Claim, Origin, read_manifest, remedy
from selftaught.store.schema import default_of, from_batch, row_type_named, schema_of, to_table, unpack_column

__all__ = ["Stage", "StageWriter", "Store", "default_cache", "open_stage", "stage_key", "write_shard"]

Row = TypeVar("Row")

_ROWS_AT_ONCE = 1024
_ROWS_PER_GROUP = 8192
_BYTES_PER_GROUP = 16 << 20

_log = logging.getLogger(__name__)


def default_cache() -> Path:
    """Return the directory of stages shared by all runs of a user.

    SELFTAUGHT_CACHE where it is set, else XDG_CACHE_HOME/selftaught, else ~/.cache/selftaught. Deleting it, or any
    stage in it, while nothing runs costs only the time to make it again.
    """
    if own := os.environ.get("SELFTAUGHT_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "selftaught"


@dataclass(frozen=True, slots=True)
class Stage(Generic[Row]):
    """A finished table of rows on disk. Iterating reads it from the start, in batches, as often as asked."""

    path: Path
    key: str
    row_type: type[Row]
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    def __iter__(self) -> Iterator[Row]:
        return self.slice(0, len(self))

    def slice(self, start: int, stop: int, without: Collection[str] = ()) -> Iterator[Row]:
        """Yield rows `start` to `stop` (left out), reading only the row groups that hold them.

        The fields `without` are not read and have their default: long ones, where only the others are looked at.
        """
        names = None
        if without:
            for name in without:
                default_of(self.row_type, name)
            names = [name for name in schema_of(self.row_type).names if name not in without]
        for batch in self.batches(names, start, stop):
            yield from from_batch(self.row_type, batch, without)

    def columns(self, *names: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[list[Any], ...]]:
        """Yield batches of the named columns, a list of values per column, without building rows."""
        for batch in self.batches(names, start, len(self) if stop is None else stop):
            yield tuple(unpack_column(self.row_type, name, batch.column(name)) for name in names)

    def batches(self, names: Sequence[str] | None, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield Arrow batches of the named columns (None: all) of rows `start` to `stop` (left out)."""
        known = schema_of(self.row_type).names
        for name in names or ():
            if name not in known:
                raise InputError(f"{self.path} has no column {name!r}; its columns are {', '.join(known)}")
        first = 0
        for shard in self.manifest["shards"]:
            if first < stop and start < first + shard["rows"]:
                yield from _read_shard(self.path / shard["file"], names, start - first, stop - first)
            first += shard["rows"]


def _read_shard(path: Path, names: Sequence[str] | None, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                low, high = max(start - first, 0), min(stop - first, rows)
                first += rows
                if low < high:
                    table = file.read_row_group(group, columns=None if names is None else list(names))
                    yield from table.slice(low, high - low).combine_chunks().to_batches(_ROWS_AT_ONCE)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DamagedStage(f"{path} cannot be read: {reason}; {remedy(path.parent)}") from error


def open_stage(path: Path | str, *, verify: bool = True) -> Stage[Any]:
    """Open the finished stage in a directory; DamagedStage names a shard that is missing, truncated or altered.

    `verify=False` checks sizes only, for a process that opens what another has just verified.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest["kind"] != "table":
        raise InputError(f"{path} holds files, not rows; open it with open_artifact")
    for shard in manifest["shards"]:
        check_file(path / shard["file"], shard["bytes"], shard["sha256"] if verify else None, remedy(path))
    return Stage(path, manifest["key"], row_type_named(manifest["row_type"]), manifest)


_SHARD = re.compile(r"part-(\d{5})-of-(\d{5})-([0-9a-f]{16})\.parquet")


def write_shard(directory: Path, row_type: type, index: int, shards: int, rows: Iterable[Any]) -> Path:
    """Write shard `index` of `shards` and return its path. Needs no lock: workers call it, each for its own shards.

    `rows` is consumed as a stream. An error, in `rows` too, leaves no shard.
    """
    with written_aside(directory) as (file, place):
        with pq.ParquetWriter(file, schema_of(row_type), compression="zstd", compression_level=1) as parquet:
            for group in _row_groups(row_type, rows):
                parquet.write_table(group)
        path = place(f"part-{index:05d}-of-{shards:05d}-{file.digest[:16]}.parquet")
    remember_hash(path, file.digest)
    return path


def _row_groups(row_type: type, rows: Iterable[Any]) -> Iterator[pa.Table]:
    """Yield tables large enough to read fast and small enough to keep memory flat, however long the texts."""
    stream = iter(rows)
    tables: list[pa.Table] = []
    size = 0
    while chunk := list(islice(stream, _ROWS_AT_ONCE)):
        tables.append(to_table(row_type, chunk))
        size += tables[-1].nbytes
        if size >= _BYTES_PER_GROUP or len(tables) * _ROWS_AT_ONCE >= _ROWS_PER_GROUP:
            yield pa.concat_tables(tables)
            tables, size = [], 0
    if tables:
        yield pa.concat_tables(tables)


def _find_shards(directory: Path, shards: int) -> dict[int, Path]:
    """Return the whole shards by index; those cut short, altered or of another division are deleted."""
    found: dict[int, Path] = {}
    for path in sorted(directory.glob("part-*.parquet")):
        match = _SHARD.fullmatch(path.name)
        if match is None:
            continue
        index, count, digest = int(match[1]), int(match[2]), match[3]
        if count == shards and index < shards and index not in found and hash_file(path).startswith(digest):
            found[index] = path
        else:
            _log.warning("%s is damaged or out of place and is made again", path)
            path.unlink(missing_ok=True)
    return found


class StageWriter(Generic[Row]):
    """Writes one stage, shard by shard, and resumes where an earlier writer was stopped.

    If another process finished the stage while this one waited for it, `missing` is empty and `commit` returns that
    stage. Used as a context manager it gives its lock back at the end; `commit` does so too.
    """

    def __init__(self, directory: Path, origin: Origin, row_type: type[Row], shards: int) -> None:
        if not 1 <= shards < 100_000:
            raise InputError(f"stage {origin.name}: {shards} shards; give 1 to 99999")
        self.row_type = row_type
        self.shards = shards
        self._origin = origin
        self._claim = Claim(directory)

    @property
    def directory(self) -> Path:
        """Where shards go: what a worker passes to `write_shard`."""
        return self._claim.directory

    def missing(self) -> list[int]:
        """Return the indices of the shards that are not written yet."""
        if self._claim.finished:
            return []
        found = _find_shards(self.directory, self.shards)
        return [i for i in range(self.shards) if i not in found]

    def write(self, index: int, rows: Iterable[Row]) -> None:
        """Write shard `index`, consuming `rows` as a stream; an error in `rows` leaves no shard."""
        write_shard(self.directory, self.row_type, index, self.shards, rows)

    def commit(self, **facts: Any) -> Stage[Row]:
        """Write the manifest, with `facts` (plain JSON) in it, and return the finished stage."""
        if not self._claim.finished:
            if missing := self.missing():
                raise SelftaughtError(f"{self.directory} lacks shards {missing}; write them before commit")
            shards = [_shard_facts(path) for _, path in sorted(_find_shards(self.directory, self.shards).items())]
            contents = {"row_type": self.row_type.__name__, "rows": sum(s["rows"] for s in shards), "shards": shards}
            self._origin.write_manifest(self._claim, "table", facts, **contents)
        self._claim.release()
        return open_stage(self.directory)

    def __enter__(self) -> "StageWriter[Row]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._claim.release()


def _shard_facts(path: Path) -> dict[str, Any]:
    rows = pq.read_metadata(path).num_rows
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": hash_file(path)}


class Store:
    """Stages below one directory, found by key: the `stages` of a run, or the cache shared by all runs."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def find(self, key: str) -> Path | None:
        """Return the directory of a stage, finished or not, or None."""
        return next(iter(sorted(self.root.glob(f"*-{key}"))), None)

    def get(self, key: str) -> Stage[Any] | None:
        """Return the finished stage with this key, verified, or None."""
        path = self.find(key)
        return open_stage(path) if path is not None and (path / MANIFEST).exists() else None

    def writer(
        self,
        name: str,
        key: str,
        row_type: type[Row],
        shards: int = 1,
        *,
        function: str = "",
        version: int = 0,
        params: Any = None,
        parents: Sequence[str] = (),
        seed: int = 0,
    ) -> StageWriter[Row]:
        """Claim the stage `key` for writing, waiting for a process that is making it.

        `name` is for people and begins the directory's name. The other fields go into the manifest; give those that
        the key was made of.
        """
        origin = Origin(
            name=name, key=key, function=function, version=version, params=params, parents=tuple(parents), seed=seed
        )
        return StageWriter(self._place(name, key), origin, row_type, shards)

    def get_artifact(self, key: str) -> Artifact | None:
        """Return the finished artifact with this key, its sizes verified, or None."""
        path = self.find(key)
        return open_artifact(path) if path is not None and (path / MANIFEST).exists() else None

    def artifact(
        self,
        name: str,
        key: str,
        *,
        function: str = "",
        version: int = 0,
        params: Any = None,
        parents: Sequence[str] = (),
        seed: int = 0,
    ) -> ArtifactWriter:
        """Claim the artifact `key` for making, waiting for a process that is making it. Fields as in `writer`."""
        origin = Origin(
            name=name, key=key, function=function, version=version, params=params, parents=tuple(parents), seed=seed
        )
        return ArtifactWriter(self._place(name, key), origin)

    def _place(self, name: str, key: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise InputError(f"stage name {name!r} is not usable; use letters, digits, '.', '_' and '-'")
        with explained(self.root):
            return self.find(key) or self.root / f"{name}-{key}"

    def stages(self) -> list[dict[str, Any]]:
        """Return the manifests of all finished stages in the order in which they were begun, each with its `path`."""
        found = [{**read_manifest(file.parent), "path": file.parent} for file in self.root.glob(f"*/{MANIFEST}")]
        return sorted(found, key=lambda manifest: manifest["started"])
