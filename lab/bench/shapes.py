"""Shapes of models that a bench draws at random: speed depends on them and not on what the weights say."""

from typing import Any

Shape = dict[str, Any]  # model_type and fields of a transformers configuration

LLAMA_135M: Shape = {  # SmolLM2-135M's
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
QWEN2_7B: Shape = {  # Qwen2.5-7B's
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
TINY: Shape = {  # laid over another, to try a bench where there is no time for it
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 96,
    "vocab_size": 512,
}
