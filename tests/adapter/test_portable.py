"""A portable adapter has one rank and one alpha: whoever reads it, reads the same function."""

import json
from pathlib import Path

import pytest
import torch
from adapter_models import Noise, OneSided, Principal, base, case, logits, train, uneven
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_adalora import SETTINGS, adaptive
from test_initialise import Rounded

from lab.adapter.delta import trained_base
from lab.adapter.export import export, verify_export
from lab.adapter.read import read
from lab.adapter.readers import caveats
from lab.errors import Mismatch, UsageError
from lab.layer import find_targets, weight_of

SCHEMES = {"separate": Principal("separate"), "fold": Principal("fold"), "none": Noise()}
TOLERANCE = 1e-5  # of the largest logit, the contract in float32


@torch.no_grad()
def as_llama_cpp(folder: Path, net: torch.nn.Module) -> tuple[torch.nn.Module, dict[str, float]]:
    """The model as llama.cpp applies an adapter, and its scale of each layer, from its formula.

    convert_lora_to_gguf.py keeps one alpha, `lora_alpha`; `llama_adapter_lora_weight::get_scale` is alpha / rank, where
    the rank is B's own, and a layer adds scale · B A x.
    """
    alpha = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]
    tensors, scales = load_file(folder / "adapter_model.safetensors"), {}
    for key in (key for key in tensors if key.endswith("lora_B.weight")):
        name = key.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
        A, B = tensors[key.replace("lora_B", "lora_A")], tensors[key]
        scales[name] = alpha / B.shape[1]
        weight = weight_of(net.get_submodule(name))
        weight += scales[name] * B @ A
    return net, scales


def as_vllm(folder: Path) -> float:
    """vLLM's scale, one for all layers: its PEFTHelper reads r, lora_alpha and use_rslora."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config["use_rslora"]
    return config["lora_alpha"] / config["r"]


def trained(model: str, scheme: str, **asked):
    ours = case(base(model), SCHEMES[scheme], **asked)
    train(ours.model)
    return ours


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("scaling", ["alpha_over_r", "rslora"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_every_reader_gives_the_runs_logits(model: str, scheme: str, scaling: str, tmp_path: Path) -> None:
    ours = trained(model, scheme, scaling=scaling)
    done = export(ours.model, tmp_path, portable=True)
    verify_export(tmp_path, ours.structure, portable=True)
    assert set(done.ranks.values()) == {5 if scheme == "none" else 10}
    expected = logits(ours.model)
    assert_same(logits(PeftModel.from_pretrained(base(model), tmp_path).eval()), expected)
    summed, scales = as_llama_cpp(tmp_path, base(model))
    assert list(scales.values()) == pytest.approx([ours.scaling] * len(ours.plan), rel=1e-9)
    # Weights are summed before the product here: rounding of W + sBA at logits of about 10.
    torch.testing.assert_close(logits(summed), expected, rtol=1e-4, atol=1e-4)
    assert as_vllm(tmp_path) == pytest.approx(ours.scaling)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_uneven_adapter_is_too_strong_for_a_reader_of_one_alpha(scheme: str, tmp_path: Path) -> None:
    """Why there is a portable format: r_max / r times, and only the layers of the largest rank are right."""
    ours = trained("llama", scheme)
    export(ours.model, tmp_path)
    summed, scales = as_llama_cpp(tmp_path, base("llama"))
    assert scales == pytest.approx({name: ours.scaling * 5 / rank for name, rank in ours.plan.items()})
    assert (logits(summed) - logits(ours.model)).abs().max() > 0.1
    assert as_vllm(tmp_path) == pytest.approx(ours.scaling)


def test_of_even_ranks_the_portable_folder_is_the_plain_one(tmp_path: Path) -> None:
    ours = trained("llama", "separate", plan={target.name: 3 for target in find_targets(base("llama"))})
    for folder, portable in (("plain", False), ("portable", True)):
        export(ours.model, tmp_path / folder, portable=portable)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "portable" / name).read_bytes()


@pytest.mark.parametrize("rank", [1, 2, 4, 7, 100])
@pytest.mark.parametrize("scheme", ["separate", "none"])
def test_a_portable_cut_is_the_plain_cut(scheme: str, rank: int, tmp_path: Path) -> None:
    ours = trained("llama", scheme)
    plain = export(ours.model, tmp_path / "plain", rank=rank)
    done = export(ours.model, tmp_path / "portable", rank=rank, portable=True)
    verify_export(tmp_path / "portable", ours.structure, rank=rank, portable=True)
    largest = max(plain.ranks.values())
    assert largest == min(rank, 5 if scheme == "none" else 10)
    assert set(done.ranks.values()) == {largest}
    assert done.total_dropped_energy == plain.total_dropped_energy
    both = [logits(PeftModel.from_pretrained(base("llama"), tmp_path / name).eval()) for name in ("plain", "portable")]
    assert_same(*both)


def test_layers_that_adalora_cut_away_stay_the_bases(tmp_path: Path) -> None:
    model, ranks = adaptive(SETTINGS)
    with torch.no_grad():
        for i, layer in enumerate(ranks.layers.values()):
            layer.B.normal_(generator=torch.Generator().manual_seed(i))
            layer.E[: i % 4] = 0.5
    plan = {name: i % 4 for i, name in enumerate(ranks.layers) if i % 4}
    done = export(model.eval(), tmp_path, portable=True)
    verify_export(tmp_path, read(model), portable=True)
    assert done.ranks == dict.fromkeys(plan, 3)
    again = PeftModel.from_pretrained(base("llama"), tmp_path).eval()
    assert_same(logits(again), logits(model))


def test_a_replaced_base_lies_beside_a_portable_adapter_too(tmp_path: Path) -> None:
    ours = case(base("llama"), Rounded())
    export(ours.model, tmp_path, portable=True)
    verify_export(tmp_path, ours.structure, portable=True)
    assert_same(logits(PeftModel.from_pretrained(trained_base(ours.model), tmp_path).eval()), logits(ours.model))


def test_dora_is_refused(tmp_path: Path) -> None:
    ours = case(base("llama"), OneSided(), use_dora=True)
    with pytest.raises(UsageError, match="--format portable writes plain low-rank pairs, and DoRA"):
        export(ours.model, tmp_path / "no", portable=True)
    assert not (tmp_path / "no").exists()


def as_it_was(key: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def spoil(folder: Path, config: dict, change) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    path = folder / "adapter_model.safetensors"
    save_file({key: change(key, tensor) for key, tensor in load_file(path).items()}, path)


def beyond_its_rank(key: str, tensor: torch.Tensor) -> torch.Tensor:
    if key.endswith("layers.1.self_attn.o_proj.lora_A.weight"):  # a layer of rank 1
        tensor[-1, 0] = 1e-3
    return tensor


def unpadded(key: str, tensor: torch.Tensor) -> torch.Tensor:
    if "layers.1.self_attn.o_proj.lora_A" in key:
        return tensor[:2].contiguous()
    return tensor[:, :2].contiguous() if "layers.1.self_attn.o_proj.lora_B" in key else tensor


PATTERN = r"^model\.layers\.1\.self_attn\.o_proj"
FAULTS = {
    "a rank of its own": ({"rank_pattern": {PATTERN: 2}}, as_it_was, r"rank_pattern is .*, asked \{\}"),
    "an alpha of its own": ({"alpha_pattern": {PATTERN: 3}}, as_it_was, r"alpha_pattern is .*, asked \{\}"),
    "more than was learned": ({}, beyond_its_rank, r"layers\.1\.self_attn\.o_proj: .* holds more than rank 2"),
    "a layer that is not padded": ({}, unpadded, r"o_proj: the rank of A .* is 2, asked 10"),
    "another alpha": ({"lora_alpha": 32}, as_it_was, "the scaling in .* is 3.2, asked 1.5"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_portable_is_found(fault: str, tmp_path: Path) -> None:
    net = base("llama")
    plan = uneven(find_targets(net)) | {"model.layers.1.self_attn.o_proj": 1}
    ours = case(net, plan=plan)
    train(ours.model)
    export(ours.model, tmp_path, portable=True)
    verify_export(tmp_path, ours.structure, portable=True)
    config, tensors, said = FAULTS[fault]
    spoil(tmp_path, config, tensors)
    with pytest.raises(Mismatch, match=said):
        verify_export(tmp_path, ours.structure, portable=True)


@pytest.mark.parametrize(
    ("ranks", "scaling", "said"),
    [
        ((4, 4), 8.0, []),
        ((16, 16), 0.5, []),
        ((4, 28), 2.0, ["up to 7 times too strongly", "--max-lora-rank 32"]),
        ((2, 64), 2.0, ["up to 32 times too strongly", "--max-lora-rank 64"]),
        ((24, 24), 2.0, ["serves rank 24 with --max-lora-rank 32; its default is 16"]),
        ((600, 600), 2.0, ["serves no adapter of rank 600"]),
        ((8, 8), 0.25, ["alpha / r is 0.25"]),
    ],
)
def test_readers_are_warned_of_what_they_would_do(ranks, scaling, said) -> None:
    found = list(caveats({f"layer{i}": rank for i, rank in enumerate(ranks)}, scaling))
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))
    assert ("--format portable" in " ".join(found)) == (ranks[0] < ranks[1])
