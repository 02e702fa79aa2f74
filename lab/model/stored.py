"""Models as they lie on disk: their files, the dtype those hold, and the model loaded in it."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lab.model import Model, hub

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def weight_files(name_or_path: str, revision: str | None) -> list[Path]:
    """The files that transformers reads a model's weights from, in a folder or in the hub's cache; empty where none."""
    from huggingface_hub.errors import HFValidationError

    find = partial(hub.file_of, name_or_path, revision)
    with suppress(HFValidationError):  # `scratch:llama` is no name of the hub's
        for single, index in zip(hub.WEIGHTS, hub.WEIGHT_INDICES, strict=True):
            if (path := find(single)) is not None:
                return [path]
            if (path := find(index)) is not None:
                return [path.parent / shard for shard in sorted(hub.shards(path))]
    return []


def stored_dtype(files: list[Path]) -> "torch.dtype":
    """The floating dtype that most numbers of a model's files have, whatever its config.json says.

    float32 where there are no files: a model from scratch is drawn in it.
    """
    import torch

    held: Counter[torch.dtype] = Counter()
    for path in files:
        for dtype, count in _tensors(path):
            held[dtype] += count
    return held.most_common(1)[0][0] if held else torch.float32


def _tensors(path: Path) -> "Iterator[tuple[torch.dtype, int]]":
    """Dtype and size of each floating tensor of a file, read from its header."""
    import torch

    if path.suffix == ".safetensors":
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__" and tensor["dtype"] in SAFETENSORS_DTYPES:
                numbers = (tensor["data_offsets"][1] - tensor["data_offsets"][0]) * 8
                dtype = getattr(torch, SAFETENSORS_DTYPES[tensor["dtype"]])
                yield dtype, numbers // torch.finfo(dtype).bits
        return
    for tensor in torch.load(path, map_location="meta", weights_only=True).values():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            yield tensor.dtype, tensor.numel()


def load_as_stored(model: Model, seed: int) -> "PreTrainedModel":
    """A model on the CPU in the dtype of its own files, whatever dtype a run computes in; `seed` as in Model.load."""
    return model.load(stored_dtype(weight_files(model.name_or_path, model.revision)), seed)
