import json
from pathlib import Path

from selftaught.report.reading import Point, Run, read_run


def run(*events: dict, summary: dict | None = None, config: str = "") -> Run:
    return Run(path=Path("some/run"), summary=summary, config=config, events=events)


def stage(**fields) -> dict:
    return {"event": "stage", "arm": "scpo", "round": 1, "verb": "select", "stage": "select-ab", **fields}


def test_resumed_stage_is_listed_once_with_the_time_it_took():
    first = stage(rows=5, seconds=12.0, cached=False, counts={"kept": 5})
    again = stage(rows=5, seconds=0.01, cached=True)
    (line,) = run(first, again).stages
    assert (line.seconds, line.cached, line.counts) == (12.0, False, {"kept": 5})
    (line,) = run(again).stages
    assert line.cached


def test_stages_keep_their_order_and_shared_ones_have_a_label():
    lines = run(stage(arm="", round=None, stage="a"), stage(stage="b"), stage(arm="", round=None, stage="a")).stages
    assert [(line.name, line.label) for line in lines] == [("a", "shared"), ("b", "scpo, round 1")]


def test_inputs_given_by_key_are_named():
    lines = run(stage(stage="prompts-0a"), stage(stage="select-ab", inputs=["0a", "ff"])).stages
    assert lines[1].inputs == ("prompts-0a", "ff")


def test_inputs_of_groups_are_their_tables():
    groups = {"prompts": "prompts-0a", "completions": ["generate-0b", "generate-0c"], "scores": []}
    (line,) = run(stage(inputs=["key of the groups"], groups=groups)).stages
    assert line.inputs == ("prompts-0a", "generate-0b", "generate-0c")


def test_other_events_become_tables():
    events = [{"event": "pairs", "arm": "scpo", "round": n, "kept": n, "margin": None} for n in (1, 2)]
    table = run(*events, {"event": "pairs", "arm": "lmsi", "round": 1, "margin": 0.5}).measurements["pairs"]
    assert table.names == ["kept", "margin"]
    assert table.rows[1:] == (("scpo, round 2", {"kept": 2}), ("lmsi, round 1", {"margin": 0.5}))


def test_last_report_of_a_step_counts():
    events = [
        {"event": "train", "arm": "scpo", "round": 1, "step": s, "loss": y} for s, y in ((1, 3.0), (2, 2.0), (1, 9.0))
    ]
    curves = run(*events, {"event": "train", "step": 3, "loss": float("nan")}).training("loss")
    assert curves == {("scpo", 1): [Point(x=1, y=9.0), Point(x=2, y=2.0)]}


def test_rounds_take_errors_from_reports_that_agree():
    events = [
        {"event": "report", "arm": "scpo", "round": 1, "name": "accuracy", "mean": 0.3, "stderr": 0.02},
        {"event": "report", "arm": "scpo", "round": 2, "name": "accuracy", "mean": 0.4, "stderr": 0.02},
    ]
    summary = {"rounds": {"scpo": [{"accuracy": 0.3}, {"accuracy": 0.5}]}}
    assert run(*events, summary=summary).rounds("accuracy") == {
        "scpo": [Point(x=1, y=0.3, stderr=0.02), Point(x=2, y=0.5)]
    }


def test_arms_of_an_unfinished_run_are_its_last_reports():
    report = {"event": "report", "name": "accuracy", "stderr": 0.1, "n": 5}
    events = [{**report, "arm": "", "mean": 0.1}, {**report, "arm": "scpo", "round": 1, "mean": 0.2}]
    events.append({**report, "name": "train/accuracy", "arm": "scpo", "round": 1, "mean": 0.9})
    arms = run(*events, {**report, "arm": "scpo", "round": 2, "mean": 0.3}).arms
    assert arms["seed_model"]["accuracy"]["mean"] == 0.1
    assert arms["scpo"]["accuracy"]["mean"] == 0.3 and "train/accuracy" not in arms["scpo"]


def test_title_from_summary_else_configuration_else_directory():
    assert run(summary={"method": "scpo", "recipe": "gpu"}).title == "scpo · gpu"
    assert run(config="method: scpo\nrecipe: smoke\n").title == "scpo · smoke"
    assert run(config="just text: [").title == "run"


def test_unreadable_summary_is_noted(tmp_path):
    (tmp_path / "summary.json").write_text("{", encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(stage()) + "\n{torn", encoding="utf-8")
    found = read_run(tmp_path)
    assert found.summary is None and "summary.json could not be read" in found.notes[0]
    assert len(found.stages) == 1
