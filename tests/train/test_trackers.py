import json
import sys

import pytest

from selftaught.errors import InputError
from selftaught.train import trackers
from selftaught.train.trackers import Metrics


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_one_line_per_update(tmp_path):
    metrics = Metrics(tmp_path / "run", ())
    metrics.log(1, {"loss": 0.5})
    metrics.log(2, {"loss": 0.25})
    metrics.close()
    assert lines(tmp_path / "run") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_resuming_cuts_off_what_came_after_the_checkpoint(tmp_path):
    metrics = Metrics(tmp_path, ())
    metrics.log(1, {"loss": 0.5})
    kept = metrics.sync()
    metrics.log(2, {"loss": 9.0})
    metrics.close()
    resumed = Metrics(tmp_path, (), kept)
    resumed.log(2, {"loss": 0.25})
    resumed.close()
    assert [line["loss"] for line in lines(tmp_path)] == [0.5, 0.25]


def test_trackers_get_the_same(tmp_path, monkeypatch):
    seen, closed = [], []
    sink = (lambda step, values: seen.append((step, values)), lambda: closed.append(True))
    monkeypatch.setitem(trackers._OPENERS, "wandb", lambda out: sink)
    metrics = Metrics(tmp_path, ("wandb",))
    metrics.log(3, {"loss": 1.0})
    metrics.close()
    assert (seen, closed) == ([(3, {"loss": 1.0})], [True])


def test_tensorboard_writes_its_files(tmp_path):
    pytest.importorskip("tensorboard")
    metrics = Metrics(tmp_path, ("tensorboard",))
    metrics.log(1, {"loss": 1.0})
    metrics.close()
    assert list((tmp_path / "tensorboard").iterdir())


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(InputError, match="'mlflow' is unknown: choose from tensorboard, trackio, wandb"):
        Metrics(tmp_path, ("mlflow",))


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match="needs package trackio: pip install"):
        Metrics(tmp_path, ("trackio",))
