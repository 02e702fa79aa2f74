"""The planted change has the rank, the strength and the place it is said to have."""

from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir

from lab import build
from lab.config import CONF, plain_of
from lab.data.planted import Planted, planted_change
from lab.errors import UsageError
from lab.model.pretrained import Pretrained

SMALL = {"true_rank": 3, "size": 5.0, "length": 12, "train_examples": 5, "val_examples": 3, "test_examples": 2}


@pytest.fixture(scope="module")
def planted() -> Planted:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        data = build.make(plain_of(compose("config", overrides=["data=planted"]))["data"])
    return replace(data, **SMALL)


@pytest.fixture(scope="module")
def base():
    source = Pretrained(name_or_path="lab:base", revision=None, quantization=None, attn_implementation=None)
    return source.load(torch.float32, 0)


def test_the_change_has_its_rank_and_equally_strong_uncorrelated_directions(base, planted):
    layer = base.get_submodule(planted.target)
    ids = torch.randint(2, 4000, (16, 32), generator=torch.Generator().manual_seed(0))
    change = planted_change(base, layer, ids, rank=3, size=5.0)
    seen = []
    handle = layer.register_forward_hook(lambda module, args, out: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        base(ids)
    handle.remove()
    added = seen[0].detach() @ change.T  # (tokens, out)
    values, _ = torch.linalg.eigh(added.T @ added / len(added))
    # float32 eigenvectors of a covariance whose eigenvalues span decades
    torch.testing.assert_close(values[-3:].sqrt(), torch.full((3,), 5.0), rtol=1e-3, atol=0)
    assert values[-4].abs() < 1e-4 * values[-1]
    assert torch.linalg.matrix_rank(change) == 3


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
