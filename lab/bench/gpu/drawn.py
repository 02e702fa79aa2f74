"""Models and texts drawn at random on the device, since speed does not depend on what they say."""

from typing import Any

import torch

from lab.bench.shapes import Shape
from lab.data.encode import Sample


def model(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """A causal language model of a shape, drawn where it will be used; its weights never were anywhere else."""
    from transformers import AutoConfig, AutoModelForCausalLM

    numbers = dict(shape)
    kind = numbers.pop("model_type")
    config = AutoConfig.for_model(kind, **numbers, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def texts(count: int, length: int, words: int) -> list[Sample]:
    """Texts of random words (length,), each predicted from those before it; the same every time."""
    ids = torch.randint(words, (count, length), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, 0] = -100
    return [Sample(input_ids=ids[i], labels=labels[i], num_bytes=length) for i in range(count)]
