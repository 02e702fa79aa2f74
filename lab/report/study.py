"""Study directories as data: the runs there, what could not be read, what is missing. Standard library only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab import record
from lab.errors import UsageError
from lab.paths import at_home
from lab.record.study import RATE, STUDY, Study, read_study, role_of
from lab.report.run import Run, load_run


@dataclass(frozen=True)
class Problem:
    """A directory or file that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class LoadedStudy:
    """A study directory as it stands: what it declared, the runs it holds, and what was left out."""

    path: Path
    declared: Study | None  # None for a plain multirun
    runs: tuple[Run, ...]
    problems: tuple[Problem, ...]
    title: str | None = None

    @property
    def name(self) -> str:
        """The declared name, or the directory's."""
        return self.title or (self.declared.name if self.declared else self.path.name)

    @property
    def missing(self) -> list[str]:
        """Declared verdict jobs that have no run directory yet, in words."""
        if not self.declared:
            return []
        study = self.declared
        if study.horizon is not None:
            return []  # how many seeds an arm needs is seen as they are looked at
        few = {arm: study.described_seeds for arm in study.arms if role_of(study, arm) == "described"}
        jobs = [(arm, seed, seed) for arm in study.arms for seed in study.seeds[: few.get(arm)]]
        jobs += [(study.baseline, twin, seed) for twin, seed in zip(study.twin_seeds, study.seeds, strict=False)]
        present = {(run.record.arm, *run.pair) for run in self.runs if run.record.stage in ("verdict", None)}
        return [
            f"{arm}, seed {seed}" + (f" on the data order of {data_seed} (A/A)" if seed != data_seed else "")
            for arm, seed, data_seed in jobs
            if (arm, seed, data_seed) not in present
        ]


def load_study(study_dir: str | Path) -> LoadedStudy:
    """Every run below a directory; what cannot be read becomes a Problem. Raises UsageError for no directory."""
    path = Path(at_home(str(study_dir))).resolve()
    if not path.is_dir():
        raise UsageError(f"{study_dir} is no directory; name a study, such as multirun/rank_sweep/<time>.")
    problems: list[Problem] = []
    declared = None
    try:
        declared = read_study(path)
    except UsageError as error:
        problems.append(Problem(path / STUDY, str(error)))
    runs = []
    for run_dir in _run_dirs(path):
        if run_dir.is_symlink():
            problems.append(Problem(run_dir, f"{run_dir} is a link, and a study holds its own runs; copy it in."))
            continue
        try:
            run = replace(load_run(run_dir), rate_key=declared.rate if declared else RATE)
        except UsageError as error:
            problems.append(Problem(run_dir, str(error)))
            continue
        for name in ("curves", "retention"):
            try:
                getattr(run, name)
            except UsageError as error:
                problems.append(Problem(run_dir, str(error)))
                run.__dict__[name] = {}  # the record is whole, so the run counts; only its curves are left out
        runs.append(run)
    _fill_stored_hashes(runs)
    return LoadedStudy(path, declared, tuple(runs), tuple(problems))


def _fill_stored_hashes(runs: Sequence[Run]) -> None:
    """Give runs from before stored weights were hashed the hash of a neighbour that holds the same weights."""
    models = [run.record.model for run in runs]
    stored = {model.get("weights_sha256"): model.get("stored_sha256") for model in models if model.get("stored_sha256")}
    for model in models:
        if "stored_sha256" not in model and model.get("weights_sha256") in stored:
            model["stored_sha256"] = stored[model["weights_sha256"]]


def _run_dirs(root: Path) -> Iterator[Path]:
    """Directories that are, or were meant to be, runs: with a result.json, or with Hydra's folder and none.

    Of links those that lead to a run, for it to be said that they are not followed.
    """
    for child in sorted(root.iterdir(), key=_by_number):
        if not child.is_dir() or child.name in ("report", ".hydra"):
            continue
        if child.is_symlink():
            if (child / record.RESULT).exists():
                yield child
        elif (child / record.RESULT).exists() or (child / ".hydra").is_dir():
            yield child
        else:
            yield from _run_dirs(child)


def _by_number(path: Path) -> tuple[int, str]:
    """Jobs are named `<n>_…`: 10 comes after 9."""
    head = path.name.split("_")[0]
    return (int(head) if head.isdigit() else -1), path.name
