"""A damaged file of a run is noticed, named, and never trained on or reported from."""

import json
import os
import shutil
from pathlib import Path

import pytest
from jobs import losses, run
from killing import differing
from safetensors.torch import load_file, save_file

from lab import record
from lab.errors import UsageError
from lab.record import run_files
from lab.replay import __main__ as replay
from lab.report.run import load_run
from lab.report.study import load_study
from lab.run import selected
from lab.training import checkpoint
from lab.training.callbacks import StopOnRequest

OBSERVED = ("method=full", "svd_policy=phase1", "svd_policy.every_n_steps=2", "svd_policy.k=4")
LORA = ("init=svd", "adapter.dropout=0.2", "schedule.save_every_n_steps=2")


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each kind a whole run, and one that was killed at step 6, behind the checkpoints of steps 3 and 6 (2, 4)."""
    folder = tmp_path_factory.mktemp("runs")

    def die(self, trainer, module, batch):
        if module.run.progress.step == 5:
            raise Killed

    for kind, given in {"lora": LORA, "observed": (*OBSERVED, "schedule.save_every_n_steps=2")}.items():
        run(folder / kind, *given)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StopOnRequest, "after_step", die)
            with pytest.raises(Killed):
                run(folder / f"{kind}_cut", *given)
    return folder


def copy_of(runs, kind, tmp_path):
    shutil.copytree(runs / kind, tmp_path / "run")
    return tmp_path / "run"


def flip(path, at=0.5):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def a_folder(path):
    path.unlink()
    path.mkdir()


CHECKPOINT_DAMAGE = {
    "a flipped bit": lambda path: flip(path),
    "a flipped bit near its beginning": lambda path: flip(path, 0.1),
    "a flipped bit near its end": lambda path: flip(path, 0.8),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(5000)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2000]),
    "its first half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a folder": a_folder,
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a text": lambda path: path.write_text("step,tokens\n"),
}


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGE)
def test_a_damaged_last_checkpoint_falls_back_and_says_so(damage, runs, tmp_path, capsys):
    path = copy_of(runs, "lora_cut", tmp_path)
    CHECKPOINT_DAMAGE[damage](checkpoint.folder(path) / checkpoint.LAST)
    found = checkpoint.newest(path)
    assert found is not None
    assert (found[0].name, found[1]["progress"]["step"]) == ("previous.ckpt", 2)
    if damage != "a link to nothing":  # which is no file at all
        assert "last.ckpt (" in (said := capsys.readouterr().out)
        assert "cannot be read; falling back to previous.ckpt at step 2" in said


def test_a_run_that_falls_back_ends_bitwise_as_the_whole_one(runs, tmp_path):
    for kind in ("lora", "observed"):
        path = copy_of(runs, f"{kind}_cut", tmp_path / kind)
        flip(checkpoint.folder(path) / checkpoint.LAST)
        given = LORA if kind == "lora" else (*OBSERVED, "schedule.save_every_n_steps=2")
        assert run(path, *given).status == "completed"
        assert differing(path, runs / kind) == []


def test_where_no_checkpoint_is_whole_nothing_is_trained(runs, tmp_path):
    path = copy_of(runs, "lora_cut", tmp_path)
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        flip(checkpoint.folder(path) / name)
    before = losses(path)
    with pytest.raises(UsageError, match=r"no checkpoint in .* can be read: last\.ckpt \(.*checksum.*previous\.ckpt"):
        run(path, *LORA)
    assert losses(path) == before


def test_a_damaged_best_checkpoint_is_no_reason_to_report_other_weights(tmp_path, monkeypatch):
    best = ("method=full", "optim.lr=0.1", "select=best", "schedule.eval_every_n_steps=2")  # best at step 4 of 8
    monkeypatch.setattr("lab.run.ending.Ending.run", lambda self: pytest.exit)
    run(tmp_path, *best)
    monkeypatch.undo()
    result = record.read(tmp_path)
    result.status = "interrupted"
    record.write(tmp_path, result)
    flip(checkpoint.folder(tmp_path) / checkpoint.BEST)
    with pytest.raises(
        UsageError, match=r"best\.ckpt cannot be read .*select=best reports the weights in it and no others"
    ):
        run(tmp_path, *best)


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


TEXT_DAMAGE = {
    "a changed digit": lambda path: path.write_bytes(path.read_bytes().replace(b"1", b"2", 1)),
    "half of its lines gone": lambda path: path.write_bytes(b"".join(lines_of(path)[: len(lines_of(path)) // 2])),
    "a line gone in the middle": lambda path: path.write_bytes(b"".join(lines_of(path)[:1] + lines_of(path)[2:])),
    "a line twice": lambda path: path.write_bytes(b"".join(lines_of(path)[:2] + lines_of(path)[1:])),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "garbage": lambda path: path.write_bytes(os.urandom(4000)),
}


@pytest.mark.parametrize("name", ["metrics.csv", "decisions.jsonl", "ledger/rows.jsonl"])
@pytest.mark.parametrize("damage", TEXT_DAMAGE)
def test_a_damaged_text_file_is_named_and_not_gone_on_with(damage, name, runs, tmp_path):
    path = copy_of(runs, "observed_cut", tmp_path)
    TEXT_DAMAGE[damage](path / name)
    before = {each.name: each.read_bytes() for each in path.glob("*.csv")}
    with pytest.raises(UsageError, match=rf"{name} (is gone|has|does not hold)"):
        run(path, *OBSERVED, "schedule.save_every_n_steps=2")
    assert {each.name: each.read_bytes() for each in path.glob("*.csv")} == before, "nothing is shortened"


@pytest.mark.parametrize("name", ["metrics.csv", "decisions.jsonl", "ledger/rows.jsonl"])
@pytest.mark.parametrize("damage", TEXT_DAMAGE)
def test_what_reads_a_closed_run_notices_too(damage, name, runs, tmp_path):
    path = copy_of(runs, "observed", tmp_path)
    TEXT_DAMAGE[damage](path / name)
    if name == "metrics.csv":
        with pytest.raises(UsageError, match=r"metrics\.csv (is gone|has|does not hold)"):
            _ = load_run(path).curves
        [problem] = load_study(tmp_path).problems
        assert "its curves are left out" in problem.reason
    else:
        with pytest.raises(SystemExit, match=rf"{name} (is gone|has|does not hold)"):
            replay.main([str(path)])


@pytest.mark.parametrize("name", ["metrics.csv", "decisions.jsonl", "ledger/rows.jsonl"])
def test_without_hashes_a_line_that_makes_no_sense_is_named(name, runs, tmp_path):
    """Checkpoints from before hold none: structure is all that there is to see."""
    path = copy_of(runs, "observed_cut", tmp_path)
    text = lines_of(path / name)
    text[1] = text[1][:10] + b"\n"
    (path / name).write_bytes(b"".join(text))
    with pytest.raises(UsageError, match=rf"line 2 of .*{name} is damaged"):
        cut(name, path)


def cut(name, path):
    from lab import ledger
    from lab.svd_policy import decisions
    from lab.training.metrics_file import MetricsFile

    {
        "metrics.csv": lambda: MetricsFile(path).cut_back(100),
        "decisions.jsonl": lambda: decisions.cut_back(path, 100),
        "ledger/rows.jsonl": lambda: ledger.cut_back(path, 100),
    }[name]()


def test_weights_from_before_training_are_checked_when_changes_are_measured_against_them(runs, tmp_path):
    path = copy_of(runs, "observed_cut", tmp_path)
    flip(path / "checkpoints/initial.safetensors", 0.9)
    with pytest.raises(UsageError, match=r"initial\.safetensors.*does not hold what was written"):
        run(path, *OBSERVED, "schedule.save_every_n_steps=2")


def test_damaged_directions_of_them_are_computed_again(runs, tmp_path):
    path = copy_of(runs, "observed_cut", tmp_path)
    kept = list((path / "checkpoints").glob("initial_directions/*.safetensors"))
    assert kept
    for each in kept:
        tensors = load_file(each)
        save_file({name: tensor * 2 for name, tensor in tensors.items()}, each)
    run(path, *OBSERVED, "schedule.save_every_n_steps=2")
    assert differing(path, runs / "observed") == []


def test_a_closed_record_names_its_text_files_as_they_are(runs):
    for kind, least in (
        ("lora", {"metrics.csv", "init.csv", "first_step.csv", "learned.csv"}),
        ("observed", set(run_files.GROWING[:3])),
    ):
        result = record.read(runs / kind)
        assert least <= result.files.keys()
        assert result.files == run_files.prefixes(runs / kind, result.files)


def test_exported_weights_that_are_all_that_is_left_are_checked(runs, tmp_path):
    path = copy_of(runs, "lora", tmp_path)
    shutil.rmtree(path / "checkpoints")
    assert selected.load(path).step == 8
    flip(path / "adapter/adapter_model.safetensors", 0.9)
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors does not hold .* there is no checkpoint"):
        selected.load(path)


def test_what_a_kill_left_of_a_write_is_swept_at_the_next_start(runs, tmp_path):
    path = copy_of(runs, "lora_cut", tmp_path)
    left = [".result.json." + 32 * "a", "checkpoints/last.tmp", ".metrics.csv." + 32 * "0", "ledger/.x." + 32 * "1"]
    (path / "ledger").mkdir()
    for name in left:
        (path / name).write_text("half")
    mine = path / ".notes.txt"
    mine.write_text("the user's own")
    run(path, *LORA)
    assert not [name for name in left if (path / name).exists()]
    assert mine.exists()


def test_a_start_rewrites_no_config_that_says_the_same(runs, tmp_path):
    path = copy_of(runs, "lora_cut", tmp_path)
    before = (path / "config.yaml").stat()
    run(path, *LORA)
    after = (path / "config.yaml").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_checkpoints_do_not_pass_through_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._get_default_tempdir", lambda *args: str(tmp_path / "nowhere"))
    assert run(tmp_path / "run", "schedule.max_steps=1").status == "completed"


def test_whether_a_run_is_live_can_be_asked_while_another_asks_and_without_the_right_to_write(tmp_path, monkeypatch):
    opened = []
    real = os.open

    def watching(path, flags, *rest, **more):
        if Path(path).name == record.LOCK:
            opened.append(flags)
        return real(path, flags, *rest, **more)

    with record.lock(tmp_path):
        pass
    monkeypatch.setattr(os, "open", watching)
    assert not record.is_live(tmp_path)
    assert opened == [os.O_RDONLY]
    with record.lock(tmp_path):
        assert record.is_live(tmp_path)


def test_a_start_waits_for_a_reader_that_only_asks(tmp_path):
    import fcntl
    import threading

    with record.lock(tmp_path):
        pass
    reader = os.open(tmp_path / record.LOCK, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    threading.Timer(0.3, os.close, [reader]).start()
    with record.lock(tmp_path):
        pass


def test_a_run_that_ended_by_its_epochs_is_not_run_again(tmp_path, capsys):
    given = ("schedule.max_epochs=1", "schedule.max_steps=1000")
    assert run(tmp_path, *given).steps == 4
    before = json.loads((tmp_path / record.RESULT).read_text())
    run(tmp_path, *given)
    assert "completed: skipped" in capsys.readouterr().out
    assert json.loads((tmp_path / record.RESULT).read_text()) == before
