"""What an adaptive head chose, as figures of a report: curves, shares, histograms, and answers token by token.

Made of what `methods.adaptive_decoding` notes; a run without such notes has no such section. Tokens are text of a
model: the page's template escapes them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selftaught.errors import SelftaughtError
from selftaught.report import charts
from selftaught.report.charts import COLOURS, Line
from selftaught.report.figures import is_number, plain
from selftaught.report.reading import Event, Point, Run
from selftaught.store.stage import open_stage

HEATS = 10
MOST_ANSWERS = 12
_LEVELS = {"sequence": "seq_", "token": "tok_"}
_OF_AN_EVENT = ("event", "arm", "round", "ts")


def temperature_section(run: Run) -> dict[str, Any] | None:
    """Return the section's charts and answers, None for a run that has none of them."""
    drawn = [*_reward_curves(run), *_shares(run), *_histograms(run), *_place_curves(run)]
    heat, notes = _answers(run)
    return {"charts": drawn, "heat": heat, "notes": notes, "heats": range(HEATS)} if drawn or heat else None


def _reward_curves(run: Run) -> Iterator[dict[str, Any]]:
    """Yield, for each level and kind of prompt, the reward of every fixed choice with the heads' on top."""
    for event in run.events:
        kind_of_event, level, kind = (*str(event.get("event")).split("_", 2), "", "")[:3]
        if kind_of_event != "fixed" or level not in _LEVELS:
            continue
        means = _values(event)
        places = _places(means)
        lines = [Line(label="fixed", points=[Point(x=places[n], y=y) for n, y in means.items()], colour=COLOURS - 1)]
        for index, (arm, shares) in enumerate(_last(run, f"chosen_{kind}").items()):
            reward = _reward(run, arm, kind)
            if arm.startswith(_LEVELS[level]) and reward is not None and shares.keys() <= places.keys():
                x = sum(places[n] * share for n, share in shares.items())
                lines.append(Line(label=arm, points=[Point(x=x, y=reward)], colour=index % (COLOURS - 1)))
        name = f"Reward against temperature, {level} level, {kind}"
        yield {"name": name, "chart": charts.line_chart(name, lines, x_label="temperature (a head: its mean)")}


def _reward(run: Run, arm: str, kind: str) -> float | None:
    cells = run.arms.get(arm, {})
    mean = (cells.get(f"reward/{kind}") or cells.get("reward") or {}).get("mean")
    return float(mean) if is_number(mean) else None


def _shares(run: Run) -> Iterator[dict[str, Any]]:
    """Yield for each arm how often each choice was made, for every kind of prompt."""
    kinds = dict.fromkeys(
        str(e["event"]).removeprefix("chosen_") for e in run.events if str(e.get("event")).startswith("chosen_")
    )
    lines: dict[str, list[Line]] = {}
    for colour, kind in enumerate(kinds):
        for arm, shares in _last(run, f"chosen_{kind}").items():
            lines.setdefault(arm, []).append(_line(kind, shares, colour))
    for arm, curves in lines.items():
        name = f"Choices of {arm}: {', '.join(line.label for line in curves)}"
        yield {"name": name, "chart": charts.line_chart(name, curves, x_label="temperature")}


def _histograms(run: Run) -> Iterator[dict[str, Any]]:
    """Yield for the first arm of each level how often each choice was in chosen and in rejected answers, round 1."""
    for prefix in _LEVELS.values():
        found = (e for e in run.events if e.get("event") == "pairs" and str(e.get("arm")).startswith(prefix))
        event = next(found, None)
        if event is None:
            continue
        sides: dict[str, dict[str, float]] = {}
        for name, count in _values(event).items():
            side, _, choice = name.partition(" ")
            sides.setdefault(side, {})[choice] = count
        lines = [_line(side, counts, colour) for colour, (side, counts) in enumerate(sides.items())]
        name = f"Choices in {' and '.join(sides)} answers, {event.get('arm')}, round {event.get('round')}"
        yield {"name": name, "chart": charts.line_chart(name, lines, x_label="temperature")}


def _place_curves(run: Run) -> Iterator[dict[str, Any]]:
    lines = [_line(arm, means, colour) for colour, (arm, means) in enumerate(_last(run, "places").items())]
    if lines:
        name = "Mean temperature by place in the sentence"
        yield {"name": name, "chart": charts.line_chart(name, lines, x_label="token of the sentence, from 0")}


def _answers(run: Run) -> tuple[list[dict[str, Any]], list[str]]:
    """Return answers with the heat of each token, 0 to `HEATS` - 1, of every arm's last round, and what is unreadable.

    Heat is the share of the highest temperature among the answers shown.
    """
    last = {stage.arm: stage for stage in run.stages if stage.verb == "heat"}
    rows, notes = [], []
    for arm, stage in last.items():
        try:
            rows += [(arm, row.meta) for row in open_stage(run.path / "stages" / stage.name)]
        except (SelftaughtError, OSError) as error:
            notes.append(f"The answers of {stage.label} could not be read: {error}")
    shown = [row for i in range(MOST_ANSWERS) for arm in last for row in [r for r in rows if r[0] == arm][i : i + 1]]
    shown = shown[:MOST_ANSWERS]
    hottest = max((t for _, meta in shown for t in meta["temperatures"]), default=0.0) or 1.0
    return [
        {
            "arm": arm,
            "kind": meta["kind"],
            "prompt": meta["prompt"],
            "tokens": [
                (token, min(HEATS - 1, int(HEATS * t / hottest)), plain(t))
                for token, t in zip(meta["tokens"], meta["temperatures"], strict=True)
            ],
        }
        for arm, meta in shown
    ], notes


def _last(run: Run, kind: str) -> dict[str, dict[str, float]]:
    """Return arm -> the values of its last event of this kind."""
    return {str(e.get("arm")): _values(e) for e in run.events if e.get("event") == kind}


def _values(event: Event) -> dict[str, float]:
    return {k: float(v) for k, v in event.items() if k not in _OF_AN_EVENT and is_number(v)}


def _line(label: str, values: Mapping[str, float], colour: int) -> Line:
    places = _places(values)
    return Line(label=label, points=[Point(x=places[n], y=y) for n, y in values.items()], colour=colour % COLOURS)


def _places(names: Mapping[str, float] | Sequence[str]) -> dict[str, float]:
    """Return where choices are drawn: at their temperature, or in their order where they are more than that."""
    try:
        return {name: float(name) for name in names}
    except ValueError:
        return {name: float(i) for i, name in enumerate(names)}
