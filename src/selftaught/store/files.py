"""Files that are whole or absent: hashed while written, written aside, synced, renamed; and locks between processes."""

import errno
import fcntl
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakSet

from selftaught.errors import DamagedStage, InputError, RunLocked

ASIDE = ".aside-"
"""Prefix of files still being written. Hidden, so that no reader of a directory takes them for data."""

_REMEDIES = {
    errno.ENOSPC: "free some space, or move the directory, and resume",
    errno.EDQUOT: "free some of your quota, or move the directory, and resume",
    errno.EFBIG: "raise the file size limit (ulimit -f) and resume",
    errno.EACCES: "make it writable, or choose another directory",
    errno.EPERM: "make it writable, or choose another directory",
    errno.EROFS: "it is mounted read-only: choose another directory",
    errno.ENOTDIR: "a part of the path is a file: choose another directory",
    errno.ENOLCK: "the file system has no locks: choose a directory on a local disk",
    errno.ENOTSUP: "the file system has no locks: choose a directory on a local disk",
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating system error on `path` into an InputError of one line with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        remedy = _REMEDIES.get(error.errno, "check the disk and resume")
        reason = os.strerror(error.errno)
        raise InputError(f"cannot write {path}: {reason}; {remedy} (what was complete is kept)") from error


class HashingFile:
    """A binary file, written once from start to end, that knows the SHA-256 of what was written.

    Has the methods pyarrow and `json` ask of a sink. The hash is of the bytes handed over, so that bytes altered on
    their way to the disk are found when they are read.
    """

    def __init__(self, path: Path) -> None:
        self._directory = path.parent
        with explained(self._directory):
            self._file = open(path, "xb")  # noqa: SIM115 - lives as long as this object
        self._hash = hashlib.sha256()
        self.closed = False
        self.size = 0

    def write(self, data: Any) -> int:
        """Append `data` (any buffer) and return its length in bytes."""
        view = memoryview(data)
        with explained(self._directory):
            self._file.write(view)
        self._hash.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self.size

    def flush(self) -> None:
        """Hand everything to the operating system."""
        with explained(self._directory):
            self._file.flush()

    def close(self) -> None:
        """Close the file without waiting for the disk; a second call does nothing."""
        self.closed = True
        # Closing flushes what is buffered: on a full disk that fails again, after the error that counts.
        with suppress(OSError):
            self._file.close()

    def sync(self) -> None:
        """Flush and wait until the bytes are on the disk."""
        with explained(self._directory):
            self._file.flush()
            os.fsync(self._file.fileno())

    @property
    def digest(self) -> str:
        """SHA-256 of everything written, hexadecimal."""
        return self._hash.hexdigest()


@contextmanager
def written_aside(directory: Path) -> Iterator[tuple[HashingFile, Callable[[str], Path]]]:
    """Give a file to write and a function that puts it in its place under a name.

    The function syncs the file and renames it in `directory`; without that call the file is removed, whatever
    happened, so that an error or Ctrl-C leaves nothing behind.
    """
    aside = directory / f"{ASIDE}{os.getpid()}-{uuid.uuid4().hex}"
    file = HashingFile(aside)

    def place(name: str) -> Path:
        file.sync()
        file.close()
        with explained(directory):
            os.replace(aside, directory / name)
            sync_directory(directory)
        return directory / name

    try:
        yield file, place
    finally:
        file.close()
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write `text` (UTF-8) so that `path` holds the old content or the new, never a part of either."""
    with written_aside(path.parent) as (file, place):
        file.write(text.encode())
        place(path.name)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def make_directory(path: Path) -> Path:
    """Create a directory with its parents if it is not there, and return it."""
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_known_hashes: dict[tuple[str, int, int, int], str] = {}


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    A file that this process has hashed already and that has kept its size, time and inode is not read again.
    """
    state = _state(path)
    if state not in _known_hashes:
        with open(path, "rb") as file:
            _known_hashes[state] = hashlib.file_digest(file, "sha256").hexdigest()
    return _known_hashes[state]


def remember_hash(path: Path, sha256: str) -> None:
    """Note the hash of a file that this process has just written, so that `hash_file` need not read it."""
    _known_hashes[_state(path)] = sha256


def _state(path: Path) -> tuple[str, int, int, int]:
    facts = path.stat()
    return str(path), facts.st_size, facts.st_mtime_ns, facts.st_ino


def check_file(path: Path, size: int, sha256: str | None, remedy: str) -> None:
    """Raise DamagedStage if `path` is missing, has another size, or (where `sha256` is given) another content."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise DamagedStage(f"{path} is missing; {remedy}") from None
    if found != size:
        state = "truncated" if found < size else "altered"
        raise DamagedStage(f"{path} is {state}: {found} bytes, {size} were written; {remedy}")
    if sha256 is not None and hash_file(path) != sha256:
        raise DamagedStage(f"{path} is altered: its content does not match the manifest; {remedy}")


_locks: "WeakSet[Lock]" = WeakSet()


def _drop_locks() -> None:
    for lock in list(_locks):
        lock.release()


# A forked child that outlives its parent would go on holding the parent's locks. Closing its copy of the handle does
# not unlock the parent's.
os.register_at_fork(after_in_child=_drop_locks)


class Lock:
    """An exclusive lock on a file, held by one process until it is released or the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        _locks.add(self)

    def acquire(self, *, wait: bool = False, waiting: Callable[[str], None] | None = None) -> None:
        """Take the lock; if another process has it, wait for it or raise RunLocked naming that process.

        `waiting` is called once with the holder before a wait. A second lock in the same process is always refused,
        for waiting would never end.
        """
        while self._handle is None:
            with explained(self.path):
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    self._take(handle, wait, waiting)
                    # The file may have been deleted and made anew while this process waited.
                    if _same_file(handle, self.path):
                        os.ftruncate(handle, 0)
                        os.pwrite(handle, _this_process().encode(), 0)
                        self._handle = handle
                finally:
                    if self._handle is None:
                        os.close(handle)

    def _take(self, handle: int, wait: bool, waiting: Callable[[str], None] | None) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            if not wait or holder == _this_process():
                raise RunLocked(
                    f"{self.path.parent} is in use by {holder}; wait for it, stop it, or choose another directory"
                ) from None
            if waiting is not None:
                waiting(holder)
            fcntl.flock(handle, fcntl.LOCK_EX)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._handle is not None

    def __enter__(self) -> "Lock":
        if self._handle is None:
            self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
