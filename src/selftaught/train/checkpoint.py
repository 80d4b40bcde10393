"""Checkpoints that are whole or absent, and the exact state of a training run in them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from selftaught.errors import InputError
from selftaught.store.files import explained, sync_directory


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a directory beside `path` to fill; on success it takes the place of `path` in one step.

    Whatever instant the process is killed at, `path` is either absent or complete.

    Raises:
        InputError: the disk is full or the directory cannot be written.
    """
    aside = path.with_name(f".{path.name}.part")
    with explained(path.parent):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            yield aside
        except SafetensorError as error:
            raise InputError(f"cannot write {path}: {error}; free some space, or choose another directory") from None
        for entry in (*aside.rglob("*"), aside):
            sync_directory(entry)
        aside.rename(path)
        sync_directory(path.parent)


def save_checkpoint(root: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` as `root/step-XXXXXX` and drop earlier checkpoints once it is whole."""
    target = root / f"step-{step:06d}"
    with whole_directory(target) as aside, (aside / "state.pt").open("wb") as file:
        torch.save(state, file)
    for other in _complete(root):
        if other != target:
            shutil.rmtree(other)


def load_checkpoint(root: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the newest checkpoint's state, None where there is none.

    Raises:
        InputError: it belongs to another job (other data, settings, objective, seed or number of processes).
    """
    found = _complete(root)
    if not found:
        return None
    state = torch.load(found[-1] / "state.pt", map_location="cpu", weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise InputError(
            f"{found[-1]} was written by a training with other data, settings or number of processes: "
            "choose another output directory, or delete it to start again"
        )
    return state


def _complete(root: Path) -> list[Path]:
    return sorted(root.glob("step-*"))
