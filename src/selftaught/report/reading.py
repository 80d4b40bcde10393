"""What a run directory says of itself, read leniently: a run killed half-way must still give a report."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from selftaught.errors import InputError
from selftaught.report.figures import is_number
from selftaught.store.run import RunDirectory

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of a curve, with its standard error where it is known."""

    x: float
    y: float
    stderr: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLine:
    """A stage as the run reported it. `seconds` is the time it took when it was computed, not when it was reused."""

    arm: str
    round: int | None
    verb: str
    name: str
    rows: int | None
    seconds: float | None
    cached: bool
    counts: Mapping[str, float]
    inputs: tuple[str, ...]
    groups: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The arm and round, for people."""
        return _label(self.arm or "shared", self.round)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Named values by arm and round."""

    rows: tuple[tuple[str, Mapping[str, float]], ...]

    @property
    def names(self) -> list[str]:
        """All names, in the order of first appearance."""
        return list(dict.fromkeys(name for _, values in self.rows for name in values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run directory: its summary (None while the run has not finished), its configuration and its events."""

    path: Path
    summary: Mapping[str, Any] | None
    config: str
    events: tuple[Event, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def title(self) -> str:
        """The method and its recipe, or the directory's name where neither is known."""
        said = self.summary or _mapping(self.config)
        return " · ".join(str(said[key]) for key in ("method", "recipe") if said.get(key)) or self.path.resolve().name

    @property
    def arms(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Arm -> metric -> {mean, stderr, n}: the summary's, or the last reports of an unfinished run."""
        if self.summary:
            return {arm: dict(cells) for arm, cells in self.summary.get("arms", {}).items()}
        arms: dict[str, dict[str, dict[str, Any]]] = {}
        for event in self._of_kind("report"):
            if "/" in str(event.get("name")):
                continue  # measured on training samples
            cell = {key: event.get(key) for key in ("mean", "stderr", "n")}
            arms.setdefault(_arm_name(event), {})[str(event.get("name"))] = cell
        return arms

    @property
    def stages(self) -> list[StageLine]:
        """The stages in the order in which they were first reported, each once."""
        lines: dict[tuple, StageLine] = {}
        for event in self._of_kind("stage"):
            line = _stage_line(event)
            key = (line.arm, line.round, line.verb, line.name)
            lines[key] = _merged(lines.get(key), line)
        names = {line.name.rpartition("-")[2]: line.name for line in lines.values()}
        return [replace(line, inputs=tuple(names.get(key, key) for key in line.inputs)) for line in lines.values()]

    @property
    def measurements(self) -> dict[str, Measurements]:
        """What a method measured on the way: a table for each kind of event other than stage, train and report."""
        tables: dict[str, dict[str, dict[str, float]]] = {}
        for event in self.events:
            kind = str(event.get("event"))
            if kind not in ("stage", "train", "report"):
                values = {k: v for k, v in event.items() if k != "round" and is_number(v)}
                if not values:
                    continue
                tables.setdefault(kind, {})[_label(_arm_name(event), event.get("round"))] = values
        return {kind: Measurements(rows=tuple(rows.items())) for kind, rows in tables.items()}

    def rounds(self, metric: str) -> dict[str, list[Point]]:
        """Return arm -> its curve of `metric`; x counts the rounds of training, 0 is the seed model."""
        curves: dict[str, dict[float, Point]] = {}
        for event in self._of_kind("report"):
            if event.get("name") == metric and is_number(event.get("mean")):
                x = float(event.get("round") or 0)
                stderr = event["stderr"] if is_number(event.get("stderr")) else None
                curves.setdefault(_arm_name(event), {})[x] = Point(x=x, y=event["mean"], stderr=stderr)
        for arm, rows in self._summary_rounds():
            for index, row in enumerate(rows, start=1):
                if is_number(row.get(metric)):
                    known = curves.setdefault(arm, {}).get(index)
                    same = known is not None and abs(known.y - row[metric]) < 1e-9
                    stderr = known.stderr if known and same else None
                    curves[arm][index] = Point(x=index, y=row[metric], stderr=stderr)
        return {arm: [points[x] for x in sorted(points)] for arm, points in curves.items()}

    def round_metrics(self) -> list[str]:
        """Return the metrics measured after a round, in the order of first appearance."""
        names = [str(e.get("name")) for e in self._of_kind("report")]
        names += [name for _, rows in self._summary_rounds() for row in rows for name in row]
        return list(dict.fromkeys(names))

    def training(self, metric: str) -> dict[tuple[str, int | None], list[Point]]:
        """Return (arm, round) -> its training curve of `metric` over optimizer steps."""
        curves: dict[tuple[str, int | None], dict[float, Point]] = {}
        for event in self._of_kind("train"):
            if is_number(event.get("step")) and is_number(event.get(metric)):
                key = (_arm_name(event), event.get("round"))
                # a resumed run reports some steps again: the last word counts
                curves.setdefault(key, {})[event["step"]] = Point(x=event["step"], y=event[metric])
        return {key: [points[x] for x in sorted(points)] for key, points in curves.items()}

    def _of_kind(self, kind: str) -> Iterator[Event]:
        return (event for event in self.events if event.get("event") == kind)

    def _summary_rounds(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        yield from (self.summary or {}).get("rounds", {}).items()


def read_run(run_dir: Path) -> Run:
    """Read a run directory. What is missing is left empty; what cannot be read is named in `notes`.

    Raises:
        InputError: the directory does not exist or holds nothing that a run writes.
    """
    names = ("summary.json", "config.yaml", "metrics.jsonl", "stages")
    if not any((run_dir / name).exists() for name in names):
        raise InputError(f"{run_dir} is not a run directory: it has none of {', '.join(names)}; give what --out named")
    notes: list[str] = []
    return Run(
        path=run_dir,
        summary=_read_summary(run_dir / "summary.json", notes),
        config=_read_text(run_dir / "config.yaml"),
        events=tuple(RunDirectory(run_dir).read_metrics()),
        notes=tuple(notes),
    )


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def _read_summary(path: Path, notes: list[str]) -> Mapping[str, Any] | None:
    text = _read_text(path)
    if not text:
        notes.append("No summary yet: the run is still going or stopped early. Figures are the latest so far.")
        return None
    try:
        summary = json.loads(text)
    except json.JSONDecodeError as error:
        notes.append(f"summary.json could not be read ({error}); figures are those of metrics.jsonl.")
        return None
    return summary if isinstance(summary, dict) else None


def _arm_name(event: Event) -> str:
    return str(event.get("arm") or "seed_model")


def _label(arm: str, number: int | None) -> str:
    return f"{arm}, round {number}" if number else arm


def _stage_line(event: Event) -> StageLine:
    counts = event.get("counts") or {}
    groups = event.get("groups")
    return StageLine(
        arm=str(event.get("arm") or ""),
        round=event.get("round"),
        verb=str(event.get("verb", "")),
        name=str(event.get("stage", "")),
        rows=event.get("rows"),
        seconds=event.get("seconds"),
        cached=bool(event.get("cached")),
        counts={str(k): v for k, v in counts.items() if is_number(v)},
        inputs=tuple(_input_names(event)),
        groups=groups if isinstance(groups, dict) and groups.get("prompts") else {},
    )


def _input_names(event: Event) -> Iterator[str]:
    """Yield the stages that a stage was made of; of groups, their tables."""
    groups = event.get("groups")
    if not isinstance(groups, dict):
        yield from map(str, event.get("inputs") or ())
        return
    for names in groups.values():
        yield from [names] if isinstance(names, str) else names


def _merged(earlier: StageLine | None, later: StageLine) -> StageLine:
    if earlier is None or not later.cached:
        return later
    return replace(
        later,
        seconds=earlier.seconds,
        cached=earlier.cached,
        counts=later.counts or earlier.counts,
        groups=later.groups or earlier.groups,
    )
