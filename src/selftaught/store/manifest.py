"""The manifest of a stage: what it was made of, with what, when, and what it holds. And the claim to write one."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from selftaught.errors import DamagedStage, InputError
from selftaught.store.files import ASIDE, Lock, make_directory, write_json
from selftaught.store.keys import canonical
from selftaught.store.versions import versions

MANIFEST = ".manifest.json"
LOCK = ".lock"
FORMAT = 1

_log = logging.getLogger(__name__)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a stage directory; InputError if there is none, DamagedStage if it cannot be read."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version, *_ = (manifest[field] for field in ("format", "kind", "name", "key"))
    except FileNotFoundError:
        raise InputError(f"{path} is not a finished stage: it has no {MANIFEST}; resume the run that made it") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; make it readable") from error
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedStage(f"{file} cannot be read: {error}; {remedy(path)}") from error
    if version != FORMAT:
        raise InputError(f"{path} has format {version}, this version reads {FORMAT}; use the version that wrote it")
    return dict(manifest)


def remedy(path: Path) -> str:
    """Say how a damaged stage is mended."""
    return f"delete {path / MANIFEST} and resume: only what is damaged is made again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a stage is made of: the part of its manifest known before it is made."""

    name: str
    key: str
    function: str
    version: int
    params: Any
    parents: tuple[str, ...]
    seed: int

    def write_manifest(self, claim: "Claim", kind: str, facts: dict[str, Any], **contents: Any) -> None:
        """Write the manifest, which makes the stage finished; times are seconds since 1970."""
        manifest = {
            "format": FORMAT,
            "kind": kind,
            "name": self.name,
            "key": self.key,
            "function": self.function,
            "version": self.version,
            "params": canonical(self.params),
            "parents": list(self.parents),
            "seed": self.seed,
            "started": claim.started,
            "finished": time.time(),
            "versions": versions(),
            "facts": canonical(facts, "facts"),
            **contents,
        }
        write_json(claim.directory / MANIFEST, manifest)


class Claim:
    """A stage directory that this process alone may write until it releases it."""

    def __init__(self, directory: Path) -> None:
        self.directory = make_directory(directory)
        self.started = time.time()
        self._lock = Lock(directory / LOCK)
        self._lock.acquire(wait=True, waiting=self._say_waiting)
        if not self.finished:
            for path in directory.glob(f"{ASIDE}*"):
                path.unlink(missing_ok=True)

    def _say_waiting(self, holder: str) -> None:
        _log.warning("waiting for %s to make %s", holder, self.directory)

    @property
    def finished(self) -> bool:
        """Whether the stage is there: another process may have made it while this one waited."""
        return (self.directory / MANIFEST).exists()

    def release(self) -> None:
        """Let other processes have the directory."""
        self._lock.release()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
