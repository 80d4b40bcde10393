import json
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.report.html import build_report
from selftaught.report.patched_text import write_patched_text
from selftaught.report.patches import COLUMN, LONGEST, MARGIN, PER_ROW, entropy_chart, patch_section
from selftaught.report.reading import read_run
from selftaught.text.patched import PatchedText

from .conftest import HOSTILE
from .test_html import Page

NASTY = (
    *(text.encode() for text in HOSTILE),
    b"\xff\xfe\xe2\x82 \x00\x1b[31m\x7f",
    "שלום \u202eabc 👩\u200d👧 e\u0301 ﷽".encode(),
    b"\r\n\t\\x41 |",
    b"a",
)


def noted(kind: str, arm: str = "entropy", **values) -> dict:
    return {"event": kind, "arm": arm, "round": 0, **values}


def reported(arm: str, name: str, mean: float) -> dict:
    return noted("report", arm, name=name, mean=mean, stderr=0.01, n=9)


def patched(data: bytes, *lengths: int, threshold: float | None = 1.0) -> PatchedText:
    """Every byte a patch unless lengths are given; entropies go round from 0 to 2 nats."""
    values = [0.5 * (i % 5) for i in range(len(data))]
    return PatchedText(
        items=list(data), entropies=values, threshold=threshold, schemes={"entropy": list(lengths) or [1] * len(data)}
    )


def as_event(text: PatchedText, arm: str = "entropy") -> dict:
    facts = {name: getattr(text, name) for name in ("items", "entropies", "threshold", "schemes")}
    return noted("patched_text", arm, **facts)


def events() -> list[dict]:
    """What a run of two arms with patches and one over tokens notes."""
    points = [
        {"threshold": 1.0, "patch_length": 3.0, "flops_per_byte": 3e6, "bits_per_byte": 1.9},
        {"threshold": 2.0, "patch_length": 5.0, "flops_per_byte": 2e6, "bits_per_byte": 2.1},
    ]
    worth = {"entropy": (2.5e6, 2.0), "space": (2.4e6, 2.05), "bpe": (2.5e6, 1.85)}
    return [
        noted("patches", patch_length=4.4, lengths={"1": 1, "4": 2, "30": 1, "400": 4}, domains={"novels": 4.5}),
        noted("patches", drift={"0": 4.0, "64": 6.0}),
        noted("patches", "space", patch_length=5.1, lengths={"5": 3}, domains={"novels": 5.0, "code": 3.0}),
        noted("patches", "space", drift={"0": 4.0, "64": 4.1}),
        noted("sweep", points=points),
        *(reported(arm, "flops_per_byte", flops) for arm, (flops, _) in worth.items()),
        *(reported(arm, "bits_per_byte", bits) for arm, (_, bits) in worth.items()),
        as_event(patched(b"the text", 3, 1, 4)),
    ]


def write_run(path: Path, found: list[dict]) -> Path:
    path.mkdir()
    path.joinpath("metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in found), encoding="utf-8")
    return path


def section_of(tmp_path: Path, found: list[dict]) -> dict | None:
    return patch_section(read_run(write_run(tmp_path / "run", found)), {"entropy": 0, "space": 1, "bpe": 2})


def charts_of(section: dict) -> dict[str, str]:
    return {drawn["name"]: drawn["chart"] for drawn in section["charts"]}


def rectangles(chart: str, kind: str) -> list[tuple[float, float]]:
    """Return where the rectangles of a class begin and end from left to right, in the order drawn."""
    found = re.findall(rf'<rect class="{kind}[^"]*" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', chart)
    return [(float(x), float(x) + float(width)) for x, width in found]


# --- the section of a report -----------------------------------------------------------------------------------------


def test_a_run_without_patches_has_no_section(run_dir, tmp_path):
    assert patch_section(read_run(run_dir), {}) is None
    assert 'id="patches"' not in build_report(run_dir).read_text(encoding="utf-8")


def test_bits_and_flops_alone_make_no_section(tmp_path):
    assert section_of(tmp_path, [reported("bpe", "bits_per_byte", 2.0), reported("bpe", "flops_per_byte", 2e6)]) is None


def test_the_charts_there_are(tmp_path):
    assert list(charts_of(section_of(tmp_path, events()))) == [
        "Bits per byte against FLOPs per byte",
        "Patches by their length (%)",
        "Mean patch length by domain, entropy",
        "Mean patch length by domain, space",
        "Mean patch length along a window",
    ]


def test_the_page_holds_the_section_and_its_link(tmp_path):
    run = write_run(tmp_path / "run", events())
    page = Page(build_report(run).read_text(encoding="utf-8"))
    assert page.open == []
    assert {"href": "#patches"} in page.named("a")
    assert [s["class"] for s in page.named("span") if "patch p" in s.get("class", "")] == [
        "patch p0",
        "patch p1",
        "patch p0",
    ]


def test_arms_are_points_and_a_sweep_is_a_line_in_the_order_of_flops(tmp_path):
    chart = charts_of(section_of(tmp_path, events()))["Bits per byte against FLOPs per byte"]
    for said in (
        "entropy at 2.5: 2 ± 0.01",
        "space at 2.4: 2.05",
        "bpe at 2.5: 1.85",
        "entropy, by threshold at 3: 1.9",
    ):
        assert said in chart
    (line,) = re.findall(r'points="([^"]*)"', chart)
    places = [tuple(map(float, place.split(","))) for place in line.split()]
    assert places[0][0] < places[1][0] and places[0][1] < places[1][1], "fewer FLOPs are left, more bits above"
    circles = re.findall(r'cx="([\d.]+)" cy="[\d.]+" r="3.6"><title>(entropy|bpe) at', chart)
    assert len({x for x, _ in circles}) == 1, "equal FLOPs stand at one place"


def test_lengths_are_shares_with_the_longest_pooled(tmp_path):
    chart = charts_of(section_of(tmp_path, events()))["Patches by their length (%)"]
    for said in ("entropy at 1: 12.5", "entropy at 2: 0", "entropy at 4: 25", f"entropy at {LONGEST}: 62.5"):
        assert said in chart
    assert "space at 5: 100" in chart and "space at 6" not in chart


def test_domains_and_drift_by_arm(tmp_path):
    charts = charts_of(section_of(tmp_path, events()))
    assert "code: 3" in charts["Mean patch length by domain, space"]
    drift = charts["Mean patch length along a window"]
    assert "entropy at 64: 6" in drift and "space at 64: 4.1" in drift


def test_events_without_a_number_make_no_empty_table(tmp_path):
    run = read_run(write_run(tmp_path / "run", events()))
    assert "sweep" not in run.measurements and "patches" in run.measurements


@pytest.mark.parametrize(
    "wrong", [None, 3, "x", [], [1], {"a": "b"}, {"1": None}, {"-1": 2}, {"1": float("nan")}, [[1]]]
)
def test_events_that_are_not_as_they_should_be_are_left_out(tmp_path, wrong):
    found = [
        noted("patches", lengths=wrong, domains=wrong, drift=wrong),
        noted("sweep", points=wrong),
        noted("patched_text", items=wrong, entropies=wrong, threshold=wrong, schemes=wrong),
        as_event(patched(b"abc")) | {"schemes": {"a": [1, 1]}},
        as_event(patched(b"abc"), "other") | {"entropies": [1.0]},
        as_event(patched(b"abc"), "third") | {"items": [256, 1, -1]},
    ]
    section = section_of(tmp_path, found)
    assert section is None or (section["texts"] == [] and len(section["charts"]) <= 2)
    build_report(tmp_path / "run")


def test_numbers_too_large_to_draw_are_left_out(tmp_path):
    found = [
        noted("patches", lengths={"1": 1e308, "2": 1e308}, drift={"9" * 400: 3.0, "2": 5.0}),
        noted("patches", "other", lengths={"9" * 400: 3, "2": 5}),
    ]
    charts = charts_of(section_of(tmp_path, found))
    lengths, drift = charts["Patches by their length (%)"], charts["Mean patch length along a window"]
    assert "other at 2: 100" in lengths and "entropy at" not in lengths and "entropy at 2: 5" in drift


@pytest.mark.parametrize("data", NASTY)
def test_texts_of_a_report_are_text(tmp_path, data):
    found = [as_event(patched(data)), noted("patches", domains={data.decode("latin-1"): 2.0}), *events()[:1]]
    page = Page(build_report(write_run(tmp_path / "run", found)).read_text(encoding="utf-8"))
    assert page.open == [] and not page.named("img") and not page.named("script")
    assert all("style" not in attributes for _, attributes in page.elements)


# --- the drawing of a text -------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=160), st.data())
def test_a_drawing_is_sound_and_nothing_overlaps(data, draw):
    lengths, left = [], len(data)
    while left:
        lengths.append(draw.draw(st.integers(1, left)))
        left -= lengths[-1]
    chart = entropy_chart(patched(data, *lengths))
    root = ElementTree.fromstring(chart)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    bars: dict[float, list[tuple[float, float]]] = {}
    for rectangle in root.iter("rect"):
        x, y, wide = (float(rectangle.attrib[name]) for name in ("x", "y", "width"))
        assert wide > 0 and x >= MARGIN and x + wide <= width and 0 <= y <= height
        if rectangle.attrib["class"].startswith("patch"):
            bars.setdefault(y, []).append((x, x + wide))
    for row in bars.values():
        assert all(a[1] < b[0] for a, b in pairwise(row))
    assert sum(r.attrib["class"].startswith("entropy") for r in root.iter("rect")) == len(data)


def test_bytes_over_the_threshold_are_marked_and_the_threshold_is_drawn():
    chart = entropy_chart(patched(b"abcde", 2, 3))
    assert re.findall(r'class="(entropy(?: over)?)"', chart) == ["entropy"] * 3 + ["entropy over"] * 2
    assert 'class="reference"' in chart and "threshold 1; bars: patches by entropy, 2.5 bytes per patch" in chart
    without = entropy_chart(patched(b"abcde", 2, 3, threshold=None))
    assert "over" not in without and "reference" not in without


def test_bars_lie_under_the_bytes_of_their_patches():
    """Two bytes, then three: the first bar ends and the second begins where byte 2 stands, with a gap between."""
    (a, b), (c, d) = rectangles(entropy_chart(patched(b"abcde", 2, 3)), "patch")
    edge = MARGIN + 2 * COLUMN
    assert a == MARGIN + 1 and b == edge - 1 and c == edge + 1 and d == MARGIN + 5 * COLUMN - 1


def test_a_patch_that_goes_on_in_the_next_row_has_no_gap_there():
    chart = entropy_chart(patched(b"x" * (PER_ROW + 3), PER_ROW - 1, 4))
    first, second, rest = rectangles(chart, "patch")
    assert first[1] < second[0] and second[1] == MARGIN + PER_ROW * COLUMN
    assert rest == (MARGIN, MARGIN + 3 * COLUMN - 1)
    shades = re.findall(r'class="patch (p\d)"', chart)
    assert shades == ["p0", "p1", "p1"]


def test_a_character_stands_below_all_of_its_bytes_and_is_not_broken_at_a_row():
    data = b"x" * (PER_ROW - 1) + "é".encode()
    root = ElementTree.fromstring(entropy_chart(patched(data)))
    labels = [e for e in root.iter("text") if e.text == "é"]
    assert float(labels[0].attrib["x"]) == MARGIN + COLUMN
    assert float(labels[0].attrib["y"]) > max(float(e.attrib["y"]) for e in root.iter("text") if e.text == "x")


def test_long_escapes_stand_upright_and_push_the_bars_down():
    def bar(data: bytes) -> float:
        return float(re.findall(r'class="patch p0" x="[\d.]+" y="([\d.]+)"', entropy_chart(patched(data, 2)))[0])

    assert "rotate(-90" in entropy_chart(patched(b"a\xff")) and "rotate" not in entropy_chart(patched(b"a\n"))
    assert bar(b"a\xff") > bar(b"ab") == bar(b"a\n")


@pytest.mark.parametrize("text", [patched(b""), PatchedText(items=[97], schemes={"space": [1]})])
def test_without_bytes_or_entropies_there_is_no_chart(text):
    assert entropy_chart(text) == ""


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", NASTY)
def test_files_hold_nothing_but_text_and_fetch_nothing(tmp_path, data):
    text = patched(data)
    for name in ("deep/a.html", "a.svg"):
        write_patched_text(text, tmp_path / name)
    html = tmp_path.joinpath("deep/a.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == [] and not page.named("img") and not page.named("script") and not page.named("link")
    assert all("style" not in attributes for _, attributes in page.elements)
    (policy,) = [m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "script-src" not in policy
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {e.tag.rpartition("}")[2] for e in root.iter()} <= {"svg", "title", "style", "rect", "text", "line"}


@pytest.mark.parametrize("name", ["a", "a.png", "a.svgz"])
def test_a_file_of_another_kind_is_an_error(tmp_path, name):
    with pytest.raises(InputError, match=r"ends in neither of .html, .svg"):
        write_patched_text(patched(b"a"), tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    tmp_path.joinpath("file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_patched_text(patched(b"a"), tmp_path / "file" / "a.svg")
