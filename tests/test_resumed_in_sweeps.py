"""Jobs of a sweep that continue runs: counted and fetched for by what those runs are, not by the default config."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.types import HydraContext
from jobs import SMALL

from hydra_plugins.lab_launchers import FetchFirst
from hydra_plugins.lab_launchers.beside import BesideLauncher, _kind
from lab import config
from lab.launch import beside, fetch
from lab.paths import CONF, quoted


@pytest.fixture
def runs(tmp_path):
    """Two interrupted runs, and a third whose config cannot be read."""
    folders = [tmp_path / name for name in ("0_a's=1", "1_b", "2_torn")]
    for folder, threads in zip(folders, (1, 3, 1), strict=True):
        folder.mkdir()
        config.save(config.compose(*SMALL, f"hardware.threads={threads}"), folder)
    (folders[2] / "config.yaml").write_text("model: [")
    return folders


@pytest.fixture
def given():
    """What Hydra gives a launcher: where its context and its config go."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        setup_globals()
        composed = compose("config", overrides=["hydra/launcher=beside"], return_hydra_config=True)
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=None)
        yield {"hydra_context": context, "config": composed}


@pytest.fixture
def micro():
    return config.compose("model=micro")


def resuming(folder, *beside):
    return [*beside, f"resume={quoted(str(folder))}", "hydra.output_subdir=null", f"hydra.sweep.subdir='{folder.name}'"]


def filled(launcher, given):
    vars(launcher).update(given)
    return launcher


def test_a_job_is_counted_by_the_config_of_the_run_it_continues(runs, given, monkeypatch):
    launcher = filled(BesideLauncher(None), given)
    assert [launcher._config(_kind(resuming(run))) for run in runs[:2]] == [config.load(run) for run in runs[:2]]
    assert launcher._config(_kind(resuming(runs[0], "hardware.threads=2"))).hardware.threads == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(beside.os, "sched_getaffinity", lambda _: set(range(9)), raising=False)
    each = [launcher._config(_kind(resuming(run))) for run in runs[:2]]
    assert beside.jobs_at_once(each, lambda configs: [1.0] * len(configs)) == 3


def test_a_run_that_cannot_be_read_decides_nothing_and_its_job_says_why(runs, given):
    assert filled(BesideLauncher(None), given)._config(_kind(resuming(runs[2]))) is None


def test_what_is_fetched_is_what_the_runs_need(runs, micro, given, monkeypatch):
    class Nothing:
        def launch(self, jobs, first):
            return jobs

    class Launcher(FetchFirst, Nothing):
        pass

    asked = []
    monkeypatch.setattr(fetch, "fetch", lambda configs: asked.extend(configs))
    jobs = [resuming(run) for run in runs] + [["seed=1", "model=micro"], ["seed=2", "model=micro"]]
    assert filled(Launcher(), given).launch(jobs, 0) == jobs
    plain = [config.plain_of(config.load(run)) for run in runs[:2]] + [config.plain_of(micro)]
    wanted = [{part: each[part] for part in ("model", "data", "init")} for each in plain]
    assert sorted(map(str, asked)) == sorted(map(str, wanted))
