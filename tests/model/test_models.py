"""Every model YAML, and the two ways to make a model."""

import inspect
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_class
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lab import config
from lab.config.instantiate import make
from lab.errors import UsageError
from lab.layer import find_targets
from lab.model import weights_sha256
from lab.model.hub import ASSETS, shipped
from lab.model.pretrained import Pretrained
from lab.model.scratch import Scratch

OPTIONS = sorted(path.stem for path in (config.CONF / "model").glob("*.yaml"))

# The architectures behind the hub names of conf/model, at toy size.
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 48}
TOYS = {
    "Qwen/Qwen2.5": {"model_type": "qwen2", **GROUPED, "tie_word_embeddings": False},
    "microsoft/DialoGPT": {"model_type": "gpt2"},
    "HuggingFaceTB/SmolLM2": {"model_type": "llama", **GROUPED, "tie_word_embeddings": True},
    "lab:smollm2": {"model_type": "llama", **GROUPED, "tie_word_embeddings": True},
    "meta-llama/Llama-3.2": {"model_type": "llama", **GROUPED, "tie_word_embeddings": True},
}
LAYERS = {"qwen2": 7, "llama": 7, "gpt2": 4}  # linear layers per block
NOT_HUB = ("tiny", "micro", "base_scratch", "pretrained")
HUB = [name for name in OPTIONS if name not in NOT_HUB and not name.startswith("nanochat")]


# Until `make base` has run once there is nothing to load.
needs_the_base = pytest.mark.skipif(not (ASSETS / "base" / "config.json").is_file(), reason="make base has not run")


def compose_model(*overrides: str):
    return make(config.compose(*overrides).model)


@pytest.fixture
def scratch():
    return compose_model("model=micro")


def toy_checkpoint(folder: Path, architecture: dict, pad_token: str | None) -> Path:
    """A local checkpoint of an architecture, saved by stock transformers, with the shipped vocabulary."""
    architecture = dict(architecture)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(ASSETS / "base" / "tokenizer.json"), eos_token="<|endoftext|>", pad_token=pad_token
    )
    kind = architecture.pop("model_type")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **architecture)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("option", OPTIONS)
def test_yaml_holds_every_constructor_parameter_and_no_other(option):
    node = yaml.safe_load((config.CONF / "model" / f"{option}.yaml").read_text())
    signature = inspect.signature(get_class(node.pop("_target_")))
    assert set(node) == set(signature.parameters)
    assert all(parameter.default is inspect.Parameter.empty for parameter in signature.parameters.values())


@pytest.mark.parametrize("option", HUB)
def test_hub_option_trains_two_steps_on_a_toy_of_its_architecture(option, tmp_path):
    asked = config.compose(f"model={option}").model["name_or_path"]
    architecture = next(toy for prefix, toy in TOYS.items() if asked.startswith(prefix))
    folder = toy_checkpoint(tmp_path / "toy", architecture, pad_token=None)
    # Quantisation needs CUDA; tests/model/test_nf4.py covers it where there is one.
    model = compose_model(f"model={option}", f"model.name_or_path={folder}", "model.quantization=null")
    model.check()
    targets = find_targets(model.skeleton())
    assert len(targets) == 2 * LAYERS[architecture["model_type"]]
    net, tokenizer = model.load(torch.float32, seed=0), model.tokenizer()
    assert {target.name: target.shape for target in find_targets(net)} == {t.name: t.shape for t in targets}
    tokens = tokenizer(["a b c d e f g h", "def f(x): return x"], return_tensors="pt", padding=True)
    labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = net(**tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


@needs_the_base
def test_tiny_loads_the_weights_stock_transformers_loads():
    stock = AutoModelForCausalLM.from_pretrained(shipped("base"), dtype=torch.bfloat16)
    assert weights_sha256(compose_model("model=tiny").load(torch.bfloat16, seed=0)) == weights_sha256(stock)


@needs_the_base
def test_the_shipped_base_has_the_shapes_of_base_scratch():
    trained, untrained = (compose_model(f"model={option}").skeleton() for option in ("tiny", "base_scratch"))
    shapes = [{name: weight.shape for name, weight in net.named_parameters()} for net in (trained, untrained)]
    assert shapes[0] == shapes[1]


def test_the_base_takes_less_than_16_megabytes_in_bfloat16():
    skeleton = compose_model("model=base_scratch").skeleton()
    assert sum(weight.numel() for weight in skeleton.parameters()) * 2 < 16e6


def test_skeleton_has_every_name_and_shape_and_no_memory(scratch):
    skeleton, net = scratch.skeleton(), scratch.load(torch.float32, seed=0)
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {n: p.shape for n, p in net.named_parameters()}
    assert all(weight.is_meta for weight in skeleton.parameters())


def test_scratch_is_its_seed_and_leaves_the_global_generator_alone(scratch):
    state = torch.get_rng_state()
    first, again, other = (weights_sha256(scratch.load(torch.float32, seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_sha256_sees_one_bit_a_name_and_a_shape(scratch):
    net = scratch.load(torch.bfloat16, seed=0)
    before = weights_sha256(net)
    weight = net.model.layers[1].mlp.up_proj.weight
    weight.data.view(torch.int16)[0, 0] ^= 1
    changed = weights_sha256(net)
    weight.data.view(torch.int16)[0, 0] ^= 1
    assert changed != before
    assert weights_sha256(net) == before
    plain, bag = torch.nn.Linear(2, 3, bias=False), torch.nn.Module()
    bag.other = plain.weight
    assert weights_sha256(plain) != weights_sha256(bag)
    bag.other = None
    bag.weight = torch.nn.Parameter(plain.weight.data.reshape(2, 3))
    assert weights_sha256(plain) != weights_sha256(bag)


def test_tokenizer_without_pad_token_pads_with_eos(tmp_path):
    folder = toy_checkpoint(tmp_path / "toy", TOYS["microsoft/DialoGPT"], pad_token=None)
    assert AutoTokenizer.from_pretrained(folder).pad_token_id is None
    tokenizer = compose_model("model=pretrained", f"model.name_or_path={folder}").tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_checkpoint_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = toy_checkpoint(tmp_path / "toy", TOYS["Qwen/Qwen2.5"], pad_token="<|pad|>")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = Pretrained(name_or_path=str(folder), revision=None, quantization=None, attn_implementation=None)
    with pytest.raises(UsageError, match=r"lacks 1 weights .*lm_head\.weight"):
        model.load(torch.float32, seed=0)


def test_truncated_weights_are_refused_by_name(tmp_path):
    folder = toy_checkpoint(tmp_path / "toy", TOYS["microsoft/DialoGPT"], pad_token="<|pad|>")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    model = compose_model("model=pretrained", f"model.name_or_path={folder}")
    with pytest.raises(UsageError, match=str(folder)):
        model.load(torch.float32, seed=0)


@pytest.mark.parametrize(
    ("architecture", "sentence"),
    [
        ({"model_type": "lama"}, "did you mean llama"),
        ({"model_type": "llama", "hiden_size": 64}, r"hiden_size is no number of llama; did you mean hidden_size"),
        ({"model_type": "llama", "hidden_size": "wide"}, "expected int"),
        ({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 7}, "not a multiple"),
        ({"model_type": "t5"}, "no causal language model"),
        ({"model_type": "llama", "vocab_size": 10}, "smaller than the 4096 tokens"),
        ({"hidden_size": 64}, "no model_type"),
    ],
)
def test_architecture_mistake_gets_a_sentence(architecture, sentence):
    with pytest.raises(UsageError, match=sentence):
        Scratch(architecture=architecture, tokenizer_name_or_path="lab:base", attn_implementation=None).skeleton()
