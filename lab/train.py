"""Train one model, or many.      python -m lab.train init=svd rank=16"""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lab import config as configuration
from lab import launch, record
from lab.config import CONF, ConfigError, RunConfig
from lab.errors import UsageError

RESUME_MAY_CHANGE = ("hardware", "schedule.max_steps", "resume")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> float:
    """One job: check the config, launch it, and return the selected weights' validation loss to the sweeper."""
    hydra_cfg = HydraConfig.get()
    overrides = list(hydra_cfg.overrides.task)
    try:
        config = _resumed(cfg, overrides) if cfg.resume else configuration.check(cfg)
        return launch.launch(
            config,
            Path(hydra_cfg.runtime.output_dir),
            choices={key: str(value) for key, value in hydra_cfg.runtime.choices.items() if "/" not in key},
            overrides=overrides,
            alone=hydra_cfg.mode == RunMode.RUN,
            own_gpu=str(hydra_cfg.launcher.get("_target_")).endswith("JoblibLauncher"),
        )
    except Exception as error:
        if hydra_cfg.mode == RunMode.MULTIRUN:  # Hydra tells of it only when the last job has ended
            print(f"failed: {hydra_cfg.runtime.output_dir}: {error}", file=sys.stderr, flush=True)
        elif isinstance(error, UsageError | ConfigError | launch.JobFailed):
            sys.exit(str(error))  # it says all there is to know; lines of ours or Hydra's around it do not help
        if isinstance(error, UsageError):
            raise ConfigError(str(error)) from None
        raise


def _resumed(cfg: DictConfig, overrides: list[str]) -> RunConfig:
    """The saved config of the run to resume, with the few overrides that resume allows."""
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in RESUME_MAY_CHANGE):
            raise UsageError(
                f"resume={cfg.resume} takes its config from that run; {override!r} is not allowed beside it, only "
                f"hardware, the launcher and a larger schedule.max_steps."
            )
    saved = configuration.load(Path(cfg.resume))
    plain = OmegaConf.structured(saved)
    if any(override.startswith("hardware=") for override in overrides):
        plain.hardware = cfg.hardware
    for override in overrides:
        key, _, value = override.partition("=")
        if key.startswith("hardware."):
            OmegaConf.update(plain, key, OmegaConf.select(cfg, key))
        elif key == "schedule.max_steps":
            _extend(plain, int(value))
    return configuration.check(plain)


def _extend(plain: DictConfig, max_steps: int) -> None:
    if plain.schedule.lr_scheduler != "constant":
        raise UsageError(
            f"schedule.max_steps={max_steps} cannot be raised on resume: the run's lr_scheduler is "
            f"{plain.schedule.lr_scheduler}, whose past depends on its end; only a constant one can be extended."
        )
    if str(plain.rank_strategy.get("_target_")).endswith("adalora.Adalora"):
        raise UsageError(
            f"schedule.max_steps={max_steps} cannot be raised on resume: rank_strategy=adalora has cut its ranks by a "
            "schedule that depends on its end; start a longer run anew."
        )
    if plain.schedule.max_steps is not None and max_steps < plain.schedule.max_steps:
        raise UsageError(f"schedule.max_steps={max_steps} is below the run's own {plain.schedule.max_steps}.")
    plain.schedule.max_steps, plain.schedule.max_epochs = max_steps, None


def _check_writable(arguments: list[str]) -> None:
    """Hydra makes the run directory before any code of ours runs; say in a sentence where it could not."""
    given = [arg.split("=", 1)[1] for arg in arguments if arg.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    for folder in given or ["multirun"]:
        path = Path(folder.split("$", 1)[0]).absolute()
        while not path.exists():
            path = path.parent
        if not path.is_dir() or not os.access(path, os.W_OK):
            raise UsageError(
                f"{folder} cannot be written: {path} is read-only or no folder; set hydra.run.dir elsewhere."
            )


def _as_started(study_dir: str, beside: list[str]) -> list[str]:
    """The arguments a study was started with, and those given beside `resume_study=DIR`, which replace them.

    Raises UsageError where the directory is no study's, and for an argument that would change what it declared.
    """
    folder, allowed = Path(study_dir).absolute(), ("hydra", "dry_run", "keep_checkpoints")
    if not (folder / "multirun.yaml").is_file() or not (folder / record.STUDY).is_file():
        raise UsageError(f"resume_study={study_dir} is no study: it needs {record.STUDY} and multirun.yaml there.")
    for argument in beside:
        if not argument.startswith(("-", *allowed)):
            raise UsageError(
                f"resume_study={study_dir} runs what that study declared; {argument!r} is not allowed beside it, only "
                f"{', '.join(allowed)}."
            )
    saved = OmegaConf.load(folder / "multirun.yaml").hydra
    keys = {argument.split("=", 1)[0] for argument in beside} | {*allowed[1:], "resume_study", "hydra.sweep.dir"}
    before = [item for item in [*saved.overrides.hydra, *saved.overrides.task] if item.split("=", 1)[0] not in keys]
    options = [argument for argument in beside if argument.startswith("-")]
    if not any(option.startswith("--config-dir") for option in options):
        own = [source.path for source in saved.runtime.config_sources if source.provider == "command-line"]
        options += [f"--config-dir={path}" for path in own]
    given = [argument for argument in beside if not argument.startswith("-")]
    return [*options, *before, *given, f"resume_study='{folder}'", f"hydra.sweep.dir='{folder}'"]


def main() -> None:
    """The console script: Hydra with `resume=RUN` and `resume_study=DIR` writing in place."""
    given = {key: value for key, _, value in (arg.partition("=") for arg in sys.argv[1:]) if value not in ("", "null")}
    try:
        if "resume" in given:
            sys.argv += launch.resume_in_place(Path(given["resume"]))
        if "resume_study" in given:
            beside = [arg for arg in sys.argv[1:] if not arg.startswith("resume_study=")]
            sys.argv[1:] = _as_started(given["resume_study"], beside)
    except UsageError as error:
        sys.exit(str(error))
    if "--help" in sys.argv or "-h" in sys.argv:
        # Hydra copies its whole store of configs for each group it lists; the store no longer changes by then.
        ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    with launch.directory_of_its_rank():
        _run_job()


def _run_job() -> None:
    given = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors on instead of printing a page about each
    try:
        _check_writable(sys.argv[1:])
        job()
    except (UsageError, ConfigError) as error:
        sys.exit(str(error))
    except HydraException as error:
        if given:
            raise
        from lab.suggest import explain

        sys.exit(explain(error, sys.argv[1:]))
    finally:
        if given is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)


if __name__ == "__main__":
    main()
