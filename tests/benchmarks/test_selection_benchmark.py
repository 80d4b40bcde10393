from pathlib import Path

import pytest

from benchmarks import selection as benchmark
from selftaught.store.stage import Store


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("tables"))
    benchmark.prepare(12, store)
    return store


def test_every_rule_selects_from_the_groups(tables: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}
    monkeypatch.setattr(benchmark, "save", lambda store, name, kind, rows: made.update({name: list(rows)}) or 0)
    for name, rule in benchmark.RULES.items():
        if name != "DivPO by word frequency in a window of 64":
            rule(tables)
            assert name == "reading alone" or {type(row).__name__ for row in made["made"]} <= {"Pair", "Feedback"}
            assert name == "reading alone" or made.pop("made"), name


def test_the_window_stores_scores_and_then_makes_pairs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    benchmark.prepare(3, store)
    assert benchmark.divpo_window(store) == 3
    assert len(store.get(benchmark.key_of("window"))) == 3 * benchmark.K


def test_steps_cover_the_candidates(tables: Store) -> None:
    for group in benchmark.read(tables, "steps"):
        for completion in group.completions:
            spans = [s.span for s in group.scores if s.completion_id == completion.id]
            assert "".join(completion.text[start:end] for start, end in spans) == completion.text
            assert len(spans) == benchmark.STEPS


def test_the_report_has_the_shape_of_all_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"seconds": 1.234, "peak": 200.0, "rows": 9}
    monkeypatch.setattr(benchmark, "measure_all", lambda groups, repeats: {"RIP": [facts] * repeats})
    found = benchmark.report(100, 3)
    assert set(found) == {"name", "cases", "machine", "versions", "date"}
    assert found["cases"] == [
        {"case": "RIP, 100 groups of 16", "ours": 1.23, "unit": "s", "bound": 60},
        {"case": "RIP, 100 groups of 16: peak memory", "ours": 200.0, "unit": "MiB", "bound": 1907},
    ]
