"""Which keys hold a path, what becomes of one in a config, and how Hydra's grammar reads it."""

import itertools
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import OmegaConf

from lab import paths
from lab.config import CONF, RunConfig, compose, plain_of
from lab.config.arguments import arrange, value_of, with_path
from lab.errors import UsageError

# Every key that holds text and no path. A key that is new is in neither list, and fails the test below.
NO_PATHS = {
    *("method", "scaling", "select", "study", "stage", "arm", "study_size", "accelerator", "precision", "lr_scheduler"),
    *("_target_", "name", "version", "project", "revision", "quantization", "attn_implementation", "model_type"),
    *("template", "answer_pattern", "sample_by", "target", "config_name", "train_split", "val_split"),
    *("test_split", "prompt_field", "response_field", "input_field", "messages_field", "text_field"),
    *("magnitude", "direction", "offset", "source", "svd", "distribution", "filled", "which", "variant", "measure"),
    *("budget", "engine", "on_non_finite", "target_modules", "answer_as", "task", "unseen", "lr_from"),
    *("residual", "start", "form", "side", "watch", "thresholds"),
}
PATHS = {
    *("path", "val_path", "test_path", "name_or_path", "tokenizer_name_or_path", "teacher", "base", "save_dir"),
    *("retention", "resume", "resume_study", "folder", "observed_path"),
}
YAMLS = sorted(path for group in CONF.iterdir() if group.is_dir() for path in group.glob("*.yaml"))
OF_CLASSES = [path for path in YAMLS if path.parent.name not in ("experiment", "hydra")]


def texts(tree: Any) -> set[str]:
    """The keys of a YAML whose values are text."""
    found = set()
    for key, value in tree.items() if isinstance(tree, dict) else ():
        found |= texts(value) | ({key} if isinstance(value, str) and not value.startswith("${") else set())
    return found


def fields_of(target: str) -> set[str]:
    """The fields of a class of ours that hold text, whether its YAML gives any or null."""
    kind = get_object(target)
    hints = get_type_hints(kind) if is_dataclass(kind) else {}
    return {key for key, hint in hints.items() if hint in (str, str | None)}


@pytest.mark.parametrize("path", OF_CLASSES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_text_of_every_option_is_known_to_be_a_path_or_none(path):
    tree = OmegaConf.to_container(OmegaConf.load(path))
    keys = texts(tree)
    target = tree.get("_target_")
    if target is not None and target.startswith("lab."):
        keys |= fields_of(target)
    assert not keys - PATHS - NO_PATHS, "say of a new key whether it holds a path, and name it so if it does"
    assert {key for key in keys if paths.is_path(key)} == keys & PATHS


def test_every_text_of_the_schema_is_known_to_be_a_path_or_none():
    keys = {item.name for item in fields(RunConfig) if item.type in (str, str | None)}
    for section in get_type_hints(RunConfig).values():
        if is_dataclass(section):
            keys |= {key for key, hint in get_type_hints(section).items() if hint in (str, str | None)}
    assert not keys - PATHS - NO_PATHS
    assert {key for key in keys if paths.is_path(key)} == keys & PATHS


def with_paths():
    """Every option of every group with a path among its keys, and that key."""
    for path in OF_CLASSES:
        tree = OmegaConf.to_container(OmegaConf.load(path))
        keys = [key for key in tree if paths.is_path(key) and not str(tree[key]).startswith("{")]
        yield from ((path.parent.name, path.stem, key) for key in keys)


@pytest.mark.parametrize(("group", "option", "key"), list(with_paths()))
@pytest.mark.parametrize("written", ["here", "~/here"])
def test_a_path_of_any_option_holds_from_any_folder(written, group, option, key, tmp_path, monkeypatch):
    up = tmp_path / "up"
    (up / "here").mkdir(parents=True)
    monkeypatch.chdir(up)
    monkeypatch.setenv("HOME", str(up))
    with_needed = ["model.name_or_path=lab:base"] if option == "pretrained" and key != "name_or_path" else []
    config = plain_of(compose(f"{group}={option}", *with_needed, f"{group}.{key}='{written}'"))
    found = Path(config[group][key])
    assert found.is_absolute()
    assert found.samefile(up / "here")


def test_what_may_be_a_hub_name_stays_one_until_a_folder_has_that_name(tmp_path):
    tree = {"model": {"name_or_path": "owner/model"}}
    assert paths.absolute(tree, tmp_path) == tree
    (tmp_path / "owner/model").mkdir(parents=True)
    assert paths.absolute(tree, tmp_path) == {"model": {"name_or_path": str(tmp_path / "owner/model")}}


@pytest.mark.parametrize(
    ("key", "value", "becomes"),
    [
        ("save_dir", "boards", "/start/boards"),  # to be made
        ("save_dir", "{run_dir}/boards", "{run_dir}/boards"),
        ("save_dir", "s3://bucket/boards", "s3://bucket/boards"),
        ("sub_dir", "boards", "boards"),
        ("name", "~", "~"),
        ("path", "./not/there", "/start/not/there"),
        ("path", "~no-such-user/x", "/start/~no-such-user/x"),  # then it is a name like any other
        ("paths", ["./a", "owner/b"], ["/start/a", "owner/b"]),
        ("teacher", None, None),
        ("path", 3, 3),
    ],
)
def test_keys_of_anybodys_class_are_known_by_their_names(key, value, becomes):
    found = paths.absolute({"init": {"_target_": "mine.Mine", "of": {key: value}}}, Path("/start"))
    assert found["init"]["of"][key] == becomes


NAMES = (
    *("lr=1e-3", "init=svd,rank=4", "p(1)", "q[2]", "#3", "{x}", "$y", "it's", 'say "hi"', "50%", "-dash", "two words"),
    *("größe", "日本", "a\\b", "end\\", "tab\tx", "~tilde", "+plus", "@at", "a:b", "*?", "new\nline"),
    *("null", "3", "true", "a,b", "\\'", "''", "!x", "|&;", "<>", " lead", "trail "),
)


@pytest.mark.parametrize("name", NAMES)
def test_hydras_grammar_reads_back_a_quoted_name(name):
    parsed = OverridesParser.create().parse_override(f"resume={paths.quoted(name)}")
    assert (parsed.get_key_element(), parsed.value(), parsed.is_sweep_override()) == ("resume", name, False)


def test_hydras_grammar_reads_back_any_text():
    letters = ["\\", "'", '"', "a", "$", "="]
    for length in range(5):
        for found in itertools.product(letters, repeat=length):
            text = "".join(found)
            assert OverridesParser.create().parse_override(f"k={paths.quoted(text)}").value() == text


@pytest.mark.parametrize("key", ["resume", "+resume", "hydra.run.dir", "data.path", "++model.name_or_path"])
@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_one_value_whatever_its_name(name, key, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    parsed = OverridesParser.create().parse_override(with_path(f"{key}={name}"))
    assert parsed.value() == name
    assert value_of([with_path(f"{key}={name}")], key.lstrip("+")) == name


@pytest.mark.parametrize(
    ("argument", "becomes"),
    [
        ("rank=8", "rank=8"),
        ("data.name=a,b", "data.name=a,b"),
        ("data.path=new.jsonl", "data.path=new.jsonl"),
        ("data.path=new(1).jsonl", "data.path='new(1).jsonl'"),
        ("data.path=null", "data.path=null"),
        ("data.path='two words'", "data.path='two words'"),
        ("data.path=${oc.env:DATA}/x", "data.path=${oc.env:DATA}/x"),
        ("data.path=one,two", "data.path='one','two'"),  # both exist: a sweep
        ("data.path=one,three", "data.path=one,three"),
        ("data.path=~/x", "data.path='/home/me/x'"),
        ("data.path='~/x y'", "data.path='/home/me/x y'"),
        ("hydra.run.dir=out/${now:%H}", "hydra.run.dir=out/${now:%H}"),
        ("hydra.run.dir=lr=1/${now:%H}", "hydra.run.dir='lr=1/${now:%H}'"),
        ("hydra.run.dir=one,two", "hydra.run.dir='one,two'"),  # never a sweep
        ("hydra.run.dir=[x]", "hydra.run.dir='[x]'"),
        ("hydra.sweep.dir=~", "hydra.sweep.dir='/home/me'"),
        ("hydra.sweep.subdir=lr=3", "hydra.sweep.subdir='lr=3'"),
        ("resume=~/run(1)", "resume='/home/me/run(1)'"),
    ],
)
def test_only_what_hydra_could_not_read_is_quoted(argument, becomes, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert with_path(argument) == becomes
    assert with_path(becomes) == becomes


def test_overrides_come_first_and_options_keep_their_values(tmp_path, monkeypatch):
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    given = ["rank=4", "-m", "--config-dir", "a=b", "seed=0,1", "--config-path=~/conf", "~data.name"]
    assert arrange(given) == [
        "rank=4",
        "seed=0,1",
        "~data.name",
        "-m",
        "--config-dir",
        "a=b",
        "--config-path=/home/me/conf",
    ]
    with pytest.raises(UsageError, match="unrecognized arguments: --seed=1; an override has no dashes"):
        arrange(["rank=4", "--seed=1"])
