import xml.etree.ElementTree as ElementTree
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from selftaught.report.charts import Line, dot_chart, interval_bar, line_chart, share_bar, thinned, ticks
from selftaught.report.reading import Point

FINITE = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


def points(*values: float) -> list[Point]:
    return [Point(x=i + 1, y=y) for i, y in enumerate(values)]


@given(FINITE, st.floats(min_value=1e-3, max_value=1e6), st.integers(2, 9))
def test_ticks_are_few_even_and_inside(low, width, most):
    values = ticks(low, low + width, most)
    assert 1 <= len(values) <= most
    steps = {round((b - a) / width, 6) for a, b in pairwise(values)}
    assert len(steps) <= 1
    assert all(low - 1e-6 * width <= v <= low + width + 1e-6 * width for v in values)


def test_ticks_by_hand():
    assert ticks(0, 10, 6) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.12, 0.31, 5) == [0.15, 0.2, 0.25, 0.3]


def test_thinned_keeps_both_ends():
    line = points(*range(1000))
    few = thinned(line, 50)
    assert len(few) == 50 and few[0] == line[0] and few[-1] == line[-1]
    assert thinned(line[:3], 50) == line[:3]


@given(st.lists(FINITE, min_size=1, max_size=300), st.text(max_size=20))
def test_line_chart_is_sound_xml_for_any_values(values, label):
    label = "".join(c for c in label if c.isprintable())
    svg = line_chart("t<i>tle", [Line(label=label, points=points(*values))], x_label="step")
    root = ElementTree.fromstring(str(svg))
    assert root.get("aria-label") == "t<i>tle"
    assert "nan" not in svg


def test_one_point_and_no_point():
    assert "circle" in line_chart("t", [Line(label="a", points=points(0.5))], x_label="round")
    assert line_chart("t", [Line(label="a", points=[])], x_label="round") == ""
    assert dot_chart("t", [], "x") == ""


def test_reference_and_errors_are_drawn():
    lines = [Line(label="a", points=[Point(x=1, y=2.0, stderr=0.5)])]
    svg = line_chart("t", lines, x_label="round", reference=("seed model", 1.0))
    assert "seed model: 1" in svg and 'class="error s0"' in svg and "a at 1: 2 ± 0.5" in svg


def test_labels_are_escaped():
    hostile = "</svg><script>alert(1)</script>"
    charts = [
        line_chart(hostile, [Line(label=hostile, points=points(1, 2))], x_label=hostile),
        dot_chart(hostile, [(hostile, 1.0, 0.1, 0)], hostile),
        interval_bar(hostile, 0.0, 1.0, 2.0, limits=(0.0, 2.0), mark=0.5),
        share_bar([("kept", 1), (hostile, 2)]),
    ]
    for svg in charts:
        ElementTree.fromstring(str(svg))
        assert "<script" not in svg


def test_share_bar_fills_its_width_in_proportion():
    root = ElementTree.fromstring(str(share_bar([("kept", 1), ("dropped", 3)])))
    assert [float(r.get("width")) for r in root.iter("rect")] == [40.0, 120.0]
    assert share_bar([("kept", 0)]) == ""
