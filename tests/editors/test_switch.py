"""Switches in real runs: exact, undone, read back, recorded, resumed to the bit, and the same on two processes."""

import json

import pytest
import torch
from jobs import run
from killing import differing, start
from transformers import AutoModelForCausalLM

from lab import config, ledger, record
from lab.editors.switch import Switcher
from lab.errors import Mismatch, UsageError
from lab.export import load_model
from lab.process import heartbeat
from lab.run.host import Host
from lab.training import checkpoint
from lab.training.optim import verify_trained

UP, Q, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"
QUIET = ("evaluate.accuracy=false", "evaluate.num_samples=0")
FULL = ("method=full", *QUIET, "schedule.max_steps=8", "schedule.save_every_n_steps=2")
EVENTS = [
    {"step": 1, "layers": ["0.mlp.up_proj"], "action": "compress", "rank": 0.5},
    {"step": 2, "layers": ["1.self_attn.q_proj"], "action": "delta", "rank": 8},
    {"step": 5, "layers": ["0.mlp.up_proj", "1.self_attn.q_proj"], "action": "full"},
    {"step": 5, "layers": ["1.mlp.down_proj"], "action": "compress", "rank": 16},
]
TICKS = "svd_policy.every_n_steps=2"
OPTIMS = {"adamw": (), "muon": ("optim=muon",)}


def scheduled(events=EVENTS, **settings):
    """Overrides of a run that switches by a schedule."""
    text = json.dumps(events).replace('"', "")
    more = [f"svd_policy.{key}={value}" for key, value in {"fade_steps": 2, **settings}.items()]
    return ("svd_policy=scheduled", TICKS, "svd_policy.k=4", f"svd_policy.schedule={text}", *more)


def rows(folder):
    return [json.loads(line) for line in (folder / "switches.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=OPTIMS)
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("switched")
    return folder, run(folder, *FULL, *OPTIMS[request.param], *scheduled()), request.param


def test_each_switch_is_a_row_with_what_it_cost_and_the_record_counts_them(trained):
    folder, result, _ = trained
    found = [(row["step"], row["layer"], row["from"], row["to"]) for row in rows(folder)]
    assert found == [
        (1, UP, "full", "fading"),
        (2, Q, "full", "delta"),
        (3, UP, "fading", "low_rank"),
        (5, UP, "low_rank", "full"),
        (5, Q, "delta", "full"),
        (5, DOWN, "full", "fading"),
        (7, DOWN, "fading", "low_rank"),
    ]
    assert result.switches == 5, "a residual that has faded is no further switch"
    assert result.ranks == {DOWN: 16}
    first = rows(folder)[0]
    rank = int(0.5 * 176 * 64 / 240)
    assert (first["rank"], first["parameters_before"], first["parameters_after"]) == (rank, 176 * 64, rank * 240)
    moments = {"adamw": 2, "muon": 1}[trained[2]]
    assert first["state_bytes_before"] == 4 * moments * 176 * 64
    assert first["state_bytes_after"] == 4 * moments * rank * 240
    assert first["loss_after"] == pytest.approx(first["loss_before"], rel=1e-6), "nothing has faded yet"
    net = load_model(folder)[0]
    W = AutoModelForCausalLM.from_pretrained(folder / "model").get_submodule(DOWN).weight
    assert torch.linalg.matrix_rank(W) == 16
    assert net.get_submodule(DOWN).A.shape == (16, 176)


def test_the_model_of_a_switched_run_is_dense_and_gives_its_logits(trained):
    folder, _, _ = trained
    net, _ = load_model(folder)
    ids = torch.tensor([[5, 9, 2, 6, 5, 3]])
    stock = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    logits = net(input_ids=ids).logits
    assert (stock(input_ids=ids).logits - logits).abs().max() <= 1e-5 * logits.abs().max()


def test_ticks_see_each_layer_in_the_form_it_has_then(trained):
    folder, _, _ = trained
    seen = {(row.step, row.layer): (row.mode, row.rank) for row in ledger.read(folder).rows}
    rank = int(0.5 * 176 * 64 / 240)
    assert seen[0, UP] == ("full", None)
    assert seen[2, UP] == ("probation", rank)
    assert seen[4, UP] == ("low_rank", rank)
    assert seen[6, UP] == ("full", None)
    assert seen[4, Q] == ("low_rank", 8)


def test_the_observer_sees_the_gradient_of_the_weight_that_a_switched_layer_acts_with(tmp_path):
    """Against the gradient of the same weight in full: the loss is the same function while nothing has faded."""
    event = [{"step": 2, "layers": ["0.mlp.up_proj"], "action": "compress", "rank": 0.5}]
    common = (*FULL, "svd_policy.every_n_steps=2", "schedule.max_steps=4", "svd_policy.k=4")
    run(tmp_path / "low", *common, *scheduled(event, fade_steps=1000))
    run(tmp_path / "full", *common, "svd_policy=observe")
    low, full = (
        next(row for row in ledger.read(tmp_path / name).rows if (row.step, row.layer) == (2, UP))
        for name in ("low", "full")
    )
    assert (low.mode, full.mode) == ("probation", "full")
    assert low.gradient.total == pytest.approx(full.gradient.total, rel=1e-4)


@pytest.mark.parametrize("optim", OPTIMS)
def test_a_switch_edits_the_optimizer_in_its_place_and_leaves_all_other_state_as_it_was(optim, tmp_path, monkeypatch):
    from lab.editors.switch import Switcher

    real, kept = Switcher.after_step, []

    def watched(self, step, optimizer):
        before = {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
        shape = [
            (len(group["params"]), {k: v for k, v in group.items() if k not in ("params", "param_names")})
            for group in optimizer.param_groups
        ]
        edits = real(self, step, optimizer)
        if edits and step:
            kept.append(step)
            verify_trained(self.net, optimizer)
            now = [
                (len(group["params"]), {k: v for k, v in group.items() if k not in ("params", "param_names")})
                for group in optimizer.param_groups
            ]
            assert [settings for _, settings in now] == [settings for _, settings in shape]
            for parameter, state in optimizer.state.items():
                if id(parameter) in before:
                    assert all(torch.equal(value, before[id(parameter)][key]) for key, value in state.items())
                else:
                    assert state, "a new parameter without the state that came with it"
            names = {id(p): name for name, p in self.net.named_parameters()}
            for group in optimizer.param_groups:
                if "param_names" in group:
                    assert group["param_names"] == [names[id(p)] for p in group["params"]]
        return edits

    monkeypatch.setattr(Switcher, "after_step", watched)
    run(tmp_path, *FULL, *OPTIMS[optim], *scheduled())
    assert kept == [1, 2, 3, 5, 7]


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("lab.editors.switch:install", 1),  # in an event
        ("lab.training.checkpoint:save", 2),  # in a fade, and after a switch that no checkpoint holds
        ("lab.instruments.decider:Decider.decide", 4),  # inside a tick
        ("lab.editors.switch:install_full", 1),
        ("lab.run.ending:Ending.run", 1),  # behind the last checkpoint
    ],
)
def test_a_killed_run_goes_on_to_the_bit(place, call, tmp_path, trained):
    overrides = (*FULL, *OPTIMS[trained[2]], *scheduled())
    killed = start(tmp_path, *overrides, kill_before=place, call=call)
    assert killed == -9
    run(tmp_path, *overrides)
    assert differing(trained[0], tmp_path) == []


def test_step_0_switches_before_there_are_states_and_zeros_start_from_a_product_of_zero(tmp_path):
    events = [{"step": 0, "layers": "all", "action": "compress", "rank": 0.5}]
    zeros = "model.layers.0.self_attn.o_proj"
    real = Host._fresh

    def zeroed(self, net, targets):
        net.get_submodule(zeros).weight.data.zero_()
        return real(self, net, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Host, "_fresh", zeroed)
        result = run(tmp_path, *FULL, "optim=muon", *scheduled(events, residual="drop"))
    assert result.status == "completed"
    assert {row["step"] for row in rows(tmp_path)} == {0}
    state = checkpoint.load(tmp_path / "checkpoints/last.ckpt")["state_dict"]
    assert bool(state[f"{zeros}.B"].any()), "it trains"
    assert result.switches == len(result.ranks) == 14


def test_a_matrix_of_zeros_waits_until_it_has_directions(tmp_path, capsys, monkeypatch):
    """Its gradient is held at 0 for four steps, so that AdamW leaves it as it is."""
    real, passes = Host._fresh, []

    def held(gradient):
        passes.append(None)
        return gradient * (len(passes) > 4)

    def zeroed(self, net, targets):
        weight = net.get_submodule(UP).weight
        weight.data.zero_()
        weight.register_hook(held)
        return real(self, net, targets)

    monkeypatch.setattr(Host, "_fresh", zeroed)
    events = [{"step": 2, "layers": ["0.mlp.up_proj"], "action": "compress", "rank": 0.5}]
    run(tmp_path, *FULL, *scheduled(events, fade_steps=1), "hardware.micro_batch_size=8")
    assert capsys.readouterr().out.count(f"step 2: {UP} waits: zero_matrix") == 1
    assert [(row["step"], row["to"]) for row in rows(tmp_path)] == [(5, "fading"), (6, "low_rank")]


@pytest.mark.parametrize("fade_steps", [1, 2])
def test_the_end_of_a_fade_says_what_its_last_part_cost(fade_steps, tmp_path):
    """It is one of `fade_steps` equal parts; the loss before has it still."""
    events = [{"step": 2, "layers": "all", "action": "compress", "rank": 0.3}]
    run(tmp_path, *FULL, *scheduled(events, fade_steps=fade_steps))
    ended = [row for row in rows(tmp_path) if row["reason"] == "faded"]
    assert len(ended) == 14
    assert ended[0]["loss_after"] != ended[0]["loss_before"]
    assert all(0 < row["tail"] < 1 for row in ended)


def test_a_delta_of_full_rank_is_watched_on(tmp_path):
    """No direction is left of it, of which the seed's ratios could be taken."""
    events = [{"step": 1, "layers": ["1.self_attn.q_proj"], "action": "delta", "rank": 64}]
    assert run(tmp_path, *FULL, *scheduled(events), "svd_policy.engine=exact").status == "completed"


def test_an_event_tells_of_each_layer_that_it_lives(tmp_path, monkeypatch):
    """Decompositions may take minutes: where beats alone count, silence would end the run as hung."""
    counts, real = [], Switcher._carry_out

    def counted(*args):
        before = heartbeat.own.count
        real(*args)
        counts.append((heartbeat.own.count - before, heartbeat.own.strict))

    monkeypatch.setattr(Switcher, "_carry_out", counted)
    run(tmp_path, *FULL, *scheduled())
    assert counts == [(1, False)] * 5


def test_layers_at_once_are_layers_and_no_rows(tmp_path):
    """A layer whose fade ends at the step at which it is made full again has two rows."""
    events = [
        {"step": 2, "layers": ["0.mlp.up_proj"], "action": "compress", "rank": 0.5},
        {"step": 4, "layers": ["0.mlp.up_proj"], "action": "full"},
    ]
    run(tmp_path, *FULL, *scheduled(events, fade_steps=2))
    assert [(row["step"], row["to"], row["layers_at_once"]) for row in rows(tmp_path)] == [
        (2, "fading", 1),
        (4, "low_rank", 1),
        (4, "full", 1),
    ]


def test_behind_an_epochs_last_step_whose_last_micro_batch_is_empty_the_loss_is_that_of_the_one_before(tmp_path):
    """28 examples in steps of 8: step 4 has 4, and of its two micro-batches the second has none."""
    events = [{"step": 4, "layers": ["0.mlp.up_proj"], "action": "compress", "rank": 0.5}]
    run(tmp_path, *FULL, *scheduled(events, residual="drop"), "hardware.micro_batch_size=4")
    (row,) = rows(tmp_path)
    assert row["loss_before"] is not None
    assert row["loss_after"] is not None


def test_a_drop_says_its_tail_and_what_it_cost_on_the_batch(tmp_path):
    events = [{"step": 2, "layers": "all", "action": "compress", "rank": 0.3}]
    run(tmp_path, *FULL, *scheduled(events, residual="drop"))
    (first, *rest) = rows(tmp_path)
    assert 0 < first["tail"] < 1
    assert first["loss_after"] != first["loss_before"]
    assert first["layers_at_once"] == len(rest) + 1 == 14


@pytest.mark.parametrize("start_of", ["zero", "minor"])
def test_a_delta_starts_as_the_weight_whatever_its_pair_starts_from(start_of, tmp_path):
    events = [{"step": 2, "layers": "all", "action": "delta", "rank": 4}]
    run(tmp_path, *FULL, *scheduled(events, start=start_of))
    first = rows(tmp_path)[0]
    assert first["loss_after"] == pytest.approx(first["loss_before"], rel=1e-6)


def test_the_best_weights_come_back_in_the_structure_they_had(tmp_path):
    events = [{"step": 5, "layers": "all", "action": "compress", "rank": 1}]
    result = run(tmp_path, *FULL, *scheduled(events, residual="drop"), "select=best", "schedule.eval_every_n_steps=1")
    assert result.metrics["best_step"] < 5, "cutting to rank 1 costs more than a step gives"
    assert result.ranks == {}
    assert result.metrics["val_loss"] == pytest.approx(result.metrics["best_val_loss"], rel=1e-6)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    net, _ = load_model(tmp_path)
    ids = torch.tensor([[5, 9, 2]])
    assert torch.allclose(stock(input_ids=ids).logits, net(input_ids=ids).logits, atol=1e-5)


def test_random_switches_come_and_go_and_a_seed_repeats_them(tmp_path):
    policy = (
        "svd_policy=random",
        "svd_policy.every_n_steps=1",
        "svd_policy.k=4",
        "svd_policy.probability=0.5",
        "svd_policy.warmup_steps=1",
        "svd_policy.fade_steps=1",
    )
    first, again = (run(tmp_path / name, *FULL, *policy) for name in ("one", "two"))
    ways = {(row["from"], row["to"]) for row in rows(tmp_path / "one")}
    assert ways == {("full", "fading"), ("fading", "low_rank"), ("low_rank", "full")}
    assert (tmp_path / "one/switches.jsonl").read_bytes() == (tmp_path / "two/switches.jsonl").read_bytes()
    assert first.switches == again.switches > 5
    other = run(tmp_path / "three", *FULL, *policy, "svd_policy.seed=1")
    assert (tmp_path / "three/switches.jsonl").read_bytes() != (tmp_path / "one/switches.jsonl").read_bytes()
    assert other.status == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("optim", OPTIMS)
def test_two_processes_switch_as_one(optim, tmp_path):
    common = (*FULL, *OPTIMS[optim], *scheduled())
    run(tmp_path / "one", *common, "hardware.micro_batch_size=4")
    run(tmp_path / "two", *common, "hardware.devices=2")
    one, two = (checkpoint.load(tmp_path / name / "checkpoints/last.ckpt") for name in ("one", "two"))
    assert one["structure"]["layers"].keys() == two["structure"]["layers"].keys()
    for name, form in one["structure"]["layers"].items():
        assert {k: v for k, v in form.items() if k in ("form", "rank", "since")} == {
            k: v for k, v in two["structure"]["layers"][name].items() if k in ("form", "rank", "since")
        }
    losses = [record.read(tmp_path / name).metrics["val_loss"] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    if optim == "adamw":
        for key, tensor in one["state_dict"].items():
            assert torch.allclose(tensor, two["state_dict"][key], atol=1e-5), key


def refusal(tmp_path, *overrides):
    with pytest.raises((UsageError, Mismatch)) as error:
        run(tmp_path, *overrides)
    assert isinstance(error.value, UsageError), error.value
    return str(error.value)


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([{"step": 9, "action": "full"}], "step=9 is not before the run's end, step 8"),
        ([{"step": 1, "action": "full"}], "makes model.layers.0.self_attn.q_proj full at step 1, and it is full then"),
        ([{"step": 1, "action": "compress", "rank": 60}], "rank=60 is above the break-even rank 32"),
        ([{"step": 1, "action": "compress", "rank": 100}], "more than the smaller side of a 64x64"),
        ([{"step": 1, "action": "compress", "rank": 1.5}], "rank=1.5 is no rank"),
        ([{"step": 1, "action": "compress"}], "compress needs a rank"),
        ([{"step": 1, "action": "full", "rank": 3}], "full needs no rank"),
        ([{"step": 1, "action": "shrink", "rank": 3}], "action='shrink' is none of compress, delta, full"),
        ([{"step": -1, "action": "full"}], "step=-1 is no number of optimizer steps"),
        ([{"stop": 1, "action": "full"}], "has 'stop'; did you mean step?"),
        ([{"step": 1, "layers": ["q_pro"], "action": "full"}], "'q_pro' matches no linear layer"),
        ([{"step": 1, "action": "delta", "rank": 3}, {"step": 2, "action": "delta", "rank": 4}], "since step 1"),
        ([{"step": 1, "action": "delta", "rank": 3}] * 2, "at step 1, as another entry does"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_in_one_sentence(events, said, tmp_path):
    assert said in refusal(tmp_path, *FULL, *scheduled(events))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method=lora", *scheduled()), "acts on layers that train in full, and method=lora has none"),
        (("method=full", *scheduled(), "hardware.precision=bf16-true"), "use hardware.precision=bf16-mixed"),
        (("method=full", *scheduled(residual="keep")), "svd_policy.residual='keep' is none of fade, drop"),
        (("method=full", *scheduled(fade_steps=0)), "svd_policy.fade_steps=0 must be at least 1"),
        (("method=full", *scheduled(start="half")), "svd_policy.start='half' is none of zero, minor"),
        (("method=full", "svd_policy=random", "svd_policy.probability=2"), "probability=2 is no probability"),
        (("method=full", "svd_policy=random", "svd_policy.k=4", "svd_policy.rank=60"), "above the break-even rank"),
    ],
)
def test_what_cannot_switch_is_refused_in_one_sentence(overrides, said, tmp_path):
    assert said in refusal(tmp_path, *QUIET, *overrides)


def test_a_run_is_not_resumed_with_another_policy(trained):
    from omegaconf import OmegaConf

    from lab.launch import resume

    with pytest.raises(UsageError, match="'svd_policy=observe' is not allowed beside it"):
        resume.config_of(OmegaConf.create({"resume": str(trained[0])}), ["svd_policy=observe"])
    assert config.load(trained[0]).svd_policy["_target_"].endswith("Scheduled")


def test_factors_are_exported_as_they_are_with_the_rank_of_each(trained, tmp_path):
    from safetensors.torch import load_file

    from lab.export import export_run

    folder, result, _ = trained
    export_run(folder, tmp_path / "factored", "factored", None)
    tensors, forms = (
        load_file(tmp_path / "factored/model.safetensors"),
        json.loads((tmp_path / "factored/structure.json").read_text()),
    )
    assert {name: form["rank"] for name, form in forms.items()} == result.ranks
    dense = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()[f"{DOWN}.weight"]
    product = forms[DOWN]["scaling"] * tensors[f"{DOWN}.B"] @ tensors[f"{DOWN}.A"]
    assert torch.allclose(product, dense, atol=1e-5)
    with pytest.raises(UsageError, match="has no adapter"):
        export_run(folder, tmp_path / "adapter", "adapter", None)


def test_many_switches_at_once_are_one_line_with_their_sum_and_the_log_has_each(tmp_path, capsys, caplog):
    events = [{"step": 2, "layers": "all", "action": "compress", "rank": 0.5}]
    with caplog.at_level("INFO"):
        run(tmp_path, *FULL, *scheduled(events, residual="drop"))
    out = " ".join(capsys.readouterr().out.split())
    found = rows(tmp_path)
    (line,) = [part for part in out.split("step 2: ")[1:] if "full → low_rank" in part]
    before, after = (sum(row[f"parameters_{when}"] for row in found) for when in ("before", "after"))
    assert "and 12 more full → low_rank (scheduled), rank 10 to 23, leaves" in line
    assert f"{before:,} → {after:,} parameters" in line
    assert caplog.text.count("full → low_rank (scheduled)") == 14
