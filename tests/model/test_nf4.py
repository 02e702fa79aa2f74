"""4-bit loading: refused with a sentence where it cannot work, and run where there is CUDA and bitsandbytes."""

import importlib.util

import pytest
import torch

from lab.errors import UsageError
from lab.model.pretrained import Pretrained

BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


def quantised(name_or_path: str) -> Pretrained:
    return Pretrained(name_or_path=name_or_path, revision=None, quantization="nf4", attn_implementation=None)


@pytest.mark.skipif(BITSANDBYTES, reason="bitsandbytes is installed")
def test_nf4_without_bitsandbytes_is_refused_at_the_check():
    with pytest.raises(UsageError, match=r"needs bitsandbytes; install lowrank-lab\[qlora\]"):
        quantised("lab:base").check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_nf4_without_cuda_is_refused_before_weights_load():
    with pytest.raises(UsageError, match="needs CUDA, and there is none here"):
        quantised("lab:base").skeleton()


def test_another_quantisation_is_refused():
    with pytest.raises(UsageError, match="int3 is not one of null, nf4"):
        Pretrained(name_or_path="lab:base", revision=None, quantization="int3", attn_implementation=None)


@pytest.mark.skipif(not (BITSANDBYTES and torch.cuda.is_available()), reason="needs CUDA and bitsandbytes")
def test_nf4_holds_four_bits_a_weight_and_computes():
    model = quantised("lab:base")
    net = model.load(torch.bfloat16, seed=0)
    assert net.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    tokens = model.tokenizer()("def f(x):", return_tensors="pt").to("cuda")
    assert torch.isfinite(net(**tokens).logits).all()
