"""Runs jobs that kill themselves and resumes them: `python killed.py MODEL OUT`, one JSON line on standard output.

It forks for each run, so that imports are paid once. An event is the start of an update, or a rename, before or after.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tests.train import samples

from selftaught.specs import Lora, ModelSpec
from selftaught.train import loop
from selftaught.train.loop import TrainJob
from selftaught.train.update import Updater


def kill_at(event: int) -> None:
    """Make this process kill itself at its event number `event`, counted from 1."""
    count = 0

    def note() -> None:
        nonlocal count
        count += 1
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(original: Callable, after: bool) -> Callable:
        def run(*args, **kwargs):
            note()
            result = original(*args, **kwargs)
            if after:
                note()
            return result

        return run

    Updater.update = watched(Updater.update, after=False)
    Path.rename = watched(Path.rename, after=True)


def run(job: TrainJob, event: int | None) -> bool:
    """Run `job` in a fork, killed at `event`; return whether it ended by itself."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if event is not None:
                kill_at(event)
            loop.train(job)
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status == 0


def main() -> None:
    torch.set_num_threads(1)
    model, root = ModelSpec(source=sys.argv[1]), Path(sys.argv[2])
    dropout = samples.settings(lora=Lora(rank=2, dropout=0.5), precision="bf16", checkpoint_every=2, snapshots="epoch")
    report = {}
    for name, settings, events in (("full", samples.settings(), range(1, 25, 3)), ("adapter", dropout, (5, 9))):
        run(samples.job(model, root / name / "whole", settings=settings), None)
        for event in events:
            job = samples.job(model, root / name / f"killed-{event}", settings=settings)
            report[f"{name}/killed-{event}"] = {"survived": run(job, event), "finished": run(job, None)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
