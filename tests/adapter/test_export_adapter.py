"""The exported folder is a plain LoRA: stock peft on the pristine base gives the run's own logits."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_models import MODELS, TOKENS, Case, Noise, OneSided, Principal, base, case, logits, train
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_build_adapters import Twins
from test_initialise import Rounded

from lab.adapter.build import build, planned
from lab.adapter.delta import delta_factors, merged, trained_base, truncate
from lab.adapter.export import export, verify_export
from lab.adapter.layer import adapted_layers
from lab.adapter.state import adapter_state
from lab.adapter.verify import Mismatch
from lab.errors import UsageError
from lab.layer import find_targets, weight_of
from lab.structure import Structure

# Contract: 1e-5 in fp32 on logits of size one; these bases are scaled up to logits of about 10.
TOLERANCE = 1e-5
SCHEMES = {"separate": Principal("separate"), "fold": Principal("fold"), "none": Noise()}


def trained(model: str, scheme, **asked) -> Case:
    ours = case(base(model), scheme, dropout=0.1, **asked)
    train(ours.model)
    return ours


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("scaling", ["alpha_over_r", "rslora"])
def test_stock_peft_on_the_pristine_base_gives_the_same_logits(model, scheme, scaling, tmp_path) -> None:
    ours = trained(model, SCHEMES[scheme], scaling=scaling)
    export(ours.model, tmp_path)
    verify_export(tmp_path, ours.structure)
    expected = logits(ours.model)
    assert (expected - logits(base(model))).abs().max() > 0.1
    torch.manual_seed(1234)  # whatever peft draws before it loads must not matter
    assert_same(logits(PeftModel.from_pretrained(base(model), tmp_path)), expected)


@pytest.mark.slow
def test_a_fresh_process_with_another_seed_loads_the_same_model(tmp_path: Path) -> None:
    runs = {}
    for model in ("llama", "gpt2"):
        base(model).save_pretrained(tmp_path / f"{model}_base")
        ours = trained(model, SCHEMES["separate"])
        export(ours.model, tmp_path / model, base_model=str(tmp_path / f"{model}_base"))
        runs[str(tmp_path / model)] = logits(ours.model)
    torch.save({"tokens": TOKENS, "runs": runs}, tmp_path / "expected.pt")
    program = """
import torch
from peft import AutoPeftModelForCausalLM
torch.manual_seed(99)
expected = torch.load("expected.pt")
for folder, logits in expected["runs"].items():
    net = AutoPeftModelForCausalLM.from_pretrained(folder).eval()  # finds the base by the name in the config
    with torch.no_grad():
        print(float((net(input_ids=expected["tokens"]).logits - logits).abs().max() / logits.abs().max()))
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert [float(line) <= TOLERANCE for line in ran.stdout.split()] == [True, True], ran.stdout


@pytest.mark.parametrize("plan", ["uneven", "even"])
@pytest.mark.parametrize("scheme", ["separate", "none"])
def test_the_config_states_the_plan_or_twice_it(plan: str, scheme: str, tmp_path: Path) -> None:
    even = {target.name: 3 for target in find_targets(base("llama"))}
    ours = trained("llama", SCHEMES[scheme], plan=even if plan == "even" else None)
    done = export(ours.model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    factor = 2 if scheme == "separate" else 1
    assert done.ranks == {name: factor * rank for name, rank in ours.plan.items()}
    assert config["use_rslora"] is False
    assert config["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
    ]  # fmt: skip
    if plan == "even":
        assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3 * factor, 1.5 * 3 * factor, {})
    else:
        reloaded = PeftModel.from_pretrained(base("llama"), tmp_path).get_base_model()
        layers = {name: reloaded.get_submodule(name) for name in ours.plan}
        assert {name: layer.r["default"] for name, layer in layers.items()} == done.ranks
        assert all(layer.scaling["default"] == pytest.approx(1.5, rel=1e-12) for layer in layers.values())


def test_twelve_layers_of_random_ranks_survive_the_sorted_json(tmp_path: Path) -> None:
    """peft writes the patterns sorted and takes the first that matches: layers.1 must not catch layers.11."""
    net = base("llama", layers=12)
    draw = random.Random(0)
    plan = {target.name: draw.randint(1, 8) for target in find_targets(net)}
    ours = case(net, Principal(), plan=plan)
    export(ours.model, tmp_path)
    verify_export(tmp_path, ours.structure)
    assert_same(logits(PeftModel.from_pretrained(base("llama", layers=12), tmp_path)), logits(ours.model))


@pytest.mark.parametrize("left_out", [None, "layers.0", "encoder.layers.0", "layers_0"])
def test_stock_peft_adapts_the_same_modules_where_names_end_alike(left_out: str | None, tmp_path: Path) -> None:
    net = Twins()
    targets = [target for target in find_targets(net) if target.name != left_out]
    plan = {target.name: i + 1 for i, target in enumerate(targets)}
    adapted = build(net, planned(targets, plan, scaling=1.0))
    export(adapted, tmp_path)
    reloaded = PeftModel.from_pretrained(Twins(), tmp_path)
    assert reloaded.targeted_module_names == [target.name for target in targets]
    for name, rank in plan.items():
        assert reloaded.get_base_model().get_submodule(name).r["default"] == rank


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_the_factors_multiply_to_the_change_of_the_weight(model: str, scheme: str) -> None:
    ours, pristine = trained(model, SCHEMES[scheme]), base(model)
    whole = merged(ours.model, base(model))
    factors = {name: (L, R) for name, L, R in delta_factors(ours.model)}
    assert list(factors) == list(ours.plan)
    for name, (L, R) in factors.items():
        assert L.shape[1] == R.shape[0] == ours.plan[name] * (1 if scheme == "none" else 2)
        change = weight_of(whole.get_submodule(name)) - weight_of(pristine.get_submodule(name))
        torch.testing.assert_close(L @ R, change, rtol=1e-4, atol=1e-5)  # fp32 rounding of the two weights


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", MODELS)
def test_merging_gives_a_plain_model_and_leaves_the_live_one_alone(model: str, scheme: str) -> None:
    ours = trained(model, SCHEMES[scheme])
    expected, state = logits(ours.model), {k: t.clone() for k, t in adapter_state(ours.model).items()}
    plain = merged(ours.model, base(model))
    assert plain.state_dict().keys() == base(model).state_dict().keys()
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)  # weights summed first, in fp32
    assert torch.equal(logits(ours.model), expected)
    assert all(torch.equal(tensor, state[key]) for key, tensor in adapter_state(ours.model).items())


def test_merging_rounds_each_weight_once() -> None:
    ours = case(base("llama", torch.bfloat16), Noise())
    plain, pristine = merged(ours.model, base("llama", torch.bfloat16)), base("llama", torch.bfloat16)
    for name, L, R in delta_factors(ours.model):
        found = plain.get_submodule(name).weight
        exact = pristine.get_submodule(name).weight.double() + L.double() @ R.double()
        assert found.dtype == torch.bfloat16
        # Half an ulp of 8 bits is 2⁻⁸ of the value; float32's own rounding is far below.
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (6, 30)])
def test_truncation_is_the_best_approximation_and_states_what_it_drops(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    L, R = torch.randn(shape[0], 8, generator=generator), torch.randn(8, shape[1], generator=generator)
    S = torch.linalg.svdvals(L.double() @ R.double())
    for rank in (1, 3, 8):
        best = truncate(L, R, rank)
        assert best.energy == pytest.approx(float(S.square().sum()), rel=1e-5)
        assert best.dropped == pytest.approx(float(S[rank:].square().sum()), rel=1e-5, abs=1e-9)
        left = float((L.double() @ R.double() - best.L.double() @ best.R.double()).square().sum())
        assert left == pytest.approx(best.dropped, rel=1e-4, abs=1e-8)  # factors are stored in float32


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_truncated_export_is_the_best_of_its_rank_layer_by_layer(model: str, tmp_path: Path) -> None:
    ours = trained(model, Principal())
    done = export(ours.model, tmp_path, rank=4)
    verify_export(tmp_path, ours.structure, rank=4)
    assert done.ranks == {name: min(4, 2 * rank) for name, rank in ours.plan.items()}
    saved = load_file(tmp_path / "adapter_model.safetensors")
    dropped = total = 0.0
    for name, L, R in delta_factors(ours.model):
        S = torch.linalg.svdvals(L.double() @ R.double()).square()
        lost = float(S[4:].sum())
        dropped, total = dropped + lost, total + float(S.sum())
        assert done.dropped_energy[name] == pytest.approx(lost / float(S.sum()), rel=1e-3, abs=1e-9)
        A, B = (saved[f"base_model.model.{name}.lora_{letter}.weight"].double() for letter in "AB")
        left = float((L.double() @ R.double() - ours.scaling * B @ A).square().sum())
        assert left == pytest.approx(lost, rel=1e-3, abs=1e-8)
    assert done.total_dropped_energy == pytest.approx(dropped / total, rel=1e-3)
    assert 0 < done.total_dropped_energy < 1


def test_truncating_to_no_less_than_there_is_changes_nothing(tmp_path: Path) -> None:
    ours = trained("llama", Principal())
    done = export(ours.model, tmp_path, rank=10)  # ranks are 1 to 5, doubled
    # What a rank-k matrix has beyond its k-th value is float64 rounding.
    assert done.total_dropped_energy == 0.0
    assert_same(logits(PeftModel.from_pretrained(base("llama"), tmp_path)), logits(ours.model))


def test_an_adapter_that_learned_nothing_drops_nothing(tmp_path: Path) -> None:
    done = export(case(base("llama"), OneSided()).model, tmp_path, rank=1)
    assert done.total_dropped_energy == 0.0
    assert set(done.dropped_energy.values()) == {0.0}


def test_dora_exports_as_dora(tmp_path: Path) -> None:
    ours = trained("llama", OneSided(), use_dora=True)
    export(ours.model, tmp_path)
    verify_export(tmp_path, ours.structure)
    assert_same(logits(PeftModel.from_pretrained(base("llama"), tmp_path)), logits(ours.model))
    whole, pristine = merged(ours.model, base("llama")), base("llama")
    torch.testing.assert_close(logits(whole), logits(ours.model), rtol=1e-4, atol=1e-4)
    for name, L, R in delta_factors(ours.model):
        change = whole.get_submodule(name).weight - pristine.get_submodule(name).weight
        torch.testing.assert_close(L @ R, change, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="DoRA"):
        export(ours.model, tmp_path, rank=2)


def test_where_the_base_was_replaced_the_adapter_belongs_on_the_base_saved_beside_it(tmp_path: Path) -> None:
    ours = trained("llama", Rounded())
    done = export(ours.model, tmp_path / "adapter")
    assert done.bases_replaced == len(ours.targets)
    trained_base(ours.model).save_pretrained(tmp_path / "base")
    beside = type(base("llama")).from_pretrained(tmp_path / "base").eval()
    assert_same(logits(PeftModel.from_pretrained(beside, tmp_path / "adapter")), logits(ours.model))


def test_the_base_is_named_by_where_it_was_loaded_from(tmp_path: Path) -> None:
    base("llama").save_pretrained(tmp_path / "base")
    net = type(base("llama")).from_pretrained(tmp_path / "base").eval()
    ours = case(net)
    for given, expected in ((None, str(tmp_path / "base")), ("org/name", "org/name")):
        export(ours.model, tmp_path / "adapter", base_model=given)
        config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == expected
        assert config["task_type"] == "CAUSAL_LM"


def test_exporting_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    ours = trained("llama", Principal())
    for folder in ("one", "two"):
        export(ours.model, tmp_path / folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_rank_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--rank 0"):
        export(case(base("llama")).model, tmp_path, rank=0)


def spoil_config(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil_tensor(folder: Path, leaf: str, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = f"base_model.model.model.layers.1.mlp.up_proj.{leaf}"
    tensors[key] = change(tensors[key]).contiguous()
    save_file({key: tensor for key, tensor in tensors.items() if tensor.numel()}, path)


FAULTS = {
    "a uniform rank": (lambda f: spoil_config(f, rank_pattern={}), "the stated rank .* is 10, asked"),
    "a scaling of alpha over each rank": (lambda f: spoil_config(f, alpha_pattern={}), "the scaling .* asked 1.5"),
    "rslora": (lambda f: spoil_config(f, use_rslora=True), "use_rslora is True"),
    "an init that peft would run again": (lambda f: spoil_config(f, init_lora_weights="pissa"), "init_lora_weights"),
    "a missing tensor": (lambda f: spoil_tensor(f, "lora_A.weight", lambda t: t[:0]), r"lacks .*up_proj\.lora_A"),
    "a rank cut off": (lambda f: spoil_tensor(f, "lora_A.weight", lambda t: t[:1]), "up_proj: the rank of A .* is 1"),
    "not a number": (lambda f: spoil_tensor(f, "lora_B.weight", lambda t: t * torch.nan), "up_proj.* not finite"),
    "half precision": (lambda f: spoil_tensor(f, "lora_B.weight", lambda t: t.half()), "up_proj.* is torch.float16"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_as_planned_is_found(fault: str, tmp_path: Path) -> None:
    ours = case(base("llama"))
    export(ours.model, tmp_path)
    verify_export(tmp_path, ours.structure)
    spoil, said = FAULTS[fault]
    spoil(tmp_path)
    with pytest.raises(Mismatch, match=said):
        verify_export(tmp_path, ours.structure)


def test_a_folder_without_the_offset_is_found(tmp_path: Path) -> None:
    ours = case(base("llama"), Noise())
    export(ours.model, tmp_path)
    with pytest.raises(Mismatch, match="the rank of A"):
        verify_export(tmp_path, Structure({n: replace(f, offset="separate") for n, f in ours.structure.layers.items()}))
    assert len(adapted_layers(ours.model)) == len(ours.plan)
