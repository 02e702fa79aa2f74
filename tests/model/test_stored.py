"""What a model's files hold is read from the files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models import TOYS, toy_checkpoint
from transformers import AutoModelForCausalLM

from lab.model.pretrained import Pretrained
from lab.model.stored import load_as_stored, stored_dtype, weight_files

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pretrained(folder) -> Pretrained:
    return Pretrained(name_or_path=str(folder), revision=None, quantization=None, attn_implementation=None)


def converted(folder, dtype):
    """A toy checkpoint whose files hold a dtype, and whose config.json says so."""
    toy_checkpoint(folder, TOYS["meta-llama/Llama-3.2"], None)
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    return folder


def as_one_file(folder):
    return folder


def as_shards(folder):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("store", [as_one_file, as_shards, as_pickle])
@pytest.mark.parametrize("said", ["float32", "bfloat16", None])
def test_the_dtype_is_that_of_the_files_whatever_the_config_says(dtype, store, said, tmp_path):
    folder = store(converted(tmp_path, dtype))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": said}))
    assert stored_dtype(weight_files(str(folder), None)) == dtype
    net = load_as_stored(pretrained(folder), seed=0)
    assert net.dtype == dtype


def test_of_a_mixed_checkpoint_the_dtype_of_most_numbers_counts(tmp_path):
    converted(tmp_path, torch.bfloat16)
    weights = load_file(tmp_path / "model.safetensors")
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in weights.items()}
    mixed["step"] = torch.zeros(10**6, dtype=torch.int64)  # a counter is no weight
    save_file(mixed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert stored_dtype(weight_files(str(tmp_path), None)) == torch.bfloat16


@pytest.mark.parametrize("name", ["scratch:llama", "no/such-model", "mine"])
def test_a_model_without_files_is_drawn_in_float32(name):
    assert weight_files(name, None) == []
    assert stored_dtype([]) == torch.float32


def test_the_hubs_cache_is_read_at_the_revision(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    for revision, dtype in (("main", torch.float32), ("half", torch.bfloat16)):
        commit = revision[0] * 40
        (repository / "refs" / revision).write_text(commit)
        converted(repository / "snapshots" / commit, dtype)
    assert stored_dtype(weight_files("some/model", None)) == torch.float32
    assert stored_dtype(weight_files("some/model", "half")) == torch.bfloat16
