from pathlib import Path

import pytest

from benchmarks import store as benchmark
from selftaught.store.stage import Store
from selftaught.types import Pair


def test_both_sides_make_the_same_pairs(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for side, run in (("ours", benchmark.ours), ("peer", benchmark.peer)):
        (tmp_path / side).mkdir()
        assert [run(step, 30, tmp_path / side) for step in benchmark.STEPS] == [240, 240, 240]
    (path,) = (m["path"] for m in Store(tmp_path / "ours").stages() if m["row_type"] == Pair.__name__)
    ours = datasets.Dataset.from_parquet([str(f) for f in path.glob("*.parquet")], cache_dir=str(tmp_path / "cache"))
    peer = datasets.load_from_disk(str(tmp_path / "peer" / "pairs"))
    columns = ["prompt", "chosen", "rejected", "weight", "chosen_token_ids", "rejected_token_ids"]
    assert ours.select_columns(columns)[:] == peer.select_columns(columns)[:]
    assert len(ours) == 30


def test_the_report_has_the_shape_of_all_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(side: str, step: str, prompts: int, root: Path) -> dict[str, float]:
        return {"rows": prompts * 8, "seconds": prompts / (4 if side == "ours" else 2), "peak": prompts + 1.0}

    monkeypatch.setattr(benchmark, "measure", measured)
    found = benchmark.report(100, 3)
    assert set(found) == {"name", "cases", "machine", "versions", "date"}
    assert all(set(case) == {"case", "ours", "peer", "unit", "ratio"} for case in found["cases"])
    assert [case["ratio"] for case in found["cases"]] == [2, 2, 2, 2, 1, 1]
    assert found["cases"][0] == {"case": "write 800 completions", "ours": 32, "peer": 16, "unit": "rows/s", "ratio": 2}
