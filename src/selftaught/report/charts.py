"""Charts as inline SVG. Colours come from the page's style sheet through classes, so that both themes are served."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from selftaught.report.figures import plain
from selftaught.report.reading import Point

COLOURS = 8
WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40
MOST_POINTS = 240
MOST_DOTS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve. `colour` picks one of the page's series colours, `dash` one of four dash patterns."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    dash: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The data ranges of a chart and where they fall on it."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, x: float) -> float:
        """Return the horizontal position of `x` in user units."""
        return LEFT + (WIDTH - LEFT - RIGHT) * _fraction(x, self.x)

    def down(self, y: float) -> float:
        """Return the vertical position of `y` in user units."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _fraction(y, self.y)


def line_chart(
    title: str, lines: Sequence[Line], *, x_label: str, reference: tuple[str, float] | None = None
) -> Markup:
    """Return curves over a common x axis, with standard errors where points have them.

    `reference` is a labelled horizontal line, for example the seed model's value. Without any point the chart is empty.
    """
    points = [p for line in lines for p in line.points]
    if not points:
        return Markup("")
    heights = [p.y + sign * (p.stderr or 0.0) for p in points for sign in (-1, 1)]
    heights += [reference[1]] if reference else []
    few = max(len(line.points) for line in lines) <= MOST_DOTS
    frame = Frame(x=_padded([p.x for p in points], 0.08 if few else 0.02), y=_padded(heights, 0.08))
    whole = all(p.x == int(p.x) for p in points)
    parts = [*_axes(frame, x_label, whole_x=whole)]
    if reference:
        y = frame.down(reference[1])
        mark = tag("title", f"{reference[0]}: {plain(reference[1])}")
        parts.append(tag("line", mark, class_="reference", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
    for index, line in enumerate(lines):
        # dots of several arms at one round would hide each other's error bars
        shift = 5 * (index - (len(lines) - 1) / 2) if few and whole else 0.0
        parts.extend(_curve(frame, line, shift, dots=few))
    return svg(title, parts, WIDTH, HEIGHT)


def interval_bar(
    title: str, low: float, mean: float, high: float, *, limits: tuple[float, float], mark: float
) -> Markup:
    """Return a mean with its interval on a small axis of `limits`, with a dotted `mark`: one row of a forest plot."""
    width, height = 220, 28

    def across(value: float) -> float:
        return 8 + (width - 16) * _fraction(value, limits)

    parts = [
        tag("line", class_="mark", x1=across(mark), x2=across(mark), y1=2, y2=height - 2),
        tag("line", class_="whisker", x1=across(low), x2=across(high), y1=height / 2, y2=height / 2),
        *(tag("line", class_="whisker", x1=across(v), x2=across(v), y1=9, y2=height - 9) for v in (low, high)),
        tag("circle", class_="mean", cx=across(mean), cy=height / 2, r=4.5),
    ]
    return svg(title, parts, width, height)


def dot_chart(title: str, rows: Sequence[tuple[str, float, float | None, int]], x_label: str) -> Markup:
    """Return one dot per row (label, mean, standard error, colour) with a whisker of one standard error each way."""
    if not rows:
        return Markup("")
    left, step = 132, 30
    height = TOP + step * len(rows) + BOTTOM
    ends = [mean + sign * (error or 0.0) for _, mean, error, _ in rows for sign in (-1, 1)]
    limits = _padded(ends, 0.06)

    def across(value: float) -> float:
        return left + (WIDTH - left - RIGHT) * _fraction(value, limits)

    parts = []
    for value in ticks(*limits, most=6):
        x = across(value)
        parts.append(tag("line", class_="grid", x1=x, x2=x, y1=TOP, y2=height - BOTTOM))
        parts.append(tag("text", _short(value), class_="tick", x=x, y=height - BOTTOM + 16, text_anchor="middle"))
    parts.append(tag("text", x_label, class_="label", x=(left + WIDTH - RIGHT) / 2, y=height - 5, text_anchor="middle"))
    for index, (label, mean, error, colour) in enumerate(rows):
        y = TOP + step * (index + 0.5)
        parts.append(tag("text", _clipped(label, 19), class_="name", x=left - 10, y=y + 4, text_anchor="end"))
        if error:
            ends_x = across(mean - error), across(mean + error)
            parts.append(tag("line", class_=f"error s{colour % COLOURS}", x1=ends_x[0], x2=ends_x[1], y1=y, y2=y))
        mark = tag("title", f"{label}: {plain(mean)}" + (f" ± {plain(error)}" if error else ""))
        parts.append(tag("circle", mark, class_=f"dot s{colour % COLOURS}", cx=across(mean), cy=y, r=5))
    return svg(title, parts, WIDTH, height)


def share_bar(shares: Sequence[tuple[str, float]]) -> Markup:
    """Return counts as one stacked bar; the first is drawn in the colour of what was kept."""
    total = sum(count for _, count in shares)
    if total <= 0:
        return Markup("")
    width, height, at, parts = 160, 10, 0.0, []
    for index, (label, count) in enumerate(shares):
        length = width * count / total
        mark = tag("title", f"{label}: {plain(count)}")
        name = "kept" if index == 0 else f"dropped d{(index - 1) % 4}"
        parts.append(tag("rect", mark, class_=name, x=at, y=0, width=length, height=height))
        at += length
    return svg(", ".join(f"{label} {plain(count)}" for label, count in shares), parts, width, height)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round values (1, 2 or 5 times a power of ten apart) within [low, high], at most `most` of them."""
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-12) / most))
    for factor in (1, 2, 5, 10, 20):
        first, last = math.ceil(low / (step * factor) - 1e-9), math.floor(high / (step * factor) + 1e-9)
        if last - first + 1 <= most:
            return [round(i * step * factor, 12) for i in range(first, last + 1)]
    return [low, high]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` points at even distances, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _axes(frame: Frame, x_label: str, *, whole_x: bool) -> Iterator[Markup]:
    for value in ticks(*frame.y, most=6):
        y = frame.down(value)
        yield tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)
        yield tag("text", _short(value), class_="tick", x=LEFT - 8, y=y + 4, text_anchor="end")
    for value in ticks(*frame.x, most=7):
        if whole_x and value != int(value):
            continue
        x = frame.across(value)
        yield tag("line", class_="axis", x1=x, x2=x, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4)
        yield tag("text", _short(value), class_="tick", x=x, y=HEIGHT - BOTTOM + 17, text_anchor="middle")
    base = HEIGHT - BOTTOM
    yield tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base)
    yield tag("text", x_label, class_="label", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, text_anchor="middle")


def _curve(frame: Frame, line: Line, shift: float, *, dots: bool) -> Iterator[Markup]:
    points = thinned(line.points)
    style = f"series s{line.colour % COLOURS} dash{line.dash % 4}"
    places = [(frame.across(p.x) + shift, frame.down(p.y)) for p in points]
    if len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield tag("polyline", tag("title", line.label), class_=style, points=path)
    if not dots:
        return
    for point, (x, y) in zip(points, places, strict=True):
        if point.stderr:
            ends = frame.down(point.y - point.stderr), frame.down(point.y + point.stderr)
            yield tag("line", class_=f"error s{line.colour % COLOURS}", x1=x, x2=x, y1=ends[0], y2=ends[1])
        error = f" ± {plain(point.stderr)}" if point.stderr else ""
        mark = tag("title", f"{line.label} at {plain(point.x)}: {plain(point.y)}{error}")
        yield tag("circle", mark, class_=f"dot s{line.colour % COLOURS}", cx=x, cy=y, r=3.6)


def _padded(values: Iterable[float], share: float) -> tuple[float, float]:
    low, high = min(values := list(values)), max(values)
    margin = (high - low) * share or abs(high) * 0.1 or 0.5
    return low - margin, high + margin


def _fraction(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return (value - low) / (high - low) if high > low else 0.5


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def svg(title: str, parts: Iterable[Markup], width: float, height: float, **attributes: str) -> Markup:
    """Return a drawing of `parts` in user units, scaled to the width that the page gives it."""
    inside = Markup("").join([tag("title", title), *parts])
    return tag("svg", inside, viewBox=f"0 0 {width} {height}", role="img", aria_label=title, **attributes)


def tag(name: str, content: str = "", **attributes: object) -> Markup:
    """Return one element; content and attribute values are escaped unless they are Markup."""
    pairs = []
    for key, value in attributes.items():
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
        pairs.append(f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    return Markup(f"<{name}{''.join(pairs)}>{escape(content)}</{name}>")
