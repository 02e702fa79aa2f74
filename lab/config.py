"""The typed root of the configuration, its checks, and `compose` for tests and notebooks. No torch here."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lab import paths
from lab.allowed import problems
from lab.cache import write_atomically
from lab.errors import UsageError, nearest

_HERE = Path(__file__).resolve().parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"  # wheel, else checkout

GROUPS = ("model", "data", "init", "rank_strategy", "svd_policy", "hardware", "optim", "logger")


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
    """The root. Groups that select code stay plain mappings with a `_target_` until `lab.build` makes them."""

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
        return typed(paths.absolute(plain, start or Path.cwd()))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{said(error)}.") from None


def said(error: OmegaConfBaseException) -> str:
    """What OmegaConf complains of, in a line, behind the key it found it at."""
    lines = str(error.msg or error).strip().splitlines() or [type(error).__name__]
    first = re.sub(r'^KeyError raised while resolving interpolation: "(.*)"$', r"\1", lines[0].rstrip("."))
    return f"{error.full_key}: {first}" if error.full_key else first


def plain_of(config: Any) -> dict[str, Any]:
    """A config, typed or composed, in plain types and resolved."""
    node = config if OmegaConf.is_config(config) else OmegaConf.structured(config)
    plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def typed(plain: dict[str, Any]) -> RunConfig:
    """The typed root of a plain mapping, such as a saved config.yaml."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), plain))
    assert isinstance(config, RunConfig)
    return config


def compose(*overrides: str) -> RunConfig:
    """The checked config that `python -m lab.train OVERRIDES` would run, for tests and notebooks."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return check(hydra_compose("config", overrides=list(overrides)))


def load(run_dir: Path) -> RunConfig:
    """The config a run directory was started from; raises UsageError where there is none that this version reads."""
    path = Path(run_dir) / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{run_dir} is no run directory: it holds no config.yaml.")
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise YAMLError("it holds no mapping")
        return typed(plain_of(loaded))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        why = said(error) if isinstance(error, OmegaConfBaseException) else " ".join(str(error).split())
        raise UsageError(
            f"{path} is not a config that this version reads ({why}); mend it, or use the version that wrote it, "
            f"which result.json names."
        ) from None


def save(config: RunConfig, run_dir: Path) -> None:
    """Write config.yaml, the resolved config in plain types, where it does not say so already."""
    path, text = Path(run_dir) / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config))
    if not path.is_file() or path.read_text() != text:
        write_atomically(path, lambda temporary: temporary.write_text(text))
