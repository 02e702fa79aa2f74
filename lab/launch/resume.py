"""Resuming of a run or a study: its first arguments, its saved config, and what may change beside it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lab import config as configuration
from lab import record
from lab.config import RunConfig, instantiate, trust
from lab.config.arguments import arrange, value_of
from lab.errors import UsageError
from lab.launch import checks, job
from lab.paths import quoted
from lab.record.study import STUDY, read_study

MAY_CHANGE = ("hardware", "schedule.max_steps", "resume")  # of a run
MULTIRUN = "multirun.yaml"  # what Hydra writes of a sweep's start
# What a run is on, and how it is shown and kept: no part of what it is.
NO_SETTINGS = (
    "hardware",
    "logger",
    "keep_checkpoints",
    "dry_run",
    "resume",
    "resume_study",
    "study_size",
    "study_budget",
    "optim.lr_from",
)
MAY_STAND_BESIDE = ("hydra", "dry_run", "keep_checkpoints", "study_budget")  # a study


def in_place(arguments: list[str]) -> list[str]:
    """Arguments for Hydra in which `resume=RUN` and `resume_study=DIR` write where they lie; others as they are.

    `trust=PACKAGE` beside them is taken here, and is no key of a config.

    A study goes on in the folder where it was started, while there is one, so that what it declared means the same.
    Raises UsageError where the folder is no such thing, still live, or not to be had beside another argument.
    """
    allowed = value_of(arguments, "trust")
    arguments = [argument for argument in arguments if argument.split("=", 1)[0].lstrip("+") != "trust"]
    run, study = value_of(arguments, "resume"), value_of(arguments, "resume_study")
    if allowed is not None:
        if run is None and study is None:
            raise UsageError(
                f"trust={allowed} is for directories from elsewhere: give it beside resume=RUN or resume_study=DIR."
            )
        trust.allow(allowed)
    if run is not None and study is not None:
        raise UsageError(f"resume={run} and resume_study={study} exclude each other; give one.")
    if run is not None:
        others = [argument for argument in arguments if argument.split("=", 1)[0].lstrip("+") != "resume"]
        where = job.resume_in_place(Path(run))
        started = job.started_from(Path(run))
        if started is not None and started.is_dir():  # the user's own classes, where it was another folder than this
            job.make_importable(started)
        return arrange([*others, f"resume={quoted(str(Path(run).absolute()))}", *where])
    if study is not None:
        others = [argument for argument in arguments if argument.split("=", 1)[0].lstrip("+") != "resume_study"]
        return arrange(as_started(study, others))
    return arguments


def as_started(study_dir: str, beside: list[str]) -> list[str]:
    """The arguments a study was started with, and those given beside `resume_study=DIR`, which replace them.

    Raises UsageError where the directory is no study's, and for an argument that would change what it declared.
    """
    folder = Path(study_dir).absolute()
    if (folder / record.RESULT).is_file() and not (folder / STUDY).is_file():
        raise UsageError(f"resume_study={study_dir} is a single run; go on with it by resume={study_dir}.")
    if not (folder / MULTIRUN).is_file() or not (folder / STUDY).is_file():
        raise UsageError(f"resume_study={study_dir} is no study: it needs {STUDY} and {MULTIRUN} there.")
    for argument in beside:
        if not argument.startswith(("-", *MAY_STAND_BESIDE)):
            raise UsageError(
                f"resume_study={study_dir} runs what that study declared; {argument!r} is not allowed beside it, only "
                f"{', '.join(MAY_STAND_BESIDE)}."
            )
    try:
        text = (folder / MULTIRUN).read_text(encoding="utf-8")
        configuration.check_shape(text)
        saved = _unresolved(OmegaConf.create(text))["hydra"]
        cwd, own = str(saved["runtime"]["cwd"]), saved["runtime"]["config_sources"]
        known = [str(override) for kind in ("hydra", "task") for override in saved["overrides"][kind]]
        own = [str(source["path"]) for source in own if source["provider"] == "command-line"]
    except (OmegaConfBaseException, YAMLError, LookupError, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{folder / 'multirun.yaml'} is not what Hydra wrote there ({reason}); restore it.") from None
    started = _of_study(folder, Path(cwd), known, own, beside)
    keys = {argument.split("=", 1)[0] for argument in beside} | {
        *("dry_run", "keep_checkpoints", "resume_study", "hydra.sweep.dir")
    }
    before = [item for item in known if item.split("=", 1)[0] not in keys]
    options = [argument for argument in beside if argument.startswith("-")]
    if not any(option.startswith("--config-dir") for option in options):
        options += [f"--config-dir={path}" for path in own]
    given = [argument for argument in beside if not argument.startswith("-")]
    if started is not None and started.is_dir():
        os.chdir(started)
    place = quoted(str(folder))
    return [*before, *given, f"resume_study={place}", f"hydra.sweep.dir={place}", *options]


def _unresolved(loaded: DictConfig | ListConfig) -> Any:
    return OmegaConf.to_container(loaded, resolve=False)


def _of_study(folder: Path, started: Path, known: list[str], own: list[str], beside: list[str]) -> Path | None:
    """The folder to go on in, of a study that was started here; None of anybody else's, which is checked first."""
    declared = read_study(folder)
    if trust.start_folder(folder, (folder / MULTIRUN).read_text(encoding="utf-8")) is not None or declared is None:
        return started
    named = f"resume_study={folder}"
    trust.check_links(folder)
    trust.check_overrides(known, folder, f"{named}: its {MULTIRUN}")
    for overrides in (declared.common, *declared.arms.values()):
        trust.check_declared(overrides, folder, f"{named}: its {STUDY}")
    if own and not any(argument.startswith("--config-dir") for argument in beside):
        raise UsageError(
            f"{named} takes options from {', '.join(own)}, and this study was not started here; if you trust what lies "
            f"there, add --config-dir={own[0]}."
        )
    return None


def config_of(cfg: DictConfig, overrides: list[str], start: Path | None = None) -> RunConfig:
    """The saved config of the run to resume, with the few overrides that resume allows; `start` as in trust.check."""
    for override in overrides:
        key = _key(override)
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE):
            raise UsageError(
                f"resume={cfg.resume} takes its config from that run; {override!r} is not allowed beside it, only "
                f"hardware, the launcher and a larger schedule.max_steps."
            )
    job.make_importable(start or Path.cwd())
    plain = configuration.to_hydra(configuration.load(Path(cfg.resume), start))
    if any(_key(override) == "hardware" for override in overrides):
        plain.hardware = cfg.hardware
    for override in overrides:
        key = _key(override)
        if key.startswith("hardware."):
            OmegaConf.update(plain, key, OmegaConf.select(cfg, key))
        elif key == "schedule.max_steps":
            extend(plain, cfg.schedule.max_steps)
    return configuration.check(plain, start)


def _key(override: str) -> str:
    """The key that an override sets, with or without +; one that takes a key away (~) is none of them."""
    return override.split("=", 1)[0].lstrip("+")


def check_same(config: RunConfig, folder: Path) -> None:
    """Raise UsageError where the folder holds a run of other settings, which a start there would overwrite or hide.

    A key that only one version of the lab has does not count.
    """
    if not all(os.path.lexists(folder / name) for name in (record.RESULT, "config.yaml")):
        return
    held, given = (
        dict(_flat(configuration.plain_of(each))) for each in (configuration.load(folder), checks.with_limits(config))
    )
    settings = [key for key in given if key not in NO_SETTINGS and key.split(".")[0] not in NO_SETTINGS]
    other = [key for key in settings if key in held and held[key] != given[key]]
    if other:
        raise UsageError(
            f"{folder} holds a run of other settings ({other[0]} is {held[other[0]]!r} there and {given[other[0]]!r} "
            f"here); choose another hydra.run.dir, or go on with it by resume={folder}."
        )


def _flat(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def extend(plain: DictConfig, max_steps: int | None) -> None:
    """Move the end of a run; raises UsageError where its past depends on its end, or the new one is no later."""
    if max_steps is None:
        raise UsageError("schedule.max_steps=null takes the end from a run; give resume a larger number of steps.")
    if plain.schedule.lr_scheduler != "constant":
        raise UsageError(
            f"schedule.max_steps={max_steps} cannot be raised on resume: the run's lr_scheduler is "
            f"{plain.schedule.lr_scheduler}, whose past depends on its end; only a constant one can be extended."
        )
    strategy, policy = (str(plain[group].get("_target_")) for group in ("rank_strategy", "svd_policy"))
    if not getattr(instantiate.locate(strategy), "plan_is_final", True):
        raise UsageError(
            f"schedule.max_steps={max_steps} cannot be raised on resume: rank_strategy={strategy.split('.')[-2]} has "
            "cut its ranks by a schedule that depends on its end; start a longer run anew."
        )
    if getattr(instantiate.locate(policy), "depends_on_end", False):
        raise UsageError(
            f"schedule.max_steps={max_steps} cannot be raised on resume: svd_policy={policy.split('.')[-2]} switches "
            "layers at shares of the run's steps, so its past depends on its end; start a longer run anew."
        )
    if plain.schedule.max_steps is not None and max_steps < plain.schedule.max_steps:
        raise UsageError(f"schedule.max_steps={max_steps} is below the run's own {plain.schedule.max_steps}.")
    plain.schedule.max_steps, plain.schedule.max_epochs = max_steps, None
