"""Files are whole or not there, as readable as their folder's owner wants; what is kept between runs is no need."""

import errno
import os
from pathlib import Path

import pytest
import torch
from jobs import run, shell
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lab import cache
from lab.cache import cache_dir, keep
from lab.config import Hardware, compose
from lab.data import stdlib
from lab.data.encode import Sample
from lab.data.interpreter import Module
from lab.data.planted import Planted
from lab.export import main
from lab.files import write_atomically
from lab.init.svd_cache import leading_triples
from lab.training.base_loss import base_loss
from lab.training.hardware import resolve
from lab.training.loss import Scorer


@pytest.mark.parametrize(
    "write",
    [lambda path: path.write_text("text"), lambda path: save_file({"x": torch.ones(2)}, path)],
    ids=["text", "safetensors"],
)
def test_the_umask_decides_who_may_read(tmp_path, write):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", write)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "file").write_text("old")

    def half(path):
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file", half)
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_runs_folder_can_be_read_by_others(tmp_path):
    """Whoever may enter the folder may read the record, the adapter and the weights in it."""
    before = os.umask(0o022)
    try:
        run(tmp_path / "lora", "schedule.max_steps=1", "init=loftq")
        run(tmp_path / "full", "schedule.max_steps=1", "method=full")
        main([str(tmp_path / "lora"), "--to", str(tmp_path / "merged"), "--format", "merged"])
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.name for path in files}
    assert kinds >= {"result.json", "init.csv", "last.ckpt", "adapter_model.safetensors", "model.safetensors"}
    assert [str(path) for path in files if path.stat().st_mode & 0o777 != 0o644] == []


def decompositions():
    return leading_triples(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), 4, "randomised").S.tolist()


def losses():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = torch.arange(9)
    scorer = Scorer(LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape)), torch.device("cpu"), autocast=False)
    hardware = resolve(Hardware(accelerator="cpu", precision="32-true", threads=1), 8)
    return base_loss(scorer, [Sample(input_ids=ids, labels=ids.clone(), num_bytes=20)], 0, "w", hardware).nats


def documentation():
    return [stdlib.corpus(name) for name in ("docs", "code", "code")]


def planted():
    settings = {k: v for k, v in compose("data=planted").data.items() if k != "_target_"}
    sizes = {"train_examples": 2, "val_examples": 1, "test_examples": 1, "length": 4}
    return Planted(**settings | sizes).load()


KINDS = {"svd": decompositions, "base_loss": losses, "stdlib": documentation, "planted": planted}


@pytest.fixture
def small(monkeypatch):
    """A library of two modules and few probes of the base, so that making takes no time; how often it was collected."""
    monkeypatch.setattr("lab.data.planted.PROBES", 8)
    collected = []

    def collect(files):
        collected.append(files)
        return [Module("subprocess", "x = 1\n", ()), Module("asyncio.events", "y = 2\n", ())]

    monkeypatch.setattr(stdlib, "source_files", lambda: [("a", b"x")])
    monkeypatch.setattr(stdlib, "collect", collect)
    stdlib._collected.cache_clear()
    return collected


@pytest.fixture
def untold(monkeypatch):
    monkeypatch.setattr(cache, "_told", [])


def nowhere(place, tmp_path, monkeypatch):
    """A place where nothing can be kept. The tests may run as root, whom permissions do not bind."""
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("LAB_CACHE")
    if place == "full disk":
        monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(os, "fsync", lambda descriptor: refuse(errno.ENOSPC))
    elif place == "read-only":
        monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: refuse(errno.EROFS))
    elif place == "no home":
        monkeypatch.setattr(Path, "expanduser", lambda path: Path.home_is_unknown())
        monkeypatch.setattr(Path, "home_is_unknown", refuse_home, raising=False)
    else:
        name, value = place.split("=")
        monkeypatch.setenv(name, value.replace("FILE", str(tmp_path / "file")))


def refuse(number):
    raise OSError(number, os.strerror(number))


def refuse_home():
    raise RuntimeError("Could not determine home directory.")


NOWHERE = (
    "LAB_CACHE=FILE",
    "LAB_CACHE=FILE/below",
    "HOME=/dev/null",
    "HOME=/proc",
    "full disk",
    "read-only",
    "no home",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", NOWHERE)
def test_what_cannot_be_kept_is_computed_each_time_and_said_once(
    place, kind, tmp_path, monkeypatch, capsys, small, untold
):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "good"))
    known = KINDS[kind]()
    assert capsys.readouterr().err == ""
    nowhere(place, tmp_path, monkeypatch)
    assert KINDS[kind]() == KINDS[kind]() == known
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("Nothing is kept for the next run (")
    assert said.endswith("set LAB_CACHE to a folder that can be written.")


def test_where_nothing_is_kept_the_library_is_collected_once_a_process(tmp_path, monkeypatch, small, untold):
    nowhere("HOME=/dev/null", tmp_path, monkeypatch)
    documentation()
    documentation()
    assert len(small) == 1


@pytest.mark.parametrize("kind", ["base_loss", "stdlib", "planted"])
@pytest.mark.parametrize(
    "damage", [b"", b'{"nats": 3', b"\xff\xfe", b'{"nats": 3}'], ids=["empty", "cut short", "no text", "no checksum"]
)
def test_a_damaged_file_is_computed_again_said_in_the_log_and_mended(
    kind, damage, tmp_path, monkeypatch, caplog, small
):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    known = KINDS[kind]()
    files = list(cache_dir(kind).iterdir())
    for file in files:
        file.write_bytes(damage)
    assert KINDS[kind]() == known
    assert "is not readable" in caplog.text
    assert all(file.read_bytes() != damage for file in files)


def test_a_cache_that_can_only_be_read_is_read(tmp_path, monkeypatch, capsys, untold):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    known = decompositions()
    monkeypatch.setattr(os, "utime", lambda *args, **kwargs: refuse(errno.EROFS))
    monkeypatch.setattr(cache, "write_atomically", lambda path, write: pytest.fail("it was known"))
    assert decompositions() == known
    assert capsys.readouterr().err == ""


def test_the_caches_folder_may_lie_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAB_CACHE", "~/kept")
    assert cache_dir("svd") == tmp_path / "kept" / "svd"
    assert keep(cache_dir("svd") / "file", lambda temporary: temporary.write_text("text"))


@pytest.mark.slow
def test_a_run_without_a_home_or_a_cache_ends_well_and_says_it_in_a_line(tmp_path):
    done = shell("schedule.max_steps=1", "init=pissa", cwd=tmp_path, HOME="/dev/null", LAB_CACHE="")
    assert done.returncode == 0, done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith("Nothing is kept for the next run ([Errno 20] Not a directory: '/dev/null/.cache")
