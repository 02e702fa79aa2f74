"""Every rank strategy in a real run: its plan is what the model holds, saves and shows."""

import csv
import logging

import pytest
from jobs import SMALL, losses, run
from safetensors.torch import load_file

from lab import config, record
from lab.adapter.build import build, planned
from lab.adapter.layer import adapted_layers
from lab.config import CONF, instantiate
from lab.data.corpus import load_corpus
from lab.errors import Mismatch, UsageError
from lab.run import setup
from lab.run.parts import Parts
from lab.structure import Structure
from lab.training import hardware

STRATEGIES = sorted(path.stem for path in (CONF / "rank_strategy").glob("*.yaml"))
SHORT = (
    "schedule.max_steps=2",
    "evaluate.accuracy=false",
    "evaluate.num_samples=0",
    "data.val_examples=7",
    "data.test_examples=7",
    "evidence.num_examples=4",
)
MAP = "rank_strategy.ranks={q_proj: 6, k_proj: 2, v_proj: 4, o_proj: 4, gate_proj: 3, up_proj: 4, down_proj: 5}"
FOUR = "rank_strategy.ranks={q_proj: 4, k_proj: 4, v_proj: 4, o_proj: 4, gate_proj: 4, up_proj: 4, down_proj: 4}"


def asked(strategy: str) -> tuple[str, ...]:
    """The overrides that make a strategy run; only `custom` has no default plan."""
    return (f"rank_strategy={strategy}", *([MAP] if strategy == "custom" else []))


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uniform")
    return folder, run(folder, *SHORT)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_within_the_budget_and_saves_its_plan(strategy, tmp_path, uniform):
    result = run(tmp_path, *SHORT, *asked(strategy))
    assert result.status == "completed"
    assert result.init["modules_initialised"] == result.init["modules_targeted"] == len(result.ranks) == 14
    assert set(result.scalings.values()) == {8.0}  # alpha 32 over the root rank 4, whatever a layer's own rank
    assert result.budget["asked"] == uniform[1].budget["used"]
    if strategy != "adalora":  # which trains more than it keeps
        assert result.budget["used"] == result.trainable_params
    if strategy == "posthoc":  # its wide run sees the batches of the run itself
        assert result.tokens == 2 * uniform[1].tokens
        assert result.seconds["init"] >= result.init["seconds"] > 0
    if strategy != "custom":  # its ranks are literal
        assert 0 <= result.budget["asked"] - result.budget["used"] < 64 + 176  # the dearest layer's cost
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, rank in result.ranks.items():
        if rank == 0:  # adalora may cut a whole layer
            assert f"base_model.model.{name}.lora_A.weight" not in saved
            continue
        assert saved[f"base_model.model.{name}.lora_A.weight"].shape[0] == rank


def test_a_strategy_and_an_init_that_ask_for_the_same_share_one_look(tmp_path, monkeypatch):
    from lab.evidence import gather

    real, asked = gather.statistics.gather, []
    monkeypatch.setattr(gather.statistics, "gather", lambda *args, **rest: asked.append(args[3]) or real(*args, **rest))
    result = run(tmp_path, *SHORT, "rank_strategy=gora", "init=lora_ga", "rank_strategy.max_rank=8")
    assert asked == [{"gradient"}]
    assert result.init["looked_at"] == ["gradient of 4 training examples"]


def evened(strategy: str) -> tuple[str, ...]:
    """What leaves a strategy no choice but rank 4 everywhere."""
    if strategy == "custom":
        return (FOUR,)
    key = "rank_strategy.of" if strategy == "shuffled" else "rank_strategy"
    return () if strategy == "uniform" else (f"{key}.min_rank=4", f"{key}.max_rank=4")


# adalora is no plain LoRA even at one rank: it trains P Λ Q, and a regulariser with it
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("uniform", "adalora")])
def test_with_one_rank_to_choose_from_every_strategy_trains_bitwise_like_uniform(strategy, tmp_path, uniform):
    result = run(tmp_path, *SHORT, f"rank_strategy={strategy}", *evened(strategy))
    assert set(result.ranks.values()) == {4}
    assert losses(tmp_path) == losses(uniform[0])
    mine, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path, uniform[0]))
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in mine)


def one_less(net, structure, dropout):
    """Builds one layer at another rank than planned."""
    first = next(name for name, rank in structure.ranks.items() if rank > 1)
    return build(net, structure.changed(first, rank=structure.ranks[first] - 1), dropout)


def one_skipped(net, structure, dropout):
    """Builds all layers but one."""
    return build(net, Structure(dict(list(structure.layers.items())[1:])), dropout)


FAULTS = {one_less: r": the rank is \d+, asked \d+", one_skipped: "is a target but has no adapter to initialise"}


@pytest.fixture(scope="module")
def prepared():
    """What a run has read before it plans: the corpus, and the config to build a base from."""
    settings = config.compose(*SMALL, *SHORT)
    model, data = instantiate.make(settings.model), instantiate.make(settings.data)
    return model, load_corpus(data, model.tokenizer())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_layer_that_any_strategy_skips_or_misranks_aborts(strategy, fault, prepared, monkeypatch):
    model, corpus = prepared
    settings = config.compose(*SMALL, *SHORT, *asked(strategy))
    machine = hardware.resolve(settings.hardware, settings.schedule.batch_size)
    net, targets = setup.load_base(model, settings, machine)
    monkeypatch.setattr(setup, "build", fault)
    with pytest.raises(Mismatch, match=FAULTS[fault]):
        hashes = setup.base_hashes(model, net, 0)
        setup.adapt(net, targets, Parts.of(settings), settings, machine, corpus.train.samples, corpus.pad_id, hashes)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_and_so_it_does_in_a_whole_run(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "build", fault)
    with pytest.raises(Mismatch, match=FAULTS[fault]):
        run(tmp_path, *SHORT, "rank_strategy=linear_decay")
    assert record.read(tmp_path).status == "failed"


def test_a_budget_that_no_allocation_meets_is_refused(tmp_path):
    with pytest.raises(UsageError, match="can spend"):
        run(tmp_path, *SHORT, "rank_strategy=linear_decay", "rank_strategy.min_rank=8")


def test_gradients_that_are_not_finite_name_the_layer(tmp_path, monkeypatch):
    import torch

    from lab.model.scratch import Scratch

    real = Scratch.load

    def broken(self, dtype, seed):
        net = real(self, dtype, seed)
        with torch.no_grad():
            net.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
        return net

    monkeypatch.setattr(Scratch, "load", broken)
    with pytest.raises(UsageError, match=r"the gradient of model\.layers\.0\S+ is not finite"):
        run(tmp_path, *SHORT, "rank_strategy=gora")


def test_an_uneven_plan_is_shown_as_a_table_and_as_a_figure(tmp_path, capsys):
    run(tmp_path, *SHORT, "rank_strategy=linear_decay", "logger=tensorboard")
    assert "LoRA rank by block and role" in capsys.readouterr().out
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "init/ranks" in events.Tags()["images"]


def test_lora_plus_trains_b_faster_and_a_at_the_rate(tmp_path):
    import torch

    from lab.layer import find_targets
    from lab.training.optim import make_optimizer

    settings = config.compose("model=micro", "optim.lora_plus_ratio=16", "optim.lr=1e-3")
    net = instantiate.make(settings.model).load(torch.float32, 0)
    targets = find_targets(net)
    adapted = build(net, planned(targets, {target.name: 4 for target in targets}, scaling=2.0))
    fast = [layer.B for layer in adapted_layers(adapted).values()]
    groups = make_optimizer(adapted, settings.optim, torch.device("cpu"), fast).param_groups
    assert [group["lr"] for group in groups] == [1e-3, 16e-3]
    names = {id(parameter): name for name, parameter in adapted.named_parameters()}
    for group, letter in zip(groups, ("lora_A", "lora_B"), strict=True):
        assert len(group["params"]) == 14
        assert all(letter in names[id(parameter)] for parameter in group["params"])


def test_what_was_learned_has_a_row_for_every_module_and_its_medians_are_in_the_record(tmp_path):
    result = run(tmp_path, *SHORT, "init=svd", "rank_strategy=linear_decay")
    with open(tmp_path / "learned.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["module"] for row in rows] == list(result.ranks)
    for row in rows:
        assert int(row["rank"]) == result.ranks[row["module"]]
        assert 0 < float(row["utilisation"]) <= 2  # an offset leaves a change of twice the rank
        assert float(row["relative_norm"]) > 0
        assert 0 <= float(row["energy_core"]) <= 1
        assert -1 <= float(row["first_step_cosine"]) <= 1
    for name in ("effective_rank", "stable_rank", "utilisation", "energy_core", "energy_core_chance", "relative_norm"):
        assert result.metrics[f"learned_{name}"] > 0
    assert result.metrics["learned_intruders"] == sum(float(row["intruders"]) for row in rows)
    assert result.metrics["learned_intruders_modules"] == len(rows) == 14
    assert result.metrics["first_step_cosine"] is not None


def test_few_wide_layers_are_searched_for_intruders_and_all_compared_with_the_base(tmp_path, monkeypatch, caplog):
    from lab.instruments import first_step, learned

    run(tmp_path / "narrow", *SHORT)
    monkeypatch.setattr(first_step, "LARGEST_SIDE", 40)
    monkeypatch.setattr(learned, "LARGEST_SIDE", 40)  # k_proj and v_proj are 32 x 64, the rest 64 and more
    monkeypatch.setattr(learned, "FEW", 3)
    with caplog.at_level(logging.INFO):
        result = run(tmp_path / "wide", *SHORT)
    assert "intruders are counted on 7 of 14 modules, 3 of them wider than 40" in caplog.text
    rows, exact = rows_of(tmp_path / "wide/learned.csv"), rows_of(tmp_path / "narrow/learned.csv")
    counted = [row["module"] for row in rows if row["intruders"] != ""]
    assert len(counted) == result.metrics["learned_intruders_modules"] == 7
    assert all(name in counted for name in result.ranks if name.endswith(("k_proj", "v_proj")))
    for row, whole in zip(rows, exact, strict=True):
        for side in ("left", "right", "core"):
            # the sketch stops within 0.1 % of the energy that ten directions can hold
            assert float(row[f"energy_{side}"]) == pytest.approx(float(whole[f"energy_{side}"]), rel=0.02, abs=1e-4)
    assert "compared with the gradient on 8 of 14 modules" in caplog.text
    assert sum(row["first_step_cosine"] != "" for row in rows_of(tmp_path / "wide/first_step.csv")) == 8
    assert result.metrics["first_step_cosine"] > 0


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("extra", [(), ("hardware.micro_batch_size=3",), ("rank_strategy=adalora",)])
def test_the_first_step_of_every_lora_run_goes_down_its_gradient(tmp_path, extra):
    result = run(tmp_path, *SHORT, "schedule.batch_size=6", *extra)
    rows = rows_of(tmp_path / "first_step.csv")
    assert [row["module"] for row in rows] == list(result.ranks)
    for row in rows:
        down, best, ceiling = (float(row[f"first_step_{name}"]) for name in ("cosine", "cosine_best", "ceiling"))
        # B alone moves from 0, within A's rows, and Adam moves every entry alike: downhill and far from the best.
        assert 0 < down < ceiling <= 1
        assert 0 < best < 1
    assert result.metrics["first_step_cosine"] > 0


def test_with_dora_whose_step_is_no_product_no_first_step_is_compared(tmp_path):
    assert run(tmp_path, *SHORT, "adapter.use_dora=true").status == "completed"
    assert not (tmp_path / "first_step.csv").exists()
