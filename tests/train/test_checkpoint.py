import errno
import os

import pytest
import torch

from selftaught.errors import InputError
from selftaught.train.checkpoint import load_checkpoint, save_checkpoint, whole_directory


def test_the_newest_checkpoint_is_kept(tmp_path):
    assert load_checkpoint(tmp_path, "job") is None
    for step in (9, 10):
        save_checkpoint(tmp_path, step, {"fingerprint": "job", "step": step, "weights": [torch.ones(2) * step]})
    state = load_checkpoint(tmp_path, "job")
    assert state["step"] == 10
    assert state["weights"][0].tolist() == [10.0, 10.0]
    assert [p.name for p in tmp_path.iterdir()] == ["step-000010"]


def test_a_checkpoint_of_another_job_is_refused(tmp_path):
    save_checkpoint(tmp_path, 1, {"fingerprint": "job"})
    with pytest.raises(InputError, match="step-000001 was written by a training with other data, settings"):
        load_checkpoint(tmp_path, "another")


def test_an_unfinished_checkpoint_is_not_seen(tmp_path):
    class Killed(BaseException):
        pass

    with pytest.raises(Killed), whole_directory(tmp_path / "step-000001") as aside:
        (aside / "state.pt").write_bytes(b"half")
        raise Killed
    assert load_checkpoint(tmp_path, "job") is None
    with whole_directory(tmp_path / "step-000001") as aside:
        assert not list(aside.iterdir()), "what the killed writer left is gone"
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_a_full_disk_is_one_line_and_nothing_half_written(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left on device; free some space") as caught:
        save_checkpoint(tmp_path, 1, {"fingerprint": "job"})
    assert "\n" not in str(caught.value)
    assert load_checkpoint(tmp_path, "job") is None


def test_an_unwritable_directory_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file"):
        save_checkpoint(blocked, 1, {"fingerprint": "job"})
