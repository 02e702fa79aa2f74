"""Schema of the configuration: the typed root and its groups, which Hydra composes under. No torch here."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from lab.config.references import Place


@dataclass
class Hardware:
    """Machine that a job runs on. Nothing here may change the experiment: the global batch is `schedule.batch_size`."""

    accelerator: str = "auto"  # auto | cpu | gpu
    devices: int = 1
    precision: str = "auto"  # auto | 32-true | bf16-mixed | bf16-true
    micro_batch_size: int | None = None  # examples per forward and device; null: at most 16 that divide the batch
    threads: int | None = None  # of each process on the CPU; null: the cores this process may use
    num_workers: int = 0
    gradient_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False  # the same bits twice on CUDA too, at some cost in speed; a CPU gives them anyway
    timeout_s: float | None = 600.0  # without a sign of life, after which a job ends as hung; null: never


@dataclass
class Optim:
    """AdamW, optionally with Muon for matrices, and clipping."""

    lr: float | None = MISSING  # null: by model and method, as lab.config.bases has it
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
    lr_from: str | None = None  # where a rate that was left open is from; null: it was given

    @property
    def rate(self) -> float:
        """The learning rate, which every checked config has."""
        assert self.lr is not None
        return self.lr


@dataclass
class Schedule:
    """Length, batch and cadences of a run, in optimizer steps."""

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
    """Low-rank pairs: the layers that get one, and its form."""

    target_modules: Any = "all-linear"
    exclude_modules: Any = None
    dropout: float = 0.0
    use_dora: bool = False


@dataclass
class EvidenceConfig:
    """Training data that is looked at before the first step."""

    num_examples: int = MISSING


@dataclass
class Evaluate:
    """Evaluation besides the loss: samples, and accuracy where answers can be checked."""

    num_samples: int = MISSING
    sample_tokens: int = MISSING
    max_new_tokens: int = MISSING
    accuracy: bool = MISSING
    test: bool = True
    prompts: list[str] = field(default_factory=list)
    max_examples: int | None = None
    forgetting_curve: bool = False
    forgetting_at: float | None = None


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
    study_budget: int | None = None
    dry_run: bool = MISSING
    keep_checkpoints: bool = MISSING

    def __post_init__(self) -> None:
        self.references: dict[Place, str] = {}  # no key: what the environment gave, as files keep it


ConfigStore.instance().store(name="run_schema", node=RunConfig)
