import json
import os
import signal
from pathlib import Path

import pytest
from tests.store.samples import completions, prompts, python, scores

from selftaught.errors import InputError, RunLocked
from selftaught.store.groups import Groups
from selftaught.store.run import RunDirectory
from selftaught.types import Completion, Prompt, Score, content_id

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
    config = {
        "lr": 5e-6,
        "tau": (4, 2.5),
        "name": "é: [x]",
        "yes": "yes",
        "none": None,
        "inner": {"a": [1, {"b": True}]},
    }
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
        with pytest.raises(InputError, match=r"has no YAML form: .*PosixPath"):
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
            file.write(b'{"step": 2, "loss": 0.')
        run.append_metrics({"step": 2})
        assert list(run.read_metrics()) == [{"step": 1, "text": "é\n"}, {"step": 2}]


def test_metrics_are_cleared(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.clear_metrics()
        run.append_metrics({"step": 1})
        run.clear_metrics()
        assert list(run.read_metrics()) == []


def test_the_next_command_finds_groups_and_selection(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        for read in (run.read_groups, run.read_selection):
            with pytest.raises(InputError, match=rf"{tmp_path} holds no .*: make them with selftaught"):
                read()
        asked = prompts(3)
        answers = list(completions(asked, 2))
        tables = []
        for rows, row_type in ((asked, Prompt), (answers, Completion), (scores(answers), Score)):
            with run.stages.writer("rows", content_id(row_type.__name__), row_type) as writer:
                writer.write(0, rows)
                tables.append(writer.commit())
        groups = Groups(prompts=tables[0], completions=(tables[1],), scores=(tables[2],))
        run.write_groups(groups)
        run.write_state(selection=tables[2].path.name)
        assert list(run.read_groups()) == list(groups)
        assert run.read_selection() == tables[2].path
        with pytest.raises(InputError, match="3 rows in memory cannot be found by the next command"):
            run.write_groups(Groups(prompts=asked))


def test_the_summary_is_whole_json(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.write_summary({"method": "scpo"})
        run.write_summary({"method": "scpo", "seeds": [0]})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"method": "scpo", "seeds": [0]}
    assert sorted(os.listdir(tmp_path)) == [".lock", "summary.json"]


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(InputError, match=r"cannot write .*file/run: Not a directory"),
        RunDirectory(tmp_path / "file" / "run"),
    ):
        pass
