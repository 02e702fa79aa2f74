import logging
import multiprocessing
import os

import pytest
import torch
from torch import Generator

from lab.init import svd_cache
from lab.init.svd_cache import leading_triples, triples_at, weight_hash


def weight(shape=(320, 300), seed=0):
    generator = Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(shape[0], 300, generator=generator)).Q
    V = torch.linalg.qr(torch.randn(shape[1], 300, generator=generator)).Q
    return (U * torch.arange(1, 301) ** -0.7) @ V.T


def same(a, b):
    pairs = [(getattr(a, key), getattr(b, key)) for key in ("U", "S", "Vh")]
    alike = all(torch.equal(one, other) and one.stride() == other.stride() for one, other in pairs)
    return alike and a.info == b.info


@pytest.fixture
def count(monkeypatch):
    made = []
    for name in ("decompose", "exact_basis"):
        inner = getattr(svd_cache, name)
        monkeypatch.setattr(svd_cache, name, lambda *args, inner=inner: made.append(1) or inner(*args))
    return made


@pytest.mark.parametrize("algorithm", ["randomised", "exact"])
def test_a_cached_decomposition_is_bitwise_the_computed_one(algorithm, count):
    W = weight()
    first, second = leading_triples(W, 16, algorithm), leading_triples(W, 16, algorithm)
    assert len(count) == 1
    assert same(first, second)


@pytest.mark.parametrize("algorithm", ["randomised", "exact"])
def test_one_decomposition_serves_a_rank_sweep_whatever_its_order(algorithm, count, cache_folder):
    W = weight()
    rising = [leading_triples(W, rank, algorithm) for rank in (4, 16, 64)]
    assert len(count) == 1
    for file in cache_folder.iterdir():
        file.unlink()
    falling = [leading_triples(W, rank, algorithm) for rank in (64, 16, 4)]
    assert len(count) == 2
    assert all(same(a, b) for a, b in zip(rising, reversed(falling), strict=True))


def test_every_exact_choice_of_triples_shares_one_basis(count):
    W = weight()
    leading_triples(W, 8, "exact")
    triples_at(W, torch.arange(290, 300))
    triples_at(W, torch.tensor([3, 70, 200]))
    assert len(count) == 1


def test_another_weight_has_another_key_and_a_view_the_same():
    W = weight()
    changed = W.clone()
    changed[0, 0] = torch.nextafter(changed[0, 0], torch.tensor(9.0))
    assert weight_hash(W) != weight_hash(changed)
    assert weight_hash(W) == weight_hash(W.T.contiguous().T)
    assert weight_hash(torch.zeros(2, 3)) != weight_hash(torch.zeros(3, 2))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "replaced"])
def test_a_corrupted_file_is_computed_again_and_said_so(damage, cache_folder, caplog):
    W = weight()
    good = leading_triples(W, 16, "randomised")
    (path,) = cache_folder.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[-100] ^= 1
    elif damage == "emptied":
        data = bytearray()
    else:
        data = bytearray(b"not a safetensors file at all")
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert same(leading_triples(W, 16, "randomised"), good)
    assert str(path) in caplog.text
    assert "computing it again" in caplog.text
    caplog.clear()
    leading_triples(W, 16, "randomised")
    assert not caplog.text


def test_the_least_recently_used_files_go_first(monkeypatch, cache_folder):
    old, used, new = weight(seed=1), weight(seed=2), weight(seed=3)
    leading_triples(old, 4, "randomised")
    leading_triples(used, 4, "randomised")
    files = {weight_hash(W): path for W in (old, used) for path in cache_folder.glob(f"{weight_hash(W)}*")}
    for age, W in ((20, used), (10, old)):
        path = files[weight_hash(W)]
        stamp = path.stat().st_mtime - age
        os.utime(path, (stamp, stamp))
    leading_triples(used, 4, "randomised")  # used again: now the younger
    size = files[weight_hash(used)].stat().st_size
    monkeypatch.setattr("lab.init.svd_cache.MAX_BYTES", 2 * size + 100)
    leading_triples(new, 4, "randomised")
    left = {path.name[:64] for path in cache_folder.glob("*.safetensors")}
    assert left == {weight_hash(used), weight_hash(new)}


def _decompose(seed):
    found = leading_triples(weight(seed=seed), 8, "exact")
    return found.U, found.Vh


@pytest.mark.slow
def test_concurrent_jobs_agree():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(_decompose, [0, 0, 0, 0])
    assert all(torch.equal(U, found[0][0]) and torch.equal(Vh, found[0][1]) for U, Vh in found)
