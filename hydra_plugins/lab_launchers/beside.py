"""conf/hydra/launcher/beside: jobs beside each other on this machine, as many as fit."""

import math
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.lab_launchers import FetchFirst, resumed

if TYPE_CHECKING:
    from lab.process.pool import Pool

# Keys that change nothing in what a job takes; any of the rates may be a study's.
APART = re.compile(r"seed|data_seed|optim\.(\w+_)?lr|stage|arm|study")


class Beside(Launcher):
    """Runs `n_jobs` jobs at once, in processes that are kept for later ones.

    None stands for as many as the machine has room for, counted once, from the jobs that are launched first.
    """

    def __init__(self, n_jobs: int | None) -> None:
        self.n_jobs = n_jobs
        self._pool: Pool | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra calls this before `launch`; raises ConfigError for a number of jobs that is none."""
        from lab.launch import beside

        beside.check_count(self.n_jobs)
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Exits with 130 where a signal stopped the jobs; raises NoProcess where a job's process cannot be started."""
        import cloudpickle  # with what follows: Hydra imports this file at every start

        from lab.launch import beside
        from lab.process.pool import NoProcess, NotBegun, Pool

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if self._pool is None:
            self._pool = Pool(self.n_jobs or 2)
        if self.n_jobs is None:
            each = [self._config(kind) for kind in dict.fromkeys(map(_kind, job_overrides))]
            if kinds := [config for config in each if config is not None]:
                self.n_jobs = self._pool.count = beside.jobs_at_once(kinds, self._forecast)
        same = cloudpickle.dumps((self.hydra_context, self.config, self.task_function, Singleton.get_state()))
        tasks = [(same, initial_job_idx + number, list(job)) for number, job in enumerate(job_overrides)]
        outcomes = self._pool.map(_run, tasks)
        stopped = sum(isinstance(each, SystemExit | KeyboardInterrupt) for each in outcomes)
        left = sum(isinstance(each, NotBegun) for each in outcomes)
        if stopped or left or self._pool.received:
            print(f"stopped: {stopped} jobs in the middle, {left} not begun", file=sys.stderr)
            sys.exit(130)
        for each in outcomes:
            if isinstance(each, NoProcess):
                raise each
        return [_returned(each) for each in outcomes]

    def _forecast(self, configs: Sequence[Any]) -> list[float]:
        """In the processes that the jobs run in later, which have then imported what they need.

        Exits with 130 where a signal comes meanwhile.
        Infinite, and said, where a dry run cannot tell, as of a user's own model: then jobs run one at a time.
        """
        from lab.launch import beside

        assert self._pool is not None
        forecasts = self._pool.map(beside.forecast_bytes, [(config,) for config in configs])
        if self._pool.received:
            print("stopped: no job was begun", file=sys.stderr)
            sys.exit(130)
        for each in forecasts:
            if isinstance(each, Exception):
                print(
                    f"jobs run one at a time: what one takes cannot be forecast ({type(each).__name__}: {each}); give "
                    "hydra.launcher.n_jobs to run more.",
                    file=sys.stderr,
                )
                return [math.inf]
            if isinstance(each, BaseException):
                raise each
        return forecasts

    def _config(self, overrides: Sequence[str]) -> Any:
        """What a job will run; None of a run to continue that cannot be read."""
        from lab import config as configuration

        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        if config.get("resume"):
            return resumed(config)
        return configuration.check(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))


class BesideLauncher(FetchFirst, Beside):
    """The same, fetching first."""


def _kind(job: Sequence[str]) -> tuple[str, ...]:
    """The overrides that decide what a job takes of the machine."""
    return tuple(item for item in job if not APART.fullmatch(item.split("=")[0]) and not item.startswith("hydra."))


def _run(same: bytes, number: int, overrides: list[str]) -> bytes:
    """One job, in a process of the pool: as Hydra's own launcher runs it."""
    import cloudpickle
    from hydra.core.hydra_config import HydraConfig

    setup_globals()
    context, config, task_function, singletons = cloudpickle.loads(same)
    Singleton.set_state(singletons)
    composed = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.id, composed.hydra.job.num = f"{composed.hydra.job.name}_{number}", number
    HydraConfig.instance().set_config(composed)
    made = run_job(
        hydra_context=context,
        config=composed,
        task_function=task_function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    return cloudpickle.dumps(made)


def _returned(outcome: Any) -> JobReturn:
    """What Hydra's sweepers expect of a job, also of one whose process died."""
    import cloudpickle

    if isinstance(outcome, bytes):
        returned: JobReturn = cloudpickle.loads(outcome)
        return returned
    return JobReturn(status=JobStatus.FAILED, _return_value=outcome)
