import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from tests.train import samples

ROOT = Path(__file__).parents[2]


def test_a_run_killed_at_any_instant_ends_in_the_same_weights(tmp_path):
    samples.save_model(tmp_path / "model")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(Path(__file__).parent / "killed.py"), str(tmp_path / "model"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert sum(not r["survived"] for r in report.values()) >= 8
    for name, facts in report.items():
        assert facts["finished"], name
        whole = tmp_path / name.partition("/")[0] / "whole"
        expected, found = samples.weights(whole / "model"), samples.weights(tmp_path / name / "model")
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
        assert samples.metrics(tmp_path / name) == samples.metrics(whole), name
