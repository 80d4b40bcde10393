"""The example of docs/composition.md runs, and every part of it has a say."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tests import tiny
from transformers import AutoModelForCausalLM

from selftaught.store.stage import open_stage
from selftaught.tasks import load_task

PAGE = (Path(__file__).parents[1] / "docs" / "composition.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed_model: Path) -> Path:
    """Return a working directory with the model and the data that the page speaks of."""
    shutil.copytree(seed_model, tmp_path / "my-model")
    task = load_task(tiny.TASK)
    rows = [{"prompt": p.text, "answer": task.answer(task.solution(p))} for p in task.train(60)]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_filter_pairs_and_weights_come_from_three_methods(place: Path, capsys):
    (code,) = re.findall(r"<!-- example.*?```python\n(.*?)```", PAGE, re.S)
    exec(code.replace("temperature=0.7", "temperature=1.5, max_tokens=8").replace("epochs=2", "max_steps=2"), {})
    said = capsys.readouterr().out
    assert "removed by" in said, "RIP's thresholds removed nothing"
    (stage,) = (place / "runs" / "composed" / "stages").glob("select-*")
    pairs = list(open_stage(stage))
    assert pairs and all(0 < pair.weight <= 1 for pair in pairs)
    assert len({pair.weight for pair in pairs}) > 1
    assert all(pair.meta["diversity_chosen"] is not None for pair in pairs)
    AutoModelForCausalLM.from_pretrained(place / "runs" / "composed" / "model")
