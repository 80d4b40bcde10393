"""Where metrics go: JSONL always; trackio, wandb or TensorBoard when installed and asked for."""

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selftaught.errors import InputError


class Metrics:
    """Metrics of a run: one line per update in `out/metrics.jsonl`, and the same to each tracker asked for.

    `start_bytes` cuts the file back to what a checkpoint had seen, so that a resumed run repeats no line.

    Raises:
        InputError: a tracker is unknown or not installed.
    """

    def __init__(self, out: Path, trackers: Sequence[str], start_bytes: int = 0):
        out.mkdir(parents=True, exist_ok=True)
        path = out / "metrics.jsonl"
        path.touch()
        self._file = path.open("r+b")
        self._file.truncate(start_bytes)
        self._file.seek(start_bytes)
        self._sinks = [_open_tracker(name, out) for name in trackers]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of update `step`."""
        self._file.write(json.dumps({"step": step, **values}).encode() + b"\n")
        self._file.flush()
        for write, _ in self._sinks:
            write(step, values)

    def sync(self) -> int:
        """Make sure that everything logged is on disk and return its size in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Flush and close everything."""
        self._file.close()
        for _, close in self._sinks:
            close()


Sink = tuple[Callable[[int, Mapping[str, float]], Any], Callable[[], Any]]


def _open_tracker(name: str, out: Path) -> Sink:
    if name not in _OPENERS:
        raise InputError(f"tracker {name!r} is unknown: choose from {', '.join(sorted(_OPENERS))}")
    try:
        return _OPENERS[name](out)
    except ModuleNotFoundError as error:
        raise InputError(
            f"tracker {name!r} needs package {error.name}: pip install 'selftaught[track]', or leave it out"
        ) from None


def _tensorboard(out: Path) -> Sink:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(out / "tensorboard"))

    def write(step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return write, writer.close


def _wandb(out: Path) -> Sink:
    run = importlib.import_module("wandb").init(project="selftaught", name=out.name, dir=str(out))
    return lambda step, values: run.log(dict(values), step=step), run.finish


def _trackio(out: Path) -> Sink:
    trackio = importlib.import_module("trackio")
    trackio.init(project="selftaught", name=out.name)
    return lambda step, values: trackio.log(dict(values), step=step), trackio.finish


_OPENERS: dict[str, Callable[[Path], Sink]] = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
