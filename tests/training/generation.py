"""Greedy decoding without `generate`, and small models of many architectures to hold it against."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

WORDS, POSITIONS = 97, 32
SIZES = {  # of whatever an architecture calls them
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "dff"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), POSITIONS),
    **{"num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4, "sliding_window": 6, "vocab_size": WORDS},
    **{"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "is_decoder": True},
    **{"attention_types": [[["global", "local"], 1]], "window_size": 6},  # GPT-Neo's
}


def small(model_type, **overrides):
    """A model of the type with random weights, two layers and POSITIONS positions, wide enough to have no ties."""
    known = AutoConfig.for_model(model_type).to_dict().keys() | AutoConfig.for_model(model_type).attribute_map.keys()
    numbers = {key: value for key, value in SIZES.items() if key in known} | overrides
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **numbers)).eval()
    with torch.no_grad():  # drawn wider than for training, so that the likeliest token changes from place to place
        for weight in net.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
    return net


@torch.no_grad()
def by_argmax(net, prompt, end_ids, new_tokens):
    """The tokens after a prompt (ids), up to the first end token or `new_tokens`: no cache, no padding, no settings."""
    ids, new = torch.as_tensor(prompt)[None], []
    for _ in range(new_tokens):
        token = int(net(input_ids=ids, use_cache=False).logits[0, -1].argmax())
        if token in end_ids:
            break
        new.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return new
