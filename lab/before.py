"""Hydra's callback that checks a start before Hydra makes its folder: what does not start leaves nothing behind."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from os.path import lexists
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lab import command, record
from lab import config as configuration
from lab.config import ConfigError
from lab.errors import UsageError
from lab.launch import beside, checks, job, resume


class CheckFirst(Callback):
    """Named in conf/config.yaml; Hydra calls it when a config is composed and nothing has been written."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with the sentence that answers a mistake; a dry run ends here, with what it prints."""
        with _in_a_sentence():
            HydraConfig.instance().set_config(config)  # for ${hydra:…} in the folder's name
            folder = Path(str(config.hydra.run.dir))
            checked = _checked(config)
            if str(config.hydra.launcher.get("_target_")).endswith(".BesideLauncher"):
                beside.check_count(config.hydra.launcher.n_jobs)  # of the runs with which it shares a GPU
            if not config.get("resume"):
                resume.check_same(checked, folder)
            job.make_importable(Path.cwd())
            if checked.dry_run:
                job.launch(checked, folder, {}, [], alone=True)
                sys.exit(0)
            if not lexists(folder / record.RESULT):  # else nothing is to be made, and a finished run may be skipped
                checks.early(checked)
            _make(folder, f"hydra.run.dir={folder}")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with a sentence where the folder of a sweep cannot be made, or no job of it could start."""
        with _in_a_sentence():
            HydraConfig.instance().set_config(config)
            folder = Path(str(config.hydra.sweep.dir))
            command.check_folder(folder, f"hydra.sweep.dir={folder}")
            if str(config.hydra.sweeper.get("_target_")).endswith(BasicSweeper.__name__):
                _one_starts(config)


def _one_starts(config: DictConfig) -> None:
    """Raise what is wrong with the first job of a grid, unless another's config is right: the sweep says of each."""
    loader = GlobalHydra.instance().config_loader()
    task = OmegaConf.to_container(config.hydra.overrides.task)
    assert isinstance(task, list)
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create(loader).parse_overrides(list(map(str, task))), None)
    first: ConfigError | UsageError | None = None
    for overrides in jobs:
        try:
            _checked(loader.load_sweep_config(config, overrides))
        except (ConfigError, UsageError) as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first


def _checked(config: DictConfig) -> configuration.RunConfig:
    overrides = OmegaConf.to_container(config.hydra.overrides.task)
    assert isinstance(overrides, list)
    given = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return resume.config_of(given, list(map(str, overrides))) if given.get("resume") else configuration.check(given)


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    """Hydra turns what a callback raises into a warning and goes on, but for an exit."""
    try:
        yield
    except (UsageError, ConfigError) as error:
        sys.exit(str(error))
    except OmegaConfBaseException as error:
        sys.exit(f"{configuration.complaint(error)}.")
    except HydraException as error:
        from lab.config.suggest import explain

        sys.exit(explain(error, sys.argv[1:]))


def _make(folder: Path, named: str) -> None:
    command.check_folder(folder, named)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{named} cannot be made: {error.strerror}; choose another place.") from None
