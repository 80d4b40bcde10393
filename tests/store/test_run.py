import json
import os
import signal
from pathlib import Path

import pytest

from selftaught.errors import InputError, RunLocked
from selftaught.store.run import RunDirectory
from tests.store.samples import python

HOLD = """
import sys
from selftaught.store.run import RunDirectory
with RunDirectory(sys.argv[1]) as run:
    run.write_config({"seed": 0})
    run.append_metrics({"step": 1})
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    path = tmp_path / "run"
    holder = python(HOLD, path)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(RunLocked, match=rf"{path} is in use by process {holder.pid} on"), RunDirectory(path):
        pass
    assert RunDirectory(path).read_config() == {"seed": 0}  # reading needs no lock
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with RunDirectory(path) as run:
        run.write_config({"seed": 0})
        assert list(run.read_metrics()) == [{"step": 1}]


def test_ctrl_c_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunDirectory(tmp_path):
        raise KeyboardInterrupt
    with RunDirectory(tmp_path):
        pass


def test_the_configuration_comes_back_and_cannot_change(tmp_path: Path) -> None:
    config = {"lr": 5e-6, "tau": (4, 2.5), "name": "é: [x]", "yes": "yes", "none": None, "inner": {"a": [1, {"b": True}]}}
    with RunDirectory(tmp_path) as run:
        run.write_config(config)
        assert run.read_config() == {**config, "tau": [4, 2.5]}
        before = (tmp_path / "config.yaml").stat().st_ino
        run.write_config(config)
        assert (tmp_path / "config.yaml").stat().st_ino == before
        with pytest.raises(InputError, match=r"holds a run with lr = 5e-06, not 0.1; resume it as it is"):
            run.write_config({**config, "lr": 0.1})
        with pytest.raises(InputError, match="holds a run with new = None, not 1"):
            run.write_config({**config, "new": 1})
        with pytest.raises(InputError, match="has no YAML form: .*PosixPath"):
            run.write_config({"path": Path("x")})
        assert run.read_config()["lr"] == 5e-6


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(InputError, match=rf"{tmp_path} is not a run: it has no config.yaml"):
        run.read_config()
    for text, words in (("a: [1", "is not YAML"), ("- 1", "holds a list"), ("", "holds a NoneType")):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(InputError, match=words) as error:
            run.read_config()
        assert "\n" not in str(error.value)


def test_metrics_survive_a_torn_line(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        assert list(run.read_metrics()) == []
        run.append_metrics({"step": 1, "text": "é\n"})
        with open(tmp_path / "metrics.jsonl", "ab") as file:
            file.write('{"step": 2, "loss": 0.'.encode())
        run.append_metrics({"step": 2})
        assert list(run.read_metrics()) == [{"step": 1, "text": "é\n"}, {"step": 2}]


def test_the_summary_is_whole_json(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.write_summary({"method": "scpo"})
        run.write_summary({"method": "scpo", "seeds": [0]})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"method": "scpo", "seeds": [0]}
    assert sorted(os.listdir(tmp_path)) == [".lock", "summary.json"]


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write .*file/run: Not a directory"), RunDirectory(tmp_path / "file" / "run"):
        pass
