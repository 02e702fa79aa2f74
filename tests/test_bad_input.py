"""A user's mistake gets a sentence, early, and no traceback."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import run, shell

from lab import record, train
from lab.errors import UsageError

LIGHT = [
    (("init=svdd",), "did you mean svd"),
    (("rnak=3",), "did you mean rank"),
    (("rank=[1",), "cannot read the overrides"),
    (("rank=sixteen",), "could not be converted to Integer"),
    (("+foo=1",), "Unknown key 'foo'"),
    (("rank=0",), "rank must be at least 1; got 0"),
    (("data=jsonl", "data.path=nope.jsonl"), "nope.jsonl"),
    (("resume=nowhere",), "holds no result.json"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "sentence"), LIGHT, ids=[a[0][0] for a in LIGHT])
def test_a_mistake_is_answered_without_a_traceback(arguments, sentence, tmp_path):
    done = shell("model=micro", *arguments, cwd=tmp_path, small=False)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--help",), ("rank=sixteen",), ("rank=0",)], ids=lambda a: a[0])
def test_help_and_errors_import_nothing_heavy(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lab.train", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(train.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert not imported & {"torch", "lightning", "transformers", "peft", "datasets", "numpy", "matplotlib"}


@pytest.mark.slow
def test_a_hub_name_that_cannot_be_had_is_named_with_the_remedy(tmp_path):
    done = shell("model=smollm2_360m", cwd=tmp_path, small=False)
    assert done.returncode != 0
    assert "HuggingFaceTB/SmolLM2-360M" in done.stderr
    assert "Traceback" not in done.stderr


def test_cuda_asked_for_where_there_is_none(tmp_path):
    import torch

    if torch.cuda.is_available():  # the sentence is for machines without
        return
    with pytest.raises(UsageError, match=r"asks for 1 CUDA device.*use hardware=cpu"):
        run(tmp_path, "hardware.accelerator=gpu")


def test_all_labels_masked(tmp_path):
    with pytest.raises(UsageError, match=r"(?s)masked.*max_length|max_length.*masked"):
        run(tmp_path, "data.max_length=8")


def test_messages_without_a_chat_template(tmp_path):
    path = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path.write_text(
        "".join(
            json.dumps({"messages": [*turns, {"role": "user", "content": str(i)}, *turns[1:]]}) + "\n" for i in range(9)
        )
    )
    small = [
        "model=micro",
        "data=jsonl",
        f"data.path={path}",
        "data.messages_field=messages",
        "logger=none",
        "hardware=cpu",
    ]
    from lab import config, launch

    (tmp_path / "run").mkdir()
    with pytest.raises(UsageError, match="chat template"):
        launch.launch(config.compose(*small), tmp_path / "run", {}, small, alone=False)


def test_a_folder_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"somewhere/run cannot be written"):
        train._check_writable(["hydra.run.dir=somewhere/run"])


def test_an_unknown_name_of_a_retention_text(tmp_path):
    with pytest.raises(UsageError, match="stdlib_docs"):
        run(tmp_path, "data.retention=stdlib_dogs")


@pytest.mark.slow
def test_a_multirun_tells_of_a_failed_job_and_runs_the_rest(tmp_path):
    began = time.monotonic()
    done = shell(
        "rank=4,40", "hydra.sweep.dir=out", "schedule.max_steps=1", "evaluate.accuracy=false", "-m", cwd=tmp_path
    )
    assert done.returncode != 0
    assert "rank=40 is larger than the smaller side" in done.stderr
    statuses = {number: record.read(tmp_path / "out" / number).status for number in ("0", "1")}
    assert statuses == {"0": "completed", "1": "failed"}, (statuses, time.monotonic() - began)
