import json

import pytest

from selftaught.errors import InputError
from selftaught.report import tables

from .conftest import summary

BENCHMARK = {
    "name": "sampling",
    "cases": [{"case": "fp32 generate", "ours": 4470.0, "peer": 830.0, "unit": "tokens/s", "ratio": 5.386}],
    "machine": {"cpu": "some CPU", "cores": 2},
    "versions": {"torch": "2.13.0", "numpy": "2.0"},
    "date": "2026-01-02",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    for collection, name, result in (("reproductions", "scpo", summary()), ("benchmarks", "sampling", BENCHMARK)):
        folder = tmp_path / collection / "results"
        folder.mkdir(parents=True)
        (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def marked(name: str, old: str = "") -> str:
    return f"before\n<!-- table: {name} -->\n{old}<!-- end table -->\nafter\n"


def test_benchmark_table_by_hand():
    assert tables.benchmark_table(BENCHMARK) == (
        "| case | ours | peer | unit | ratio |\n"
        "| --- | ---: | ---: | --- | ---: |\n"
        "| fp32 generate | 4,470 | 830 | tokens/s | 5.39x |\n"
        "\n"
        "some CPU, 2; torch 2.13.0; 2026-01-02. A ratio above 1 means that ours is better."
    )


def test_reproduction_table():
    table = tables.reproduction_table(summary())
    assert "| arm | accuracy (%) | accuracy sc8 (%) | vote share (%) | pairs |" in table
    assert "| `lmsi` | 33.0 ± 2.0 | 39.0 ± 2.0 | 60.0 ± 2.0 |  |" in table
    assert "| ScPO beats gold | accuracy (%) | -3.0 | [-6.0, -1.0] | seeds | does not hold |" in table
    assert "Recipe `small`; seeds 0; 5 min 12 s; torch 2.13.0." in table
    assert "Settings tried on development seeds beforehand: 4." in table
    assert "seeds 0; data `novels`; 5 min 12 s;" in tables.reproduction_table({**summary(), "data": "novels"})


def test_cells_cannot_break_out_of_the_table():
    assert tables.markdown_table(["a"], [["x|y\nz"]]).splitlines()[-1] == "| x\\|y z |"


def test_fill_replaces_what_stands_between_the_markers(root):
    text = tables.fill(marked("benchmarks/sampling", "old\nlines\n"), root)
    assert text.startswith("before\n<!-- table: benchmarks/sampling -->\n\n| case |")
    assert text.endswith("is better.\n\n<!-- end table -->\nafter\n")
    assert "old" not in text
    assert tables.fill(text, root) == text


def test_all_benchmarks_in_one_table(root):
    other = {**BENCHMARK, "name": "store"}
    (root / "benchmarks/results/store.json").write_text(json.dumps(other), encoding="utf-8")
    text = tables.render_table("benchmarks/all", root)
    assert "| `sampling` | fp32 generate |" in text and "| `store` |" in text
    assert text.count("some CPU") == 1


def test_a_machine_is_named_once_with_all_its_dates():
    other = {**BENCHMARK, "name": "store", "date": "2026-01-01"}
    elsewhere = {**BENCHMARK, "name": "far", "machine": "another", "date": ""}
    for table in (tables.benchmarks_table, tables.ratios_table):
        _, *sentences = table([BENCHMARK, other, elsewhere, BENCHMARK]).split("\n\n")
        assert sentences == [
            "some CPU, 2; torch 2.13.0; 2026-01-01, 2026-01-02. A ratio above 1 means that ours is better.",
            "another; torch 2.13.0. A ratio above 1 means that ours is better.",
        ]


def test_claims_of_all_methods_in_one_table(root):
    other = {**summary(), "method": "rip", "seeds": [0, 1, 2]}
    (root / "reproductions/results/rip.json").write_text(json.dumps(other), encoding="utf-8")
    text = tables.render_table("reproductions/claims", root)
    assert "| `scpo` | ScPO beats gold | accuracy (%) | -3.0 | [-6.0, -1.0] | seeds | does not hold |" in text
    assert text.count("| `rip` |") == text.count("| `scpo` |") == len(summary()["claims"])
    assert text.endswith("Means and paired intervals over 1 or 3 seeds.")


def test_the_first_claim_of_each_method_and_how_many_hold(root):
    claims = [claim | {"holds": i == 1} for i, claim in enumerate(summary()["claims"])]
    other = {**summary(), "method": "rip", "claims": claims}
    (root / "reproductions/results/rip.json").write_text(json.dumps(other), encoding="utf-8")
    (root / "reproductions/results/none.json").write_text(json.dumps({"method": "none", "claims": []}))
    text = tables.render_table("reproductions/headlines", root)
    first = tables._claim_row(claims[0])
    assert f"| `rip` | {' | '.join(first[:4])} | 1 of {len(claims)} |" in text
    assert text.count("| `") == 2


def test_smallest_and_largest_ratio_of_each_benchmark(root):
    cases = [
        {"case": "slow", "ours": 1.0, "peer": 2.0, "unit": "rows/s", "ratio": 0.5},
        {"case": "fast", "ours": 3.0, "peer": 2.0, "unit": "rows/s", "ratio": 1.5},
        {"case": "memory", "ours": 1.0, "peer": 9.0, "unit": "GB", "ratio": 9.0},
        {"case": "alone", "ours": 1.0, "unit": "rows/s"},
    ]
    (root / "benchmarks/results/store.json").write_text(json.dumps({"name": "store", "cases": cases}), encoding="utf-8")
    text = tables.render_table("benchmarks/ratios", root)
    assert "| `store` | 0.50x (slow) | 1.50x (fast) |" in text
    assert "| `sampling` | 5.39x (fp32 generate) | 5.39x (fp32 generate) |" in text


def test_what_is_not_measured_says_how_to(root):
    assert "selftaught reproduce rip --seeds 5" in tables.render_table("reproductions/rip", root)
    assert "python benchmarks/store.py" in tables.render_table("benchmarks/store", root)
    for file in root.glob("*/results/*.json"):
        file.unlink()
    assert "selftaught reproduce all" in tables.render_table("reproductions/claims", root)
    assert "make bench" in tables.render_table("benchmarks/ratios", root)


@pytest.mark.parametrize("name", ["models/x", "benchmarks", "benchmarks/"])
def test_unknown_tables_are_errors(name, root):
    with pytest.raises(InputError, match="is unknown"):
        tables.render_table(name, root)


def test_marker_without_end_names_file_and_line(root):
    with pytest.raises(InputError, match=r"docs/x\.md:2: table benchmarks/all has no end"):
        tables.fill("a\n<!-- table: benchmarks/all -->\nb", root, "docs/x.md")


def test_result_that_is_not_json(root):
    (root / "benchmarks/results/sampling.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"sampling\.json is not JSON"):
        tables.render_table("benchmarks/sampling", root)


def test_command_writes_and_checks(root, capsys):
    file = root / "README.md"
    file.write_text(marked("reproductions/scpo"), encoding="utf-8")
    assert tables.main(["--check", "README.md"]) == 1
    assert "README.md: out of date" in capsys.readouterr().out
    assert file.read_text(encoding="utf-8") == marked("reproductions/scpo")
    assert tables.main(["README.md"]) == 0
    assert "33.5 ± 2.0" in file.read_text(encoding="utf-8")
    assert tables.main(["--check", "README.md"]) == 0


def test_command_refuses_what_it_cannot_read(root, capsys):
    assert tables.main(["nowhere.md"]) == 2
    assert "nowhere.md" in capsys.readouterr().err
