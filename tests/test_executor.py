import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import selftaught
from selftaught.errors import InputError, NothingToTrainOn, SelftaughtError, TrainingDiverged
from selftaught.executor import Inline, Torchrun, resolve
from selftaught.specs import Sampling

HERE = "tests.test_executor"


def note(out: Path, sampling: Sampling) -> None:
    """What a rank does here: say who it is."""
    print(f"rank {os.environ.get('RANK')} speaks")
    (out / f"rank-{os.environ.get('RANK', 'inline')}").write_text(f"{os.environ.get('WORLD_SIZE')} {sampling.k}")


def stumble(out: Path) -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("two\nlines")
    time.sleep(60)


def find_nothing(out: Path) -> None:
    if os.environ["RANK"] == "0":
        raise NothingToTrainOn("zero pairs; lower tau")
    time.sleep(60)


def be_killed(out: Path) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def dwell(out: Path) -> None:
    (out / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (out / f"told-{os.environ['RANK']}").write_text("")
        raise


def diverge(out: Path) -> None:
    raise TrainingDiverged("loss is nan")


def test_inline_calls_the_function(tmp_path: Path) -> None:
    Inline().run(f"{HERE}:note", {"out": tmp_path, "sampling": Sampling(k=3)}, tmp_path)
    assert (tmp_path / "rank-inline").read_text() == "None 3"
    with pytest.raises(TrainingDiverged, match="loss is nan"):
        Inline().run(f"{HERE}:diverge", {"out": tmp_path}, tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("json", "names no function; write it as 'module:function'"),
        (":dumps", "names no function"),
        ("no_such_module_here:f", "cannot be imported: No module named 'no_such_module_here'"),
        ("json:no_such", "module 'json' has no 'no_such'"),
        ("os:sep", "is a str, not a function"),
    ],
)
def test_names_that_are_no_functions(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve(name)


def test_every_rank_runs_and_rank_0_is_heard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Torchrun(processes=2).run(f"{HERE}:note", {"out": tmp_path, "sampling": Sampling(k=3)}, tmp_path)
    assert [(tmp_path / f"rank-{r}").read_text() for r in (0, 1)] == ["2 3", "2 3"]
    heard = capfd.readouterr().err
    assert "rank 0 speaks" in heard
    assert "rank 1 speaks" not in heard
    assert any("rank 1 speaks" in log.read_text() for log in tmp_path.rglob("stdout.log"))


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        ("stumble", SelftaughtError, r"rank 1: ValueError: two; see (.*stderr\.log)$"),
        ("find_nothing", NothingToTrainOn, r"^zero pairs; lower tau$"),
        ("be_killed", SelftaughtError, r"rank 1 was killed by signal 9 .*; see (.*\.log)$"),
    ],
)
def test_the_error_of_a_rank_is_raised_here(
    tmp_path: Path, function: str, kind: type[Exception], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind, match=words) as error:
        Torchrun(processes=2).run(f"{HERE}:{function}", {"out": tmp_path}, tmp_path)
    assert "\n" not in str(error.value)
    if "; see " in str(error.value):
        assert Path(str(error.value).rpartition("; see ")[2]).exists()


def test_what_cannot_cross_a_process_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="argument 'answer' cannot go to another process"):
        Torchrun(processes=2).run(f"{HERE}:note", {"out": tmp_path, "answer": lambda text: text}, tmp_path)


DRIVER = f"""
import signal
import sys
from pathlib import Path
from selftaught.executor import Torchrun
# Tests that run in the background ignore it, and so would their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
out = Path(sys.argv[1])
try:
    Torchrun(processes=2).run("{HERE}:dwell", {{"out": out}}, out)
except KeyboardInterrupt:
    print("interrupted")
"""


def start(out: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a driver with two ranks and return it with the ranks' process ids."""
    paths = (Path(selftaught.__file__).parents[1], Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(out)], env=environment, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(files := list(out.glob("pid-*"))) < 2 or not all(file.read_text() for file in files):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return driver, [int(file.read_text()) for file in files]


def gone(pids: list[int]) -> bool:
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            return False
    return True


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while not gone(pids):
        assert time.monotonic() < deadline, "a rank outlived its driver"
        time.sleep(0.05)


def test_ctrl_c_ends_the_ranks(tmp_path: Path) -> None:
    driver, ranks = start(tmp_path)
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=90)
    assert out == "interrupted\n"
    wait_until_gone(ranks)
    assert len(list(tmp_path.glob("told-*"))) == 2


def test_ranks_do_not_outlive_a_killed_driver(tmp_path: Path) -> None:
    """A run that is killed and resumed must not be written by two sets of processes."""
    driver, ranks = start(tmp_path)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    wait_until_gone(ranks)
