import base64
import hashlib
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.report.html import MOST_GROUPS, build_report, script_json

from .conftest import HOSTILE, build_run

VOID = {"meta", "input", "br", "link"}


class Page(HTMLParser):
    """Elements with their attributes and text, as a browser's parser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def named(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(run_dir: Path) -> Page:
    return Page(build_report(run_dir).read_text(encoding="utf-8"))


def embedded(page: Page) -> list[dict]:
    return json.loads(page.texts["script"][0])["groups"]


def test_elements_nest_and_ids_are_unique_and_linked(run_dir):
    page = read(run_dir)
    assert page.open == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for link in page.named("a"):
        assert link["href"].removeprefix("#") in ids
    for _, attributes in page.elements:
        for key in ("aria-labelledby", "for"):
            assert attributes.get(key, ids[0]) in ids


def test_nothing_is_fetched_from_anywhere(run_dir):
    page = read(run_dir)
    style = "".join(page.texts["style"])
    assert "url(" not in style and "@import" not in style
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "srcset", "style", "action"} & attributes.keys(), (tag, attributes)
        assert not any(key.startswith("on") for key in attributes)
    assert "fetch(" not in page.texts["script"][1] and "innerHTML" not in page.texts["script"][1]


def test_hostile_text_stays_text(run_dir):
    page = read(run_dir)
    assert [a.get("type") for a in page.named("script")] == ["application/json", None]
    shown = "".join(text for tag in ("pre", "li") for text in page.texts[tag])
    assert HOSTILE[0] in shown  # in the configuration and as a reason for dropping
    groups = embedded(page)
    texts = "".join(c["text"] for group in groups for c in group["completions"])
    prompts = "".join(m["text"] for group in groups for m in group["prompt"])
    for hostile in HOSTILE:
        assert hostile in texts and hostile in prompts
    assert {"answer": HOSTILE[1], "votes": 1.0} in groups[0]["tally"]


def test_policy_allows_this_script_and_style_only(run_dir):
    page = read(run_dir)
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    for kind, text in (("script-src", page.texts["script"][1]), ("style-src", "".join(page.texts["style"]))):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    )
)
def test_script_json_comes_back_and_holds_no_markup(value):
    text = str(script_json(value))
    assert json.loads(text) == value
    assert text.isascii() and not set("<>&\u2028\u2029") & set(text)


@pytest.mark.parametrize("text", [*HOSTILE, "<!--<script>", "\ud800 alone", "</SCRIPT >"])
def test_script_json_of_hostile_text(text):
    assert json.loads(str(script_json({text: [text]}))) == {text: [text]}
    assert "<" not in script_json({text: [text]})


def test_report_shows_every_part(run_dir):
    page = read(run_dir)
    everything = " ".join(text for texts in page.texts.values() for text in texts)
    for part in (
        "scpo · small",
        "5 min 12 s",
        "33.5 ± 2.0",
        "does not hold",
        "[+5.0, +17.0]",
        "over problems",
        "fewer votes than the threshold",
        "12.3 s",
        "recipe: small",
        "2.13.0",
        "vote share (%)",
        "rewards/margins",
        "loss, seed model",
        "share of the gain of irpo_gold",
        "[71%, 98%]",
        "77",
    ):
        assert part in everything, part
    assert len(page.named("svg")) >= 2 + 4 + 3 + 3 + 4  # arms, claims, rounds, training, selections


def test_groups_tell_what_was_chosen_and_why(run_dir):
    groups = embedded(read(run_dir))
    assert {g["stage"] for g in groups} == {f"{arm}, round {n}" for arm in ("lmsi", "scpo") for n in (1, 2)}
    pair = next(g for g in groups if g["stage"] == "scpo, round 1" and g["kept"])
    assert pair["weight"] == 0.25 and pair["gold"] == "0"
    assert [c["roles"] for c in pair["completions"]] == [["chosen"], [], ["rejected"], []]
    assert [c["votes"] for c in pair["completions"]] == [2.0, 2.0, 1.0, None]
    assert pair["completions"][3]["unanswered"] == "no answer could be read"
    assert sum(g["kept"] for g in groups if g["stage"] == "lmsi, round 2") == 4


def test_groups_are_bounded(tmp_path):
    build_run(tmp_path, problems=MOST_GROUPS + 30, k=4, rounds=1)
    groups = embedded(read(tmp_path))
    assert len(groups) == MOST_GROUPS
    assert 0.3 < sum(g["kept"] for g in groups) / len(groups) <= 0.5


def test_run_killed_half_way_still_gives_a_report(run_dir):
    (run_dir / "summary.json").unlink()
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "stage", "arm": "scpo", "ro')
    everything = " ".join(text for texts in read(run_dir).texts.values() for text in texts)
    assert "not finished" in everything and "33.0 ± 2.0" in everything


def test_damaged_stage_is_named_and_the_rest_is_shown(run_dir):
    shard = next((run_dir / "stages").glob("score-scpo-1-*/*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-20])
    page = read(run_dir)
    assert shard.name in " ".join(page.texts["p"])
    assert "scpo, round 1" not in {g["stage"] for g in embedded(page)} and embedded(page)


def test_run_that_has_only_begun(tmp_path):
    (tmp_path / "stages").mkdir()
    page = read(tmp_path)
    assert "Nothing has been measured yet." in page.texts["p"]
    assert page.named("script") == []


def test_other_directories_are_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        build_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_report_is_replaced_as_a_whole(run_dir):
    first = build_report(run_dir).read_bytes()
    assert build_report(run_dir).read_bytes() == first
    assert not list(run_dir.glob(".report-*"))


def test_building_imports_no_torch():
    modules = ", ".join(f"selftaught.report.{name}" for name in ("html", "text", "tables"))
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"
