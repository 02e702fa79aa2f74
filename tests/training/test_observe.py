"""Observing a real run: what it writes is true, and training is bitwise what it is without."""

import re

import pytest
import torch
from jobs import losses, run
from safetensors.torch import load_file

from lab import config, ledger, record
from lab.adapter.layer import adapted_layers
from lab.errors import UsageError
from lab.instruments.layer_view import LayerViews
from lab.layer import evenly_spaced, find_targets
from lab.replay import __main__ as replay
from lab.svd_policy import decisions
from lab.training import checkpoint

TICKS = ("svd_policy.every_n_steps=2", "svd_policy.exact_every_n_ticks=2", "svd_policy.oversample=2")
OBSERVE = ("svd_policy=observe", "svd_policy.k=4", *TICKS)
PHASE1 = ("svd_policy=phase1", "svd_policy.every_n_steps=2", "svd_policy.warmup_steps=3")
# Dropout, accumulation, clipping and a checkpoint in between: everything that a look could disturb.
HARD = ("hardware.micro_batch_size=2", "optim.max_grad_norm=0.5", "schedule.save_every_n_steps=3")
FULL = ("method=full", "+model.architecture.attention_dropout=0.2", *HARD)
KINDS = {
    "full adamw": FULL,
    "full muon": (*FULL, "optim=muon"),
    "full checkpointing": (*FULL, "hardware.gradient_checkpointing=true"),
    "lora": ("init=svd", "adapter.dropout=0.2", *HARD),
    "lora checkpointing": ("adapter.dropout=0.2", "hardware.gradient_checkpointing=true", *HARD),
    "dora": ("adapter.use_dora=true", *HARD),
}


def weights(folder):
    path = folder / "model/model.safetensors"
    return load_file(path if path.exists() else folder / "adapter/adapter_model.safetensors")


def assert_same_training(one, other):
    assert losses(one) == losses(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bitwise_the_same_with_and_without_observe(kind, tmp_path):
    run(tmp_path / "never", *KINDS[kind])
    result = run(tmp_path / "observe", *KINDS[kind], *OBSERVE)
    assert_same_training(tmp_path / "never", tmp_path / "observe")
    rows = ledger.read(tmp_path / "observe").rows
    assert [row.step for row in rows] == [step for step in (0, 2, 4, 6) for _ in range(14)]
    assert all(row.gradient.total > 0 and row.update.total > 0 for row in rows)
    assert result.seconds["analysis"] > 0


@pytest.fixture(scope="module")
def phase1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phase1")
    run(folder, *FULL, *PHASE1)
    return folder


def test_replay_reproduces_the_live_decisions_exactly(phase1, capsys):
    replay.main([str(phase1)])
    assert "reproduces all 56 decisions of decisions.jsonl exactly" in capsys.readouterr().out
    replay.main([str(phase1), "svd_policy=phase1", "svd_policy.angle_stable=0.05,0.1,3"])
    assert "layers that fire" in capsys.readouterr().out


def test_the_record_says_what_could_happen_and_what_was_in_the_way(phase1):
    found = record.read(phase1).spectral
    assert len(found["before"]["reach"]) == len(found["after"]) / 2 == 14
    assert "optimal_lowrank_conditions cannot fire: reconstruction_safe < 0.01" in found["before"]["cannot_fire"][0]
    for item in found["after"]:
        if item["reason"] == "optimal_lowrank_conditions":
            assert item["failed"]["reconstruction_safe"] == item["ticks"] > 0, "what cannot hold never held"
    # k/m of the query projection, 64x64 at k=10
    assert found["before"]["chance"]["64x64"]["left"] == pytest.approx(10 / 64)


def test_a_resumed_run_has_every_tick_once_and_the_same(tmp_path, monkeypatch):
    from lab.training.callbacks import StopOnRequest

    class Killed(BaseException):
        pass

    def die(self, trainer, module, batch):
        if module.run.progress.step == 5:
            raise Killed

    run(tmp_path / "whole", *FULL, *OBSERVE)
    with monkeypatch.context() as patch:
        patch.setattr(StopOnRequest, "after_step", die)
        with pytest.raises(Killed):
            run(tmp_path / "cut", *FULL, *OBSERVE)
    path = tmp_path / "cut" / ledger.FOLDER / ledger.FILE
    assert [row.step for row in ledger.read(tmp_path / "cut").rows][-1] == 4  # behind the checkpoint of step 3
    path.write_bytes(path.read_bytes()[:-100])  # and the kill cut its last line
    run(tmp_path / "cut", *FULL, *OBSERVE)
    assert_same_training(tmp_path / "whole", tmp_path / "cut")
    assert path.read_bytes() == (tmp_path / "whole" / ledger.FOLDER / ledger.FILE).read_bytes()
    assert decisions.read(tmp_path / "cut") == decisions.read(tmp_path / "whole")


def first_tick(folder):
    return {row.layer: row for row in ledger.read(folder).rows if row.step == 0}


def test_the_gradient_is_of_the_whole_batch_and_not_clipped(tmp_path):
    one_step = ("method=full", "schedule.max_steps=1", *OBSERVE)
    run(tmp_path / "a", *one_step, "optim.max_grad_norm=0", "hardware.micro_batch_size=8")
    run(tmp_path / "b", *one_step, "optim.max_grad_norm=1e-3", "hardware.micro_batch_size=2")
    run(
        tmp_path / "c",
        *one_step,
        "optim.max_grad_norm=1e-3",
        "hardware.micro_batch_size=2",
        "hardware.gradient_checkpointing=true",
    )
    whole = first_tick(tmp_path / "a")
    for folder in ("b", "c"):
        for layer, row in first_tick(tmp_path / folder).items():
            # sums of the same numbers in another order, float32
            assert row.gradient.total == pytest.approx(whole[layer].gradient.total, rel=1e-4)


def test_the_update_is_what_the_optimizer_applied(tmp_path):
    run(tmp_path, "method=full", "schedule.max_steps=1", *OBSERVE)
    before, after = load_file(tmp_path / "checkpoints/initial.safetensors"), weights(tmp_path)
    for layer, row in first_tick(tmp_path).items():
        change = after[f"{layer}.weight"].double() - before[layer].double()
        assert row.update.total == pytest.approx(float(change.square().sum()), rel=1e-5)
        assert row.momentum.total > 0


def test_the_update_of_an_adapted_layer_is_the_change_of_its_product(tmp_path):
    run(tmp_path, "schedule.max_steps=1", *OBSERVE)
    saved = weights(tmp_path)
    for layer, row in first_tick(tmp_path).items():
        A, B = (saved[f"base_model.model.{layer}.lora_{side}.weight"].double() for side in "AB")
        product = 32 / 4 * B @ A  # alpha / rank; B is 0 at first
        assert row.update.total == pytest.approx(float(product.square().sum()), rel=1e-4)
        assert (row.mode, row.rank, row.momentum) == ("low_rank", 4, None)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_of_an_effective_weight_is_autograds_own(checkpointing, tmp_path):
    net, batches, targets = adapted_micro()
    if checkpointing:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        net.enable_input_require_grads()
    layers = LayerViews(net, targets, tmp_path, compiled=False)
    # The base weight enters the output as the effective weight does, so autograd can be asked for its gradient.
    bases = {target.name: adapted_layers(net)[target.name].get_base_layer().weight for target in targets}
    for weight in bases.values():
        weight.requires_grad_(True)
    net.train()
    layers.listen(list(bases))
    for batch in batches:
        net(input_ids=batch, labels=batch).loss.backward()
    found = layers.gradients(list(bases), dict.fromkeys(bases, 0))
    for name, weight in bases.items():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-7)


def adapted_micro():
    from lab.adapter.build import build, planned
    from lab.config import instantiate

    made = instantiate.make(config.compose("model=micro").model)
    net = made.load(torch.float32, 0)
    targets = find_targets(net)
    plan = {target.name: 4 for target in targets}
    model = build(net, planned(targets, plan, scaling=8.0))
    for layer in adapted_layers(model).values():
        torch.nn.init.normal_(layer.B, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    return model, [torch.randint(0, 500, (2, 16), generator=generator) for _ in range(2)], targets


def test_half_of_the_layers_at_each_tick_see_what_all_do_at_their_own_ticks(tmp_path):
    """Training does not notice, so what a tick measures is the same, from a basis that was warmed less often."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    run(whole, "method=full", *OBSERVE)
    run(half, "method=full", *OBSERVE, "svd_policy.layers_per_tick=0.5")
    every, some = ledger.read(whole).rows, ledger.read(half).rows
    by_step = {step: {row.layer for row in some if row.step == step} for step in (0, 2, 4, 6)}
    assert by_step[0] == by_step[4]
    assert by_step[2] == by_step[6]
    assert by_step[0].isdisjoint(by_step[2])
    assert by_step[0] | by_step[2] == {row.layer for row in every}
    seen = {(row.step, row.layer): row for row in every}
    for row in some:
        assert row.fraction("gradient", "left", row.k) == pytest.approx(
            seen[row.step, row.layer].fraction("gradient", "left", row.k), rel=0.05, abs=0.01
        ), "of another basis, that has converged to the same directions"


def test_a_budget_makes_layers_take_turns(tmp_path):
    run(tmp_path, "method=full", *OBSERVE, "svd_policy.budget=0.0001")
    rows = ledger.read(tmp_path).rows
    by_step = {step: [row.layer for row in rows if row.step == step] for step in (0, 2, 4, 6)}
    assert all(0 < len(layers) < 14 for layers in by_step.values())
    assert by_step[0] != by_step[2]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("svd_policy=observe", "svd_policy.target_modules=[q_prj]"), r"svd_policy.target_modules 'q_prj' matches no"),
        (("svd_policy=observe", "svd_policy.k=40"), r"svd_policy.k=40 is more than .* has directions \(32x64\)"),
        (("svd_policy=phase1", "method=lora"), "method=lora has none; use svd_policy=observe"),
        (
            (
                "svd_policy=observe",
                "method=lora",
                "svd_policy.target_modules=[o_proj]",
                "adapter.target_modules=[q_proj]",
            ),
            "no layer that is adapted",
        ),
        (("svd_policy=observe", "svd_policy.on_non_finite=shrug"), "is none of hold, stop"),
    ],
)
def test_what_cannot_be_observed_is_refused_before_weights_are_read(overrides, says, tmp_path, monkeypatch):
    monkeypatch.setattr("lab.model.scratch.Scratch.load", lambda *args: pytest.fail("weights were read"))
    with pytest.raises(UsageError, match=says):
        run(tmp_path, "method=full", *overrides)


@pytest.mark.parametrize("answer", ["hold", "stop"])
def test_a_weight_that_is_not_finite_is_held_and_training_goes_on_or_stops(answer, tmp_path, monkeypatch, capsys):
    seen = LayerViews.weights

    def broken(self, names):
        found = seen(self, names)
        last = list(found)[-1]
        return found | {last: torch.full_like(found[last], torch.nan)}

    monkeypatch.setattr(LayerViews, "weights", broken)
    result = run(tmp_path, "method=full", *OBSERVE, f"svd_policy.on_non_finite={answer}")
    held = [row for row in decisions.read(tmp_path) if row["mode"] == "hold"]
    assert {row["reason"] for row in held} == {"non_finite"}
    assert "weights that are not finite" in capsys.readouterr().out
    if answer == "hold":
        assert (result.status, len(held)) == ("completed", 4)
    else:
        assert (result.status, len(held), result.error["step"]) == ("diverged", 1, 1)


def test_the_dashboard_has_a_page_per_question_with_the_limits_drawn_in(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    run(tmp_path, "method=full", *PHASE1, "logger=tensorboard", "svd_policy.log_layers=3")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    layout = Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    pages = {page.title: [chart.title for chart in page.chart] for page in layout.category}
    assert list(pages) == ["switches", "angle", "energy against chance", "tail error", "effective rank", "cost"]
    assert pages["angle"][0] == "angle_stable and its limit"
    scalars = events.Tags()["scalars"]
    assert [event.value for event in events.Scalars("spectral_limit/angle_stable/limit")] == pytest.approx([0.1] * 2)
    assert sum(tag.startswith("spectral/angle/") for tag in scalars) == 3
    tags = [tag for page in layout.category for chart in page.chart for tag in chart.multiline.tag]
    for tag in tags:
        assert any(re.match(tag, scalar) for scalar in scalars), f"{tag} draws nothing"
    assert {"spectral/spectra", "spectral/heat_map/angle"} <= set(events.Tags()["images"])


@pytest.mark.parametrize(("count", "kept"), [(1, "a"), (2, "ae"), (3, "ace"), (9, "abcde")])
def test_logged_layers_are_spread_evenly(count, kept):
    assert evenly_spaced("abcde", count) == list(kept)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_share_the_layers_and_decide_as_one(method, tmp_path):
    policy = PHASE1 if method == "full" else OBSERVE
    common = (f"method={method}", *policy, "schedule.max_steps=5", "schedule.save_every_n_steps=3")
    run(tmp_path / "one", *common, "hardware.micro_batch_size=4")
    run(tmp_path / "two", *common, "hardware.devices=2")
    one, two = ledger.read(tmp_path / "one").rows, ledger.read(tmp_path / "two").rows
    assert [(row.step, row.layer) for row in one] == [(row.step, row.layer) for row in two]
    for a, b in zip(one, two, strict=True):
        assert b.gradient.total == pytest.approx(a.gradient.total, rel=1e-2)  # rounding, grown over five steps
        assert b.energy == pytest.approx(a.energy, rel=1e-4)
    actions = [
        [(row["layer"], row["action"], row["reason"]) for row in decisions.read(tmp_path / n)] for n in ("one", "two")
    ]
    assert actions[0] == actions[1]
    state = checkpoint.load(tmp_path / "two/checkpoints/last.ckpt")["callbacks"]["Observer"]
    assert set(state["bases"]) == {row.layer for row in one}, "every rank's bases are in the checkpoint"


def test_a_run_cut_off_behind_its_last_step_still_counts_the_time_of_its_ticks(tmp_path, monkeypatch):
    from lab.run.ending import Ending

    with monkeypatch.context() as patch:
        patch.setattr(Ending, "run", lambda *_: pytest.fail("cut off"))
        with pytest.raises(pytest.fail.Exception):
            run(tmp_path, *FULL, *OBSERVE)
    cut = record.read(tmp_path)
    assert (cut.status, cut.steps) == ("failed", 8)
    result = run(tmp_path, *FULL, *OBSERVE)
    assert result.status == "completed"
    assert result.metrics["train_loss"] == cut.metrics["train_loss"]
    for part in ("analysis", "train"):
        assert 0 < result.seconds[part] < 1.5 * cut.seconds[part]  # from the checkpoint, once


@pytest.mark.parametrize("values", [False, True], ids=["lora", "adalora"])
def test_an_update_is_the_change_of_the_weight_that_acts(values, tmp_path):
    """Both are float32; the effective weight loses what its size rounds off."""
    net, _, targets = adapted_micro()
    layers, names = adapted_layers(net), [target.name for target in targets]
    generator = torch.Generator().manual_seed(2)

    def disturb():
        for layer in layers.values():
            for factor in (layer.A, layer.B, *([layer.E] if values else [])):
                factor.data += 0.1 * torch.randn(factor.shape, generator=generator)

    if values:
        for layer in layers.values():
            layer.E = torch.nn.Parameter(torch.zeros(layer.A.shape[0], 1))
    disturb()
    observed = LayerViews(net, targets, tmp_path, compiled=False)
    before = observed.weights(names)
    observed.keep(names)
    disturb()
    after, found = observed.weights(names), observed.updates()
    for name in names:
        torch.testing.assert_close(found[name], after[name] - before[name], rtol=1e-4, atol=1e-5)
