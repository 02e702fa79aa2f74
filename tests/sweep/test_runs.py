import pytest

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
