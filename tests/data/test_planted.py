"""The planted change has the rank, the strength and the place it is said to have."""

import copy
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir

from lab.config import CONF, instantiate, plain_of
from lab.data.encode import encode
from lab.data.planted import Planted, moments, planted_change, sample
from lab.errors import UsageError
from lab.model.pretrained import Pretrained

SMALL = {"true_rank": 3, "size": 0.4, "length": 12, "train_examples": 5, "val_examples": 3, "test_examples": 2}


@pytest.fixture(scope="module")
def planted() -> Planted:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        data = instantiate.make(plain_of(compose("config", overrides=["data=planted"]))["data"])
    return replace(data, **SMALL)


@pytest.fixture(scope="module")
def base():
    source = Pretrained(name_or_path="lab:base", revision=None, quantization=None, attn_implementation=None)
    return source.load(torch.float32, 0)


@pytest.fixture(scope="module")
def written(base):
    return sample(base, 48, 64, 0, torch.Generator().manual_seed(0))


def test_where_loss_is_measured_all_directions_of_the_change_are_equally_strong(base, planted, written):
    layer = base.get_submodule(planted.target)
    change = planted_change(base, layer, written, rank=3, size=0.4)
    inputs, gradients = moments(base, layer, written)
    values = torch.linalg.svdvals(root(gradients) @ change.double() @ root(inputs))
    torch.testing.assert_close(values[:3], torch.full((3,), 0.4).double(), rtol=1e-3, atol=0)  # float32 eigenvectors
    assert values[3] < 1e-3 * values[0]
    assert torch.linalg.matrix_rank(change) == 3


def test_each_direction_is_worth_half_its_size_squared(base, planted, written):
    layer, net = base.get_submodule(planted.target), copy.deepcopy(base)
    change = planted_change(base, layer, written, rank=4, size=0.2)
    with torch.no_grad():
        net.get_submodule(planted.target).weight += change
        before, after = (model(written).logits[:, :-1].log_softmax(-1) for model in (base, net))
    divergence = float((before.exp() * (before - after)).sum(-1).mean())
    # Second order, and inputs and gradients of a token are not quite independent.
    assert divergence == pytest.approx(4 * 0.5 * 0.2**2, rel=0.4)


def root(moment):
    values, vectors = torch.linalg.eigh(moment.double())
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def test_texts_are_sampled_once_and_then_read(planted, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    first = planted.load()
    assert [len(side) for side in (first.train, first.val, first.test)] == [5, 3, 2]
    monkeypatch.setattr(Planted, "_sample", lambda self, net: pytest.fail("sampled again"))
    assert planted.load() == first
    assert len(list((tmp_path / "planted").iterdir())) == 1


def test_another_rank_is_another_teacher(planted, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    assert planted.load().sha256 != replace(planted, true_rank=2).load().sha256


@pytest.mark.parametrize(
    ("change", "word"),
    [({"target": "model.norm"}, "no linear layer"), ({"true_rank": 300}, "use 1 to 256"), ({"true_rank": 0}, "use 1")],
)
def test_what_cannot_be_planted_is_refused(planted, change, word, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=word):
        replace(planted, **change).load()


def test_a_model_reads_the_tokens_that_were_written(planted, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    tokenizer = Pretrained(
        name_or_path="lab:base", revision=None, quantization=None, attn_implementation=None
    ).tokenizer()
    records = planted.load().train
    side = encode(records, tokenizer, template=None, max_length=13, side_name="train")
    for record, row in zip(records, side.samples, strict=True):
        assert row.input_ids.tolist() == [tokenizer.eos_token_id, *record.ids]
        assert row.labels.tolist() == [-100, *record.ids]
        assert row.num_bytes == len(record.text.encode())
    assert side.truncated == 0
