import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lab import record
from lab.errors import UsageError
from lab.record import RunRecord, lock, write
from lab.sweep.declaration import declare
from lab.sweep.runs import Tried, describe, drop_checkpoints, forecast, scan

STUDY = declare(
    {
        "name": "s", "question": "Does it?", "arms": {"a": "init=a", "b": "init=b"}, "baseline": "a", "margin": 0.01,
        "seeds": [1, 2, 3, 4], "learning_rates": [1e-4, 1e-3, 1e-2],
    }
)  # fmt: skip


def run(path, status="completed", **fields):
    path.mkdir()
    config = {"optim": {"lr": 1e-3}}
    metrics, seconds = {"val_loss": 2.0, "base_val_loss": 4.0, "test_loss": 2.5}, {"total": 36.0}
    write(
        path,
        RunRecord(
            status=status, stage="tune", arm="a", seed=0, config=config, metrics=metrics, seconds=seconds, **fields
        ),
    )


def test_records_become_what_planning_sees(tmp_path):
    run(tmp_path / "0")
    run(tmp_path / "1", status="running")
    run(tmp_path / "2", status="running")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "result.json").write_text("{")
    with lock(tmp_path / "1"):
        seen, unreadable = scan(tmp_path, STUDY)
    assert [one.status for one in seen] == ["completed", "running", "interrupted"]
    assert (seen[0].outcome, seen[0].base, seen[0].value) == (2.0, 4.0, 2.5)
    assert seen[0].size > 100
    assert "not valid JSON" in unreadable[0]


@contextmanager
def as_another():
    """Within, this process is a user who may read only what all may; where it is none of root's, itself."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_record_that_this_user_may_not_read_ends_the_scan_in_a_sentence_and_another_folder_does_not():
    with TemporaryDirectory(dir="/tmp") as folder:  # pytest's own folders are its user's alone
        study_dir = Path(folder)
        study_dir.chmod(0o755)
        run(study_dir / "0")
        (study_dir / "0" / "checkpoints").mkdir()
        (study_dir / "0" / "checkpoints").chmod(0)
        with as_another():
            seen, _ = scan(study_dir, STUDY)
        assert [(one.status, one.size) for one in seen] == [("completed", None)]
        (study_dir / "0" / "checkpoints").chmod(0o755)
        (study_dir / "0").chmod(0o700 if os.geteuid() == 0 else 0)
        with (
            as_another(),
            pytest.raises(UsageError, match=r"0/result\.json cannot be (read|had here) \(Permission denied\)"),
        ):
            scan(study_dir, STUDY)
        (study_dir / "0").chmod(0o755)
        (study_dir / "0" / ".lock").touch(mode=0)
        with as_another(), pytest.raises(UsageError, match=r"0/\.lock cannot be read \(Permission denied\)"):
            scan(study_dir, STUDY)
        (study_dir / "0" / ".lock").unlink()
        (study_dir / "0" / "result.json").chmod(0)
        with (
            as_another(),
            pytest.raises(UsageError, match=r"0/result\.json cannot be (read|had here) \(Permission denied\)"),
        ):
            scan(study_dir, STUDY)


@pytest.mark.parametrize("when", ["before it is looked at", "behind its first look"])
def test_a_run_whose_files_come_and_go_is_seen(tmp_path, monkeypatch, when):
    """A job renames its checkpoints, and what is listed may be gone when it is looked at."""
    run(tmp_path / "0")
    (tmp_path / "0" / "checkpoints").mkdir()
    (tmp_path / "0" / "checkpoints" / "last.ckpt").write_bytes(b"12345")
    (tmp_path / "0" / "nothing").symlink_to(tmp_path / "gone")
    whole = scan(tmp_path, STUDY)[0][0].size
    look, gone = os.stat, tmp_path / "0" / "checkpoints" / "last.ckpt"

    def stat(path, *args, **kwargs):
        if not str(path).endswith("last.ckpt"):
            return look(path, *args, **kwargs)
        found = look(path, *args, **kwargs) if when.startswith("behind") else None
        gone.unlink(missing_ok=True)
        return found or look(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    seen, unreadable = scan(tmp_path, STUDY)
    assert (seen[0].size, unreadable) == (whole - 5 * when.startswith("before"), [])


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_run_that_is_gone_since_it_was_listed_is_not_there(tmp_path, monkeypatch, kind):
    run(tmp_path / "0")
    run(tmp_path / "1")
    read = record.read

    def removed_first(folder):
        if folder.name == "0":
            (folder / "result.json").unlink() if kind == "file" else shutil.rmtree(folder)
        return read(folder)

    monkeypatch.setattr(record, "read", removed_first)
    seen, unreadable = scan(tmp_path, STUDY)
    assert [one.path.name for one in seen] == ["1"]
    assert unreadable == []


def test_a_record_is_read_once_and_a_run_that_ends_meanwhile_is_not_interrupted(tmp_path, monkeypatch):
    run(tmp_path / "0", status="running")
    held = lock(tmp_path / "0")
    held.__enter__()
    read, count = record.read, []

    def ends_behind_it(folder):
        count.append(folder)
        found = read(folder)
        if len(count) == 1:
            run_ends = read(folder)
            run_ends.status = "completed"
            write(folder, run_ends)
            held.__exit__(None, None, None)
        return found

    monkeypatch.setattr(record, "read", ends_behind_it)
    assert [one.status for one in scan(tmp_path, STUDY)[0]] == ["running"], "as it was when it was read"
    assert len(count) == 1
    assert [one.status for one in scan(tmp_path, STUDY)[0]] == ["completed"]


def test_a_rate_or_seed_that_is_no_number_is_told_and_left_out(tmp_path):
    run(tmp_path / "0")
    for number, change in enumerate(({"config": {"optim": {"lr": "fast"}}}, {"seed": "one"}), start=1):
        (tmp_path / str(number)).mkdir()
        fields = {"stage": "tune", "arm": "a", "seed": 0, "config": {"optim": {"lr": 1e-3}}, **change}
        write(tmp_path / str(number), RunRecord(status="completed", **fields))
    seen, unreadable = scan(tmp_path, STUDY)
    assert len(seen) == 1
    assert [text.endswith("which are no numbers.") for text in unreadable] == [True, True]


def test_a_job_that_failed_before_it_recorded_anything_is_known_by_its_overrides(tmp_path):
    (tmp_path / "0").mkdir()
    asked = ["init=a", "optim.lr=0.001", "seed=3", "data_seed=3"]
    write(tmp_path / "0", RunRecord(status="failed", stage="verdict", arm="a", overrides=asked))
    seen, unreadable = scan(tmp_path, STUDY)
    assert unreadable == []
    assert (seen[0].seed, seen[0].learning_rate, seen[0].status) == (3, 1e-3, "failed")


@pytest.mark.parametrize(
    ("status", "exported", "left"),
    [
        ("completed", "adapter", ["weights"]),
        ("completed", "model", ["weights"]),
        ("diverged", "adapter", ["best.ckpt", "weights"]),  # of an earlier start: not what select=best means
        ("completed", "elsewhere", ["best.ckpt", "weights"]),
    ],
)
def test_what_a_continuation_needs_is_dropped_and_the_only_weights_are_not(status, exported, left, tmp_path):
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / name).write_text("")
    (tmp_path / exported).mkdir()
    (tmp_path / exported / "weights").write_text("")
    for _ in range(2):
        drop_checkpoints(tmp_path, status)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == left


def test_the_forecast_uses_measured_seconds_or_says_nothing(tmp_path):
    before = forecast(STUDY)
    # Three rates and two more a refinement, for two arms and the A/A arm; and the four seeds there are.
    assert before.jobs == before.most == 3 * 5 + 3 * 4
    assert before.hours is None
    assert "– hours" in describe(STUDY)
    run(tmp_path / "0")
    seen, _ = scan(tmp_path, STUDY)
    after = forecast(STUDY, seen)
    assert after.done == 1
    assert after.hours == 26 * 36 / 3600
    assert "0.26 hours" in describe(STUDY, seen)


def test_the_forecast_of_a_probe_counts_tuning_and_verdicts_apart_until_a_job_has_ended(tmp_path):
    tried = Tried(tune=10.0, verdict=36.0, bytes=5e8)
    before = forecast(STUDY, (), tried)
    assert before.hours == before.most_hours == pytest.approx((15 * 10 + 12 * 36) / 3600)
    assert before.gigabytes == pytest.approx(27 * 0.5)
    assert "0.16 hours one after another; 13.50 GB of disk" in describe(STUDY, (), tried)
    run(tmp_path / "0")
    seen, _ = scan(tmp_path, STUDY)
    assert forecast(STUDY, seen, tried) == forecast(STUDY, seen)
