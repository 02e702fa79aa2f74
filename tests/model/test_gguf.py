"""GGUF files as bases: what is read is what the file was made of, converted once, and never half."""

import hashlib
import importlib.util
import shutil
import threading
from pathlib import Path

import pytest
import torch
from jobs import run
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab import cache, config
from lab.config import instantiate
from lab.errors import UsageError
from lab.model import gguf as files
from lab.model import hub
from lab.model.stored import stored_dtype, weight_files

pytest.importorskip("gguf", reason="needs lowrank-lab[gguf]")
from gguf_files import CONTEXT, TEMPLATE, small_llama, tokenizer_by_digit, write_gguf

SPACED = ("x = 12", "x  = 1", "a  7", "a   42 and    9", "  3", "1  2\n\n  3", "naïve  10 日本   5")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file whose tokenizer cuts digits off one by one, and the model it was made of."""
    net = small_llama()
    return write_gguf(tmp_path_factory.mktemp("written") / "small.gguf", net, "smollm"), net


def base(file: Path):
    return instantiate.make(config.compose("model=pretrained", f"model.name_or_path={file}").model)


def logits(net) -> torch.Tensor:
    with torch.no_grad():
        return net(torch.arange(5, 45).reshape(2, 20)).logits


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1", "Q4_0"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_base_from_a_file_has_the_logits_of_the_model_that_the_file_holds(kind, tied, own_cache, tmp_path):
    net = small_llama(tied)
    file = write_gguf(tmp_path / "small.gguf", net, "smollm", kind)
    held = base(file).load(torch.float32, seed=0)
    # The same float32 weights through the same code; the bound leaves room for other kernels after another layout.
    torch.testing.assert_close(logits(held), logits(net), rtol=1e-5, atol=1e-5)
    assert held.config.tie_word_embeddings is tied
    assert sum(p.numel() for p in held.parameters()) == sum(p.numel() for p in net.parameters())
    folder = Path(hub.resolve(str(file)))
    stock = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(stock), logits(net), rtol=1e-5, atol=1e-5)
    assert stored_dtype(weight_files(str(file), None)) == torch.float32


def test_spaces_before_digits_have_the_ids_of_the_published_pre_tokenizer(own_cache, written):
    file, _ = written
    tokenizer, reference = base(file).tokenizer(), tokenizer_by_digit()
    stock = AutoTokenizer.from_pretrained(hub.resolve(str(file)))
    for text in SPACED:
        expected = reference.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, add_special_tokens=False) == expected, text
        assert stock.encode(text, add_special_tokens=False) == expected, text


def test_a_pre_tokenizer_that_transformers_knows_is_left_as_it_is(own_cache, tmp_path):
    file = write_gguf(tmp_path / "small.gguf", small_llama(), "qwen2")  # the shipped tokenizer's
    tokenizer, reference = base(file).tokenizer(), AutoTokenizer.from_pretrained(hub.shipped("base"))
    assert [tokenizer.encode(text) for text in SPACED] == [reference.encode(text) for text in SPACED]


def test_context_chat_template_and_special_tokens_come_along(own_cache, written):
    file, _ = written
    for tokenizer in (base(file).tokenizer(), AutoTokenizer.from_pretrained(hub.resolve(str(file)))):
        assert tokenizer.model_max_length == CONTEXT
        assert tokenizer.chat_template == TEMPLATE
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)


@pytest.mark.parametrize("pre", ["falcon", "default", None])
def test_a_pre_tokenizer_that_nobody_here_knows_is_refused_by_its_name(pre, own_cache, tmp_path):
    file = write_gguf(tmp_path / "small.gguf", small_llama(), pre)
    with pytest.raises(UsageError, match=f"by the pre-tokenizer '{pre or 'none'}', which neither transformers nor"):
        base(file).tokenizer()
    assert not list((own_cache / "bases").glob("small*"))


@pytest.mark.parametrize("share", [0.99, 0.5, 0.01])
def test_a_file_that_is_cut_short_is_refused_and_leaves_nothing(share, own_cache, tmp_path, written):
    whole = written[0].read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UsageError, match=r"cut.gguf cannot be converted \(.*\); download it again"):
        base(file).tokenizer()
    assert not list((own_cache / "bases").glob("cut*"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"GGUF", "is cut short"),
        (b"", "is cut short"),
        (b"PK\x03\x04" + bytes(40), "is no GGUF file"),
        (b"GGUF\x01\x00\x00\x00" + bytes(40), "is GGUF of version 1, and versions 2 and 3 are read"),
        (b"GGUF\x00\x00\x00\x03" + bytes(40), "is GGUF of version 50331648"),  # big-endian
    ],
)
def test_what_its_first_bytes_tell_is_told_before_anything_is_imported(content, why, own_cache, tmp_path):
    file = tmp_path / "odd.gguf"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=rf"model.name_or_path={file} {why}"):
        base(file).check()


def test_without_the_extra_a_file_is_refused_with_the_command_that_installs_it(own_cache, written, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(UsageError, match=r"needs the package gguf to be read; pip install 'lowrank-lab\[gguf\]'"):
        base(written[0]).check()


@pytest.mark.parametrize("damage", ["gone", "cut short", "not sealed"])
def test_a_folder_that_is_not_whole_is_made_again(damage, own_cache, written):
    folder = Path(hub.resolve(str(written[0])))
    weights = folder / "model.safetensors"
    known = hashlib.sha256(weights.read_bytes()).hexdigest()
    if damage == "gone":
        weights.unlink()
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        (folder / files.ORIGIN).unlink()
    assert Path(hub.resolve(str(written[0]))) == folder
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == known


def test_a_file_is_converted_once_however_many_ask_and_again_when_it_changed(own_cache, written, tmp_path, monkeypatch):
    converted, convert = [], files.convert
    monkeypatch.setattr(files, "convert", lambda *given: converted.append(given[0]) or convert(*given))
    file = tmp_path / "small.gguf"
    shutil.copyfile(written[0], file)
    threads = [threading.Thread(target=hub.resolve, args=(str(file),)) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(converted) == 1
    write_gguf(file, small_llama(tied=False), "smollm")
    hub.resolve(str(file))
    assert len(converted) == 2


def test_a_disk_that_refuses_is_named_and_nothing_is_left(own_cache, written, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "convert", full)
    with pytest.raises(UsageError, match=r"cannot be written \(No space left on device\); free space, or set"):
        hub.resolve(str(written[0]))
    assert [held.kind for held in cache.held()] in ([], ["bases"])  # the lock
    assert not [path for path in (own_cache / "bases").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_a_run_on_a_file_records_that_its_base_is_dequantised_and_of_which_file(own_cache, tmp_path):
    file = write_gguf(tmp_path / "small.gguf", small_llama(), "smollm", "Q4_1")
    result = run(
        tmp_path / "run", "model=pretrained", f"model.name_or_path={file}", "data.max_length=90",
        "schedule.max_steps=1", "evaluate.accuracy=false",
    )  # fmt: skip
    assert result.status == "completed", result.error
    origin = result.model["origin"]
    assert origin["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (origin["weights"], origin["types"]) == ("dequantised", {"Q4_1": 15, "F32": 5})
    assert "weights dequantised from the Q4_1 blocks of small.gguf" in origin["said"]
    assert origin["said"] in (Path(hub.resolve(str(file))) / files.CARD).read_text()
