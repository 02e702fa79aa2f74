"""Threads that wait for each other sleep soon, in every process the lab starts, unless the user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lab

ROOT = Path(__file__).resolve().parent.parent


def runtime_settings(code: str, **given: str) -> str:
    """What the OpenMP runtime says it has read, in a process that runs `code` with these settings alone."""
    env = {name: value for name, value in os.environ.items() if name not in lab.WAIT_SETTINGS}
    env |= {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT), **given}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        *("lab.train", "lab.launch.worker", "lab.export", "lab.replay", "lab.report.__main__", "lab.bench.contender"),
        "lab.suggest.__main__",
    ],
)
def test_the_runtime_that_torch_loads_has_read_a_short_wait(module):
    found = runtime_settings(f"import {module}; import torch; torch.ones(9) + 1")
    assert "GOMP_SPINCOUNT = '30000'" in found or "KMP_BLOCKTIME='0'" in found, found


@pytest.mark.parametrize("setting", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY"])
def test_a_setting_of_the_users_own_is_left_alone(setting):
    code = "import lab, os; print(sorted((name, os.environ[name]) for name in lab.WAIT_SETTINGS if name in os.environ))"
    env = {name: value for name, value in os.environ.items() if name not in lab.WAIT_SETTINGS}
    env |= {"PYTHONPATH": str(ROOT), setting: "7"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([(setting, "7")])


def test_the_tests_themselves_run_with_it():
    assert os.environ["GOMP_SPINCOUNT"]
