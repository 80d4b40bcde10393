"""How measured figures are written: the same in the console, in the HTML report and in the Markdown tables."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

SHARES = ("accuracy", "share", "rate", "agreement", "ordering", "validity")


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether `value` is a finite number that can be drawn (a bool is not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_share(metric: str) -> bool:
    """Tell whether `metric` lies in [0, 1] and is written in percent, judged by its name."""
    return any(word in metric for word in SHARES)


def heading(metric: str) -> str:
    """Return a metric's column heading, with its unit where it is written in percent."""
    name = metric.removeprefix("train/").replace("_", " ")
    unit = " (%)" if is_share(metric) else ""
    return f"{name}{unit}, training samples" if metric.startswith("train/") else f"{name}{unit}"


def scaled(metric: str, value: float) -> float:
    """Return `value` in the unit that `heading` announces."""
    return 100 * value if is_share(metric) else value


def figure(metric: str, value: Any) -> str:
    """Return `value` as text in the unit of `heading`: one decimal for shares, three digits for the rest."""
    if not is_number(value):
        return "n/a"
    if is_share(metric):
        return f"{100 * value:.1f}"
    return plain(value)


def signed(metric: str, value: Any) -> str:
    """Return a difference as text, its sign always written."""
    if not is_number(value):
        return "n/a"
    return f"{100 * value:+.1f}" if is_share(metric) else f"{value:+.3g}"


def plain(value: float) -> str:
    """Return a number of any size in at most about six characters; whole numbers are never rounded."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_error(metric: str, cell: Mapping[str, Any] | None) -> str:
    """Return "mean ± standard error" of one cell of a summary, "" for a cell that was not measured."""
    if not cell:
        return ""
    text = figure(metric, cell.get("mean"))
    error = cell.get("stderr")
    return f"{text} ± {figure(metric, error)}" if is_number(error) else text


def estimate(claim: Mapping[str, Any]) -> str:
    """Return a claim's difference or value in its metric's unit, or its share of another arm's gain in percent."""
    return _estimated(claim, evidence(claim))


def evidence(claim: Mapping[str, Any]) -> Any:
    """Return the number a claim rests on: a share of a gain, a difference, or a metric's value."""
    return next((claim[kind] for kind in ("ratio", "difference", "value") if kind in claim), None)


def interval(claim: Mapping[str, Any]) -> str:
    """Return a claim's 95% interval as text in the unit of `estimate`, "" where there is none."""
    ends = claim.get("ci95")
    if not isinstance(ends, (list, tuple)) or len(ends) != 2:
        return ""
    return f"[{_estimated(claim, ends[0])}, {_estimated(claim, ends[1])}]"


def _estimated(claim: Mapping[str, Any], value: Any) -> str:
    if "ratio" in claim:
        return f"{100 * value:.0f}%" if is_number(value) else "n/a"
    return (figure if "value" in claim else signed)(str(claim.get("metric", "")), value)


def verdict(claim: Mapping[str, Any]) -> str:
    """Return "holds", "does not hold" or "undecided" (an interval over problems of one seed decides nothing)."""
    return {True: "holds", False: "does not hold"}.get(claim.get("holds"), "undecided")  # type: ignore[arg-type]


def duration(seconds: Any) -> str:
    """Return a time in seconds as text, to the second from one minute up."""
    if not is_number(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def metrics_of(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return every metric of any arm, in the order of first appearance."""
    return list(dict.fromkeys(metric for cells in arms.values() for metric in cells))
