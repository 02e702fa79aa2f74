"""The typed root of the configuration, its checks, and `compose` for tests and notebooks. No torch here."""

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lab import paths
from lab.config import trust
from lab.config.references import Place, escape, make_absolute, put, references
from lab.config.validate import problems
from lab.errors import UsageError, nearest
from lab.files import write_atomically
from lab.paths import CONF

GROUPS = ("model", "data", "init", "rank_strategy", "svd_policy", "hardware", "optim", "logger")
CONFIG = "config.yaml"  # in a run directory
DEEPEST = 50  # levels of a YAML


class ConfigError(CompactHydraException):
    """A mistake in the configuration; Hydra prints it as one sentence and exits with 1."""


@dataclass
class Hardware:
    """What a job runs on. Nothing here may change the experiment: the global batch is `schedule.batch_size`."""

    accelerator: str = "auto"  # auto | cpu | gpu
    devices: int = 1
    precision: str = "auto"  # auto | 32-true | bf16-mixed | bf16-true
    micro_batch_size: int | None = None  # examples per forward and device; null: at most 16 that divide the batch
    threads: int | None = None  # of each process on the CPU; null: the cores this process may use
    num_workers: int = 0
    gradient_checkpointing: bool = False
    compile: bool = False
    timeout_s: float | None = 600.0  # without a sign of life, after which a job ends as hung; null: never


@dataclass
class Optim:
    """AdamW, optionally with Muon for matrices, and clipping."""

    lr: float = MISSING
    weight_decay: float = MISSING
    betas: list[float] = MISSING
    eps: float = MISSING
    max_grad_norm: float = MISSING
    lora_plus_ratio: float = MISSING
    matrix_lr: float | None = None  # not null: Muon for the matrices of the blocks
    embedding_lr: float | None = None  # beside Muon; null: lr
    head_lr: float | None = None  # of an untied output head, beside Muon; null: lr
    lr_width: int | None = None  # the width AdamW's rates beside Muon are for; null: any
    momentum: float = 0.95
    momentum_start: float = 0.95
    momentum_warmup_steps: int = 0


@dataclass
class Schedule:
    """When things happen, in optimizer steps."""

    max_epochs: int | None = None
    max_steps: int | None = None
    batch_size: int = MISSING
    warmup_steps: int = MISSING
    lr_scheduler: str = MISSING
    eval_every_n_steps: int = MISSING
    log_every_n_steps: int = MISSING
    save_every_n_steps: int = MISSING


@dataclass
class Adapter:
    """Where the low-rank pairs go."""

    target_modules: Any = "all-linear"
    exclude_modules: Any = None
    dropout: float = 0.0
    use_dora: bool = False


@dataclass
class EvidenceConfig:
    """How much training data is looked at before the first step."""

    num_examples: int = MISSING


@dataclass
class Evaluate:
    """What an evaluation does besides the loss."""

    num_samples: int = MISSING
    sample_tokens: int = MISSING
    max_new_tokens: int = MISSING
    accuracy: bool = MISSING
    prompts: list[str] = field(default_factory=list)
    max_examples: int | None = None


@dataclass
class RunConfig:
    """The root. Groups that select code stay mappings with a `_target_` until `lab.config.instantiate` makes them."""

    model: Any = MISSING
    data: Any = MISSING
    init: Any = MISSING
    rank_strategy: Any = MISSING
    svd_policy: Any = MISSING
    logger: Any = MISSING
    hardware: Hardware = field(default_factory=Hardware)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    adapter: Adapter = field(default_factory=Adapter)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    evaluate: Evaluate = field(default_factory=Evaluate)
    metrics: dict[str, Any] = field(default_factory=dict)
    method: str = MISSING
    rank: int = MISSING
    alpha: float = MISSING
    scaling: str = MISSING
    seed: int = MISSING
    data_seed: int = MISSING
    select: str = MISSING
    study: str | None = None
    stage: str | None = None
    arm: str | None = None
    resume: str | None = None
    resume_study: str | None = None
    study_size: str = MISSING
    dry_run: bool = MISSING
    keep_checkpoints: bool = MISSING

    def __post_init__(self) -> None:
        self.references: dict[Place, str] = {}  # no key: what the environment gave, as files keep it


ConfigStore.instance().store(name="run_schema", node=RunConfig)


def check(cfg: DictConfig, start: Path | None = None) -> RunConfig:
    """The typed root of a composed config; raises ConfigError for what types alone cannot see.

    Its paths are absolute, relative ones beginning at `start`, by default the working directory: so the run can be
    resumed from any other.
    """
    known = [item.name for item in fields(RunConfig)]
    for key in cfg:
        if key not in known:
            raise ConfigError(f"Unknown key {key!r}{nearest(str(key), known)}. Known keys: {', '.join(known)}.")
    absent = [key for key in known if key not in cfg]
    if absent:
        raise ConfigError(f"{absent[0]} was taken away and every run has one; leave out ~{absent[0]}.")
    try:
        plain = plain_of(cfg)
        found = problems(plain)
        if found:
            raise ConfigError("\n".join(found))
        whole = paths.absolute(plain, start or Path.cwd())
        config = typed(whole)
        config.references = make_absolute(references(cfg, plain), plain, whole)
        return config
    except OmegaConfBaseException as error:
        raise ConfigError(f"{said(error)}.") from None


def said(error: OmegaConfBaseException) -> str:
    """What OmegaConf complains of, in a line, behind the key it found it at."""
    lines = str(error.msg or error).strip().splitlines() or [type(error).__name__]
    first = re.sub(r'^KeyError raised while resolving interpolation: "(.*)"$', r"\1", lines[0].rstrip("."))
    return f"{error.full_key}: {first}" if error.full_key else first


def plain_of(config: Any) -> dict[str, Any]:
    """A config, typed or composed, in plain types and resolved: of the live process, and for no file."""
    if isinstance(config, RunConfig):
        return asdict(config)
    node = config if OmegaConf.is_config(config) else OmegaConf.structured(config)
    plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def for_files(config: RunConfig) -> dict[str, Any]:
    """A config in plain types as files keep it: what came from the environment is a reference."""
    return put(plain_of(config), config.references)


def composed(config: RunConfig) -> DictConfig:
    """A typed config as Hydra would have composed it, references and all."""
    node = OmegaConf.merge(OmegaConf.structured(RunConfig), put(escape(plain_of(config)), config.references))
    assert isinstance(node, DictConfig)
    return node


def typed(plain: dict[str, Any]) -> RunConfig:
    """The typed root of a plain mapping, such as a saved config.yaml."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), escape(plain)))
    assert isinstance(config, RunConfig)
    return config


def compose(*overrides: str) -> RunConfig:
    """The checked config that `python -m lab.train OVERRIDES` would run, for tests and notebooks."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return check(hydra_compose("config", overrides=list(overrides)))


def load(run_dir: Path, start: Path | None = None) -> RunConfig:
    """The config of a run directory that may be anybody's, as `trust.check` allows it; `start` as there.

    Raises UsageError where it does not, and where there is no config that this version reads.
    """
    return _read(run_dir, start or Path.cwd(), anybodys=True, live=True)


def load_for_weights(run_dir: Path) -> RunConfig:
    """As `load`, for who trains no more: without the logger, which may need what only the run's environment had."""
    return _read(run_dir, Path.cwd(), anybodys=True, live=False)


def load_own(run_dir: Path) -> RunConfig:
    """The config that a job's starter has just written, or checked; for its processes alone."""
    return _read(run_dir, Path.cwd(), anybodys=False, live=True)


def _read(run_dir: Path, start: Path, *, anybodys: bool, live: bool) -> RunConfig:
    path = Path(run_dir) / CONFIG
    if not path.is_file():
        raise UsageError(f"{run_dir} is no run directory: it holds no {CONFIG}.")
    try:
        text = path.read_text()
        check_shape(text)
        loaded = OmegaConf.create(text)
        if not isinstance(loaded, DictConfig):
            raise YAMLError("it holds no mapping")
        if anybodys and trust.started(Path(run_dir), text) is None:
            raw = OmegaConf.to_container(loaded, resolve=False)
            assert isinstance(raw, dict)
            trust.check({str(key): value for key, value in raw.items()}, Path(run_dir), str(path), start)
        if not live:
            loaded.logger = {"_target_": None}
        plain = plain_of(loaded)
        config = typed(plain)
        config.references = references(loaded, plain)
        return config
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError, AssertionError) as error:
        why = said(error) if isinstance(error, OmegaConfBaseException) else " ".join(str(error).split())
        raise UsageError(
            f"{path} is not a config that this version reads ({why}); mend it, or use the version that wrote it, "
            f"which result.json names."
        ) from None


def check_shape(text: str) -> None:
    """Raise YAMLError for a YAML that would cost its reader all time or memory: none of ours refers back or goes deep.

    Read as events, which make nothing.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise YAMLError("it refers back to a part of itself")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise YAMLError(f"it is nested more than {DEEPEST} deep")


def save(config: RunConfig, run_dir: Path, start: Path | None = None) -> None:
    """Write config.yaml, resolved but for the environment's, in plain types, where it does not say so already.

    The user's cache remembers that this run was started here, from the folder `start` (None: the working directory).
    """
    path, text = Path(run_dir) / CONFIG, OmegaConf.to_yaml(composed(config))
    if not path.is_file() or path.read_text() != text:
        write_atomically(path, lambda temporary: temporary.write_text(text))
    trust.remember(Path(run_dir), text, start or Path.cwd())
