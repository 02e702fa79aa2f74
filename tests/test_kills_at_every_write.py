"""A run killed right behind any of its writes ends as the whole one; `make faults` tries all of them."""

import shutil
import signal
from pathlib import Path

import pytest
from killing import differing, start

from lab import record

SHORT = (
    "schedule.max_epochs=1",
    "schedule.save_every_n_steps=2",
    "schedule.eval_every_n_steps=2",
    "evaluate.num_samples=0",
)
KINDS = {
    "lora": (*SHORT, "init=svd", "adapter.dropout=0.2", "hardware.micro_batch_size=2", "select=best"),
    "full": (*SHORT, "method=full", "svd_policy=observe", "svd_policy.every_n_steps=1", "svd_policy.k=4"),
    "adalora": (*SHORT, "rank_strategy=adalora", "adapter.dropout=0.2", "logger=tensorboard"),
    "phase1": (*SHORT, "method=full", "svd_policy=phase1", "svd_policy.every_n_steps=1", "svd_policy.k=4"),
    "resumed": (*SHORT, "init=pissa", "adapter.dropout=0.2"),
}
SAMPLED = {"lora": 4, "full": 2, "adalora": 2, "phase1": 2, "resumed": 2}  # of each kind, in `make test`


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Of each kind a whole run, and all that it did to its files."""
    folder = tmp_path_factory.mktemp("wholes")
    known: dict[str, list[str]] = {}

    def whole(kind: str) -> tuple[Path, list[str]]:
        if kind not in known:
            begun(folder / kind, kind)
            assert start(folder / kind, *KINDS[kind], writes=folder / f"{kind}.txt") == 0
            known[kind] = (folder / f"{kind}.txt").read_text().splitlines()
        return folder / kind, known[kind]

    return whole


def begun(path: Path, kind: str) -> None:
    """For a resumed run: what a first start left, which was killed in its third step."""
    if kind == "resumed":
        killed = start(path, *KINDS[kind], kill_before="lab.training.callbacks:StopOnRequest.after_step", call=3)
        assert killed == -signal.SIGKILL


def check(kind: str, write: int, wholes, tmp_path: Path) -> None:
    whole, writes = wholes(kind)
    cut = tmp_path / f"{kind}_{write}"
    begun(cut, kind)
    where = f"{kind}, behind write {write} of {len(writes)}: {writes[write]}"
    assert start(cut, *KINDS[kind], kill_after_write=write) == -signal.SIGKILL, where
    assert start(cut, *KINDS[kind]) == 0, where
    assert record.read(cut).status == "completed", where
    assert differing(whole, cut) == [], where
    left = [path.name for path in cut.rglob("*") if path.name.startswith(".") and path.name != record.LOCK]
    assert left == [], where
    shutil.rmtree(cut)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_behind_some_of_its_writes_ends_bitwise_as_the_whole_one(kind, wholes, tmp_path):
    count = len(wholes(kind)[1])
    for i in range(SAMPLED[kind]):  # evenly over the run, at other places for each kind
        check(kind, (2 * i + 1) * count // (2 * SAMPLED[kind]), wholes, tmp_path)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_behind_any_of_its_writes_ends_bitwise_as_the_whole_one(kind, wholes, tmp_path):
    for write in range(len(wholes(kind)[1])):
        check(kind, write, wholes, tmp_path)
