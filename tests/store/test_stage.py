import errno
import json
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from tests.store.samples import completions, prompts, python

from selftaught.errors import DamagedStage, InputError, RunLocked, SelftaughtError
from selftaught.specs import Sampling
from selftaught.store import files
from selftaught.store.stage import Stage, Store, default_cache, open_stage, stage_key, write_shard
from selftaught.types import Completion, Document, Prompt, Score

KEY = "0123456789abcdef01234567"


def documents(count: int, start: int = 0) -> list[Document]:
    return [Document(text=f"text {i}") for i in range(start, start + count)]


def write(root: Path, parts: list[list[Document]]) -> Stage[Document]:
    with Store(root).writer("docs", KEY, Document, len(parts)) as writer:
        for index in writer.missing():
            writer.write(index, parts[index])
        return writer.commit()


def visible(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path) if not name.startswith("."))


def test_rows_come_back_in_order_as_often_as_asked(tmp_path: Path) -> None:
    rows = documents(10)
    stage = write(tmp_path, [rows[:4], [], rows[4:]])
    assert (len(stage), list(stage), list(stage)) == (10, rows, rows)
    first, second = iter(stage), iter(stage)
    assert [next(first), next(second), next(first)] == [rows[0], rows[0], rows[1]]
    assert list(open_stage(stage.path)) == rows


def test_slices_cross_row_groups_and_shards(tmp_path: Path) -> None:
    rows = documents(20)
    with mock.patch("selftaught.store.stage._ROWS_AT_ONCE", 2), mock.patch("selftaught.store.stage._ROWS_PER_GROUP", 4):
        stage = write(tmp_path, [rows[:9], rows[9:12], [], rows[12:]])
    for start in range(21):
        for stop in range(start, 22):
            assert list(stage.slice(start, stop)) == rows[start:stop]
    texts = [t for (batch,) in stage.columns("text", start=3, stop=17) for t in batch]
    assert texts == [row.text for row in rows[3:17]]


def test_columns_are_read_without_building_rows(tmp_path: Path) -> None:
    asked = list(completions(prompts(50), 4))
    with Store(tmp_path).writer("c", KEY, Completion) as writer:
        writer.write(0, asked)
        stage = writer.commit()
    with mock.patch("selftaught.store.stage.from_batch", side_effect=AssertionError("built a row")):
        batches = list(stage.columns("id", "token_ids", "k"))
    ids, tokens, ks = ([value for batch in batches for value in batch[i]] for i in range(3))
    assert ids == [row.id for row in asked]
    assert tokens == [row.token_ids for row in asked]
    assert ks == [row.k for row in asked]
    with pytest.raises(InputError, match=r"has no column 'texts'; its columns are prompt_id, k, text"):
        list(stage.columns("texts"))


def test_the_manifest_says_what_the_stage_is(tmp_path: Path) -> None:
    params = {"sampling": Sampling(k=2), "path": Path("x")}
    key = stage_key("make", 3, params, ["p"], 5)
    store = Store(tmp_path)
    asked = {"function": "make", "version": 3, "params": params, "parents": ["p"], "seed": 5}
    with store.writer("docs", key, Document, 2, **asked) as writer:
        writer.write(0, documents(3))
        writer.write(1, documents(2, 3))
        stage = writer.commit(dropped={"too long": 1})
    manifest = json.loads((stage.path / ".manifest.json").read_text())
    assert manifest == stage.manifest
    expected = {"name": "docs", "key": key, "function": "make", "version": 3, "parents": ["p"], "seed": 5, "rows": 5}
    assert expected.items() <= manifest.items()
    assert manifest["facts"] == {"dropped": {"too long": 1}}
    assert manifest["params"]["sampling"]["k"] == 2
    assert [s["rows"] for s in manifest["shards"]] == [3, 2]
    for shard in manifest["shards"]:
        path = stage.path / shard["file"]
        assert (shard["bytes"], shard["sha256"]) == (path.stat().st_size, files.hash_file(path))
        assert shard["sha256"][:16] in shard["file"]
    assert {"python", "selftaught", "torch", "transformers"} <= set(manifest["versions"])
    assert manifest["started"] <= manifest["finished"]
    assert store.get(key) is not None
    assert [m["name"] for m in store.stages()] == ["docs"]


def test_the_store_does_not_import_torch() -> None:
    modules = "stage, groups, run, tables, datafiles, artifact"
    script = f"import sys; from selftaught.store import {modules}; print('torch' in sys.modules)"
    out, err = python(script).communicate(timeout=60)
    assert out == "False\n", err


def test_nothing_is_there_before_the_commit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get(KEY) is None
    with store.writer("docs", KEY, Document, 2) as writer:
        writer.write(1, documents(1))
        assert store.get(KEY) is None
        with pytest.raises(InputError, match="is not a finished stage"):
            open_stage(writer.directory)
        with pytest.raises(SelftaughtError, match=r"lacks shards \[0\]"):
            writer.commit()
    assert store.get(KEY) is None
    assert store.stages() == []


def test_an_error_in_the_rows_leaves_no_shard(tmp_path: Path) -> None:
    def rows() -> Iterator[Document]:
        yield from documents(5000)
        raise ConnectionResetError(errno.ECONNRESET, "the server went away")

    with Store(tmp_path).writer("docs", KEY, Document, 1) as writer:
        with pytest.raises(ConnectionResetError):
            writer.write(0, rows())
        assert writer.missing() == [0]
        assert os.listdir(writer.directory) == [".lock"]


@pytest.mark.parametrize("step", range(1, 40))
def test_interrupted_at_every_step_and_resumed(tmp_path: Path, step: int) -> None:
    """Ctrl-C at the n-th call that touches the disk; the next writer ends with the rows of an undisturbed one."""
    parts = [documents(3), documents(2, 3), documents(4, 5)]
    expected = write(tmp_path / "calm", parts)
    calls = 0

    def counted(real):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == step:
                raise KeyboardInterrupt
            return real(*arguments, **keywords)

        return call

    interrupted = False
    with (
        mock.patch.object(files.os, "fsync", counted(os.fsync)),
        mock.patch.object(files.os, "replace", counted(os.replace)),
        mock.patch.object(files.HashingFile, "write", counted(files.HashingFile.write)),
    ):
        try:
            write(tmp_path / "torn", parts)
        except KeyboardInterrupt:
            interrupted = True
    assert interrupted == (calls >= step)
    directory = tmp_path / "torn" / f"docs-{KEY}"
    assert not [name for name in os.listdir(directory) if name.startswith(files.ASIDE)]
    kept = {path.name: path.stat().st_ino for path in directory.glob("part-*")}
    stage = write(tmp_path / "torn", parts)
    assert list(stage) == list(expected)
    assert visible(stage.path) == visible(expected.path)
    assert kept.items() <= {path.name: path.stat().st_ino for path in directory.glob("part-*")}.items()


KILLED = """
import sys, time
from pathlib import Path
from tests.store.test_stage import KEY, slow_parts
from selftaught.store.stage import Store
from selftaught.types import Document
print("ready", flush=True)
with Store(Path(sys.argv[1])).writer("docs", KEY, Document, 6) as writer:
    for index in writer.missing():
        writer.write(index, slow_parts(index))
    writer.commit()
"""


def slow_parts(index: int) -> Iterator[Document]:
    for row in documents(1000, 1000 * index):
        if row.text.endswith("00"):
            time.sleep(0.003)
        yield row


def test_killed_at_random_instants_and_resumed(tmp_path: Path) -> None:
    expected = write(tmp_path / "calm", [documents(1000, 1000 * i) for i in range(6)])
    chance = random.Random(0)
    root, directory = tmp_path / "torn", tmp_path / "torn" / f"docs-{KEY}"
    kept: dict[str, int] = {}
    kills = 0
    while Store(root).get(KEY) is None:
        process = python(KILLED, root)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0, 0.05 * (kills + 1)))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert err == ""
        kills += process.returncode == -signal.SIGKILL
        now = {path.name: path.stat().st_ino for path in directory.glob("part-*")}
        assert kept.items() <= now.items()
        assert set(now) <= set(visible(expected.path))
        kept = now
    assert kills > 1
    stage = Store(root).get(KEY)
    assert stage is not None
    assert list(stage) == list(expected)
    assert visible(directory) == visible(expected.path)
    assert not list(directory.glob(f"{files.ASIDE}*"))


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_named_and_made_again(tmp_path: Path, damage: str, where: float) -> None:
    parts = [documents(300), documents(300, 300)]
    stage = write(tmp_path, parts)
    shard = stage.path / stage.manifest["shards"][1]["file"]
    content = bytearray(shard.read_bytes())
    place = int(len(content) * where)
    if damage == "gone":
        shard.unlink()
    else:
        content[place] ^= 1
        shard.write_bytes(content if damage == "flip" else content[:place])
    with pytest.raises(DamagedStage) as error:
        open_stage(stage.path)
    with pytest.raises(DamagedStage):
        Store(tmp_path).get(KEY)
    manifest = stage.path / ".manifest.json"
    assert str(error.value).startswith(f"{shard} is ")
    assert f"delete {manifest} and resume" in str(error.value)
    assert "\n" not in str(error.value)
    manifest.unlink()
    with Store(tmp_path).writer("docs", KEY, Document, 2) as writer:
        assert writer.missing() == [1]
        writer.write(1, parts[1])
        assert list(writer.commit()) == parts[0] + parts[1]


def test_a_shard_damaged_after_the_opening_is_named(tmp_path: Path) -> None:
    stage = write(tmp_path, [documents(300)])
    shard = stage.path / stage.manifest["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DamagedStage, match=rf"{shard} cannot be read: .*; delete"):
        list(stage)


def test_a_damaged_or_foreign_manifest_is_named(tmp_path: Path) -> None:
    stage = write(tmp_path, [documents(1)])
    manifest = stage.path / ".manifest.json"
    text = manifest.read_text()
    for content in (text[:-20], "[]", "{}", ""):
        manifest.write_text(content)
        with pytest.raises(DamagedStage, match=rf"{manifest} cannot be read"):
            open_stage(stage.path)
    manifest.write_text(text.replace('"format": 1', '"format": 9'))
    with pytest.raises(InputError, match="has format 9"):
        open_stage(stage.path)
    with pytest.raises(InputError, match="is not a finished stage"):
        open_stage(tmp_path / "nowhere")


def test_half_written_and_strange_files_are_not_taken_for_shards(tmp_path: Path) -> None:
    parts = [documents(3), documents(3, 3)]
    expected = write(tmp_path / "calm", parts)
    directory = tmp_path / "torn" / f"docs-{KEY}"
    directory.mkdir(parents=True)
    (directory / f"{files.ASIDE}12-ab").write_bytes(b"PAR1 half")
    (directory / ("part-00000-of-00002-" + "0" * 16 + ".parquet")).write_bytes(b"PAR1 wrong content")
    (directory / ("part-00001-of-00004-" + "0" * 16 + ".parquet")).write_bytes(b"another division")
    other = expected.path / expected.manifest["shards"][1]["file"]
    (directory / other.name).write_bytes(other.read_bytes())
    with Store(tmp_path / "torn").writer("docs", KEY, Document, 2) as writer:
        assert writer.missing() == [0]
        writer.write(0, parts[0])
        stage = writer.commit()
    assert visible(stage.path) == visible(expected.path)
    assert list(stage) == list(expected)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Document(text=str(random.Random(i).random()) * 20) for i in range(20000)]
    written = 0

    class Full:
        """A file on a disk with room for 100,000 bytes."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            nonlocal written
            written += len(data)
            if written > 100_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

    def opened(*arguments):
        return Full(open(*arguments))

    with Store(tmp_path).writer("docs", KEY, Document, 2) as writer:
        writer.write(0, rows[:10])
        monkeypatch.setattr(files, "open", opened, raising=False)
        with pytest.raises(InputError, match=rf"cannot write {writer.directory}: No space left on device; free some"):
            writer.write(1, rows)
        monkeypatch.undo()
        assert writer.missing() == [1]
        assert len(os.listdir(writer.directory)) == 2


LIMITED = """
import resource, signal, sys
from selftaught.store.stage import Store
from selftaught.types import Document
from tests.store.test_stage import KEY
import random
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
rows = [Document(text=str(random.Random(i).random()) * 20) for i in range(20000)]
try:
    with Store(sys.argv[1]).writer("docs", KEY, Document, 2) as writer:
        writer.write(0, rows[:10])
        writer.write(1, rows)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The same with a real error of the operating system, in the middle of a write."""
    out, err = python(LIMITED, tmp_path).communicate(timeout=60)
    assert out.startswith(f"InputError cannot write {tmp_path / f'docs-{KEY}'}: File too large; "), err
    assert len(out.splitlines()) == 1
    with Store(tmp_path).writer("docs", KEY, Document, 2) as writer:
        assert writer.missing() == [1]
        assert not list(writer.directory.glob(f"{files.ASIDE}*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_directories_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match=r"cannot write .*file.*: Not a directory; .*choose another directory"):
        Store(file / "stages").writer("docs", KEY, Document)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    root = os.geteuid() == 0
    if root:
        os.chmod(tmp_path, 0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"cannot write .*: Permission denied; make it writable"):
            Store(closed).writer("docs", KEY, Document)
    finally:
        if root:
            os.seteuid(0)


RACE = """
import sys, time
from selftaught.store.stage import Store
from selftaught.types import Document
from tests.store.test_stage import KEY, documents
print("ready", flush=True)
sys.stdin.readline()
made = 0
with Store(sys.argv[1]).writer("docs", KEY, Document, 4) as writer:
    for index in writer.missing():
        time.sleep(0.1)
        writer.write(index, documents(5, 5 * index))
        made += 1
    stage = writer.commit()
print(made, len(list(stage)))
"""


def test_processes_racing_for_one_stage(tmp_path: Path) -> None:
    """One makes it; the others wait, then find it made."""
    processes = [python(RACE, tmp_path) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in processes]
    assert sorted(out for out, _ in results) == ["0 20\n", "0 20\n", "4 20\n"], results
    assert any("waiting for process" in err for _, err in results)
    assert list(Store(tmp_path).get(KEY) or ()) == documents(20)


def test_one_process_cannot_claim_a_stage_twice(tmp_path: Path) -> None:
    with Store(tmp_path).writer("docs", KEY, Document), pytest.raises(RunLocked, match=f"process {os.getpid()}"):
        Store(tmp_path).writer("docs", KEY, Document)


def test_workers_write_shards_without_the_lock(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from selftaught.store.stage import write_shard
from selftaught.types import Document
from tests.store.test_stage import documents
write_shard(Path(sys.argv[1]), Document, 1, 2, documents(2, 3))
"""
    with Store(tmp_path).writer("docs", KEY, Document, 2) as writer:
        write_shard(writer.directory, Document, 0, 2, documents(3))
        _, err = python(script, writer.directory).communicate(timeout=60)
        assert err == ""
        assert writer.missing() == []
        assert list(writer.commit()) == documents(5)


def test_two_copies_of_one_shard_are_taken_once(tmp_path: Path) -> None:
    """Two workers may have been given one shard, and samples on a GPU may differ."""
    with Store(tmp_path).writer("docs", KEY, Document, 1) as writer:
        writer.write(0, documents(3))
        writer.write(0, documents(3, 10))
        stage = writer.commit()
    assert len(stage) == 3
    assert len(visible(stage.path)) == 1


def test_names_and_shard_counts_are_checked(tmp_path: Path) -> None:
    for name in ("", "a/b", "../x", ".hidden", "a b"):
        with pytest.raises(InputError, match="is not usable"):
            Store(tmp_path).writer(name, KEY, Document)
    for shards in (0, 100_000):
        with pytest.raises(InputError, match="give 1 to 99999"):
            Store(tmp_path).writer("docs", KEY, Document, shards)


def test_a_stage_is_found_by_its_key_whatever_its_name(tmp_path: Path) -> None:
    first = write(tmp_path, [documents(2)])
    with Store(tmp_path).writer("other-name", KEY, Document) as writer:
        assert writer.missing() == []
        assert writer.commit().path == first.path


def test_a_store_in_a_directory_with_pattern_characters(tmp_path: Path) -> None:
    stage = write(tmp_path / "a[1]*?", [documents(2)])
    assert list(stage) == documents(2)
    assert Store(tmp_path / "a[1]*?").get(KEY) is not None


def test_memory_is_bounded_by_bytes_not_only_rows(tmp_path: Path) -> None:
    """2,000 documents of 100 kB: row groups are closed at 16 MiB."""
    import pyarrow.parquet as pq

    rows = (Document(text=f"{i:>100000}", id=str(i)) for i in range(1024 * 2))
    with mock.patch("selftaught.store.stage._ROWS_AT_ONCE", 64), Store(tmp_path).writer("d", KEY, Document) as writer:
        writer.write(0, rows)
        stage = writer.commit()
    groups = pq.ParquetFile(stage.path / stage.manifest["shards"][0]["file"]).num_row_groups
    assert groups == 2048 // 192 + 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SELFTAUGHT_CACHE": "/x/own", "XDG_CACHE_HOME": "/x/xdg"}, "/x/own"),
        ({"SELFTAUGHT_CACHE": "", "XDG_CACHE_HOME": "/x/xdg"}, "/x/xdg/selftaught"),
        ({"SELFTAUGHT_CACHE": "~/own"}, "/x/home/own"),
        ({"XDG_CACHE_HOME": ""}, "/x/home/.cache/selftaught"),
        ({}, "/x/home/.cache/selftaught"),
    ],
)
def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str) -> None:
    for name in ("SELFTAUGHT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/x/home")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_cache() == Path(expected)


def test_row_types_of_stages_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number, (row_type, row) in enumerate(
        ((Prompt, Prompt.from_text("q")), (Score, Score(completion_id="c", scorer="s", value=None)))
    ):
        with store.writer("rows", f"{number:024d}", row_type) as writer:
            writer.write(0, [row])
            assert list(writer.commit()) == [row]
    assert [m["row_type"] for m in store.stages()] == ["Prompt", "Score"]
