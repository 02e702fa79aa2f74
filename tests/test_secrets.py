"""What comes from the environment is live in the process that needs it, and a reference in every file."""

import json
import os
from pathlib import Path

import pytest
import yaml
from in_process import call
from jobs import SMALL
from omegaconf import OmegaConf

from lab import config, export, train
from lab.config import references
from lab.errors import UsageError

SECRET = "s3cr3t-of-the-user"
SEEN = "seen_by_the_logger"
LOGGER = f"""
from pathlib import Path
from lightning.pytorch.loggers import CSVLogger
class Mine(CSVLogger):
    def __init__(self, api_key, save_dir):
        super().__init__(save_dir)
        Path(__file__).with_name("{SEEN}").write_text(api_key)
"""


def holding(folder: Path, text: str) -> list[str]:
    """Files below a folder with the text in them, as bytes."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_secret_is_in_no_file_of_a_run_and_in_the_process_that_needs_it(tmp_path, monkeypatch):
    (tmp_path / "secret_logger.py").write_text(LOGGER)
    (tmp_path / "private").mkdir()
    rows = [{"prompt": f"{i}?", "response": f"{i}"} for i in range(40)]
    (tmp_path / "private/my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("LAB_TOKEN", SECRET)
    monkeypatch.setenv("LAB_DATA", "private")
    small = [each for each in SMALL if not each.startswith(("data.", "logger", "schedule.max"))]
    given = (
        *small, "data=jsonl", "data.path='${oc.env:LAB_DATA}/my.jsonl'", "data.retention=null", "data.val_fraction=0.5",
        "logger=none", "logger._target_=secret_logger.Mine", "+logger.api_key=${oc.env:LAB_TOKEN}",
        "+logger.save_dir='{run_dir}'", "schedule.max_steps=1", "schedule.max_epochs=null",
        "schedule.lr_scheduler=constant", "evaluate.num_samples=0",
    )  # fmt: skip
    said = call(train.main, *given, "hydra.run.dir=run", cwd=tmp_path)
    assert said.code == 0, said.err
    assert (tmp_path / SEEN).read_text() == SECRET
    assert holding(tmp_path / "run", SECRET) == []
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    asked = json.loads((tmp_path / "run/result.json").read_text())["config"]
    assert saved["logger"]["api_key"] == asked["logger"]["api_key"] == "${oc.env:LAB_TOKEN}"
    assert asked["data"]["path"] == f"{tmp_path}/${{oc.env:LAB_DATA}}/my.jsonl"

    (tmp_path / SEEN).unlink()
    (tmp_path / "elsewhere").mkdir()
    said = call(train.main, "resume=../run", "schedule.max_steps=2", cwd=tmp_path / "elsewhere")
    assert said.code == 0, said.err
    assert (tmp_path / SEEN).read_text() == SECRET
    assert holding(tmp_path / "run", SECRET) == []

    monkeypatch.delenv("LAB_TOKEN")  # whoever exports needs no key of the run's logger
    assert call(export.main, "run", "--to", "out", cwd=tmp_path).code == 0
    sentence = call(train.main, "resume=run", "schedule.max_steps=3", cwd=tmp_path).sentence
    assert "Environment variable 'LAB_TOKEN' not found" in sentence


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("${oc.env:LAB_TOKEN}", "${oc.env:LAB_TOKEN}"),
        ("a/${oc.env:LAB_TOKEN}/b", "a/${oc.env:LAB_TOKEN}/b"),
        ("${ oc.env : LAB_TOKEN }", "${oc.env:LAB_TOKEN}"),
        (r"${oc.env:LAB_UNSET,'it\'s'}", r"${oc.env:LAB_UNSET,'it\'s'}"),
        ("${oc.env:LAB_UNSET,another}", "${oc.env:LAB_UNSET,'another'}"),
        ("${.other}", "${oc.env:LAB_TOKEN}!"),
        ("${oc.decode:${oc.env:LAB_TOKEN}}", "${oc.env:LAB_TOKEN}"),
        (r"\${oc.env:LAB_TOKEN}", None),
        ("plain", None),
    ],
)
def test_a_text_of_the_environment_is_kept_as_its_reference(text, kept, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", "abc")
    root = OmegaConf.create({"a": {"x": text, "other": "${oc.env:LAB_TOKEN}!"}})
    plain = OmegaConf.to_container(root, resolve=True)
    found = references.references_in(root, plain)
    assert found.get(("a", "x")) == kept
    again = OmegaConf.create(references.put(references.escape(plain), found))
    assert OmegaConf.to_container(again, resolve=True) == plain


def test_a_number_of_the_environment_stays_a_number(monkeypatch):
    monkeypatch.setenv("LAB_SEED", "7")
    made = config.compose("seed='${oc.decode:${oc.env:LAB_SEED}}'", "rank=${oc.env:LAB_SEED}")
    assert (made.seed, config.for_files(made)["seed"]) == (7, 7)


def test_a_whole_map_of_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("LAB_MAP", "{a: b}")
    with pytest.raises(UsageError, match=r"logger.kwargs takes a whole list or map from the environment"):
        config.compose("logger=none", "+logger.kwargs='${oc.decode:${oc.env:LAB_MAP}}'")


def test_text_that_only_looks_like_a_reference_comes_back_as_it_was(tmp_path):
    made = config.compose(r"evaluate.prompts=['costs \${x}']")
    assert made.evaluate.prompts == ["costs ${x}"]
    config.save(made, tmp_path)
    assert config.load(tmp_path).evaluate.prompts == ["costs ${x}"]


def test_nothing_of_a_start_is_in_its_environment_afterwards(tmp_path):
    before = dict(os.environ)
    call(train.main, "trust=some", "rank=4", cwd=tmp_path)
    assert dict(os.environ) == before
