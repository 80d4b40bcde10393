"""Stages that are files, not rows: a trained model and its tokenizer.

The files are made in a hidden directory, which a stopped maker finds again, and renamed when they are whole; the
manifest, with every file's size and hash, is written last.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from selftaught.errors import InputError
from selftaught.store.files import check_file, explained, hash_file, make_directory, sync_directory
from selftaught.store.manifest import Claim, Origin, read_manifest

_FILES = "files"
_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished directory of files. `path` is the directory itself, ready for `from_pretrained`."""

    path: Path
    key: str
    manifest: dict[str, Any]

    def verify(self) -> None:
        """Read every file; DamagedStage names one whose content is not what was committed."""
        _check(self.path, self.manifest, hashes=True)


def _check(path: Path, manifest: dict[str, Any], *, hashes: bool) -> None:
    remedy = f"delete {path.parent} and resume: it is made again"
    for file in manifest["files"]:
        check_file(path / file["file"], file["bytes"], file["sha256"] if hashes else None, remedy)


def open_artifact(directory: Path | str, *, verify: bool = False) -> Artifact:
    """Open a finished artifact; DamagedStage names a file that is missing or has another size.

    `verify=True` reads every file and compares hashes too.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if manifest["kind"] != "files":
        raise InputError(f"{directory} holds rows, not files; open it with open_stage")
    _check(directory / _FILES, manifest, hashes=verify)
    return Artifact(directory / _FILES, manifest["key"], manifest)


class ArtifactWriter:
    """Makes one artifact: fill `directory`, then `commit`.

    What an earlier, stopped maker left in `directory` is still there: training goes on from its checkpoints. If
    another process finished the artifact while this one waited for it, `finished` is true and `commit` returns it.
    """

    def __init__(self, directory: Path, origin: Origin) -> None:
        self._origin = origin
        self._claim = Claim(directory)
        self._files = directory / _FILES
        self.directory = directory / _PARTIAL
        if not self.finished:
            with explained(directory):
                # Stopped between the renaming and the manifest.
                if self._files.exists():
                    os.replace(self._files, self.directory)
            make_directory(self.directory)

    @property
    def finished(self) -> bool:
        """Whether the artifact is there already."""
        return self._claim.finished

    def commit(self, **facts: Any) -> Artifact:
        """Sync, hash and rename the files, write the manifest with `facts` (plain JSON), return the artifact."""
        root = self._claim.directory
        if not self.finished:
            paths = sorted(path for path in self.directory.rglob("*") if path.is_file())
            if not paths:
                raise InputError(f"{root} cannot be finished: {self.directory} holds no file; write them first")
            with explained(root):
                files = [_file_facts(path, self.directory) for path in paths]
                for folder in {path.parent for path in paths}:
                    sync_directory(folder)
                os.replace(self.directory, self._files)
                sync_directory(root)
            self._origin.write_manifest(self._claim, "files", facts, files=files)
        self._claim.release()
        return open_artifact(root)

    def __enter__(self) -> "ArtifactWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._claim.release()


def _file_facts(path: Path, root: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"file": path.relative_to(root).as_posix(), "bytes": path.stat().st_size, "sha256": hash_file(path)}
