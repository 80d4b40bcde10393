"""Settings of the whole suite, and the small runs that several files look at."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: tiny models are fastest on one thread, and bit-equal only at one count of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

# No deadline: the suite runs on machines that are busy with other work. Derandomised: a run can be repeated.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the suite away from the user's cache: a seed model is trained once per session, in a place of its own."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFTAUGHT_CACHE", str(directory))
        yield directory


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Return the directory of a finished run of the smallest configuration, with arms `lmsi` and `scpo`, seed 0."""
    from tests import tiny

    from selftaught import methods
    from selftaught.runs import run_method

    out = tmp_path_factory.mktemp("tiny") / "run"
    run_method(methods.get("scpo"), tiny.config(arms=("lmsi", "scpo")), out, seed=0, recipe="smoke")
    return out


@pytest.fixture(scope="session")
def seed_model(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Return a directory that `from_pretrained` opens: the seed model of `tiny_run`."""
    from tests import tiny

    with tiny.open_lab(tmp_path_factory.mktemp("seed")) as lab:
        return Path(lab.seed_model(tiny.TASK, tiny.SEED_MODEL).source)
