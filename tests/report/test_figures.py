import pytest

from selftaught.report import figures


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.3349, "33.5"),
        ("accuracy_sc8", 0, "0.0"),
        ("vote_share", 1.0, "100.0"),
        ("somers_d", 0.80412, "0.804"),
        ("pairs", 1240, "1,240"),
        ("pairs", 1240.46, "1,240.5"),
        ("accuracy", None, "n/a"),
        ("loss", float("nan"), "n/a"),
        ("loss", True, "n/a"),
    ],
)
def test_figure(metric, value, text):
    assert figures.figure(metric, value) == text


def test_cells_headings_and_differences():
    assert figures.with_error("accuracy", {"mean": 0.334, "stderr": 0.0211}) == "33.4 ± 2.1"
    assert figures.with_error("accuracy", {"mean": 0.334}) == "33.4"
    assert figures.with_error("accuracy", None) == ""
    assert figures.heading("accuracy_sc8") == "accuracy sc8 (%)"
    assert figures.heading("somers_d") == "somers d"
    assert figures.heading("train/vote_share") == "vote share (%), training samples"
    assert figures.signed("accuracy", -0.0304) == "-3.0"


def test_interval_and_verdict():
    claim = {"metric": "accuracy", "ci95": [0.05, 0.17], "holds": True}
    assert figures.interval(claim) == "[+5.0, +17.0]"
    assert figures.interval({"metric": "accuracy"}) == ""
    assert figures.estimate({"metric": "accuracy", "difference": 0.116}) == "+11.6"
    assert [figures.verdict({"holds": h}) for h in (True, False, None)] == ["holds", "does not hold", "undecided"]
    assert figures.verdict({}) == "undecided"


def test_share_of_a_gain_is_written_in_percent():
    claim = {"metric": "accuracy", "ratio": 0.824, "ci95": [0.71, None], "share": 0.7}
    assert figures.estimate(claim) == "82%"
    assert figures.interval(claim) == "[71%, n/a]"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (312.4, "5 min 12 s"), (7261, "2 h 01 min"), (None, "")],
)
def test_duration(seconds, text):
    assert figures.duration(seconds) == text
