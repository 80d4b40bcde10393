"""The commands and the quickstart of README do what it says, with a tiny model in place of the one it names."""

import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from tests import tiny

from selftaught import cli
from selftaught.store.datafiles import read_prompts
from selftaught.tasks import load_task

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

MODEL, DATA = "my-model", "problems.jsonl"
IN_PLACE_OF = {"Qwen/Qwen2.5-0.5B-Instruct": MODEL, "chat": "plain"}
# What makes a command of README a matter of seconds.
SMALLER = {
    "run": "--rounds 1 --sampling.k 4 --sampling.max_tokens 8 --tau 0.25 --training.epochs 1 --evaluation.max_tokens 8",
    "generate": "--max_tokens 8",
    "train": "--training.max_steps 1",
    "evaluate": "--problems 4 --k 2 --max_tokens 8",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands(program: str) -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(program + " ")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed_model: Path) -> Path:
    """Return a working directory with the model and the data that README speaks of."""
    shutil.copytree(seed_model, tmp_path / MODEL)
    task = load_task(tiny.TASK)
    rows = [{"prompt": p.text, "answer": task.answer(task.solution(p))} for p in task.train(40)]
    (tmp_path / DATA).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands_at_the_top_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = [words[1] for words in commands("make")]
    assert named[:2] == ["demo", "test"]
    assert set(named) | set(re.findall(r"`make ([a-z-]+)`", README)) <= targets


def test_what_is_installed_is_there():
    for words in commands("pip"):
        for option, value in pairwise(words):
            assert option not in ("-c", "-e") or (ROOT / value.partition("[")[0]).exists()


def test_the_data_it_shows_can_be_read(tmp_path):
    for i, block in enumerate(blocks("json")):
        file = tmp_path / f"{i}.jsonl"
        file.write_text(block, encoding="utf-8")
        prompts = list(read_prompts(file))
        assert len(prompts) == len(block.splitlines())


def test_the_commands_run_one_after_the_other(place: Path, capsys):
    done = []
    for _, command, *words in commands("selftaught"):
        if command not in (*SMALLER, "score", "select"):
            continue
        words = [IN_PLACE_OF.get(word, word) for word in words]
        if command != "run":
            words = [word if word != "4" or words[i - 1] != "--threshold" else "1" for i, word in enumerate(words)]
        assert cli.main([command, *words, *SMALLER.get(command, "").split()]) == 0, capsys.readouterr().err
        done.append(command)
    assert {"run", "generate", "score", "select", "train", "evaluate"} <= set(done)
    assert (place / "runs" / "mine" / "summary.json").exists()


def test_the_quickstart_runs_and_is_short(place: Path, capsys):
    quickstarts = [block for block in blocks("python") if "import" in block]
    assert quickstarts
    for block in quickstarts:
        assert len(block.splitlines()) <= 20
        small = re.sub(
            r"Sampling\(", "Sampling(max_tokens=8, ", re.sub(r"Evaluation\(", "Evaluation(max_tokens=8, ", block)
        )
        exec(compile(small.replace("threshold=4", "threshold=2"), "README.md", "exec"), {"__name__": "__main__"})
        first = capsys.readouterr().out
        assert 0 <= float(first.splitlines()[-1]) <= 1
        exec(compile(small.replace("threshold=4", "threshold=2"), "README.md", "exec"), {"__name__": "__main__"})
        said = capsys.readouterr()
        assert said.out == first
        # Run twice, every step is read from disk.
        steps = [line for line in said.err.splitlines() if re.search(r" (rows|files) ", line)]
        assert steps and all(line.endswith("cached") for line in steps)
