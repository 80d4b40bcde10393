import os
from pathlib import Path
from unittest import mock

import pytest
from tests.store.samples import python

from selftaught.errors import DamagedStage, InputError
from selftaught.store import files
from selftaught.store.artifact import Artifact, open_artifact
from selftaught.store.stage import Store, open_stage
from selftaught.types import Document

KEY = "fedcba98765432100123abcd"


def make(root: Path) -> Artifact:
    with Store(root).artifact("model", KEY, function="train", parents=["p"], seed=3) as writer:
        if not writer.finished:
            (writer.directory / "model.safetensors").write_bytes(b"weights" * 1000)
            (writer.directory / "tokenizer").mkdir(exist_ok=True)
            (writer.directory / "tokenizer" / "vocab.json").write_text("{}")
        return writer.commit(steps=5)


def test_files_are_listed_with_sizes_and_hashes(tmp_path: Path) -> None:
    artifact = make(tmp_path)
    assert artifact.path == tmp_path / f"model-{KEY}" / "files"
    assert (artifact.path / "tokenizer" / "vocab.json").read_text() == "{}"
    listed = {f["file"]: (f["bytes"], f["sha256"]) for f in artifact.manifest["files"]}
    assert listed == {
        name: (size, files.hash_file(artifact.path / name))
        for name, size in (("model.safetensors", 7000), ("tokenizer/vocab.json", 2))
    }
    expected = {"name": "model", "key": KEY, "function": "train", "parents": ["p"], "seed": 3, "facts": {"steps": 5}}
    assert expected.items() <= artifact.manifest.items()
    found = Store(tmp_path).get_artifact(KEY)
    assert found == artifact
    assert open_artifact(tmp_path / f"model-{KEY}", verify=True) == artifact


def test_what_a_stopped_maker_left_is_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.artifact("model", KEY) as writer:
        (writer.directory / "checkpoint").write_text("step 3")
    assert store.get_artifact(KEY) is None
    with pytest.raises(InputError, match="not a finished stage"):
        open_artifact(tmp_path / f"model-{KEY}")
    with store.artifact("model", KEY) as writer:
        assert not writer.finished
        assert (writer.directory / "checkpoint").read_text() == "step 3"


@pytest.mark.parametrize("step", range(1, 14))
def test_interrupted_at_every_step_and_resumed(tmp_path: Path, step: int) -> None:
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
    ):
        try:
            make(tmp_path)
        except KeyboardInterrupt:
            interrupted = True
    assert interrupted == (calls >= step)
    artifact = make(tmp_path)
    artifact.verify()
    assert [f["file"] for f in artifact.manifest["files"]] == ["model.safetensors", "tokenizer/vocab.json"]
    assert sorted(os.listdir(artifact.path.parent)) == [".lock", ".manifest.json", "files"]


def test_damage_is_named(tmp_path: Path) -> None:
    artifact = make(tmp_path)
    weights = artifact.path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"X" + whole[1:])
    open_artifact(artifact.path.parent)  # sizes are right: contents are read only when asked for
    with pytest.raises(DamagedStage, match=rf"{weights} is altered: .*; delete {artifact.path.parent} and resume"):
        artifact.verify()
    weights.write_bytes(whole[:-1])
    with pytest.raises(DamagedStage, match=rf"{weights} is truncated: 6999 bytes, 7000 were written"):
        Store(tmp_path).get_artifact(KEY)
    weights.unlink()
    with pytest.raises(DamagedStage, match=rf"{weights} is missing"):
        open_artifact(artifact.path.parent)


def test_an_empty_artifact_and_the_wrong_opener_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.artifact("model", KEY) as writer, pytest.raises(InputError, match="holds no file"):
        writer.commit()
    artifact = make(tmp_path)
    with pytest.raises(InputError, match="open it with open_artifact"):
        open_stage(artifact.path.parent)
    with store.writer("docs", KEY[::-1], Document) as rows:
        rows.write(0, [])
        stage = rows.commit()
    with pytest.raises(InputError, match="open it with open_stage"):
        open_artifact(stage.path)


RACE = """
import sys
from pathlib import Path
from tests.store.test_artifact import make
sys.stdin.readline()
make(Path(sys.argv[1])).verify()
"""


def test_processes_racing_for_one_artifact(tmp_path: Path) -> None:
    processes = [python(RACE, tmp_path) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    make(tmp_path).verify()
