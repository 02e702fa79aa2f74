"""Small GGUF files for tests, as llama.cpp's converter writes them, of a Llama-shaped model and a tokenizer."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lab.model.hub import ASSETS

CONTEXT = 96
WORDS = ASSETS / "base" / "tokenizer.json"
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
NAMES = {  # of transformers -> of GGUF, behind `blk.<n>.`
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tokenizer_by_digit() -> PreTrainedTokenizerFast:
    """The shipped vocabulary behind SmolLM2's published pre-tokenizer."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(WORDS), eos_token="<|endoftext|>")
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return tokenizer


def small_llama(tied: bool = True) -> LlamaForCausalLM:
    """Two layers, grouped queries, rows of a whole number of blocks; drawn wide enough that a permuted head shows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, rope_theta=5e4, rms_norm_eps=1e-5,
        tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0, pad_token_id=1, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write_gguf(path: Path, net: LlamaForCausalLM, pre: str | None, kind: str = "F32") -> Path:
    """The file; matrices in blocks of `kind`, vectors in float32. `net` then holds what the blocks do."""
    config, shipped = net.config, PreTrainedTokenizerFast(tokenizer_file=str(WORDS))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(5e4)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _add_words(writer, shipped, pre)
    for name, weight in net.named_parameters():
        _add_weight(writer, name, weight, config, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_words(writer: Any, shipped: PreTrainedTokenizerFast, pre: str | None) -> None:
    words = sorted(shipped.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([3 if number < 2 else 1 for _, number in words])  # control, normal
    merges = json.loads(shipped.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def _add_weight(writer: Any, name: str, weight: torch.nn.Parameter, config: LlamaConfig, kind: Any) -> None:
    module = name.removesuffix(".weight")
    if module in OUTSIDE:
        label = OUTSIDE[module]
    else:
        _, _, layer, inner = module.split(".", 3)
        label = f"blk.{layer}.{NAMES[inner]}"
    values = weight.detach().numpy()
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.rsplit(".", 1)[-1])
    if heads is not None:  # llama.cpp turns neighbouring channels where transformers turns halves
        values = values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
    if weight.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(f"{label}.weight", np.ascontiguousarray(values))
        return
    blocks = gguf.quants.quantize(np.ascontiguousarray(values), kind)
    writer.add_tensor(f"{label}.weight", blocks, raw_dtype=kind)
    held = gguf.quants.dequantize(blocks, kind)
    if heads is not None:
        held = held.reshape(heads, -1, 2, held.shape[-1]).swapaxes(1, 2).reshape(held.shape)
    with torch.no_grad():
        weight.copy_(torch.from_numpy(np.ascontiguousarray(held)))
