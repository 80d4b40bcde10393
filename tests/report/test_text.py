import pytest

from selftaught.errors import InputError
from selftaught.report.text import format_table, show_run

from .conftest import summary


def test_table_by_hand():
    cell = {"mean": 0.25, "stderr": 0.02, "n": 500}
    table = format_table({"arms": {"seed_model": {"accuracy": cell}, "scpo": {}}}, width=80)
    assert table.splitlines() == [
        "arm         accuracy (%)",
        "------------------------",
        "seed_model    25.0 ± 2.0",
        "scpo",
        "mean ± one standard error",
    ]


def test_table_names_the_run_and_its_claims():
    table = format_table(summary(), width=100)
    assert table.startswith("scpo, small, seed 0, 5 min 12 s")
    assert "[does not hold]  ScPO beats gold" in table and "+11.6 [+5.0, +17.0] over seeds" in table


def test_metrics_that_do_not_fit_are_counted_and_accuracy_comes_first():
    wide, narrow = format_table(summary(), width=200), format_table(summary(), width=48)
    assert "vote share" in wide and "more metrics" not in wide
    assert "vote share" not in narrow and "2 more metrics in report.html" in narrow
    assert "accuracy sc8 (%)" in narrow


def test_several_seeds():
    assert "seeds 0, 1, 2" in format_table({"seeds": [0, 1, 2], "arms": {}}, width=80)


def test_show_a_finished_run(run_dir):
    text = show_run(run_dir, width=100)
    assert text.splitlines()[0].endswith("run: finished")
    assert "generate-scpo-2-" in text and "12.3 s" in text and "[holds]" in text
    assert "last training step: scpo, round 2, step 30: loss 0.2, rewards/margins 0.3" in text
    assert "resume" not in text


def test_show_an_unfinished_run(run_dir):
    (run_dir / "summary.json").unlink()
    (run_dir / "stages" / "train-0123").mkdir()
    text = show_run(run_dir, width=100)
    assert "not finished" in text and "train-0123" in text
    assert text.endswith(f"go on with: selftaught resume {run_dir}")
    assert "33.0 ± 2.0" in text


def test_show_refuses_other_directories(tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        show_run(tmp_path)
