"""What the launcher presets submit, and how jobs beside each other share the GPUs."""

import os
import re
import socket
import stat
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lab.config import CONF, ConfigError
from lab.errors import UsageError
from lab.process import gpus, process_group
from lab.train import _jobs_at_once

GOLDEN = Path(__file__).parent / "golden"


def launcher_of(preset, sweep_dir, *overrides):
    """The launcher of a preset, set up as Hydra would, and the config it would start jobs from."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        loader = GlobalHydra.instance().config_loader()
        given = [f"hydra/launcher={preset}", f"hydra.sweep.dir={sweep_dir}", "hydra.mode=MULTIRUN", *overrides]
        cfg = compose("config", overrides=given, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    launcher = instantiate(cfg.hydra.launcher)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    launcher.setup(hydra_context=context, task_function=nothing, config=cfg)
    return launcher, cfg


def nothing(cfg):
    return 0.0


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """sbatch and srun on PATH: sbatch keeps the script it is given and answers as Slurm does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": f'cp "$1" {tmp_path}/script; echo Submitted batch job 7', "srun": "exit 1"}.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    import submitit

    monkeypatch.setattr(submitit.Job, "results", lambda job: [None])
    return tmp_path


@pytest.mark.parametrize("preset", ["slurm", "slurm_a100x8"])
def test_the_sbatch_script_is_the_golden_one(preset, slurm):
    sweep = slurm / "sweep"
    launcher, _ = launcher_of(preset, sweep, "hydra.launcher.partition=gpu")
    launcher.launch([["rank=4"], ["rank=8"]], 0)
    script = (slurm / "script").read_text()
    for found, name in ((str(sweep), "SWEEP"), (sys.executable, "PYTHON")):
        script = script.replace(found, name)
    # submitit sorts and quotes by version: what Slurm reads is compared, line by line
    lines = [re.sub(r"\s+", " ", line).strip() for line in script.splitlines() if line.strip()]
    assert lines == (GOLDEN / f"{preset}.sbatch").read_text().splitlines()


@pytest.mark.parametrize("preset", ["slurm", "slurm_a100x8"])
def test_where_there_is_no_slurm_the_sweep_is_refused_in_one_sentence(preset, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no Slurm .* hydra/launcher=local"):
        launcher_of(preset, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_each_job_has_a_gpu_of_its_own_and_the_third_waits_for_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    third = []
    with gpus.claim(folder=tmp_path) as first:
        with gpus.claim(folder=tmp_path) as second:
            assert [first, second] == ["2", "5"]

            def wait():
                with gpus.claim(folder=tmp_path) as name:
                    third.append(name)

            waiting = threading.Thread(target=wait)
            waiting.start()
            waiting.join(0.5)
            assert not third
        waiting.join(10)
    assert third == ["5"]


@pytest.mark.parametrize(
    ("launcher", "jobs", "asked"),
    [
        ("hydra_plugins.lab_launchers.beside.BesideLauncher", None, 1),
        ("hydra_plugins.lab_launchers.beside.BesideLauncher", 6, 6),
        ("hydra_plugins.lab_launchers.beside.BesideLauncher", "two", 1),  # refused where the launcher is set up
        ("hydra_plugins.lab_launchers.joblib.JoblibLauncher", -1, 1),
        ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", 10, 1),  # its default
        ("hydra._internal.core_plugins.basic_launcher.BasicLauncher", None, 0),
    ],
)
def test_gpus_are_shared_where_the_launcher_beside_is_told_a_number(launcher, jobs, asked):
    assert _jobs_at_once(OmegaConf.create({"_target_": launcher, "n_jobs": jobs})) == asked


def test_no_gpu_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    seen = iter([[], ["0"]])
    monkeypatch.setattr(gpus, "visible", lambda: next(seen))
    with gpus.claim(3, tmp_path) as name:
        assert name == "0"


def test_more_jobs_than_gpus_share_them_evenly(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    with ExitStack() as stack:
        held = [stack.enter_context(gpus.claim(4, tmp_path)) for _ in range(4)]
    assert held == ["2", "5", "2", "5"]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[03-05,9],login1", "gpu03"), ("node7", "node7"), ("a1,b[2-3]", "a1"), ("rack-2n[001]", "rack-2n001")],
)
def test_the_first_host_of_a_slurm_node_list(nodes, first):
    assert process_group.first_host(nodes) == first


def test_a_step_of_several_slurm_tasks_is_a_group_from_outside(monkeypatch):
    for name in process_group.DISTRIBUTED:
        monkeypatch.setenv(name, "")  # restored afterwards, whatever the code sets
        monkeypatch.delenv(name)
    step = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    for name, value in {**step, "SLURM_JOB_ID": "123", "SLURM_STEP_NODELIST": "n[4-5]"}.items():
        monkeypatch.setenv(name, value)
    group = process_group.outside()
    assert (group.starter, group.rank, group.world) == ("srun", 1, 2)
    assert os.environ["MASTER_ADDR"] == "n4"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    assert process_group.outside() is None, "a job that submitit started starts its own processes"


def test_a_file_that_another_node_has_not_shown_yet_is_waited_for(tmp_path):
    later = threading.Timer(0.3, lambda: (tmp_path / "config.yaml").write_text(""))
    later.start()
    process_group.wait_for(tmp_path / "config.yaml", seconds=10)
    with pytest.raises(UsageError, match=r"other.yaml is not visible on this node after 0 s"):
        process_group.wait_for(tmp_path / "other.yaml", seconds=0)


def test_a_port_that_is_in_use_is_named_with_the_remedy(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        group = process_group.outside()
        with pytest.raises(UsageError, match=rf"cannot meet at 127.0.0.1:{port}.*set MASTER_PORT"):
            process_group.agree_on(tmp_path, group, "cpu", 600.0)
