"""The studies of what switching is for: every arm of each composes as its study starts it, and runs a few steps."""

import shlex
from itertools import product

import pytest
import torch
from omegaconf import OmegaConf

from lab import config, record
from lab.config import CONF, instantiate
from lab.editors.start import switchable
from lab.instruments.targets import spectral_targets
from lab.launch import job
from lab.run import dry_run, plan
from lab.sweep.block import SIZES
from lab.sweep.declaration import declare

STUDIES = ("forgetting", "phase2")
BLOCKS = {
    name: OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{name}.yaml").hydra.sweeper.study)
    for name in STUDIES
}
ARMS = [(name, arm) for name in STUDIES for arm in BLOCKS[name]["arms"]]
SHORT = (
    *("logger=none", "hardware.threads=1", "hardware.precision=32-true", "hardware.accelerator=cpu"),
    *("schedule.max_steps=2", "schedule.eval_every_n_steps=1", "schedule.log_every_n_steps=1"),
    *("evaluate.max_examples=2", "evaluate.num_samples=0", "data.max_length=32", "data=text"),
)
TWIN = (  # of a study's model: as deep as it must be to have blocks, and as wide as its policies ask
    *("model.depth=1", "model.vocab_size=8192", "schedule.batch_size=2"),
)


EVERY_STEP = ("svd_policy.every_n_steps=1", "svd_policy.warmup_steps=1")
BF16 = ("hardware.precision=bf16-mixed",)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "some.txt"
    file.write_text("\n\n".join(f"{n} is followed by {n + 1}, and {n + 1} by {n + 2}." for n in range(200)))
    return file


def ran(run_dir, *given):
    run_dir.mkdir(parents=True, exist_ok=True)
    job.launch(config.compose(*given), run_dir, choices={}, overrides=list(given), alone=False)
    return record.read(run_dir)


@pytest.mark.parametrize(("name", "arm"), ARMS, ids=lambda value: value)
def test_every_arm_of_a_study_runs_two_steps(name, arm, text, tmp_path):
    block = BLOCKS[name]
    overrides = [block["arms"][arm]] if isinstance(block["arms"][arm], str) else block["arms"][arm]
    own = [f"data.retention={text}", "evaluate.forgetting_at=99"] if name == "forgetting" else TWIN
    early = ["svd_policy.warmup_steps=1"] if arm in ("compress", "auto") else []  # theirs is longer than the run
    common = [*block.get("common", []), *overrides]
    result = ran(tmp_path, f"experiment={name}", *SHORT, f"data.path={text}", *own, *common, *early, "optim.lr=1e-3")
    assert (result.status, result.steps) == ("completed", 2)
    if name == "forgetting":
        assert result.metrics["equal_loss_forgetting"] == 0.0, "the base is below 99"
        assert (tmp_path / "retention.csv").is_file()
    if arm in ("guard", "guard_core"):
        assert {account["steps"] for account in result.spectral["guard"].values()} == {1}, "from the first tick on"
        assert len(result.spectral["guard"]) == 28
    if arm.startswith("osf"):
        assert {layer["kept"] for layer in result.spectral["osf"].values()} == {64}
    if arm == "delta":
        assert result.switches == 28


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_of_any_size_declares_arms_that_its_policies_accept(name, size):
    study = declare(BLOCKS[name], size)
    for overrides in study.arms.values():
        asked = config.compose(f"experiment={name}", *study.common, *overrides)
        assert asked.method == "full"
        assert asked.hardware.threads == 1, "jobs run beside each other"
        policy, skeleton = instantiate.make(asked.svd_policy), instantiate.make(asked.model).skeleton()
        switchable(
            skeleton, policy, torch.float32, False, asked.schedule.max_steps
        )  # raises for a run too short for it


def test_the_arms_that_protect_by_guard_and_by_osf_keep_as_many_directions():
    arms = declare(BLOCKS["forgetting"]).arms
    assert "svd_policy.k=64" in arms["guard"]
    assert "svd_policy.effective_rank=64" in arms["osf"]
    assert "svd_policy.side=bilateral" in arms["guard"], "what OSF freezes: all that touches a kept direction"


def test_phase_2_is_all_attention_matrices_of_all_blocks_at_2048_tokens_a_step():
    study = declare(BLOCKS["phase2"], "full")
    asked = config.compose("experiment=phase2", *study.common, *study.arms["phase1"])
    assert asked.svd_policy["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert asked.schedule.batch_size * asked.data["max_length"] == 2048
    assert asked.schedule.max_steps == 2000


def test_phase_3_is_nanochats_own_run_at_depth_20():
    asked = config.compose("experiment=phase3")
    assert asked.schedule.batch_size * asked.data["max_length"] == 524_288
    assert (asked.schedule.max_steps, asked.hardware.devices) == (21400, 8)
    tokens = asked.schedule.max_steps * asked.schedule.batch_size * asked.data["max_length"]
    assert tokens / 560_988_160 == pytest.approx(20, rel=1e-3)


def test_two_steps_of_a_shrunken_twin_of_phase_3_run_here(text, tmp_path):
    twin = ("model.depth=2", "model.vocab_size=8192", "schedule.batch_size=16", "hardware.devices=1")
    given = ("experiment=phase3", *SHORT, *twin, *BF16, f"data.path={text}", *EVERY_STEP)
    result = ran(tmp_path, *given)
    assert (result.status, result.steps, result.study) == ("completed", 2, "phase3")
    assert result.environment["precision"] == "bf16-mixed"
    assert (tmp_path / "decisions.jsonl").read_text().count("\n") == 2 * 12


def test_a_dry_run_for_eight_gpus_says_gib_flops_and_hours(text):
    """The twin's: at depth 20 the same lines take minutes of a busy machine to count."""
    twin = ("model.depth=2", "model.vocab_size=8192", "data=text", f"data.path={text}", "data.max_length=32")
    said = dry_run.report(config.compose("experiment=phase3", *twin))
    assert "dry run: 8 x A100, bf16-mixed" in said
    assert said.count("GiB per GPU") == 5
    assert "FLOPs per step, 21,400 steps, and " in said
    assert "a step on each device for the optimizer" in said
    assert "hours of training alone (40% of the A100's bf16 peak)" in said


def test_the_muon_products_of_a_plan_are_those_of_newton_schulz(text):
    """Closed form for one block of width 128: five iterations, each three products of the smaller side's Gram."""
    twin = ("model.depth=1", "model.vocab_size=8192", "data=text", f"data.path={text}", "data.max_length=32")
    planned = plan.plan(config.compose("experiment=phase3", *twin, "hardware=cpu", *BF16, "schedule.batch_size=16"))
    width = planned.parts.model.skeleton().config.hidden_size
    shapes = [(width, width)] * 4 + [(width, 4 * width)] * 2
    products = sum(5 * (2 * m * m * n + 2 * m * m * m + 2 * m * m * n) for m, n in shapes)
    assert planned.cost.optimizer_flops == products


def test_the_flops_of_a_plan_are_those_of_its_products_with_attention_scores(text):
    """Closed form: 6 a weight and token, and of attention, forward and backward, (2 + 5) products of T x T x width."""
    twin = ("model.depth=1", "model.vocab_size=8192", "data=text", f"data.path={text}", "data.max_length=32")
    planned = plan.plan(config.compose("experiment=phase3", *twin, "hardware=cpu", *BF16, "schedule.batch_size=16"))
    width, tokens, length = planned.parts.model.skeleton().config.hidden_size, 8 * 32, 32
    blocks, head = 12 * width * width, 8192 * width
    labelled = 8 * 31  # the first of a block is not predicted
    expected = 6 * blocks * tokens + 6 * head * labelled + 7 * 2 * length * width * tokens
    assert planned.cost.flops == pytest.approx(expected, rel=1e-3)


def commands_of(name):
    """The words of each start that a header's commands stand for, a sweep's one by one, without the launcher."""
    header = (CONF / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]
    commands = [line.split("lab.train ")[1].split("#")[0] for line in header.splitlines() if "lab.train " in line]
    assert len(commands) >= 2
    for command in commands:
        words = [word for word in shlex.split(command) if word != "-m" and not word.startswith("hydra/launcher")]
        keys = [word.split("=", 1)[0] for word in words]
        for values in product(*(word.split("=", 1)[1].split(",") for word in words)):
            yield [f"{key}={value}" for key, value in zip(keys, values, strict=True)]


@pytest.mark.parametrize("name", ["forgetting", "phase2", "phase3"])
def test_the_commands_in_a_header_compose(name):
    for words in commands_of(name):
        config.compose(*words)


def test_every_start_in_the_header_of_phase_3_has_a_policy_that_can_measure_its_model():
    asked = [config.compose(*words) for words in commands_of("phase3")]
    policies = [instantiate.make(each.svd_policy) for each in asked]
    model = instantiate.make(asked[0].model)
    measured = [spectral_targets(model, policy, None) for policy in policies]
    assert [found and len(found.targets) for found in measured] == [120, None, 120], "auto, never, auto; 6 a block"
