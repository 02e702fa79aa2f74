"""Which layers a pattern names, against peft's own choice on the same models."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, Qwen3Config

from lab.errors import UsageError
from lab.layer import Target, find_targets, weight_of

CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "qwen3": Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    ),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
    "opt": OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
    ),
}


def net_of(name: str) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[name])


@pytest.mark.parametrize("model", CONFIGS)
@pytest.mark.parametrize(
    ("target_modules", "exclude_modules"),
    [
        ("all-linear", None),
        (r".*\.(q_proj|c_attn)", None),
        (["v_proj", "c_proj"], None),
        ("all-linear", ["q_proj", "c_attn"]),
        ("all-linear", r".*\.1\..*"),
    ],
)
def test_targets_are_the_layers_peft_adapts(model: str, target_modules, exclude_modules) -> None:
    net = net_of(model)
    names = [name for name, _ in net.named_modules()]
    if isinstance(target_modules, list):  # name only what this model has: an unmatched ending is refused
        target_modules = [leaf for leaf in target_modules if any(name.endswith(f".{leaf}") for name in names)]
    if isinstance(exclude_modules, list):
        exclude_modules = [leaf for leaf in exclude_modules if any(name.endswith(f".{leaf}") for name in names)]
    found = [target.name for target in find_targets(net, target_modules, exclude_modules)]
    adapted = get_peft_model(net, LoraConfig(target_modules=target_modules, exclude_modules=exclude_modules))
    assert found == adapted.targeted_module_names


@pytest.mark.parametrize("model", CONFIGS)
def test_a_target_states_the_shape_the_layer_computes_with(model: str) -> None:
    net = net_of(model)
    for target in find_targets(net):
        layer = net.get_submodule(target.name)
        out, inner = target.shape
        assert layer(torch.empty(1, inner, device="meta")).shape == (1, out)
        assert tuple(weight_of(layer).shape) == (out, inner)
        assert target.cost == out + inner
        assert target.max_rank == min(out, inner)


def test_depth_is_the_number_of_the_block_and_role_its_part() -> None:
    llama = {target.name: target for target in find_targets(net_of("llama"))}
    assert llama["model.layers.11.self_attn.q_proj"] == Target(
        "model.layers.11.self_attn.q_proj", "attention", 11, (32, 32), False
    )
    assert llama["model.layers.3.mlp.down_proj"] == Target("model.layers.3.mlp.down_proj", "mlp", 3, (32, 48), False)
    gpt2 = {target.name: target for target in find_targets(net_of("gpt2"))}
    assert gpt2["transformer.h.1.mlp.c_fc"] == Target("transformer.h.1.mlp.c_fc", "mlp", 1, (128, 32), True)
    opt = {target.name: target for target in find_targets(net_of("opt"))}
    assert opt["model.decoder.layers.1.fc1"].role == "mlp"
    plain = find_targets(nn.Sequential(nn.Sequential(nn.Linear(3, 2))))
    assert plain == [Target("0.0", "other", 0, (2, 3), False)]


def test_the_output_head_is_never_a_target() -> None:
    assert not any("lm_head" in target.name for target in find_targets(net_of("llama")))
    with pytest.raises(UsageError, match="matches no linear layer"):
        find_targets(net_of("llama"), ["lm_head"])


@pytest.mark.parametrize(
    ("target_modules", "exclude_modules", "said"),
    [
        (["q_porj"], None, "q_porj.*did you mean q_proj"),
        (["q_proj", "c_attn"], None, "c_attn.*matches no linear layer"),
        (r".*nothing", None, "this model has down_proj"),
        ("q_proj", None, r"write \[q_proj\]"),
        ("(", None, "no regular expression"),
        ([], None, "leaves no layer"),
        ("all-linear", ["w1"], "exclude_modules 'w1'"),
        (["q_proj"], ["q_proj"], "leaves no layer"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(target_modules, exclude_modules, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_targets(net_of("llama"), target_modules, exclude_modules)
