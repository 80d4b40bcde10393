"""Patches of bytes as figures: entropies with patch bars, rules side by side, lengths, and what they cost.

The section of a report is made of what a method notes: events `patches` (an arm's lengths, domains and drift), `sweep`
(one model at several thresholds) and `patched_text` (one text by several rules). A run without such events has no such
section. Events are read leniently, and texts are untrusted: the template escapes them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from markupsafe import Markup

from selftaught.report import charts
from selftaught.report.charts import COLOURS, Line, tag
from selftaught.report.figures import is_number, plain
from selftaught.report.reading import Event, Point, Run
from selftaught.text.patched import Glyph, PatchedText, glyphs, visible

LONGEST = 24
"""Longer patches are drawn with those of this many bytes."""
PER_ROW = 48
COLUMN, MARGIN, PLOT, BAR, GAP, HEAD = 17, 42, 64, 6, 20, 24
LETTER = 6.4
"""Width of a letter of an escape, in user units; of `\\n` and the like two fit into a column."""
MEGA = 1e6


def patch_section(run: Run, colours: Mapping[str, int]) -> dict[str, Any] | None:
    """Return the section's charts and texts, None for a run that notes no patches. `colours` are the arms'."""
    noted, swept = _by_arm(run, "patches"), _by_arm(run, "sweep")
    drawn = [
        *(_trade_offs(run, swept, colours) if noted or swept else ()),
        *_lengths(noted, colours),
        *_domains(noted, colours),
        *_drift(noted, colours),
    ]
    texts = [drawing(text) for event in _by_arm(run, "patched_text").values() if (text := _text_of(event))]
    return {"charts": drawn, "texts": texts} if drawn or texts else None


def drawing(text: PatchedText) -> dict[str, Any]:
    """Return what a template shows of a text: the chart of its entropies, and its patches by each rule."""
    schemes = [
        {"name": name, "patches": [visible(patch) for patch in text.patches(name)], "mean": mean_length(text, name)}
        for name in text.schemes
    ]
    return {"chart": entropy_chart(text), "schemes": schemes}


def mean_length(text: PatchedText, scheme: str) -> str:
    """Return the mean length of a scheme's patches in words."""
    patches = len(text.schemes[scheme])
    return f"{plain(round(len(text.items) / patches, 2))} bytes per patch" if patches else "no patch"


def entropy_chart(text: PatchedText, under: Iterable[Markup] = (), **attributes: str) -> Markup:
    """Return the entropy of each byte over its character, with the threshold, and the patches of the first scheme.

    A character stands below all of its bytes; bars below show the patches, each in another shade than the one before
    it. Bytes whose entropy is over the threshold are coloured: by the rule "entropy" each begins a patch. Without
    entropies the chart is empty. `under` is drawn first, `attributes` are those of the drawing.
    """
    if not text.items or not text.entropies:
        return Markup("")
    scheme = next(iter(text.schemes))
    top = max(*text.entropies, text.threshold or 0.0) * 1.05 or 1.0
    parts: list[Markup] = []
    down = float(HEAD)
    for row in _rows(glyphs(text.items)):
        labels = max((_depth(glyph) for glyph in row), default=0.0)
        parts += _entropies(text, row, top, down)
        parts += [_label(glyph, row[0].start, down + PLOT) for glyph in row]
        parts += _bars(text.schemes[scheme], row, down + PLOT + labels + 4)
        down += PLOT + labels + 4 + BAR + GAP
    limit = "" if text.threshold is None else f", threshold {plain(text.threshold)}"
    title = f"Entropy of each byte in nats{limit}; bars: patches by {scheme}, {mean_length(text, scheme)}"
    heading = tag("text", title, class_="name", x=MARGIN, y=14)
    width = MARGIN + PER_ROW * COLUMN + 8
    return charts.svg(title, [*under, heading, *parts], width, down - GAP + 8, **attributes)


def _rows(shown: Sequence[Glyph]) -> Iterator[list[Glyph]]:
    """Yield what fits into each row; no character is broken."""
    row: list[Glyph] = []
    for glyph in shown:
        if row and glyph.start + glyph.size - row[0].start > PER_ROW:
            yield row
            row = []
        row.append(glyph)
    yield row


def _entropies(text: PatchedText, row: Sequence[Glyph], top: float, down: float) -> Iterator[Markup]:
    """Yield a row's axis, a bar for each byte and the threshold; its plot begins `down` user units below the top."""
    first, last = row[0].start, row[-1].start + row[-1].size
    floor, end = down + PLOT, MARGIN + COLUMN * (last - first)
    for value in charts.ticks(0.0, top, most=3):
        y = floor - PLOT * value / top
        yield tag("line", class_="grid", x1=MARGIN, x2=end, y1=y, y2=y)
        yield tag("text", f"{value:g}", class_="tick", x=MARGIN - 8, y=y + 4, text_anchor="end")
    for i in range(first, last):
        height = PLOT * text.entropies[i] / top
        over = text.threshold is not None and text.entropies[i] > text.threshold
        mark = tag("title", f"byte {i}: {plain(text.entropies[i])} nats")
        x = MARGIN + COLUMN * (i - first) + 3
        yield tag(
            "rect",
            mark,
            class_="entropy over" if over else "entropy",
            x=x,
            y=floor - height,
            width=COLUMN - 6,
            height=height,
        )
    if text.threshold is not None:
        y = floor - PLOT * text.threshold / top
        yield tag("line", class_="reference", x1=MARGIN, x2=end, y1=y, y2=y)


def _label(glyph: Glyph, first: int, floor: float) -> Markup:
    """Return what stands below the bytes of a glyph: escapes that are longer than a column are turned upright."""
    x = MARGIN + COLUMN * (glyph.start - first + glyph.size / 2)
    if glyph.literal:
        shown = "◌" * glyph.is_mark + glyph.text.replace(" ", "·")
        return tag(
            "text", shown, class_="tick" if glyph.text == " " else "name", x=x, y=floor + 14, text_anchor="middle"
        )
    if not _is_upright(glyph):
        return tag("text", glyph.text, class_="byte", x=x, y=floor + 13, text_anchor="middle")
    turned = f"rotate(-90 {x + 3:g} {floor + 4:g})"
    return tag("text", glyph.text, class_="byte", x=x + 3, y=floor + 4, text_anchor="end", transform=turned)


def _is_upright(glyph: Glyph) -> bool:
    return not glyph.literal and len(glyph.text) * LETTER > COLUMN


def _depth(glyph: Glyph) -> float:
    return len(glyph.text) * LETTER + 4 if _is_upright(glyph) else 17.0


def _bars(lengths: Sequence[int], row: Sequence[Glyph], y: float) -> Iterator[Markup]:
    """Yield the bars of the patches of a row; one that goes on in the next row ends with this one."""
    first, last = row[0].start, row[-1].start + row[-1].size
    for number, (end, length) in enumerate(zip(accumulate(lengths), lengths, strict=True)):
        begin = end - length
        if end <= first or begin >= last:
            continue
        left = MARGIN + COLUMN * (max(begin, first) - first) + (1 if begin >= first else 0)
        right = MARGIN + COLUMN * (min(end, last) - first) - (1 if end <= last else 0)
        mark = tag("title", f"patch {number}: {length} bytes")
        yield tag("rect", mark, class_=f"patch p{number % 2}", x=left, y=y, width=right - left, height=BAR)


def _trade_offs(run: Run, swept: Mapping[str, Event], colours: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yield bits per byte against FLOPs per byte: arms as points, a sweep of thresholds as a line."""
    lines = []
    for arm, cells in run.arms.items():
        if point := _trade({name: cell.get("mean") for name, cell in cells.items()}):
            error = cells["bits_per_byte"].get("stderr")
            point = replace(point, stderr=error if is_number(error) else None)
            lines.append(Line(label=arm, points=[point], colour=_colour(arm, colours)))
    for arm, event in swept.items():
        rows = event.get("points")
        rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        curve = sorted((point for row in rows if (point := _trade(row))), key=lambda point: point.x)
        lines.append(Line(label=f"{arm}, by threshold", points=curve, colour=_colour(arm, colours), dash=1))
    name = "Bits per byte against FLOPs per byte"
    if chart := charts.line_chart(name, lines, x_label="forward MFLOPs per byte (dashed: one model by threshold)"):
        yield {"name": name, "chart": chart}


def _trade(row: Mapping[str, Any]) -> Point | None:
    flops, bits = row.get("flops_per_byte"), row.get("bits_per_byte")
    return Point(x=flops / MEGA, y=bits) if is_number(flops) and is_number(bits) else None


def _lengths(noted: Mapping[str, Event], colours: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    lines = []
    for arm, event in noted.items():
        counts: dict[int, float] = {}
        for length, count in _numbers(event.get("lengths")).items():
            pooled = min(int(length), LONGEST)
            counts[pooled] = counts.get(pooled, 0.0) + count
        if (total := sum(counts.values())) and is_number(total):
            points = [Point(x=x, y=100 * counts.get(x, 0.0) / total) for x in range(1, max(counts) + 1)]
            lines.append(Line(label=arm, points=points, colour=_colour(arm, colours)))
    name = "Patches by their length (%)"
    if chart := charts.line_chart(name, lines, x_label=f"bytes ({LONGEST}: {LONGEST} or more)"):
        yield {"name": name, "chart": chart}


def _domains(noted: Mapping[str, Event], colours: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    for arm, event in noted.items():
        means = event.get("domains")
        rows = [
            (str(domain) or "no domain", float(mean), None, _colour(arm, colours))
            for domain, mean in (means.items() if isinstance(means, Mapping) else ())
            if is_number(mean)
        ]
        name = f"Mean patch length by domain, {arm}"
        if chart := charts.dot_chart(name, rows, "bytes per patch"):
            yield {"name": name, "chart": chart}


def _drift(noted: Mapping[str, Event], colours: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    places = {arm: _numbers(event.get("drift")) for arm, event in noted.items()}
    lines = [
        Line(label=arm, points=[Point(x=x, y=y) for x, y in means.items()], colour=_colour(arm, colours))
        for arm, means in places.items()
        if means
    ]
    name = "Mean patch length along a window"
    if chart := charts.line_chart(name, lines, x_label="byte of the window"):
        yield {"name": name, "chart": chart}


def _colour(arm: str, colours: Mapping[str, int]) -> int:
    return colours.get(arm, COLOURS - 1)


def _by_arm(run: Run, kind: str) -> Mapping[str, Event]:
    """Return arm -> its events of this kind, in one: of what several say, the last counts."""
    found: dict[str, dict[str, Any]] = {}
    for event in run.events:
        if event.get("event") == kind:
            found.setdefault(str(event.get("arm") or ""), {}).update(event)
    return found


def _numbers(value: Any) -> dict[float, float]:
    """Return the pairs of a mapping that are numbers, in the order of their keys."""
    pairs = value.items() if isinstance(value, Mapping) else ()
    found = {float(k): float(v) for k, v in pairs if is_number(v) and str(k).isdecimal()}
    return {k: found[k] for k in sorted(found) if is_number(k)}


def _text_of(event: Event) -> PatchedText | None:
    """Return the text of an event, None where its parts do not fit together."""
    items, entropies, schemes = event.get("items"), event.get("entropies"), event.get("schemes")
    if not isinstance(items, list) or not isinstance(schemes, Mapping) or not schemes:
        return None
    sound = all(isinstance(item, str) or (isinstance(item, int) and 0 <= item < 256) for item in items)
    whole = all(_are_lengths(lengths, len(items)) for lengths in schemes.values())
    known = isinstance(entropies, list) and all(map(is_number, entropies)) and len(entropies) in (0, len(items))
    if not (sound and whole and known):
        return None
    threshold = event.get("threshold")
    return PatchedText(
        items=items, entropies=entropies or (), threshold=threshold if is_number(threshold) else None, schemes=schemes
    )


def _are_lengths(lengths: Any, total: int) -> bool:
    return (
        isinstance(lengths, list)
        and all(isinstance(length, int) and length > 0 for length in lengths)
        and sum(lengths) == total
    )
