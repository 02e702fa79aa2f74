"""Declaration of a study on disk: study.json, and the choice of a learning rate. Standard library only."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import UsageError
from lab.record import SCHEMA, read_json, write_json

STUDY = "study.json"
MOST_CONTRASTS = 4  # more would cost every one of them its power under Holm
TWIN_OFFSET = 1000  # between the baseline's seeds and the A/A arm's: far from any seed a person writes
RATE = "optim.lr"
AA = "aa"  # the arm that is the baseline once more, tuned and judged like any other: it calibrates the procedure


def job_id(stage: str, arm: str, learning_rate: float, seed: int) -> str:
    """The name of a job among those of its study, its key in study.json."""
    return f"{stage}_{arm}_lr={learning_rate:g}_seed={seed}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Declaration of a study before its first job: the arms, the judgement, and the seeds it will be judged on."""

    schema: int = SCHEMA
    name: str
    question: str
    size: str = "default"  # quick | default | full
    arms: dict[str, list[str]]  # arm -> its Hydra overrides; the order is the order of every table
    common: list[str] = field(default_factory=list)  # overrides of every job
    baseline: str
    contrasts: list[str]  # at most four: `arm` is judged against the baseline, `arm/other` against that; see pair_of
    metric: str = "test_loss"  # a key of RunRecord.metrics
    higher_is_better: bool = False
    selection_metric: str = "val_loss"  # chooses learning rates and survivors; lower is better
    margin: float | str  # equivalence margin in units of the metric, "5% of gain" over the base, or "1%" of the loss
    margin_value: float | None = None  # the margin in units of the metric, written before the first verdict job
    seeds: list[int]  # verdict seeds, in the order they are taken
    described_seeds: int | None = None  # of an arm that no contrast names; None: as many as a judged arm's first look
    twin_seeds: list[int]  # data_seed = seeds[i], seed = twin_seeds[i]: of the A/A arm, or none
    tune_seeds: list[int]  # never among the verdict seeds; all but the first only for the last rates of an arm
    learning_rates: dict[str, list[float]]  # arm -> the grid it starts from; one value means nothing to tune
    rate: str = RATE  # the config key of what the learning rates are of, such as optim.matrix_lr
    refine: bool = True  # False: the best of the grid as it is, whose verdicts hold at the rates tried
    procedure: int = 1  # 1: a fixed number of seeds at the best of a grid; 2: rates refined, looks after every seed
    horizon: int | None = None  # looks that the p values are calibrated for; None where there are too few seeds to look
    budget: int | None = None  # seeds after which a contrast is inconclusive
    give_up: bool = True  # no more seeds for a contrast that its own estimates leave undecided at the horizon
    rungs: list[int] = field(default_factory=list)  # of procedure 1
    aims: list[str] = field(default_factory=list)  # what was to be reached, in the words that lab/verdict/aim.py reads
    max_jobs: int = 100  # what may be spent on learning rates beyond the grids is what this leaves
    seconds_per_job: float | None = None  # measured when the study was written; None where nobody measured
    bytes_per_job: int | None = None
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)  # job id -> where it was submitted


def pair_of(contrast: str, arms: Container[str], baseline: str) -> tuple[str, str]:
    """(arm, other) of a contrast: `arm/other`, or `arm` for one with the baseline.

    Where it is neither, the contrast itself stands for the arm; an arm's own name may hold a slash.
    """
    cuts = [] if contrast in arms else [i for i, letter in enumerate(contrast) if letter == "/"]
    pairs = [(contrast[:cut], contrast[cut + 1 :]) for cut in cuts]
    return next((pair for pair in pairs if pair[0] in arms and pair[1] in arms), (contrast, baseline))


def pairs_of(study: Study) -> dict[str, tuple[str, str]]:
    """Contrast -> (arm, other), the A/A arm's among them where there is one."""
    own = [*study.contrasts, *([AA] if AA in study.arms else [])]
    return {contrast: pair_of(contrast, study.arms, study.baseline) for contrast in own}


def role_of(study: Study, arm: str) -> str:
    """The part of an arm in its study: baseline, judged (in a contrast, on either side), A/A or described."""
    if arm in (study.baseline, AA):
        return "baseline" if arm == study.baseline else "A/A"
    return "judged" if any(arm in pair for pair in pairs_of(study).values()) else "described"


def tune_seeds_of(study: Study, arm: str) -> list[int]:
    """The tuning seeds of an arm; the A/A arm has its own, so that its tuning repeats nothing of the baseline's."""
    return [seed + TWIN_OFFSET for seed in study.tune_seeds] if arm == AA else study.tune_seeds


def verdict_seeds_of(study: Study, arm: str) -> list[tuple[int, int]]:
    """(seed, data_seed) of an arm's verdict runs, in the order they are taken."""
    own = study.twin_seeds if arm == AA else study.seeds
    return list(zip(own, study.seeds, strict=True))


def write_study(study_dir: Path, study: Study) -> None:
    """Replace study.json atomically; raises UsageError naming the path where the disk refuses."""
    write_json(study_dir / STUDY, asdict(study), "hydra.sweep.dir")


def read_study(study_dir: Path) -> Study | None:
    """Study as declared on disk, None where there is no study.json; raises UsageError where it cannot be read."""
    path = Path(study_dir) / STUDY
    try:
        raw = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        study = Study(**raw)
        _check_declared(study)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path} does not declare a study ({error}); was it edited by hand?") from None
    return study


def _check_declared(study: Study) -> None:
    """Raise ValueError for fields of other types than a study has, and for names that lead out of its folder."""
    texts = {"name": study.name, "question": study.question, "baseline": study.baseline, "metric": study.metric}
    texts |= {"rate": study.rate}
    lists = {"common": study.common, **{f"arms.{name}": own for name, own in _mapping("arms", study.arms).items()}}
    for key, value in (texts | {"selection_metric": study.selection_metric}).items():
        if not isinstance(value, str):
            raise ValueError(f"{key} is {type(value).__name__}, not text")
    for key, value in (lists | {"contrasts": study.contrasts, "aims": study.aims}).items():
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ValueError(f"{key} is no list of texts")
    seeds = {"seeds": study.seeds, "twin_seeds": study.twin_seeds, "tune_seeds": study.tune_seeds}
    for key, numbers in seeds.items():
        if not isinstance(numbers, list) or not all(type(each) is int for each in numbers):
            raise ValueError(f"{key} is no list of whole numbers")
    for arm, grid in _mapping("learning_rates", study.learning_rates).items():
        if not isinstance(grid, list) or not all(type(each) in (int, float) for each in grid):
            raise ValueError(f"learning_rates.{arm} is no list of numbers")
    for arm in study.arms:
        if ".." in Path(arm).parts or arm.startswith("/"):
            raise ValueError(f"the arm {arm!r} would name a folder outside the study")
    for job, entry in _mapping("jobs", study.jobs).items():
        directory = _mapping(f"jobs.{job}", entry).get("directory", "")
        if not isinstance(directory, str) or ".." in Path(directory).parts or directory.startswith("/"):
            raise ValueError(f"jobs.{job} lies in {directory!r}, outside the study")


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {type(value).__name__}, not a mapping")
    return value


def best_learning_rate(outcomes: Mapping[float, Sequence[float | None]]) -> float | None:
    """The rate with the lowest mean outcome among those where fewest seeds diverged; None where every seed did.

    `outcomes` maps a rate to the selection metric of its seeds, None for one that diverged: a mean over the
    survivors alone would reward instability. Ties go to the smaller rate.
    """

    def loss(rate: float) -> tuple[int, float, float]:
        values = [value for value in outcomes[rate] if value is not None and math.isfinite(value)]
        mean = math.fsum(values) / len(values) if values else math.inf
        return len(outcomes[rate]) - len(values), mean, rate

    alive = [rate for rate, values in outcomes.items() if any(v is not None and math.isfinite(v) for v in values)]
    return min(alive, key=loss) if alive else None
