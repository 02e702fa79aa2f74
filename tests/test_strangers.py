"""Directories from elsewhere: nothing that one names runs here, and nothing of it lands elsewhere, unless trusted."""

import csv
import json
import os
import pickle
import sys
import zlib
from pathlib import Path

import pytest
import torch
import yaml
from in_process import call, tree
from jobs import SMALL

from lab import config, export, ledger, record, train
from lab.config import trust
from lab.errors import UsageError, visible
from lab.launch import resume
from lab.model import hub
from lab.record.study import read_study
from lab.replay import __main__ as replay
from lab.report import __main__ as report
from lab.report.study import load_study
from lab.testing import example_rows

sys.path.append(str(Path(__file__).parent / "report"))
from synthetic import make_run

CANARY = "canary"
KEYS = {
    "model": {"_target_": "lab.model.scratch.Scratch"},
    "svd_policy": {"_target_": "lab.svd_policy.observe.Observe"},
}
SHELL = {"_target_": "os.system", "command": "touch canary"}
PARTIAL = {"_target_": "lab.launch.checks.partial", "_args_": [SHELL]}
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
    "through a module of the lab": ("model", {**SHELL, "_target_": "lab.launch.job.os.system"}),
    "a class that the lab imports": ("init", PARTIAL),
    "a function of the lab": ("data", {"_target_": "lab.files.write_atomically", "path": "canary", "write": None}),
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
        assert f"{came / config.CONFIG} has {group}" in refused(main, *arguments, cwd=tmp_path)


@pytest.mark.parametrize("attack", [each for each in CODE if CODE[each][0] not in ("logger", "metrics", "adapter")])
def test_no_code_that_a_ledger_names_runs(attack, came, tmp_path):
    write_ledger(came, CODE[attack][1])
    for arguments in ((came,), (came, "svd_policy=phase1")):
        assert f"the ledger of {came} has svd_policy" in refused(replay.main, *arguments, cwd=tmp_path)


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
    made = config.from_plain(plain)
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


@pytest.fixture
def study(tmp_path):
    """A study of two runs that came from elsewhere."""
    for seed in (1, 2):
        make_run(tmp_path / f"came/{seed}_a", arm=None, seed=seed, loss=2.0 + seed / 10, stage=None, study=None)
    return tmp_path / "came"


DEEP = "[" * 100_000 + "]" * 100_000
TEXTS = {
    "deep nesting": f'{{"schema": 1, "status": "completed", "data": {DEEP}}}',
    "a number that is infinite": '{"schema": 1, "status": "completed", "metrics": {"val_loss": 1e400}}',
    "a number without end": f'{{"schema": 1, "status": "completed", "steps": {"9" * 5000}}}',
    "a number that no float holds": f'{{"schema": 1, "status": "completed", "metrics": {{"x": {"9" * 400}}}}}',
    "a key twice": '{"schema": 1, "status": "failed", "status": "completed"}',
    "no number": '{"schema": 1, "status": "completed", "data": {"x": NaN}}',
    "no UTF-8": b"\xff\xfe",
    "a list": "[1]",
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["result.json", "study.json"])
def test_a_record_that_no_reader_can_take_is_one_sentence(name, text, study, tmp_path):
    content = TEXTS[text] if isinstance(TEXTS[text], bytes) else TEXTS[text].encode()
    place = study / "1_a" if name == "result.json" else study
    (place / name).write_bytes(content)
    if name == "result.json":
        for main, arguments in (
            (report.main, (place,)),
            (train.main, (f"resume={place}",)),
        ):
            assert str(place) in refused_here(main, *arguments, cwd=tmp_path)
    (problem,) = load_study(study).problems
    assert name in problem.reason


def refused_here(main, *arguments, cwd):
    said = call(main, *map(str, arguments), cwd=cwd)
    assert "Traceback" not in said.err
    return said.sentence


@pytest.mark.parametrize("text", [each for each in TEXTS if "UTF" not in each])
def test_a_ledger_that_no_reader_can_take_is_one_sentence(text, came, tmp_path):
    line = TEXTS[text].encode()
    (came / "ledger").mkdir()
    (came / ledger.NAME).write_bytes(b"%08x %s\n" % (zlib.crc32(line), line) * 2)
    refused_here(replay.main, came, cwd=tmp_path)


YAMLS = {
    "deep": "model: " + DEEP[:400] + DEEP[-400:],
    "a bomb": "a: &a [x, x]\nb: &b [*a, *a]\nmodel: [*b, *b]\n",
    "python": "model: !!python/object/apply:os.system ['touch canary']\n",
}


@pytest.mark.parametrize("text", YAMLS)
def test_a_config_that_is_a_trap_is_one_sentence(text, came, tmp_path):
    (came / config.CONFIG).write_text(YAMLS[text])
    for main, arguments in ((export.main, (came, "--to", "out")), (train.main, (f"resume={came}",))):
        assert "is not a config that this version reads" in refused(main, *arguments, cwd=tmp_path)


@pytest.mark.parametrize("what", ["run", "result.json", "metrics.csv"])
def test_a_report_follows_no_link_out_of_its_study_and_says_so(what, study, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    found = study / "2_a" if what == "run" else study / "2_a" / what
    found.rename(tmp_path / "elsewhere/it")
    found.symlink_to(tmp_path / "elsewhere/it")
    loaded = load_study(study)
    (problem,) = loaded.problems
    assert "is a link" in problem.reason
    assert len(loaded.runs) == (2 if what == "metrics.csv" else 1)


@pytest.mark.parametrize("what", ["report", "report/README.md", "report/tables", "report/tensorboard"])
def test_a_report_writes_through_no_link(what, study, tmp_path):
    target = tmp_path / "elsewhere"
    target.mkdir()
    (study / what).parent.mkdir(exist_ok=True)
    (study / what).symlink_to(target / "new" if what.endswith("md") else target)
    assert "is a link" in refused(report.main, study, cwd=tmp_path)
    assert not list(target.iterdir())


def test_a_pipe_for_a_record_is_not_waited_for(study, tmp_path):
    (study / "1_a/result.json").unlink()
    os.mkfifo(study / "1_a/result.json")
    (problem,) = load_study(study).problems
    assert "is no file" in problem.reason
    os.mkfifo(study / "2_a/.lock")
    assert len(load_study(study).runs) in (0, 1)


@pytest.mark.parametrize("what", ["train.log", "metrics.csv", "checkpoints"])
def test_a_run_with_a_way_out_is_not_gone_on_with(what, came, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (came / what).symlink_to(tmp_path / "mine")
    assert "is a link to" in refused(train.main, f"resume={came}", cwd=tmp_path)


ACTS = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\x00"


def test_what_acts_on_a_terminal_is_seen_instead(study, tmp_path):
    for seed in (1, 2):
        read = record.read(study / f"{seed}_a")
        read.choices = {f"init{ACTS}": f"x{ACTS}"}
        read.environment |= {"device": ACTS, f"<b>{ACTS}": "<script>x</script>"}
        read.overrides = [ACTS]
        read.metrics[f"mine{ACTS}"] = 1.0
        read.data["name"] = ACTS
        if seed == 2:
            read.status, read.error = "failed", {"type": "E", "message": ACTS}
        record.write(study / f"{seed}_a", read)
    for arguments in ((study,), (study / "1_a",), (study / "2_a",)):
        said = call(report.main, *map(str, arguments), cwd=tmp_path)
        assert said.code == 0, said.err
        assert visible(said.out) == said.out
        assert visible(said.err) == said.err
    for path in (study / "report").rglob("*"):
        if path.suffix in (".md", ".html", ".csv", ".json", ".tex"):
            text = path.read_text().replace("\r\n", "\n")
            assert visible(text) == text, path.name
            assert "<script>x" not in text.replace(r"\<", "") or path.suffix in (".json", ".csv")


def test_a_sentence_shows_what_would_act(tmp_path):
    assert str(UsageError(ACTS)) == visible(ACTS)
    assert visible(ACTS) == r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\x00"
    assert visible("naïve 你好 👩\u200d💻 x") == "naïve 你好 👩\u200d💻 x"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1"])
def test_no_cell_of_runs_csv_is_a_formula_and_a_number_stays_one(text, study, tmp_path):
    for seed in (1, 2):
        read = record.read(study / f"{seed}_a")
        read.choices, read.data["name"], read.metrics["forgetting"] = {"init": text}, text, -0.5
        record.write(study / f"{seed}_a", read)
    assert call(report.main, str(study), cwd=tmp_path).code == 0
    with (study / "report/runs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert row["choice.init"].startswith(("'", "\\r"))
            assert row["data"].startswith(("'", "\\r"))
            assert row["forgetting"] == "-0.5"
    assert json.loads((study / "report/all_results.json").read_text())["runs"][0]["data"] == text


DECLARED = {
    "an arm above": {"arms": {"../x": []}},
    "an absolute arm": {"arms": {"/tmp/x": []}},
    "a job above": {"jobs": {"j": {"directory": "../../x"}}},
    "no list": {"arms": {"a": "rank=4"}},
    "no text": {"name": ["x"]},
    "no number": {"seeds": ["1"]},
    "no mapping": {"jobs": []},
}
PLAIN = {
    "schema": 1, "name": "s", "question": "?", "arms": {"a": []}, "baseline": "a", "contrasts": [], "margin": "1%",
    "seeds": [1], "twin_seeds": [1001], "tune_seeds": [0], "learning_rates": {"a": [0.001]},
}  # fmt: skip
STUDIES = {  # what a stranger's study may not say: in study.json, in multirun.yaml's overrides, in its config folders
    "code in an arm": ({"arms": {"a": ["init._target_=os.system"]}}, [], []),
    "code in a map": ({"common": ["+data.x={_target_: os.system, command: touch canary}"]}, [], []),
    "code in quotes": ({"common": ["+data.x={'_target_': 'os.system'}"]}, [], []),
    "a launcher": ({"common": ["hydra.launcher._target_=os.system"]}, [], []),
    "another's run": ({"common": ["resume=/tmp/x"]}, [], []),
    "a group by its path": ({"arms": {"a": ["init=../../../../tmp/evil"]}}, [], []),
    "a callback": ({}, ["+hydra.callbacks.x={_target_: os.system, command: touch canary}"], []),
    "a shell line of the cluster's": ({}, ["hydra.launcher.setup=[touch canary]"], []),
    "a search path": ({}, ["hydra.searchpath=[file:///tmp/evil]"], []),
    "a resolver": ({}, ["model.type=${oc.env:HOME}"], []),
    "a folder of options": ({}, [], ["/tmp/evil"]),
}


@pytest.mark.parametrize("what", DECLARED)
def test_a_study_that_leads_out_of_its_folder_is_none(what, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(PLAIN | DECLARED[what]))
    with pytest.raises(UsageError, match="does not declare a study"):
        read_study(tmp_path)


@pytest.mark.parametrize("attack", STUDIES)
def test_no_code_that_a_study_names_runs(attack, tmp_path):
    declared, overrides, folders = STUDIES[attack]
    path = tmp_path / "came"
    path.mkdir()
    (path / "study.json").write_text(json.dumps(PLAIN | declared))
    sources = [{"path": each, "provider": "command-line", "schema": "file"} for each in folders]
    saved = {"runtime": {"cwd": str(path), "config_sources": sources}, "overrides": {"hydra": [], "task": overrides}}
    (path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": saved}))
    sentence = refused(train.main, f"resume_study={path}", "dry_run=true", cwd=tmp_path)
    assert any(said in sentence for said in ("has the override", "takes options from", "_target_='os.system'")), (
        sentence
    )


def test_what_names_nothing_of_its_own_is_not_refused(came, tmp_path):
    """Beside which the refusals above mean something."""
    assert "holds no checkpoints" in refused(export.main, came, "--to", "out", cwd=tmp_path)
    (tmp_path / "study").mkdir()
    (tmp_path / "study/study.json").write_text(json.dumps(PLAIN))
    runtime = {"cwd": str(came), "config_sources": []}
    saved = {"runtime": runtime, "overrides": {"hydra": ["hydra.mode=MULTIRUN"], "task": ["model=micro", "rank=4"]}}
    (tmp_path / "study/multirun.yaml").write_text(yaml.safe_dump({"hydra": saved}))
    before = Path.cwd()
    taken = resume.as_started(str(tmp_path / "study"), ["dry_run=true"])
    assert taken[:3] == ["hydra.mode=MULTIRUN", "model=micro", "rank=4"]
    assert Path.cwd() == before, "no command goes on in a folder that a stranger names"


class Bomb:
    """A pickle of it makes a file where it is loaded."""

    def __reduce__(self):
        return os.system, ("touch canary",)


@pytest.mark.parametrize("protocol", ["a pickle", "torch's zip", "torch's old file"])
def test_a_checkpoint_with_code_in_it_is_refused(protocol, came, tmp_path):
    (came / "checkpoints").mkdir()
    path = came / "checkpoints/last.ckpt"
    pickled(path, protocol)
    assert "can be read" in refused(export.main, came, "--to", "out", cwd=tmp_path)


def pickled(path, protocol):
    if protocol == "a pickle":
        path.write_bytes(pickle.dumps({"structure": Bomb()}))
    else:
        torch.save({"structure": Bomb()}, path, _use_new_zipfile_serialization=protocol == "torch's zip")


@pytest.mark.parametrize("protocol", ["a pickle", "torch's zip", "torch's old file"])
def test_a_models_weights_with_code_in_them_are_refused(protocol, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in hub.shipped("base").glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    pickled(folder / "pytorch_model.bin", protocol)
    before = tree(tmp_path)
    given = [each for each in SMALL if not each.startswith("model")]
    said = call(train.main, *given, "model=pretrained", "model.name_or_path=model", "hydra.run.dir=run", cwd=tmp_path)
    assert "cannot be loaded" in said.err.strip().splitlines()[-1]
    assert "Traceback" not in said.err
    assert {name: value for name, value in tree(tmp_path).items() if not name.startswith("run")} == before
