"""Studies driven by the real planner, whose runs are records with losses by a formula: nothing here trains."""

import math
import random
from fnmatch import fnmatch

from lab.record import RunRecord, write
from lab.record.study import AA, write_study
from lab.sweep.declaration import declare
from lab.sweep.drive import drive

BEST = {"random": 1e-3, "near": 1.2e-3, "better": 8e-4, AA: 1e-3}
EFFECT = {"better": -0.4, "near": 0.0}
BASE = 4.0


def block(**fields):
    return {
        "name": "inits",
        "question": "Does it?",
        "arms": {"random": "init=random", "near": "init=svd", "better": "init=pissa"},
        "baseline": "random",
        "margin": "5% of gain",
        "seeds": list(range(1, 21)),
        "learning_rates": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
        "max_jobs": 200,
    } | fields


def study_dir(
    path, most=10**6, diverged=(), killed=None, curvature=3.0, effect=EFFECT, noise=0.02, reached=math.inf, **fields
):
    """A study driven by the real planner over runs whose losses follow a formula; at most so many runs.

    Runs at a rate above `reached` never came down to the loss at which equal_loss_forgetting is read. `killed` has
    what jobs leave that are killed whenever they run, by a pattern of their id: a status, or None for no record.
    """
    study = declare(block(**fields))
    write_study(path, study)
    ran = 0

    def launch(jobs, first):
        nonlocal ran
        for overrides in jobs:
            if ran == most:
                raise KeyboardInterrupt
            ran += 1
            given = dict(item.split("=", 1) for item in overrides)
            if "resume" in given:
                continue  # killed again, as it was before
            arm, stage = given["arm"].strip("'"), given["stage"]
            rate, seed, order = float(given[study.rate]), int(given["seed"]), int(given["data_seed"])
            bent = curvature / 2 * math.log10(rate / BEST.get(arm, 1e-3)) ** 2
            own = random.Random(f"{arm} {seed}").gauss(0, noise) if stage == "verdict" else 0.0
            loss = 2 + bent + effect.get(arm, 0.0) + 0.05 * math.sin(order) + own
            folder = path / given["hydra.sweep.subdir"].strip("'")
            folder.mkdir(exist_ok=True)
            lefts = [left for job, left in (killed or {}).items() if fnmatch(folder.name, f"*_{job}")]
            gone, left = (arm, seed) in diverged, (lefts or ["completed"])[0]
            if left is None:
                continue
            metrics = {"val_loss": loss, "test_loss": loss, "base_val_loss": BASE, "base_test_loss": BASE}
            metrics |= {"val_bpb": loss / 2, "equal_loss_forgetting": loss if rate <= reached else None}
            group, key = study.rate.split(".")
            write(
                folder,
                RunRecord(
                    status="diverged" if gone else left, stage=stage, arm=arm, seed=seed, data_seed=order,
                    study="inits", config={group: {key: rate}, "init": given["init"]},
                    choices={"init": given["init"]}, metrics=metrics if left == "completed" and not gone else {},
                    seconds={"total": 10.0}, trainable_params=1000, ranks={"q": 8},
                ),
            )  # fmt: skip

    settings = {"launcher": "BasicLauncher", "one_by_one": True, "keep_checkpoints": False}
    try:
        drive(path, study, launch, **settings)
    except KeyboardInterrupt:
        assert most < 10**6
    return path
