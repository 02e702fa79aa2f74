"""Truncation curve of a run's adapter: how much of its gain on held-out text each smaller rank keeps, untrained."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import config as configuration
from lab import record
from lab.config import RunConfig, instantiate
from lab.errors import UsageError
from lab.record.study import STUDY
from lab.run import selected

if TYPE_CHECKING:
    from lab.adapter.delta import Truncated

SHARE = 0.99  # of the gain from the base to the run, that the suggested rank keeps
BYTES = 4  # of a parameter in an adapter's file, which is float32
FILE, SCHEMA = "suggest_rank.json", 1
LICENCE = (
    "advice from one run, no verdict: a cut rank is no trained one, which may do better or worse; "
    "experiment=rank_sweep trains the ranks"
)


@dataclass(frozen=True)
class Point:
    """A run's change cut to its best `rank` directions in every layer."""

    rank: int
    loss: float  # validation, nats per token
    kept: float | None  # share of the gain from the base to the whole change; None where there is no gain
    energy: float  # share of Σ ‖ΔW‖²_F over the layers
    parameters: int  # that train at this rank: Σ rank (out + in)
    bytes: int  # of an adapter of this rank


@dataclass(frozen=True)
class Curve:
    """Truncation curve of one run."""

    run: str
    base_loss: float
    points: list[Point]  # by rising rank, the last one the whole change
    recorded_loss: float | None  # of the run itself, as its record has it
    examples: int
    doubled: bool  # the change has up to twice the trained rank, since an initial pair was taken away

    @property
    def gain(self) -> float:
        """From the base to the whole change, nats per token."""
        return self.base_loss - self.points[-1].loss

    @property
    def knee(self) -> int | None:
        """The smallest rank here that keeps SHARE of the gain; None where there is no gain."""
        return next((point.rank for point in self.points if point.kept is not None and point.kept >= SHARE), None)

    def plain(self) -> dict[str, Any]:
        """What the file holds."""
        return {"schema": SCHEMA, "licence": LICENCE, "share": SHARE, "knee": self.knee, "gain": self.gain} | asdict(
            self
        )


def curve(run_dir: Path) -> Curve:
    """The truncation curve of a completed LoRA run on its validation side; no training.

    Raises UsageError where the folder is no such run, its data are others by now, or its adapter changes nothing.
    """
    config = configuration.load_for_weights(run_dir) if (run_dir / configuration.CONFIG).is_file() else None
    check(run_dir, config)
    chosen = selected.load(run_dir)
    import torch

    from lab.adapter.build import build, planned
    from lab.adapter.delta import delta_factors, truncate
    from lab.adapter.layer import adapted_layers
    from lab.data.corpus import load_corpus
    from lab.layer import find_targets
    from lab.training.evaluate import evaluate
    from lab.training.loss import Scorer
    from lab.training.progress import aloud
    from lab.training.pulse import beat_at_every_pass

    result, config = record.read(run_dir), chosen.config
    corpus = load_corpus(instantiate.make_data(config.data), chosen.model.tokenizer(), config.evaluate.max_examples)
    if corpus.splits.sha256 != result.data["sha256"]:
        raise UsageError(
            f"the data of {run_dir} have changed since it trained (sha256 {corpus.splits.sha256[:12]}, was "
            f"{str(result.data['sha256'])[:12]}), and its losses were measured on the old; give them back."
        )
    doubled = any(layer.offset != "none" for layer in adapted_layers(chosen.net).values())
    changes = {name: truncate(L, R, L.shape[1]) for name, L, R in delta_factors(chosen.net) if L.shape[1] > 0}
    if not any(change.energy for change in changes.values()):
        raise UsageError(
            f"the adapter of {run_dir} changes nothing (every layer's change is 0), so it says nothing about ranks; "
            "train longer, or at a higher optim.lr."
        )
    base = _base_of(chosen.net)
    targets = [target for target in find_targets(base) if target.name in changes]
    plan = {name: change.L.shape[1] for name, change in changes.items()}
    net = build(base, planned(targets, plan, scaling=1.0))
    layers, cost = adapted_layers(net), {target.name: target.cost for target in targets}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net.to(device).eval()
    beat_at_every_pass(net)
    losses: dict[int, float] = {}
    with torch.no_grad(), Scorer(net, device, autocast=False) as scorer:
        for name, change in changes.items():
            layers[name].A.copy_(change.R)
            layers[name].B.copy_(change.L)
        for rank in [*reversed(ranks_to(max(plan.values()))), 0]:
            for layer in layers.values():
                layer.B[:, rank:] = 0  # what is cut adds exactly 0
            with aloud(f"rank {rank}"):
                losses[rank] = evaluate(scorer, corpus.val.samples, corpus.pad_id).loss
    return Curve(
        run=str(run_dir),
        base_loss=losses[0],
        points=list(_points(losses, changes, cost)),
        recorded_loss=result.metrics.get("val_loss"),
        examples=len(corpus.val.samples),
        doubled=doubled,
    )


def check(run_dir: Path, config: RunConfig | None) -> None:
    """Refuse what files alone say can give no curve: no run, an unfinished one, no low-rank change."""
    if not run_dir.is_dir():
        raise UsageError(f"{run_dir} is no folder; name a run's, such as multirun/single/<time>.")
    if (run_dir / STUDY).is_file():
        raise UsageError(f"{run_dir} is a study; name one of its jobs, best one of a large rank.")
    status = record.status_of(run_dir)
    if status != "completed":
        remedy = {
            "running": "wait for its end",
            "interrupted": f"go on with python -m lab.train resume={run_dir}",
            "stopped": "name one that ran to its end",
        }.get(status, "name one that completed")
        raise UsageError(f"{run_dir} {selected.UNFINISHED[status]}, and a curve is of a completed run; {remedy}.")
    if config is None:
        raise UsageError(f"{run_dir} holds no {configuration.CONFIG}, so its model cannot be built again; restore it.")
    if config.method == "full":
        raise UsageError(
            f"{run_dir} trained every weight (method=full), so it has no adapter to cut; name a run of method=lora "
            "with a large rank."
        )
    if config.adapter.use_dora:
        raise UsageError(
            f"{run_dir} trained with DoRA, which also rescales whole rows of the weight: its change has full rank, and "
            "cutting the pair beside the trained lengths would be another model; name a run without adapter.use_dora."
        )


def ranks_to(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself."""
    return [2**power for power in range(most.bit_length()) if 2**power < most] + [most]


def _base_of(net: Any) -> Any:
    """The base that the change is against, without adapters: a folded pair is put back, a replaced weight stays."""
    import torch

    from lab.adapter.delta import pristine_weight
    from lab.adapter.layer import adapted_layers
    from lab.layer import weight_of

    with torch.no_grad():
        for layer in adapted_layers(net).values():
            if layer.offset == "fold":
                weight_of(layer.get_base_layer()).copy_(pristine_weight(layer))
    return net.unload()


def _points(
    losses: Mapping[int, float], changes: Mapping[str, "Truncated"], cost: Mapping[str, int]
) -> Iterator[Point]:
    ranks: Sequence[int] = sorted(losses)[1:]
    gain = losses[0] - losses[ranks[-1]]
    whole = sum(change.energy for change in changes.values())
    for rank in ranks:
        # A direction's singular value is the squared length of its column of L.
        energy = sum(float(change.L[:, :rank].double().square().sum(0).square().sum()) for change in changes.values())
        parameters = sum(min(rank, change.L.shape[1]) * cost[name] for name, change in changes.items())
        yield Point(
            rank=rank,
            loss=losses[rank],
            kept=(losses[0] - losses[rank]) / gain if gain > 0 else None,
            energy=min(1.0, energy / whole),
            parameters=parameters,
            bytes=BYTES * parameters,
        )
