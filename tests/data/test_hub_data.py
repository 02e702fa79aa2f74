"""Data sets of the hub: the input field kept, and a sentence within 3 s where there is no network."""

import json
import os
import socket
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import errors

from lab.config import CONF, instantiate
from lab.data import Pair
from lab.data.hub import is_cached, why_not
from lab.errors import UsageError

ROWS = [{"instruction": f"do {i}", "input": "" if i % 2 else f"x{i}", "output": f"done {i}"} for i in range(40)]


def data(name, **overrides):
    node = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text())
    assert overrides.keys() <= node.keys()
    return instantiate.make({**node, **overrides})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set in the layout of the hub, read by the same code."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "toy"
    place.mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:5])):
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(place)


def test_alpaca_keeps_the_input_field(folder):
    splits = data("alpaca", path=folder, val_fraction=0.1, test_split="test").load()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (36, 4, 5)
    assert splits.test[0] == Pair("do 0", "done 0", "x0")
    assert splits.test[1] == Pair("do 1", "done 1", "")


def test_splits_can_be_named_and_sliced(folder):
    splits = data("alpaca", path=folder, train_split="train[:10]", val_split="test").load()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (10, 5, 0)


def test_a_split_or_field_that_is_not_there_is_named(folder):
    with pytest.raises(UsageError, match=r"has no split 'tets'; did you mean test"):
        data("alpaca", path=folder, test_split="tets").load()
    with pytest.raises(
        UsageError, match=r"has no field 'prompt' \(it has input, instruction, output\); set data.prompt"
    ):
        data("hub", path=folder).load()


def test_a_data_set_must_be_named():
    with pytest.raises(UsageError, match=r"data=hub needs a data set; set data.path=owner/name"):
        data("hub").check()


def test_offline_a_data_set_is_refused_by_name_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"yahma/alpaca-cleaned is not in the local cache and HF_HUB_OFFLINE is set"):
        data("alpaca").check()


def test_a_prepared_data_set_needs_no_request(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert not is_cached("owner/name")
    (tmp_path / "datasets" / "owner___name").mkdir(parents=True)
    assert is_cached("owner/name")
    data("hub", path="owner/name").check()


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("GatedRepoError", "is gated: accept its terms"),
        ("RevisionNotFoundError", "has no revision 'v9'; check data.revision"),
        ("RepositoryNotFoundError", "is not on the hub, or is private; check data.path"),
        ("HFValidationError", "neither a folder nor a hub name"),
        (None, "the hub cannot be reached (unreachable)"),
    ],
)
def test_every_refusal_says_why_and_what_to_do(kind, part):
    cause = getattr(errors, kind) if kind else OSError
    assert part in why_not("owner/name", "v9", cause.__new__(cause) if kind else OSError("unreachable"))


@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up_within_three_seconds(tmp_path):
    with socket.socket() as silent:  # accepts connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        env = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        env |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        script = (
            "import sys, time, yaml\n"
            "from lab.config import instantiate\n"
            f"node = yaml.safe_load(open({str(CONF / 'data' / 'alpaca.yaml')!r}))\n"
            "began = time.monotonic()\n"
            "try:\n"
            "    instantiate.make(node).check()\n"
            "except Exception as error:\n"
            "    print(type(error).__name__, error)\n"
            "print(time.monotonic() - began, 'torch' in sys.modules, 'datasets' in sys.modules)\n"
        )
        out = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True).stdout
    message, facts = out.strip().splitlines()
    seconds, torch_loaded, datasets_loaded = facts.split()
    assert message.startswith("UsageError data set yahma/alpaca-cleaned")
    assert (torch_loaded, datasets_loaded) == ("False", "False")
    assert float(seconds) < 3
