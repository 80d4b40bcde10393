import errno
import os
import signal
import threading
from pathlib import Path

import pytest
from tests.store.samples import python

from selftaught.errors import DamagedStage, InputError, RunLocked
from selftaught.store import files
from selftaught.store.files import HashingFile, Lock, check_file, hash_file, write_atomic, written_aside


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "one")
    write_atomic(tmp_path / "a", "two é")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "two é"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_is_explained_and_the_old_content_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    write_atomic(tmp_path / "a", "old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(InputError) as error:
        write_atomic(tmp_path / "a", "new")
    monkeypatch.undo()
    message = str(error.value)
    assert message.startswith(f"cannot write {tmp_path}: {os.strerror(number)}; ")
    assert "\n" not in message
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_of_the_caller_is_not_taken_for_one_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), written_aside(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "peer")
    assert os.listdir(tmp_path) == []


def test_the_hash_is_of_what_was_written(tmp_path: Path) -> None:
    file = HashingFile(tmp_path / "a")
    assert file.write(b"abc") == 3
    file.write(memoryview(b"defg"))
    assert file.tell() == 7
    file.sync()
    file.close()
    assert file.digest == hash_file(tmp_path / "a")


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    first = hash_file(path)
    path.write_bytes(b"abd")
    os.utime(path, ns=(0, 1))
    assert hash_file(path) != first


def test_check_file_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    digest = hash_file(path)
    check_file(path, 3, digest, "mend it")
    cases = ((b"ab", "truncated: 2 bytes, 3 were written"), (b"abcd", "altered: 4 bytes"), (b"abd", "content"))
    for number, (content, words) in enumerate(cases):
        path.write_bytes(content)
        os.utime(path, ns=(number, number))
        with pytest.raises(DamagedStage, match=rf"{path} is .*{words}.*; mend it"):
            check_file(path, 3, digest, "mend it")
    path.unlink()
    with pytest.raises(DamagedStage, match="is missing; mend it"):
        check_file(path, 3, digest, "mend it")


HOLD = """
import sys, time
from pathlib import Path
from selftaught.store.files import Lock
lock = Lock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_second_process_is_refused_by_pid_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = python(HOLD, path)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(RunLocked, match=rf"{tmp_path} is in use by process {holder.pid} on .*; wait"):
        Lock(path).acquire()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with Lock(path) as lock:
        assert lock.held


FORK = """
import os, signal, sys, time
from pathlib import Path
from selftaught.store.files import Lock
lock = Lock(Path(sys.argv[1]))
lock.acquire()
if os.fork() == 0:
    print("forked", os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


def test_a_forked_child_does_not_hold_its_dead_parents_lock(tmp_path: Path) -> None:
    holder = python(FORK, tmp_path / ".lock")
    assert holder.stdout is not None
    child = int(holder.stdout.readline().split()[1])
    try:
        with pytest.raises(RunLocked):
            Lock(tmp_path / ".lock").acquire()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with Lock(tmp_path / ".lock"):
            os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate()


def test_waiting_ends_when_the_holder_ends(tmp_path: Path) -> None:
    holder = python(HOLD, tmp_path / ".lock")
    assert holder.stdin is not None and holder.stdout is not None
    holder.stdout.readline()
    asked: list[str] = []

    def waiting(who: str) -> None:
        asked.append(who)
        threading.Timer(0.05, lambda: holder.communicate("go\n")).start()

    lock = Lock(tmp_path / ".lock")
    lock.acquire(wait=True, waiting=waiting)
    assert lock.held
    assert len(asked) == 1 and f"process {holder.pid} on" in asked[0]
    lock.release()


def test_a_second_lock_in_one_process_is_refused_not_waited_for(tmp_path: Path) -> None:
    with Lock(tmp_path / ".lock"), pytest.raises(RunLocked, match=f"process {os.getpid()}"):
        Lock(tmp_path / ".lock").acquire(wait=True)
    with Lock(tmp_path / ".lock"):
        pass


def test_a_lock_file_deleted_while_waited_for_is_made_anew(tmp_path: Path) -> None:
    holder = python(HOLD, tmp_path / ".lock")
    assert holder.stdin is not None and holder.stdout is not None
    holder.stdout.readline()

    def waiting(_: str) -> None:
        (tmp_path / ".lock").unlink()
        holder.communicate("go\n")

    lock = Lock(tmp_path / ".lock")
    lock.acquire(wait=True, waiting=waiting)
    with pytest.raises(RunLocked):
        Lock(tmp_path / ".lock").acquire()
    lock.release()
