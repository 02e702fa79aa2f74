"""Train one model, or many.      python -m lab.train init=svd rank=16"""

import errno
import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lab import command
from lab import config as configuration
from lab.config import CONF, ConfigError
from lab.config.arguments import arrange
from lab.errors import UsageError, refused
from lab.launch import resume
from lab.launch.job import JobFailed, directory_of_its_rank, launch

# What a disk says that takes no more, or not this name.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> float:
    """One job: check the config, launch it, and return the selected weights' validation loss to the sweeper."""
    hydra_cfg = HydraConfig.get()
    overrides = OmegaConf.to_container(hydra_cfg.overrides.task)  # references stay such, as in config.yaml
    assert isinstance(overrides, list)
    start = Path(hydra_cfg.runtime.cwd)  # with hydra.job.chdir=true another than the working directory
    try:
        folder = Path(hydra_cfg.runtime.output_dir)
        if cfg.get("resume"):
            config = resume.config_of(cfg, overrides, start)
        else:
            config = configuration.check(cfg, start)
            resume.check_same(config, folder)
        return launch(
            config,
            folder,
            choices={key: str(value) for key, value in hydra_cfg.runtime.choices.items() if not {"/", "@"} & set(key)},
            overrides=overrides,
            alone=hydra_cfg.mode == RunMode.RUN,
            beside=_jobs_at_once(hydra_cfg.launcher),
            start=start,
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is None:
            error.filename = hydra_cfg.runtime.output_dir  # a write into an open file names none
        if hydra_cfg.mode == RunMode.MULTIRUN:  # Hydra tells of it only when the last job has ended
            print(f"failed: {hydra_cfg.runtime.output_dir}: {error}", file=sys.stderr, flush=True)
        elif isinstance(error, UsageError | ConfigError | JobFailed):
            sys.exit(str(error))  # it says all there is to know; lines of ours or Hydra's around it do not help
        if isinstance(error, UsageError):
            raise ConfigError(str(error)) from None
        raise


def _jobs_at_once(launcher: DictConfig) -> int:
    """Jobs that are to share GPUs, 1 for one a GPU, 0 for a launcher that runs none beside each other.

    They share where the launcher `beside` is told a number; joblib's own has one by default.
    """
    name = str(launcher.get("_target_")).rsplit(".", 1)[-1]
    if name not in ("BesideLauncher", "JoblibLauncher"):
        return 0
    jobs = launcher.get("n_jobs")
    return jobs if name == "BesideLauncher" and type(jobs) is int and jobs > 0 else 1


def main() -> None:
    """The console script: Hydra, with `resume=RUN` and `resume_study=DIR` writing in place."""
    command.show_everything()
    try:
        sys.argv[1:] = resume.in_place(arrange(sys.argv[1:]))
    except UsageError as error:
        sys.exit(str(error))
    if "--help" in sys.argv or "-h" in sys.argv:
        # Hydra copies its whole store of configs for each group it lists; the store no longer changes by then.
        ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    with directory_of_its_rank():
        _run_job()


def _run_job() -> None:
    given = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors on instead of printing a page about each
    try:
        job()
    except (UsageError, ConfigError) as error:
        sys.exit(str(error))
    except (HydraException, ValueError) as error:
        if given or not (isinstance(error, HydraException) or _is_hydras(error)):
            raise
        from lab.config.suggest import explain

        sys.exit(explain(error, sys.argv[1:]))
    except PermissionError as error:  # what Hydra reads and writes; our own files have been told of
        if given or error.filename is None:
            raise
        sys.exit(str(refused(Path(error.filename), error)))
    except OSError as error:
        if given or error.errno not in NO_ROOM:
            raise
        place = error.filename or "to the folder of the run"
        sys.exit(
            f"could not write {place}: {error.strerror}; choose another place by hydra.run.dir, or of a sweep by "
            "hydra.sweep.dir and hydra.sweep.subdir."
        )
    finally:
        if given is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _is_hydras(error: BaseException) -> bool:
    """True where Hydra's own code raised an error, as it does for some arguments."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("hydra.")


if __name__ == "__main__":
    main()
