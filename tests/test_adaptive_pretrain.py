"""experiment=adaptive_pretrain at a tiny size: every arm runs a few steps, and the report says what its layers did."""

import csv
import json
from itertools import pairwise

import pytest
from omegaconf import OmegaConf
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lab import config, record
from lab.config import CONF
from lab.launch import job
from lab.record.study import write_study
from lab.report.analysis import analyse
from lab.report.render import write_report
from lab.report.run import load_run
from lab.report.switching import switching_of
from lab.sweep.declaration import declare
from lab.verdict.procedure import tuning_jobs

BLOCK = OmegaConf.to_container(
    OmegaConf.select(OmegaConf.load(CONF / "experiment/adaptive_pretrain.yaml"), "hydra.sweeper.study")
)
STEPS = 8
TINY = (
    "experiment=adaptive_pretrain",
    "model.depth=1",
    "data=text",
    "data.max_length=32",
    "schedule.batch_size=2",
    f"schedule.max_steps={STEPS}",
    "schedule.eval_every_n_steps=4",
    "schedule.log_every_n_steps=1",
    "schedule.save_every_n_steps=1000",
    "evaluate.max_examples=5",
    "logger=none",
    "hardware=cpu",
    "hardware.threads=1",
    "hardware.precision=32-true",
)
# A run of a few steps cannot wait for as many as the study's own do.
SOON = {"warmup_steps": 1, "every_n_steps": 2, "fade_steps": 2}
SCHEDULED = "svd_policy.schedule=[{step: 2, layers: all, action: compress, rank: 0.8}]"
ARMS = tuple(declare(BLOCK).arms)
SIDES = {"never", "never_short"}


def overrides(arm):
    """An arm's own, with what makes it act in a few steps."""
    own = list(declare(BLOCK).arms[arm])
    if arm == "never_short":
        own.append(f"schedule.max_steps={STEPS * 4 // 5}")
    if arm == "scheduled":
        own.append(SCHEDULED)
    settings = config.compose(*TINY, *own).svd_policy
    soon = {key: value for key, value in SOON.items() if key in settings and settings[key] is not None}
    return [*own, *(f"svd_policy.{key}={value}" for key, value in soon.items())]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Each arm's first verdict run, in a study's folder."""
    folder = tmp_path_factory.mktemp("study")
    text = folder / "some.txt"
    text.write_text("\n\n".join(f"{n} is followed by {n + 1}, and {n + 1} by {n + 2}." for n in range(200)))
    write_study(folder, declare(BLOCK | {"seeds": [1], "learning_rates": {arm: [0.02] for arm in ARMS}}))
    for number, arm in enumerate(ARMS):
        given = [*TINY, *overrides(arm), f"data.path={text}", "optim.matrix_lr=0.02", "seed=1"]
        given += ["study=adaptive_pretrain", "stage=verdict", f"arm={arm}"]
        run_dir = folder / f"{number}_verdict_{arm}_lr=0.02_seed=1"
        run_dir.mkdir()
        with Counted() as counted:
            job.launch(config.compose(*given), run_dir, choices={}, overrides=given, alone=False)
        (run_dir / "counted").write_text(json.dumps(counted.bytes))
    return folder


class Counted:
    """Bytes of the block's matrices, their gradients and the optimizer's state of them, at every optimizer step.

    Looked at before the step, when gradients are there, and after it, when moments are: what is held at once is each
    moment's weights with the larger of both. The names are those of the optimizer's own groups.
    """

    def __enter__(self):
        self.bytes = []
        self.hooks = [
            register_optimizer_step_pre_hook(lambda optimizer, *_: self.count(optimizer)),
            register_optimizer_step_post_hook(lambda optimizer, *_: self.count(optimizer)),
        ]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def count(self, optimizer):
        total = 0
        for group in optimizer.param_groups:
            if group.get("kind") == "muon":
                for parameter in group["params"]:
                    grad = 0 if parameter.grad is None else parameter.grad.nbytes
                    state = sum(v.nbytes for v in optimizer.state.get(parameter, {}).values() if isinstance(v, Tensor))
                    total += parameter.nbytes + grad + state
        self.bytes.append(total)


def runs(study):
    return {path.name.split("_verdict_")[1].split("_lr=")[0]: path for path in sorted(study.glob("*_verdict_*"))}


def test_the_default_is_what_the_study_asks():
    asked = config.compose("experiment=adaptive_pretrain")
    assert asked.model["vocab_size"] == 8192
    assert asked.schedule.batch_size * asked.data["max_length"] == 2048
    assert asked.schedule.max_steps == 300
    study = declare(BLOCK)
    assert study.contrasts == ["grow/never", "grow/never_short", "compress/never", "auto/never"]
    assert len(study.seeds) >= 4
    assert tuning_jobs(study) == 3 * 5
    steps = {
        size: {arm: steps_of(declare(BLOCK, size), arm) for arm in ("never", "never_short")}
        for size in ("default", "full")
    }
    assert steps == {"default": {"never": 300, "never_short": 240}, "full": {"never": 600, "never_short": 480}}


def steps_of(study, arm):
    return config.compose("experiment=adaptive_pretrain", *study.common, *study.arms[arm]).schedule.max_steps


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_runs(study, arm):
    result = record.read(runs(study)[arm])
    assert result.status == "completed"
    assert result.steps == (6 if arm == "never_short" else STEPS)
    assert result.metrics["val_bpb"] > 0


def test_never_short_has_a_schedule_of_its_own(study):
    """Warmdown: constant, and the last fifth of its own steps linear."""
    for arm, steps in (("never", 8), ("never_short", 6)):
        with (runs(study)[arm] / "metrics.csv").open() as file:
            rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
        assert len(rates) == steps
        assert rates[-1] < rates[0]
        assert rates[steps // 2] == rates[0]


def test_layers_grow_go_low_and_come_back(study):
    grow, low = (switching_of(load_run(runs(study)[arm])) for arm in ("grow", "low_always"))
    assert (grow.switched, grow.returned, grow.end.low) == (6, 6, 0)
    assert (low.switched, low.returned, low.end.low, low.first) == (6, 0, 6, 0)
    assert grow.fall is not None
    assert low.fall is None, "it never was higher after a step"


@pytest.mark.parametrize("arm", sorted(set(ARMS) - SIDES))
def test_what_the_report_counts_is_what_tensors_hold(study, arm):
    """Against the bytes of the tensors themselves, at every step of the run."""
    run_dir = runs(study)[arm]
    counted, own = json.loads((run_dir / "counted").read_text()), switching_of(load_run(run_dir))
    frozen = [moment for moment in own.moments if moment.bytes != 12 * moment.trained][1:]
    assert max(counted) <= own.peak_bytes
    if not frozen:  # what rides along is in no optimizer
        assert max(counted) == max(moment.bytes for moment in own.after_start)
        assert counted[-1] == own.end.bytes


def test_only_low_rank_from_before_the_first_step_to_the_end_lowers_the_peak(study):
    full = max(json.loads((runs(study)["never"] / "counted").read_text()))
    peaks = {arm: max(json.loads((runs(study)[arm] / "counted").read_text())) for arm in set(ARMS) - SIDES}
    assert {arm for arm, peak in peaks.items() if peak < full} == {"low_always"}
    assert peaks["low_always"] < 0.45 * full, "0.4 of break-even, rounded down"
    claimed = {arm for arm in set(ARMS) - SIDES if switching_of(load_run(runs(study)[arm])).lowers_peak}
    assert claimed == {"low_always"}


def test_the_report_says_what_switched_and_claims_a_lower_peak_for_one_arm_alone(study, tmp_path):
    analysis = analyse(study)
    assert not analysis.study.problems
    write_report(analysis, tmp_path)
    text = " ".join((tmp_path / "README.md").read_text().replace("\\", "").split())
    assert "A lower peak of memory: low_always, some or all layers low-rank from before the first step" in text
    assert "No lower peak of memory: grow, compress, auto, guard, phase1, phase1_lenient, scheduled, random." in text
    assert (tmp_path / "low_rank_over_steps.png").exists()
    assert "a layer returns: reached" in text
    assert "rank falls: reached" in text
    assert "grow trained 8 steps, 512 tokens" in text
    assert "never_short trained 6 steps, 384 tokens" in text
    with (tmp_path / "runs.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert rows["grow"]["layers_switched"] == "6"
    assert rows["never"]["layers_switched"] == ""
    assert int(rows["low_always"]["training_bytes_peak"]) < int(rows["grow"]["training_bytes_peak"])
    assert rows["grow"]["learning_rate"] == "0.02"


def test_a_step_of_grow_is_timed_with_all_layers_full_and_with_low_ones(study):
    own = switching_of(load_run(runs(study)["grow"]))
    assert all(seconds > 0 for seconds in own.step_seconds)
    assert all(before.step < after.step for before, after in pairwise(own.after_start))
    assert 0 < own.step_ratio < 1
