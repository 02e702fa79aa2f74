"""Every init scheme in a real run: complete, filled everywhere, and exported so that stock peft gives its logits."""

import csv
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from statistics import median

import pytest
import torch
from jobs import run
from safetensors.torch import load_file

from lab import config, export
from lab.config import CONF, instantiate
from lab.errors import Mismatch, UsageError
from lab.export import load_model
from lab.model import weights_sha256

SCHEMES = sorted(path.stem for path in (CONF / "init").glob("*.yaml"))
SHORT = (
    "schedule.max_steps=2",
    "evaluate.accuracy=false",
    "evaluate.num_samples=0",
    "data.val_examples=7",
    "data.test_examples=7",
    "data.max_length=128",
    "evidence.num_examples=4",
)
FROM_ZERO = ("random", "gaussian", "init_b", "orthogonal", "eva")  # B A = 0 at step 0
IDS = [5, 17, 40, 3, 99, 250, 7, 31]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder and the record of a short run of a scheme; each is run once."""

    @cache
    def of(*overrides: str):
        folder = tmp_path_factory.mktemp("run")
        return folder, run(folder, *SHORT, *overrides)

    return of


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_fills_every_layer_of_a_run(scheme, trained):
    _, result = trained(f"init={scheme}")
    assert result.status == "completed"
    assert result.init["modules_initialised"] == result.init["modules_targeted"] == len(result.ranks) == 14
    assert result.steps == 2
    if result.init["offset"] == "separate":
        assert result.init["step0_loss"] == result.init["base_loss"]


def test_how_each_decomposition_went_is_recorded(trained):
    folder, result = trained("init=pissa")
    with open(folder / "init.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["module"] for row in rows] == list(result.ranks)
    settings = config.load(folder)
    net = instantiate.make(settings.model).load(torch.float32, settings.seed)
    for row in rows:
        S = torch.linalg.svdvals(net.get_submodule(row["module"]).weight.detach().double())
        best = float((S[:4] ** 2).sum() / (S**2).sum())
        assert float(row["captured_energy"]) == pytest.approx(best, rel=1e-3)  # the stopping rule's own promise
        assert row["svd_exact"] in ("0.0", "1.0")
        assert float(row["svd_passes"]) <= 6
        assert float(row["seconds"]) > 0
    assert result.init["svd_exact"] == sum(float(row["svd_exact"]) for row in rows)
    assert result.init["svd_passes"] == max(float(row["svd_passes"]) for row in rows)
    assert result.init["captured_energy"] == pytest.approx(median(float(row["captured_energy"]) for row in rows))
    _, plain = trained("init=random")
    assert "svd_passes" not in plain.init  # nothing was decomposed


RELOAD = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
torch.manual_seed(977)
for line in sys.stdin:
    base, adapter, out, ids = json.loads(line)
    net = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    net = PeftModel.from_pretrained(net, adapter).eval()
    with torch.no_grad():
        torch.save(net(input_ids=torch.tensor([ids])).logits, out)
"""


def test_every_adapter_loads_in_stock_peft_on_its_base_in_another_process(trained, tmp_path):
    """One fresh process of another seed for all; loftq's base is the quantised one, saved beside its adapter."""
    pristine = tmp_path / "pristine"
    jobs, live = [], {}
    for scheme in SCHEMES:
        folder, _ = trained(f"init={scheme}")
        if not pristine.exists():
            settings = config.load(folder)
            instantiate.make(settings.model).load(torch.float32, settings.seed).save_pretrained(pristine)
        net, _ = load_model(folder)
        with torch.no_grad():
            live[scheme] = net(input_ids=torch.tensor([IDS])).logits
        beside = folder / "adapter" / "base"
        assert beside.exists() == (scheme == "loftq")
        base = beside if beside.exists() else pristine
        jobs.append(json.dumps([str(base), str(folder / "adapter"), str(tmp_path / scheme), IDS]))
    done = subprocess.run(
        [sys.executable, "-c", RELOAD], input="\n".join(jobs), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    for scheme, logits in live.items():
        difference = (torch.load(tmp_path / scheme) - logits).abs().max()
        assert difference <= 1e-5, scheme  # float32, two orders of summation of one product


@pytest.mark.parametrize("scheme", ["pissa", "svd"])
def test_after_training_switching_a_separate_pair_off_is_bitwise_the_base(scheme, trained):
    folder, result = trained(f"init={scheme}")
    assert result.init["offset"] == "separate"
    net, _ = load_model(folder)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        changed = net(input_ids=ids).logits
        with net.disable_adapter():
            off = net(input_ids=ids).logits
    settings = config.load(folder)
    pristine = instantiate.make(settings.model).load(torch.float32, settings.seed).eval()
    with torch.no_grad():
        assert torch.equal(off, pristine(input_ids=ids).logits)
    assert not torch.equal(off, changed)
    assert weights_sha256(pristine) == result.model["weights_sha256"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_that_any_scheme_leaves_unwritten_aborts_the_run(scheme, tmp_path, monkeypatch):
    from lab.adapter import initialise as module

    real, calls = module._write, []

    def skipping(layer, found, began):
        calls.append(layer)
        if len(calls) == 5:  # the scheme answers, and nothing reaches the layer
            return module.LayerInit(found.offset, 1.0, 0.0, {}, module.sha256_of(found.A, found.B), None)
        return real(layer, found, began)

    monkeypatch.setattr(module, "_write", skipping)
    with pytest.raises(Mismatch):
        run(tmp_path, *SHORT, f"init={scheme}")


def test_a_warm_up_starts_where_its_own_run_ended_and_is_paid_for(trained):
    _, result = trained("init=svd", "init.source=warmup", "init.warmup_steps=2")
    assert result.init["scheme"] == "svd[warmup]"
    assert result.init["offset"] == "none"
    assert result.init["step0_loss"] < result.init["base_loss"]
    _, plain = trained("init=random")
    assert result.tokens == plain.tokens + result.init["tokens"] > plain.tokens
    assert any("2 steps of AdamW" in said for said in result.init["looked_at"])
    assert result.seconds["init"] >= result.init["seconds"] > 0


def test_a_teacher_is_an_oracle_that_must_match_name_by_name(trained, tmp_path):
    teacher, _ = trained("method=full", "optim.lr=1e-3")
    named = f"init.teacher={teacher / 'model'}"
    result = run(tmp_path / "oracle", *SHORT, "init=svd", "init.source=teacher", named)
    assert result.init["scheme"] == "svd[teacher]"
    assert any("oracle" in said for said in result.init["looked_at"])
    other = "model.architecture.intermediate_size=160"
    with pytest.raises(UsageError, match=r"model\.layers\.0\.mlp\.gate_proj\.weight is \(176, 64\) there"):
        run(tmp_path / "other", *SHORT, "init=svd", "init.source=teacher", named, other)
    partial = tmp_path / "partial"
    partial.mkdir()
    for path in (teacher / "model").iterdir():
        (partial / path.name).write_bytes(path.read_bytes())
    weights = load_file(partial / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    from safetensors.torch import save_file

    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="lacks 1 weights"):
        run(tmp_path / "part", *SHORT, "init=svd", "init.source=teacher", f"init.teacher={partial}")


@pytest.mark.parametrize("scheme", FROM_ZERO)
def test_dora_starts_from_a_product_of_zero(scheme, trained):
    _, result = trained(f"init={scheme}", "adapter.use_dora=true")
    assert result.status == "completed"
    assert result.init["step0_loss"] == pytest.approx(result.init["base_loss"], rel=1e-5)


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - set(FROM_ZERO)))
def test_dora_with_any_other_product_is_refused_before_anything_is_loaded(scheme):
    with pytest.raises(config.ConfigError, match="starts from B A = 0"):
        config.compose(f"init={scheme}", "adapter.use_dora=true")


@pytest.mark.parametrize(("kind", "scaling"), [("alpha_over_r", 8.0), ("rslora", 16.0), ("constant", 32.0)])
def test_every_scaling_keeps_step_0_at_the_base_and_is_what_the_model_holds(kind, scaling, trained):
    _, result = trained("init=pissa", f"scaling={kind}")
    assert set(result.scalings.values()) == {scaling}
    assert result.init["step0_loss"] == result.init["base_loss"]


def test_an_odd_rank_for_orthogonal_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is odd"):
        run(tmp_path, *SHORT, "init=orthogonal", "rank=3")


def test_a_broken_cache_file_is_computed_again_and_said(trained, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    first = run(tmp_path / "first", *SHORT, "init=pissa")
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    second = run(tmp_path / "second", *SHORT, "init=pissa")
    assert "does not match its checksum; computing it again" in caplog.text
    assert second.metrics["val_loss"] == first.metrics["val_loss"]


def test_an_export_at_a_lower_rank_states_what_it_drops(trained, tmp_path, capsys):
    folder, _ = trained("init=pissa")
    export.main([str(folder), "--to", str(tmp_path / "cut"), "--rank", "2"])
    said = capsys.readouterr().out
    assert "of the change's energy" in said
    cut = load_file(tmp_path / "cut" / "adapter_model.safetensors")
    assert {min(tensor.shape) for tensor in cut.values()} == {2}
    whole = load_file(Path(folder) / "adapter" / "adapter_model.safetensors")
    lost = total = 0.0
    for name in (key for key in whole if "lora_A" in key):
        A, B = whole[name], whole[name.replace("lora_A", "lora_B")]
        squares = torch.linalg.svdvals(B.double() @ A.double()) ** 2
        lost, total = lost + float(squares[2:].sum()), total + float(squares.sum())
    stated = export.export_run(folder, tmp_path / "again", "adapter", 2)["dropped_energy"]
    assert stated == pytest.approx(lost / total, rel=1e-5)  # float32 factors, both in float64 from there
