import json
from collections import Counter
from pathlib import Path

import pytest

from selftaught.report.html import build_report
from selftaught.report.reading import read_run
from selftaught.report.temperatures import HEATS, temperature_section
from selftaught.store.stage import Store, stage_key
from selftaught.types import Document

from .conftest import HOSTILE
from .test_html import Page

ARM = "tok_separate"


def note(kind: str, arm: str = ARM, number: int = 1, **values) -> dict:
    return {"event": kind, "arm": arm, "round": number, **values}


def events() -> list[dict]:
    """What a run with one kind of prompt and two rounds of one arm notes."""
    mean = {"event": "report", "arm": ARM, "round": 2, "name": "reward", "mean": 0.85, "stderr": 0.01, "n": 9}
    return [
        note("fixed_token_all", "seed_model", 0, **{"0": 0.5, "0.5": 0.7, "1": 0.6}),
        note(
            "pairs",
            **{"chosen 0": 3, "chosen 0.5": 5, "chosen 1": 0, "rejected 0": 4, "rejected 0.5": 1, "rejected 1": 3},
        ),
        note("chosen_all", **{"0": 1.0, "0.5": 0.0, "1": 0.0}),
        note("chosen_all", number=2, **{"0": 0.25, "0.5": 0.25, "1": 0.5}),
        note("places", number=2, **{"0": 0.1, "1": 0.9}),
        mean,
    ]


def write_run(path: Path, found: list[dict], rows: list[Document] | None = None) -> Path:
    path.mkdir()
    if rows is not None:
        store, key = Store(path / "stages"), stage_key("heat", 1, {}, [], 0)
        with store.writer("heat", key, Document, function="heat", version=1, params={}, parents=[], seed=0) as writer:
            writer.write(0, rows)
            writer.commit(counts=dict(Counter()))
        stage = {"event": "stage", "arm": ARM, "round": 2, "verb": "heat", "stage": f"heat-{key}", "rows": len(rows)}
        found = [*found, {**stage, "seconds": 0.1, "cached": False, "inputs": []}]
    path.joinpath("metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in found), encoding="utf-8")
    return path


def answer(*tokens: tuple[str, float]) -> Document:
    meta = {"kind": "all", "prompt": "p", "tokens": [t for t, _ in tokens], "temperatures": [v for _, v in tokens]}
    return Document(text="".join(t for t, _ in tokens), meta=meta)


def test_a_run_without_such_notes_has_no_section(run_dir, tmp_path):
    assert temperature_section(read_run(run_dir)) is None
    assert 'id="temperatures"' not in build_report(run_dir).read_text(encoding="utf-8")


def test_the_charts_there_are(tmp_path):
    section = temperature_section(read_run(write_run(tmp_path / "run", events())))
    assert [drawn["name"] for drawn in section["charts"]] == [
        "Reward against temperature, token level, all",
        f"Choices of {ARM}: all",
        f"Choices in chosen and rejected answers, {ARM}, round 1",
        "Mean temperature by place in the sentence",
    ]
    assert section["heat"] == []


def test_the_head_lies_at_its_mean_temperature_after_the_last_round(tmp_path):
    """0.25 * 0 + 0.25 * 0.5 + 0.5 * 1 = 0.625, and not the 0 of the first round."""
    section = temperature_section(read_run(write_run(tmp_path / "run", events())))
    reward, shares = section["charts"][0]["chart"], section["charts"][1]["chart"]
    assert f"{ARM} at 0.625: 0.85" in reward and "fixed at 0.5: 0.7" in reward
    assert "all at 1: 0.5" in shares


def test_chosen_and_rejected_are_counted_apart(tmp_path):
    chart = temperature_section(read_run(write_run(tmp_path / "run", events())))["charts"][2]["chart"]
    assert "chosen at 0.5: 5" in chart and "rejected at 0: 4" in chart


def test_choices_that_are_no_temperature_are_drawn_in_their_order(tmp_path):
    found = [note("fixed_token_all", "seed_model", 0, **{"1": 0.5, "1_p0.9": 0.7})]
    chart = temperature_section(read_run(write_run(tmp_path / "run", found)))["charts"][0]["chart"]
    assert "fixed at 0: 0.5" in chart and "fixed at 1: 0.7" in chart


def test_an_arm_of_the_other_level_is_not_drawn(tmp_path):
    found = [events()[0], note("chosen_all", "seq_separate", **{"0": 1.0, "0.5": 0.0, "1": 0.0})]
    found += [{**events()[-1], "arm": "seq_separate"}]
    section = temperature_section(read_run(write_run(tmp_path / "run", found)))
    assert "seq_separate" not in section["charts"][0]["chart"]


def test_heat_is_a_share_of_the_highest_temperature_shown(tmp_path):
    rows = [answer((" abe", 0.0), (" bo", 0.5), (" di", 1.0)), answer((" bo", 0.19))]
    section = temperature_section(read_run(write_run(tmp_path / "run", events(), rows)))
    first, second = section["heat"]
    assert first["tokens"] == [(" abe", 0, "0"), (" bo", HEATS // 2, "0.5"), (" di", HEATS - 1, "1")]
    assert second["tokens"] == [(" bo", 1, "0.19")] and first["arm"] == ARM


def test_greedy_answers_have_no_heat(tmp_path):
    section = temperature_section(read_run(write_run(tmp_path / "run", events(), [answer((" abe", 0.0))])))
    assert section["heat"][0]["tokens"] == [(" abe", 0, "0")]


@pytest.mark.parametrize("text", HOSTILE)
def test_tokens_are_text(tmp_path, text):
    row = answer((text, 1.0))
    row.meta["prompt"] = text
    page = Page(build_report(write_run(tmp_path / "run", events(), [row])).read_text(encoding="utf-8"))
    assert page.open == [] and not page.named("img") and len(page.named("script")) == 0
    shown = "".join(page.texts["span"])
    assert text.replace("\0", "\ufffd") in shown or text in shown
    assert all("style" not in attributes for _, attributes in page.elements)


def test_answers_that_cannot_be_read_are_a_note(tmp_path):
    run = write_run(tmp_path / "run", events(), [answer((" abe", 1.0))])
    (shard,) = (run / "stages").glob("heat-*/*.parquet")
    shard.unlink()
    section = temperature_section(read_run(run))
    assert section["heat"] == [] and "could not be read" in section["notes"][0]
    assert "could not be read" in build_report(run).read_text(encoding="utf-8")
