"""Directories from elsewhere: nothing that one names runs here, and nothing of it lands elsewhere, unless trusted."""

import json
import os
from pathlib import Path

import pytest
import yaml
from in_process import call, tree

from lab import config, export, ledger, record, replay, train, trust
from lab.errors import UsageError
from lab.testing import example_rows

CANARY = "canary"
KEYS = {
    "model": {"_target_": "lab.model.scratch.Scratch"},
    "svd_policy": {"_target_": "lab.svd_policy.observe.Observe"},
}
SHELL = {"_target_": "os.system", "command": "touch canary"}
PARTIAL = {"_target_": "lab.launch.partial", "_args_": [SHELL]}
CODE = {  # attack -> what is put where, by group; each would make a file named canary where it ran
    "a function of the standard library": ("svd_policy", SHELL),
    "a builtin": ("model", {"_target_": "builtins.eval", "_args_": ["open('canary', 'w')"]}),
    "exec": ("data", {"_target_": "builtins.exec", "_args_": ["open('canary', 'w')"]}),
    "a class of the standard library": ("data", {"_target_": "subprocess.Popen", "args": ["touch", "canary"]}),
    "a class with the right method": ("data", {"_target_": "pickle.Unpickler", "file": SHELL}),
    "within another": ("rank_strategy", {"_target_": "lab.rank_strategy.shuffled.Shuffled", "of": SHELL}),
    "within a list": ("data", {"_target_": "lab.data.files.TextFiles", "path": [[SHELL]]}),
    "as an argument by position": ("init", {"_target_": "lab.init.random.Random", "_args_": [SHELL]}),
    "partial": ("init", {**SHELL, "_partial_": True}),
    "made later": ("init", {"_target_": "lab.init.random.Random", "_recursive_": False, "x": SHELL}),
    "with another conversion": ("model", {**SHELL, "_convert_": "object"}),
    "through a module of the lab": ("model", {**SHELL, "_target_": "lab.launch.os.system"}),
    "a class that the lab imports": ("init", PARTIAL),
    "a function of the lab": ("data", {"_target_": "lab.cache.write_atomically", "path": "canary", "write": None}),
    "a class of the lab out of place": ("model", {"_target_": "lab.ledger.Ledger", "run_dir": ".", "header": {}}),
    "a function of an installed package": ("data", {"_target_": "torch.load", "f": "evil.pt"}),
    "a class of an installed package": ("data", {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}),
    "a logger that is none": ("logger", SHELL),
    "a function of Lightning's": ("logger", {"_target_": "lightning.pytorch.seed_everything", "seed": 1}),
    "a measure": ("metrics", {"mine": {"_target_": "os.system"}}),
    "a measure of an installed package": ("metrics", {"mine": {"_target_": "torch.load"}}),
    "where no group is": ("adapter", {"target_modules": SHELL, "exclude_modules": None}),
    "a module that came with it": ("svd_policy", {"_target_": "came.run.evil.Policy"}),
    "a neighbour that came with it": ("svd_policy", {"_target_": "came.evil.Policy"}),
    "no dotted path": ("model", {"_target_": "eval"}),
    "no text": ("model", {"_target_": ["os", "system"]}),
    "a resolver": ("init", {"_target_": "lab.init.random.Random", "x": "${oc.decode:${oc.env:HOME}}"}),
    "the environment": ("model", {"_target_": "lab.model.scratch.Scratch", "type": "${oc.env:HOME}"}),
    "an escaped reference": ("model", {"_target_": "lab.model.scratch.Scratch", "type": "\\${oc.env:HOME}"}),
    "a place to write": ("logger", {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "/tmp/canary"}),
    "a way out of the run": (
        "logger",
        {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "{run_dir}", "name": "../../canary"},
    ),
}
EVIL = "open('canary', 'w')\nclass Policy: ...\n"


@pytest.fixture(scope="module")
def honest():
    """The config of a run as a stranger's lab would have written it."""
    made = config.compose("model=micro", "logger=none", "svd_policy=observe")
    return {**yaml.safe_load(yaml.safe_dump(config.for_files(made)))}


@pytest.fixture
def came(tmp_path, honest):
    """A run that came from elsewhere, below the folder that commands are given in."""
    run = tmp_path / "came" / "run"
    run.mkdir(parents=True)
    for folder in (run.parent, run):
        (folder / "evil.py").write_text(EVIL)
    write(run, honest)
    record.write(run, record.RunRecord(status="interrupted"))
    return run


def write(run: Path, plain: dict) -> None:
    (run / config.CONFIG).write_text(yaml.safe_dump(plain))


def refused(main, *arguments, cwd):
    before = tree(cwd)
    said = call(main, *map(str, arguments), cwd=cwd)
    assert not list(cwd.rglob(CANARY))
    assert tree(cwd) == before
    assert "Traceback" not in said.err
    return said.sentence


@pytest.mark.parametrize("attack", CODE)
def test_no_code_that_a_config_names_runs(attack, came, honest, tmp_path):
    group, node = CODE[attack]
    write(came, {**honest, group: node})
    for main, arguments in ((export.main, (came, "--to", "out")), (train.main, (f"resume={came}",))):
        assert str(came) in refused(main, *arguments, cwd=tmp_path)


@pytest.mark.parametrize("attack", [each for each in CODE if CODE[each][0] not in ("logger", "metrics", "adapter")])
def test_no_code_that_a_ledger_names_runs(attack, came, tmp_path):
    write_ledger(came, CODE[attack][1])
    assert "ledger" in refused(replay.main, came, cwd=tmp_path)
    assert "ledger" in refused(replay.main, came, "svd_policy=phase1", cwd=tmp_path)


def write_ledger(run, policy):
    ledger.Ledger(run, {"policy": policy, "targets": {}}).append(example_rows(engine="exact", k=4, ticks=2))


def test_what_is_refused_says_how_to_trust_it_and_then_runs(came, tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/pack.py").write_text(
        "class Policy:\n    rules, every_n_steps, target_modules, log_layers = {}, 1, 'x', 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "theirs"))
    write_ledger(came, {"_target_": "pack.Policy"})
    (tmp_path / "here").mkdir()
    said = call(replay.main, str(came), "svd_policy.k=1", cwd=tmp_path / "here")
    assert "add trust=pack (lab.train) or --trust pack" in said.sentence
    said = call(replay.main, str(came), "svd_policy.k=1", "--trust", "pack", cwd=tmp_path / "here")
    assert "is no setting of this policy" in said.sentence


def test_a_run_that_was_started_here_needs_no_trust(honest, tmp_path):
    plain = {**honest, "model": {"_target_": "mine.Model"}}
    made = config.typed(plain)
    config.save(made, tmp_path, tmp_path)
    assert config.load(tmp_path).model == plain["model"]
    other = tmp_path / "moved"
    other.mkdir()
    (other / config.CONFIG).write_text((tmp_path / config.CONFIG).read_text())
    with pytest.raises(UsageError, match=r"moved.*mine\.Model.*trust=mine"):
        config.load(other)


def test_every_option_of_the_lab_is_allowed_wherever_it_comes_from(tmp_path):
    for group in trust.METHODS:
        for path in sorted((config.CONF / group).glob("*.yaml")):
            node = yaml.safe_load(path.read_text())
            trust.check({group: node}, tmp_path, path.name)


def test_what_is_under_the_users_own_folder_is_allowed(came, honest, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/my_own_part.py").write_text("class Mine: ...\ndef measure(model, tokenizer): ...\n")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(tmp_path / "work"))
    mine = {"init": {"_target_": "my_own_part.Mine"}, "metrics": {"m": {"_target_": "my_own_part.measure"}}}
    write(came, {**honest, **mine})
    assert config.load(came).init == mine["init"]
