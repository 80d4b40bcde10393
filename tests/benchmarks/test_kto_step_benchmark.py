import importlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from selftaught.report import tables
from selftaught.specs import Training
from selftaught.train.schedule import batch_indices

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        # The script sets these for itself; here they are taken back.
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TQDM_DISABLE", "1")
        yield importlib.import_module("kto_step")


@pytest.fixture
def model(benchmark: ModuleType, tmp_path: Path) -> Path:
    out = tmp_path / "model"
    sizes = {"layers": 2, "width": 32, "intermediate": 64, "context": 512}
    importlib.import_module("sides").save_llama(out, importlib.import_module("preferences").VOCABULARY, **sizes)
    return out


def test_every_update_sees_the_completions_of_an_update_of_dpo(benchmark: ModuleType) -> None:
    rows = benchmark.triples(24, 0)
    pairs, labelled = benchmark.pairs(rows), benchmark.feedback(rows)
    for step in range(3):
        dpo = [pairs[i] for i in batch_indices(step, 24, Training(batch_size=8), 0)]
        kto = [labelled[i] for i in batch_indices(step, 48, Training(batch_size=16), 0)]
        assert [row.completion for row in kto] == [p.chosen for p in dpo] + [p.rejected for p in dpo]
        assert [row.label for row in kto] == [True] * 8 + [False] * 8
        prompts = [row.prompt.id for row in kto]
        assert all(one != other for one, other in pairwise([prompts[-1], *prompts]))


def test_six_steps_cover_a_completion(benchmark: ModuleType) -> None:
    for row in benchmark.feedback(benchmark.triples(8, 0)):
        text, steps = row.completion.text, row.step_labels
        assert "".join(text[start:end] for start, end, _ in steps) == text
        lengths = [len(text[start:end].split()) for start, end, _ in steps]
        assert len(steps) == 6
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.slow
def test_both_sides_have_the_same_losses_and_reference_points(
    benchmark: ModuleType, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    # With steps as large as this the reference point leaves 0 within two updates.
    monkeypatch.setattr(importlib.import_module("preferences"), "LR", 1e-2)
    rows = benchmark.triples(32, 0)
    ours = benchmark.ours(model, "KTO", rows, tmp_path / "ours", "fp32")
    peer = benchmark.peer(model, rows, tmp_path / "peer", "fp32", 8)
    assert ours["losses"] == pytest.approx(peer["losses"], rel=1e-4)
    assert ours["kl"] == pytest.approx(peer["kl"], abs=1e-3)
    assert max(ours["kl"]) > 0.1
    assert max(ours["losses"]) - min(ours["losses"]) > 0.01


def test_all_sides_of_ours_run(benchmark: ModuleType, model: Path, tmp_path: Path) -> None:
    rows = benchmark.triples(16, 0)
    for side in (benchmark.DPO, benchmark.SHARED_DPO, *benchmark.COMPARED[1:]):
        found = benchmark.ours(model, side, rows, tmp_path / side, "bf16")
        assert len(found["updates"]) == len(found["losses"]) == 2
        assert found["seconds"] >= sum(found["updates"]) > 0


def test_the_report_has_the_shape_of_all_benchmarks(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {
        "DPO": 1.0,
        "DPO with shared prompts": 0.5,
        "KTO": 1.25,
        "Step-KTO": 1.5,
        "peer": 4.0,
        "padded peer": 5.0,
    }

    def measured(script: str, cases: tuple[str], repeats: int, sides: tuple[str, ...]) -> dict[tuple[str, str], Any]:
        return {(case, side): [facts(seconds.get(side, 1.0))] * repeats for case in cases for side in sides}

    def facts(update: float) -> dict[str, Any]:
        per_training = 32 * update
        return {
            "tokens": benchmark.tokens_of(benchmark.triples(256, 0)),
            "seconds": 2 * per_training,
            "updates": [update] * 32,
            "training": per_training,
            "losses": [0.5],
            "kl": [0.0],
            "gigabytes": 1.0,
        }

    monkeypatch.setattr(benchmark, "alternate", measured)
    monkeypatch.setattr(benchmark, "matmul_gflops", lambda dtype: 1.0)
    rows, found = benchmark.report(3)
    assert found == {"matmul_gflops": {"bf16": 1.0}}
    assert [row["ratio"] for row in rows] == [3.2, 3.2, 1, 0.8, 0.667, 1]
    assert [row.get("times a DPO update") for row in rows[3:]] == [1.25, 1.5, 1]
    assert [row.get("times a DPO update with shared prompts") for row in rows[3:]] == [2.5, 3, 2]
    table = tables.benchmarks_table([{"name": "kto_step", "cases": rows}])
    assert "| `kto_step` | KTO, update beside our own DPO | 1.25 | 1 | s | 0.80x |" in table
