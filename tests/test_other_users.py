"""Folders that another user shares, in part: each file that may not be had is one sentence that says what to do."""

import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from in_process import call
from jobs import SMALL

from lab import config, ledger, record, train
from lab.errors import UsageError
from lab.record import run_files
from lab.record.study import read_study
from lab.svd_policy import decisions

NOBODY = 65534


@pytest.fixture
def shared():
    """A run's folder in which everybody may write, where everybody can reach it; with a file of each kind."""
    folder = Path(tempfile.mkdtemp(prefix="lab-shared-"))
    record.write(folder, record.RunRecord())
    config.save(config.compose(*SMALL), folder)
    for name in ("study.json", "decisions.jsonl", "ledger/rows.jsonl", ".lock"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


@contextmanager
def another_user():
    """As who is neither root nor the owner of a file that is nobody's but its owner's."""
    if os.geteuid() != 0:  # then what is taken from the owner, too, is kept from this user
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def live(folder):
    with record.lock(folder):
        pass


READ = {
    "result.json": [record.read, record.status_of],
    "study.json": [read_study],
    "config.yaml": [config.load, lambda folder: config.save(config.compose(*SMALL), folder)],
    "decisions.jsonl": [decisions.read, lambda folder: run_files.damage(folder / "decisions.jsonl", {"bytes": 0})],
    "ledger/rows.jsonl": [ledger.read],
    ".lock": [record.is_live, live],
}


@pytest.mark.parametrize(("name", "act"), [(name, act) for name, acts in READ.items() for act in acts])
def test_a_file_that_may_not_be_read_is_named_with_the_remedy(shared, name, act):
    (shared / name).chmod(0)
    with another_user(), pytest.raises(UsageError, match=rf"{name} cannot be .*Permission denied.*"):
        act(shared)


@pytest.mark.parametrize("act", [act for acts in READ.values() for act in acts])
def test_a_folder_that_may_not_be_entered_is_named_with_the_remedy(shared, act):
    shared.chmod(0)
    with another_user(), pytest.raises(UsageError, match=r"lab-shared-.* cannot be .*Permission denied"):
        act(shared)


def test_a_lock_that_only_its_owner_may_take_is_named_with_the_remedy(shared):
    (shared / ".lock").chmod(0o444)
    with another_user():
        assert not record.is_live(shared)
        with pytest.raises(UsageError, match=r"\.lock cannot be had here \(Permission denied\); .*chmod -R g\+rwX"):
            live(shared)


def test_a_lock_that_is_no_file_is_named(shared):
    (shared / ".lock").unlink()
    (shared / ".lock").mkdir()
    with pytest.raises(UsageError, match=r"\.lock cannot be had here \(Is a directory\)"):
        live(shared)


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_who_may_lock_a_folder_next_is_the_umasks_to_say(shared, umask, mode):
    (shared / ".lock").unlink()
    before = os.umask(umask)
    try:
        live(shared)
    finally:
        os.umask(before)
    assert stat.S_IMODE((shared / ".lock").stat().st_mode) == mode


def test_what_hydra_may_not_write_is_one_sentence(tmp_path, monkeypatch):
    def denied(cfg, filename, output_dir):
        raise PermissionError(13, "Permission denied", str(output_dir / filename))

    monkeypatch.setattr("hydra.core.utils._save_config", denied)
    said = call(train.main, *SMALL, cwd=tmp_path)
    assert "config.yaml cannot be had here (Permission denied); ask its owner to share the folder" in said.sentence
