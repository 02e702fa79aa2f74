"""NanoChat from scratch: its size, and weights drawn as its author draws them."""

import math

import pytest
import torch

from lab import config
from lab.config.instantiate import make
from lab.errors import UsageError
from lab.layer import find_targets


def model(*overrides):
    return make(config.compose("method=full", *overrides).model)


@pytest.mark.parametrize(("option", "parameters"), [("nanochat_d4", 36_700_160), ("nanochat_d4_8k", 7_340_032)])
def test_depth_4_has_the_parameters_of_the_seed(option, parameters):
    skeleton = model(f"model={option}").skeleton()
    assert sum(p.numel() for p in skeleton.parameters()) == parameters
    assert len(find_targets(skeleton)) == 24
    assert skeleton.config.pad_token_id is None
    assert skeleton.get_input_embeddings().padding_idx is None


def test_depth_20_has_ten_heads_of_128_channels():
    shape = model("model=nanochat_d20").skeleton().config
    assert (shape.hidden_size, shape.num_attention_heads, shape.intermediate_size) == (1280, 10, 5120)


@pytest.fixture(scope="module")
def net():
    return model("model=nanochat_d4_8k").load(torch.float32, seed=0)


@pytest.mark.parametrize(
    ("ending", "sigma"),
    [("embed_tokens", 1.0), ("q_proj", 1 / 16), ("k_proj", 1 / 16), ("v_proj", 1 / 16), ("fc1", 1 / 16)],
)
def test_weights_are_normal_with_nanochats_width(net, ending, sigma):
    weights = [p for name, p in net.named_parameters() if name.endswith(f"{ending}.weight")]
    assert weights
    for weight in weights:
        five_sigma = 5 / math.sqrt(2 * weight.numel())  # of the estimate of a normal's width
        assert float(weight.detach().std()) / sigma == pytest.approx(1, abs=five_sigma)


def test_head_and_branches_start_at_zero_so_the_loss_is_that_of_guessing(net):
    for name, p in net.named_parameters():
        assert name.endswith(("lm_head.weight", "o_proj.weight", "fc2.weight")) == (not p.any())
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert float(net(input_ids=ids, labels=ids).loss) == pytest.approx(math.log(8192), rel=1e-6)


def test_the_seed_decides_and_the_global_generator_is_left_alone(net):
    state = torch.get_rng_state()
    again, other = (model("model=nanochat_d4_8k").load(torch.float32, seed) for seed in (0, 1))
    assert torch.equal(again.model.embed_tokens.weight, net.model.embed_tokens.weight)
    assert not torch.equal(other.model.embed_tokens.weight, net.model.embed_tokens.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mistake_gets_a_sentence():
    with pytest.raises(UsageError, match=r"model\.depth=0 is no number of blocks"):
        model("model=nanochat_d4", "model.depth=0")
    with pytest.raises(UsageError, match="vocab_size=100 is smaller than the 4096 tokens"):
        model("model=nanochat_d4", "model.vocab_size=100").skeleton()
