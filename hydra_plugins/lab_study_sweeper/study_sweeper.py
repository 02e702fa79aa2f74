"""Hydra's sweeper for studies: declares one, prints its plan, hands its jobs to the launcher."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

if TYPE_CHECKING:
    from lab.record.study import Study
    from lab.sweep.runs import Tried

SWEEPERS = ("hydra/sweeper", "hydra.sweeper")
OWN_KEYS = (
    "study_size",
    "study_budget",
    "dry_run",
    "resume_study",
    "keep_checkpoints",
)  # of the study, not of its jobs


class StudySweeper(Sweeper):
    """Runs `hydra.sweeper.study`, the block that lab.sweep.declaration reads."""

    def __init__(self, study: DictConfig | None) -> None:
        self.study = study

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Build the launcher; Hydra calls this before `sweep`."""
        self.config, self.context = config, hydra_context
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=_for_jobs(config)
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the study to its end; exits with 1 where a job failed. Raises ConfigError for a user's mistake."""
        from lab.config import ConfigError
        from lab.errors import UsageError

        try:
            failed = self._sweep(arguments)
        except UsageError as error:
            raise ConfigError(str(error)) from None
        if failed:
            sys.exit(1)

    def _sweep(self, arguments: list[str]) -> list[str]:
        from hydra._internal.core_plugins.basic_launcher import BasicLauncher

        from lab.sweep import drive, runs

        study_dir = Path(str(self.config.hydra.sweep.dir)).absolute()
        study = self._study(arguments, study_dir)
        self._check_jobs(study)
        there = study_dir.is_dir()
        seen = runs.scan(study_dir, study)[0] if there else ()
        print(runs.describe(study, seen, None if seen else self._tried(study)), flush=True)
        if self.config.dry_run:
            return []
        study_dir.mkdir(parents=True, exist_ok=True)

        def begin() -> "Study":
            declared = self._study(arguments, study_dir)
            self._keep_start(study_dir)
            return declared

        return drive.drive(
            study_dir,
            study,
            self._launch(study_dir),
            launcher=type(self.launcher).__name__,
            one_by_one=isinstance(self.launcher, BasicLauncher),  # it would not start a second one earlier anyway
            keep_checkpoints=self.config.keep_checkpoints,
            begin=begin,
        )

    def _keep_start(self, study_dir: Path) -> None:
        """Write down how the study was started, as Hydra's own sweeper does, and that it was here."""
        from lab.config import trust
        from lab.errors import refused
        from lab.files import write_atomically
        from lab.launch.resume import MULTIRUN

        path, text = study_dir / MULTIRUN, OmegaConf.to_yaml(self.config)
        try:
            if not self.config.resume_study:
                write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            if path.is_file():
                trust.remember(study_dir, path.read_text(encoding="utf-8"), Path.cwd())
        except PermissionError as error:
            raise refused(path, error) from None

    def _study(self, arguments: list[str], study_dir: Path) -> "Study":
        """The study as an earlier start declared it in the directory, else as the YAML and the command line do."""
        from lab.config.references import with_references
        from lab.errors import UsageError
        from lab.record.study import STUDY, read_study
        from lab.sweep import metrics
        from lab.sweep.declaration import declare, with_budget

        earlier = read_study(study_dir)
        if self.config.resume_study:
            if earlier is None:
                raise UsageError(f"resume_study={study_dir} holds no {STUDY}; name the directory of a study.")
            if earlier.procedure < 2:
                raise UsageError(
                    f"resume_study={study_dir} was declared under an earlier procedure, whose rates half a decade "
                    "apart made wrong verdicts; lab.report still reads it, but a new study is needed."
                )
            metrics.direction(earlier.name, earlier.metric, earlier.higher_is_better)
            return with_budget(earlier, self.config.study_budget)
        if self.study is None:
            raise UsageError("hydra/sweeper=study runs a declared study and none is; add experiment=rank_sweep.")
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        given: dict[str, list[str]] = {}
        for override in parser.parse_overrides(arguments):
            key = override.get_key_element()
            if key in OWN_KEYS:
                continue
            if override.is_sweep_override() and override.is_discrete_sweep():
                given[key] = list(override.sweep_string_iterator())
            else:
                given[key] = [str(override.get_value_element_as_str())]
        block: Any = with_references(self.config, "hydra.sweeper.study")  # for study.json, and for its jobs to resolve
        study = with_budget(declare(block, str(self.config.study_size), given), self.config.study_budget)
        if earlier is not None and _declared(earlier) != _declared(study):
            raise UsageError(
                f"hydra.sweep.dir={study_dir} holds another study; go on with it by resume_study={study_dir}, "
                f"or choose another directory."
            )
        return earlier or study

    def _check_jobs(self, study: "Study") -> None:
        """Compose and check a job of every arm, and the extreme seeds: a declaration's mistake costs no training."""
        from hydra._internal.core_plugins.basic_launcher import BasicLauncher

        from hydra_plugins.lab_launchers.beside import Beside
        from lab import config as configuration
        from lab.errors import UsageError
        from lab.launch import checks
        from lab.sweep import metrics

        # Another launcher's jobs find the devices of another machine, and a dry run asks for none.
        here = isinstance(self.launcher, BasicLauncher | Beside) and not self.config.dry_run
        seeds = [*study.seeds, *study.twin_seeds, *study.tune_seeds]
        first = next(iter(study.arms))
        jobs = [*study.arms.items(), *((first, [*study.arms[first], f"seed={s}"]) for s in (min(seeds), max(seeds)))]
        for name, overrides in jobs:
            config = self.context.config_loader.load_sweep_config(self.config, [*study.common, *overrides])
            try:
                typed = configuration.check(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))
                metrics.check_measured(study, configuration.plain_of(typed), partial(_has_answers, typed.data))
                if here:
                    checks.early(typed)
            except (configuration.ConfigError, UsageError) as error:
                raise UsageError(f"arm {name} of {study.name} cannot run: {error}") from None

    def _tried(self, study: "Study") -> "Tried | None":
        """What a job of the baseline takes, by a probe of a few seconds; None where it cannot be tried here."""
        from lab import config as configuration
        from lab.errors import UsageError
        from lab.launch.worker import quiet_not_ours
        from lab.run import forecast
        from lab.run.plan import plan
        from lab.sweep.runs import Tried

        quiet_not_ours()
        given = [*study.common, *study.arms[study.baseline]]
        config = self.context.config_loader.load_sweep_config(self.config, given)
        try:
            run = plan(configuration.check(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])))
        except UsageError as error:  # data or a model that are elsewhere, or what no job can do
            print(f"a job of {study.baseline} cannot be tried here: {error}")
            return None
        if not run.is_here:
            return None
        rates = forecast.probe(run)
        verdict = forecast.of(run, rates)
        run.config.evaluate.test = False
        tune = forecast.of(run, rates)
        kept = 3 * verdict.checkpoint if self.config.keep_checkpoints else 0
        seconds = [each.total - each.seconds[forecast.BASE] for each in (tune, verdict)]
        return Tried(*seconds, bytes=verdict.exported + kept)

    def _launch(self, study_dir: Path) -> Callable[[Sequence[Sequence[str]], int], None]:
        from lab.errors import UsageError
        from lab.paths import quoted

        def launch(jobs: Sequence[Sequence[str]], first: int) -> None:
            where = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(str(study_dir))}"]
            try:
                self.launcher.launch([[*overrides, *where] for overrides in jobs], initial_job_idx=first)
            except HydraException as error:
                raise UsageError(f"no job of {study_dir} can be composed: {error}") from error

        return launch


def _has_answers(node: dict[str, Any]) -> bool:
    from lab.config import instantiate
    from lab.data.judge import judge_of

    return judge_of(instantiate.make_data(node)) is not None


def _for_jobs(config: DictConfig) -> DictConfig:
    """The config whose Hydra options every job is composed with: the study's launcher by name, nothing of its sweeper.

    An experiment may have named both, and a job that is resumed takes no experiment beside it.
    """
    own = config.copy()
    given = [item for item in own.hydra.overrides.hydra if not item.lstrip("+~").startswith(SWEEPERS)]
    launcher = f"hydra/launcher={own.hydra.runtime.choices['hydra/launcher']}"
    with read_write(own.hydra.overrides):
        own.hydra.overrides.hydra = [launcher, *(item for item in given if not item.startswith("hydra/launcher="))]
    return own


def _declared(study: "Study") -> Any:
    """What a study declared, without what came of it."""
    from lab import record

    return record.strict({**vars(study), "jobs": {}, "margin_value": None})
