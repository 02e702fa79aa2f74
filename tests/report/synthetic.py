"""Run and study directories with known numbers, written with lab.record: nothing here trains."""

import csv
import json
import math
import random
from pathlib import Path

from lab.record import RunRecord, read, write
from lab.record.study import Study, write_study

STEPS = 60
COLUMNS = ("step", "tokens", "train_loss", "val_loss", "val_bpb", "lr", "grad_norm", "tokens_per_second", "seconds")
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_run(
    directory: Path,
    *,
    arm: str | None,
    seed: int,
    loss: float,
    data_seed: int | None = None,
    stage: str | None = "verdict",
    status: str = "completed",
    rank: int | None = 16,
    lr: float = 1e-3,
    overrides: tuple[str, ...] = (),
    config: dict | None = None,
    choices: dict | None = None,
    data: str = "d" * 64,
    base: str = "b" * 64,
    ranks: dict | None = None,
    seconds: float = 40.0,
    metrics: dict | None = None,
    study: str | None = "synthetic",
    error: dict | None = None,
    curves: bool = True,
    labelled_tokens: int | None = None,
) -> Path:
    """One run whose test loss is `loss` and whose curve falls to it."""
    directory.mkdir(parents=True)
    data_seed = seed if data_seed is None else data_seed
    ranks = ranks or ({f"model.layers.{i}.{name}": rank for i in range(4) for name in LAYERS} if rank else {})
    completed = status == "completed"
    wait = random.Random(directory.name).uniform(0, 2)  # another process wanted the machine too
    measured = {
        "train_loss": loss - 0.1,
        "val_loss": loss + 0.02,
        "test_loss": loss,
        "test_accuracy": max(0.0, min(1.0, 1.2 - loss / 4)),
        "best_val_loss": loss + 0.02,
        "val_perplexity": math.exp(loss + 0.02),
        "base_val_loss": 3.02,
        "base_test_loss": 3.0,
        "forgetting": 0.02 + 0.05 * (3.0 - loss),
    } | (metrics or {})
    record = RunRecord(
        status=status,
        study=study,
        stage=stage,
        arm=arm,
        choices={"model": "tiny", "data": "probability_qa", "init": "random", "rank_strategy": "uniform"}
        | (choices or {}),
        overrides=list(overrides),
        config={"seed": seed, "data_seed": data_seed, "rank": rank or 0, "optim": {"lr": lr}, "alpha": 32}
        | (config or {}),
        seed=seed,
        data_seed=data_seed,
        model={"name_or_path": "tiny", "revision": None, "weights_sha256": base, "dtype": "float32"},
        ranks=ranks,
        scalings=dict.fromkeys(ranks, 2.0),
        trainable_params=sum(ranks.values()) * 512 if ranks else 4_200_000,
        total_params=4_200_000,
        budget={"asked": sum(ranks.values()) * 512, "used": sum(ranks.values()) * 512},
        init={"scheme": (choices or {}).get("init", "random"), "modules_targeted": len(ranks), "seconds": 0.5},
        metrics=measured if completed else {"val_loss": None},
        steps=STEPS if completed else 17,
        tokens=STEPS * 900,
        labelled_tokens=labelled_tokens,
        seconds={"total": seconds + wait, "init": 0.5, "train": 0.8 * seconds + wait, "eval": 1.0, "analysis": 0.0},
        peak_memory_bytes=310_000_000,
        environment={"torch": "2.13.0", "python": "3.11", "device": "cpu", "threads": 1, "commit": "0" * 40},
        data={
            "name": "probability_qa",
            "sha256": data,
            "train_examples": 81,
            "val_examples": 100,
            "test_examples": 200,
        },
        error=error,
    )
    write(directory, record)
    if curves:
        _metrics(directory / "metrics.csv", loss, seed, seconds, completed)
    return directory


def _metrics(path: Path, loss: float, seed: int, seconds: float, completed: bool) -> None:
    noise = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for step in range(0, (STEPS if completed else 17) + 1):
            value = loss + (3.0 - loss) * math.exp(-step / 12)
            writer.writerow(
                {
                    "step": step,
                    "tokens": 900 * step,
                    "train_loss": value - 0.1 + noise.gauss(0, 0.03) if step else "",
                    "val_loss": value + 0.02 if step % 10 == 0 else "",
                    "lr": 1e-3 * (1 - step / STEPS),
                    "grad_norm": 1.5 * math.exp(-step / 40) + noise.gauss(0, 0.05) if step else "",
                    "tokens_per_second": 4000,
                    "seconds": seconds * 0.8 * step / STEPS,
                }
            )


def declare(directory: Path, arms: dict[str, list[str]], baseline: str, **fields) -> Study:
    """study.json for six verdict seeds, with a twin each."""
    seeds = fields.pop("seeds", [1, 2, 3, 4, 5, 6])
    study = Study(
        name=fields.pop("name", "synthetic"),
        question=fields.pop("question", "Does anything differ?"),
        arms=arms,
        baseline=baseline,
        contrasts=fields.pop("contrasts", [arm for arm in arms if arm != baseline][:4]),
        margin=fields.pop("margin", "1%"),
        seeds=seeds,
        twin_seeds=fields.pop("twin_seeds", [seed + 1000 for seed in seeds]),
        tune_seeds=[0],
        learning_rates={arm: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2] for arm in arms},
        **fields,
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_study(directory, study)
    return study


def make_study(directory: Path, means: dict[str, float], *, noise: float = 0.01, tuned: bool = True, **fields) -> Study:
    """A study whose arms have these mean test losses and seed noise `noise`; the first arm is the baseline."""
    per_arm, draw = fields.pop("per_arm", {}), random.Random(fields.pop("draw", 7))
    study = declare(directory, {arm: [f"init={arm}"] for arm in means}, next(iter(means)), **fields)
    number = 0
    shared = random.Random(7)
    common = {seed: shared.gauss(0, 0.03) for seed in study.seeds}
    for arm, mean in means.items():
        for lr in study.learning_rates[arm] if tuned else []:
            bent = mean + 0.08 * math.log10(lr / 1e-3) ** 2
            status = "diverged" if lr == 1e-2 and arm == list(means)[-1] else "completed"
            make_run(
                directory / f"{number}_tune_{arm}_lr={lr:g}_seed=0", arm=arm, seed=0, loss=bent, stage="tune", lr=lr,
                status=status, **per_arm.get(arm, {}),
            )  # fmt: skip
            number += 1
        for seed in study.seeds:
            make_run(
                directory / f"{number}_verdict_{arm}_lr=0.001_seed={seed}",
                arm=arm, seed=seed, loss=mean + common[seed] + draw.gauss(0, noise), **per_arm.get(arm, {}),
            )  # fmt: skip
            number += 1
    for seed, twin in zip(study.seeds, study.twin_seeds, strict=True):
        make_run(
            directory / f"{number}_verdict_{study.baseline}_lr=0.001_seed={twin}", arm=study.baseline, seed=twin,
            data_seed=seed, loss=means[study.baseline] + common[seed] + draw.gauss(0, noise),
            **per_arm.get(study.baseline, {}),
        )  # fmt: skip
        number += 1
    return study


def rank_sweep(directory: Path) -> Study:
    """Loss falls with rank to 16 and stays."""
    means = {"r64": 2.0, "r2": 2.45, "r4": 2.3, "r8": 2.12, "r16": 2.0, "r32": 2.0, "full": 1.98}
    per_arm = {arm: {"rank": int(arm[1:]) if arm != "full" else None} for arm in means}
    return make_study(
        directory, means, per_arm=per_arm, noise=0.005, contrasts=["r4", "r8", "r16", "r32"], name="rank_sweep",
        question="Which LoRA rank is enough?",
    )  # fmt: skip


def init_comparison(directory: Path) -> Study:
    """One scheme is better, one equivalent, one worse, one unclear."""
    means = {"random": 2.1, "svd[gradient]": 1.95, "pissa": 2.1, "milora": 2.2, "lora_one": 2.085}
    per_arm = {arm: {"choices": {"init": arm}} for arm in means}
    return make_study(
        directory, means, per_arm=per_arm, noise=0.008, name="init_comparison",
        question="Does an SVD-guided LoRA initialisation beat a random one?",
    )  # fmt: skip


def rank_strategies(directory: Path) -> Study:
    """Uniform, two that differ in where the rank goes, and an arm of which runs fail."""
    shapes = {
        "uniform": lambda depth, name: 16,
        "linear_decay": lambda depth, name: 22 - 4 * depth,
        "attention_heavy": lambda depth, name: 24 if name in LAYERS[:4] else 8,
        "empirical": lambda depth, name: (10, 19, 19, 16)[depth],
    }
    means = {"uniform": 2.1, "linear_decay": 2.12, "attention_heavy": 2.16, "empirical": 2.1}
    per_arm = {
        arm: {"ranks": {f"model.layers.{i}.{name}": shape(i, name) for i in range(4) for name in LAYERS}}
        for arm, shape in shapes.items()
    }
    study = make_study(directory, means, per_arm=per_arm, name="rank_strategies", question="Does uneven rank pay?")
    make_run(
        directory / "99_verdict_empirical_lr=0.001_seed=7", arm="empirical", seed=7, loss=9.0, status="diverged",
        error={"type": "Diverged", "message": "loss is NaN at step 17 <script>alert(1)</script>"},
        **per_arm["empirical"],
    )  # fmt: skip
    return study


FORGOT = {"never": 0.2, "guard": 0.1, "osf": 0.2, "delta": 0.3}  # nats on A for each nat that B's loss fell


def forgetting(directory: Path, slopes: dict[str, float] = FORGOT, level: float = 2.5, **fields) -> Study:
    """Arms that forget in proportion to what they learn, by their own slopes; what they protect is in their records."""
    means = dict(zip(slopes, (2.0, 2.2, 2.1, 2.05), strict=False))
    wanted = {"metric": "equal_loss_forgetting", "margin": 0.01, "name": "forgetting", "tuned": False}
    study = make_study(directory, means, **wanted | {"question": "Is more kept at equal loss?"} | fields)
    for path in sorted(directory.glob("*/result.json")):
        held = read(path.parent)
        noise = random.Random(f"{held.arm} {held.seed}").gauss(0, 0.002)
        slope, end = slopes[held.arm], held.metrics["val_loss"]
        losses = [3.02 + i / 12 * (end - 3.02) for i in range(13)]
        rows = [
            f"{5 * i},{loss!r},{4.0 + slope * (3.02 - loss) + noise * (i > 0)!r}\n" for i, loss in enumerate(losses)
        ]
        (path.parent / "retention.csv").write_text("step,val_loss,retention_loss\n" + "".join(rows))
        held.metrics |= {"equal_loss_forgetting": slope * (3.02 - level) + noise, "base_retention_loss": 4.0}
        held.metrics["forgetting"] = slope * (3.02 - end) + noise
        if held.arm == "guard":
            held.spectral["guard"] = {name: {"steps": 59, "removed": 29.5, "leak": 1e-10} for name in LAYERS}
        if held.arm == "osf":
            held.spectral["osf"] = {name: {"kept": 64, "leak": 0.02 + 0.01 * i} for i, name in enumerate(LAYERS)}
        if held.arm == "delta":
            moves = [{"step": 0, "layer": name, "from": "full", "to": "delta", "tail": 0.9} for name in LAYERS]
            (path.parent / "switches.jsonl").write_text("".join(json.dumps(move) + "\n" for move in moves))
        write(path.parent, held)
    return study
