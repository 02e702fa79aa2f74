"""The weights that a run's record speaks of: from its checkpoints, from its own export, or a sentence why not."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from jobs import run
from safetensors.torch import load_file, save_file
from test_export import SHORT, exported, logits
from transformers import AutoModelForCausalLM

from lab import config, record
from lab.errors import UsageError
from lab.export import export_run, load_model, main
from lab.run import selected
from lab.training import checkpoint

SAVES = ("schedule.save_every_n_steps=1", "schedule.max_steps=3", "schedule.eval_every_n_steps=1")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of a run of three steps with `last` at 3 and `previous` at 2; each is run once."""

    @cache
    def of(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("kept")
        assert run(folder, *SHORT, *SAVES, *overrides).status == "completed"
        return folder

    return of


@pytest.fixture
def copied(kept, tmp_path):
    """A copy of such a run, to be damaged."""

    def of(*overrides: str) -> Path:
        return Path(shutil.copytree(kept(*overrides), tmp_path / "run"))

    return of


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def replaced_by(content) -> object:
    def spoil(path: Path) -> None:
        path.unlink()
        content(path)

    return spoil


DAMAGES = {
    "empty": lambda path: cut(path, 0),
    "cut short": lambda path: cut(path, -2000),
    "cut in the middle": lambda path: cut(path, path.stat().st_size // 2),
    "garbage": replaced_by(lambda path: path.write_bytes(b"garbage" * 1000)),
    "zeros": replaced_by(lambda path: path.write_bytes(bytes(5000))),
    "text": replaced_by(lambda path: path.write_text("hello\n")),
    "a folder": replaced_by(lambda path: path.mkdir()),
    "a link to nowhere": replaced_by(lambda path: path.symlink_to("nowhere")),
    "another pickle": replaced_by(lambda path: path.write_bytes(pickle.dumps({"a": Path("x")}))),
    "another file of torch's": replaced_by(lambda path: torch.save([1], path)),
}
ABSENT = "a link to nowhere"  # to `newest` such a file is not there, and not worth a word
SOME = ["empty", "garbage", "a folder", "another pickle"]


def step_of(run_dir: Path) -> int:
    return selected.load(run_dir).step


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_falls_back_to_the_previous_and_says_so(damage, copied, tmp_path, capsys):
    run_dir = copied()
    last = logits(load_model(run_dir)[0])
    DAMAGES[damage](run_dir / "checkpoints/last.ckpt")
    main([str(run_dir), "--to", str(tmp_path / "to"), "--format", "merged"])
    said = capsys.readouterr().out
    assert damage == ABSENT or ("last.ckpt (" in said and "falling back to previous.ckpt at step 2" in said)
    assert "these are the weights at step 2, and the record speaks of those at step 3" in said
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "to"))
    assert not torch.equal(found, last)
    earlier = checkpoint.load(run_dir / "checkpoints/previous.ckpt")
    name = "model.layers.0.self_attn.q_proj"
    pristine = selected.load(run_dir).model.load(torch.float32, 0).get_submodule(name).weight.detach()
    A, B = (earlier["state_dict"][f"{name}.{letter}"] for letter in "AB")
    weight = load_file(tmp_path / "to/model.safetensors")[f"{name}.weight"]
    torch.testing.assert_close(weight, pristine + 8.0 * B @ A)  # scaling alpha / r = 32 / 4


@pytest.mark.parametrize("damage", SOME)
def test_where_no_checkpoint_can_be_read_one_sentence_says_so(damage, copied, tmp_path):
    run_dir = copied()
    for name in ("last", "previous"):
        DAMAGES[damage](run_dir / f"checkpoints/{name}.ckpt")
    with pytest.raises(UsageError, match=r"no checkpoint in .* can be read: last.ckpt \(.*previous.ckpt \(") as caught:
        export_run(run_dir, tmp_path / "to", "adapter", None)
    assert "\n" not in str(caught.value)
    assert f"what the run exported in {run_dir / 'adapter'} is taken" in str(caught.value)
    assert not (tmp_path / "to").exists()
    shutil.rmtree(run_dir / "checkpoints")  # what the sentence advises
    assert step_of(run_dir) == 3


@pytest.mark.parametrize("damage", SOME)
def test_another_steps_weights_are_never_the_best(damage, copied, tmp_path):
    run_dir = copied("select=best")
    expected = logits(load_model(run_dir)[0])
    DAMAGES[damage](run_dir / "checkpoints/best.ckpt")
    with pytest.raises(UsageError, match=r"best.ckpt cannot be read \(.*select=best means its weights") as caught:
        export_run(run_dir, tmp_path / "to", "adapter", None)
    assert "\n" not in str(caught.value)
    assert f"remove it, and those in {run_dir / 'adapter'} are taken, which are the same" in str(caught.value)
    path = run_dir / "checkpoints/best.ckpt"
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert step_of(run_dir) == record.read(run_dir).metrics["best_step"]
    torch.testing.assert_close(logits(load_model(run_dir)[0]), expected, rtol=1e-5, atol=1e-5)  # [A; A₀] in one product


# A study drops the checkpoints of its runs; what they exported are the same weights.


@pytest.mark.parametrize(
    "overrides",
    [
        ("init=svd",),
        ("init=svd", "rank=20"),  # twice that is more than the 32 directions of k_proj
        ("init=pissa", "init.offset=fold"),
        ("init=loftq",),
        ("adapter.use_dora=true",),
        ("rank_strategy=adalora",),
        ("rank_strategy=linear_decay", "init=svd"),
        ("method=full",),
        ("init=svd", "hardware.precision=bf16-true"),
    ],
)
def test_without_checkpoints_the_runs_own_export_gives_the_same(overrides, copied, tmp_path):
    format = "merged" if "method=full" in overrides else "adapter"
    run_dir = copied(*overrides)
    expected = logits(load_model(run_dir)[0])
    before = exported(run_dir, tmp_path / "before", format)
    shutil.rmtree(run_dir / "checkpoints")
    after = exported(run_dir, tmp_path / "after", format)
    # Two orders of one float32 sum; in bf16 both round a sum of 2r directions, or of r less r, once.
    close = (
        {"rtol": 1e-2, "atol": 2e-2} if "hardware.precision=bf16-true" in overrides else {"rtol": 1e-5, "atol": 1e-5}
    )
    torch.testing.assert_close(logits(load_model(run_dir)[0]), expected, **close)
    name = "model.safetensors" if format == "merged" else "adapter_model.safetensors"
    one, other = load_file(before / name), load_file(after / name)
    assert one.keys() == other.keys()
    if "rank=20" not in overrides:  # there it is the same product, of fewer directions
        assert all(torch.equal(one[key], other[key]) for key in one)


# How a run ended decides what is said.


def ended(run_dir: Path, status: str, message: str | None = None) -> None:
    result = record.read(run_dir)
    result.status, result.error = status, None if message is None else {"type": "Error", "message": message}
    record.write(run_dir, result)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("interrupted", "was interrupted: these are its weights at step 3"),
        ("running", "was interrupted: these are its weights at step 3"),  # without its lock: it was killed
        ("diverged", "diverged: these are its weights at step 3"),
        ("failed", "failed: these are its weights at step 3"),
        ("stopped", "was stopped by a rung of its study: these are its weights at step 3"),
    ],
)
def test_an_unfinished_run_gives_what_it_has_and_says_what_that_is(status, said, copied, tmp_path, capsys):
    run_dir = copied()
    ended(run_dir, status)
    shutil.rmtree(run_dir / "adapter")
    main([str(run_dir), "--to", str(tmp_path / "to")])
    assert f"{run_dir} {said}" in capsys.readouterr().out


def test_a_run_that_a_rung_stopped_gives_what_it_exported_at_the_rungs_end(copied, tmp_path):
    run_dir = copied("init=svd")
    expected = logits(load_model(run_dir)[0])
    ended(run_dir, "stopped")
    shutil.rmtree(run_dir / "checkpoints")
    torch.testing.assert_close(logits(load_model(run_dir)[0]), expected, rtol=1e-5, atol=1e-5)  # [A; A₀] in one product


def test_a_live_run_gives_what_it_has_too(copied, tmp_path, capsys):
    run_dir = copied()
    ended(run_dir, "running")
    with record.lock(run_dir):
        main([str(run_dir), "--to", str(tmp_path / "to")])
    assert f"{run_dir} is still running: these are its weights at step 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        ("interrupted", None, r"it was interrupted before its first one; go on with python -m lab.train resume="),
        ("running", None, r"it was interrupted before its first one; go on with python -m lab.train resume="),
        (
            "failed",
            "no space left.",
            r"it failed before its first one \(no space left\); go on with python -m lab.train",
        ),
        (
            "diverged",
            "the loss is nan",
            r"it diverged before its first one \(the loss is nan\); train again, with a low",
        ),
        ("completed", None, r"holds no checkpoints/last.ckpt and no adapter any more; train again"),
        ("stopped", None, r"holds no checkpoints/last.ckpt and no adapter any more; train again"),
    ],
)
@pytest.mark.parametrize("select", ["last", "best"])
def test_a_run_without_weights_says_why_before_anything_is_loaded(status, error, said, select, tmp_path, monkeypatch):
    config.save(config.compose("model=micro", f"select={select}"), tmp_path)
    record.write(tmp_path, record.RunRecord(status=status))
    ended(tmp_path, status, error)
    monkeypatch.setattr(selected, "_check_base", lambda *_: pytest.fail("it went on"))
    with pytest.raises(UsageError, match=said.replace("last.ckpt", f"{select}.ckpt")) as caught:
        export_run(tmp_path, tmp_path.parent / "to", "adapter", None)
    assert "\n" not in str(caught.value)


def test_a_job_of_a_study_without_weights_says_that_its_study_keeps_none(tmp_path):
    config.save(config.compose("model=micro"), tmp_path)
    record.write(tmp_path, record.RunRecord(status="diverged", stage="tune", arm="random"))
    ended(tmp_path, "diverged", "the loss is nan")
    with pytest.raises(UsageError, match=r"it diverged and its study keeps none \(the loss is nan\); train again"):
        export_run(tmp_path, tmp_path.parent / "to", "adapter", None)


def test_a_live_run_without_weights_asks_to_wait(tmp_path):
    config.save(config.compose("model=micro"), tmp_path)
    record.write(tmp_path, record.RunRecord())
    with record.lock(tmp_path), pytest.raises(UsageError, match="yet, since it is still running; wait for its first"):
        export_run(tmp_path, tmp_path.parent / "to", "adapter", None)


@pytest.mark.parametrize("missing", ["result.json", "config.yaml"])
def test_what_is_no_run_is_refused(missing, copied, tmp_path):
    run_dir = copied()
    (run_dir / missing).unlink()
    with pytest.raises(UsageError, match=f"is no run directory: it holds no {missing}"):
        export_run(run_dir, tmp_path / "to", "adapter", None)


# The base must be the one that the run was trained on.


@pytest.fixture
def on_disk(kept, tmp_path):
    """A run on a base in a folder, and that folder."""
    home = exported(kept("method=full"), tmp_path / "base", "merged")
    named = ("model=pretrained", f"model.name_or_path={home}")
    run(tmp_path / "run", *SHORT, *named)
    return tmp_path / "run", home


@pytest.mark.parametrize("format", ["adapter", "portable", "merged"])
def test_a_base_that_has_changed_is_refused(format, on_disk, tmp_path):
    run_dir, home = on_disk
    weights = load_file(home / "model.safetensors")
    weights["model.norm.weight"] += 1e-3
    save_file(weights, home / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="the base has changed since the run began"):
        export_run(run_dir, tmp_path / "to", format, None)
    assert not (tmp_path / "to").exists()


def test_a_base_that_has_moved_is_found_where_the_config_says(on_disk, tmp_path, monkeypatch):
    run_dir, home = on_disk
    home.rename(tmp_path / "moved")
    with monkeypatch.context() as patch:
        patch.setattr("lab.config.instantiate.make_logger", lambda *_: pytest.fail("it went on"))
        with pytest.raises(
            UsageError, match=r"the base of .* cannot be had: .*no such folder.*write its new place"
        ) as e:
            export_run(run_dir, tmp_path / "to", "adapter", None)
    assert "\n" not in str(e.value)
    path = run_dir / "config.yaml"
    path.write_text(path.read_text().replace(str(home), str(tmp_path / "moved")))
    exported(run_dir, tmp_path / "to")
    named = json.loads((tmp_path / "to/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "moved")


@pytest.mark.slow
def test_a_class_of_ones_own_is_found_from_its_folder_by_the_console_script(copied, tmp_path):
    run_dir = copied()
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    settings = config.load(run_dir)
    settings.init = {"_target_": "mine.Mine"}
    config.save(settings, run_dir)
    env = {**os.environ, "PYTHONPATH": str(Path(selected.__file__).parent.parent)}
    line = [sys.executable, "-P", "-m", "lab.export", "run", "--to", "to"]  # -P: as a script, which adds no folder
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), "and no library's warning of another"
    assert (tmp_path / "to/adapter_config.json").is_file()
