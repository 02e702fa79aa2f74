"""Where lab.export writes: a place that cannot be had is refused at once, and a folder is whole or not there."""

import os
import resource
from pathlib import Path

import pytest
from jobs import run
from test_export import SHORT, exported

from lab.errors import Mismatch, UsageError
from lab.export import export_run
from lab.run import selected


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("run")
    run(folder, *SHORT, "init=svd")
    return folder


PLACES = {
    "a file": (lambda run_dir, to: to.write_text("mine"), "is a file; give a folder that does not exist yet"),
    "a folder with something in it": (lambda run_dir, to: (to.mkdir(), (to / "mine").touch()), "is not empty"),
    "under a file": (lambda run_dir, to: to.parent.joinpath("file").touch() or to.parent / "file/to", "file is a file"),
    "the run itself": (lambda run_dir, to: run_dir, "lies in the run's own folder"),
    "inside the run": (lambda run_dir, to: run_dir / "exported/to", "lies in the run's own folder"),
    "inside the run by a link": (lambda run_dir, to: to.symlink_to(run_dir / "new"), "lies in the run's own folder"),
    "a link to a file": (lambda run_dir, to: to.symlink_to(run_dir / "config.yaml"), "in the run's own folder"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_had_is_refused_before_anything_is_loaded(place, trained, tmp_path, monkeypatch):
    run_dir, to = trained, tmp_path / "to"
    before = sorted(run_dir.rglob("*"))
    make, said = PLACES[place]
    made = make(run_dir, to)
    monkeypatch.setattr(selected, "load", lambda _: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match=said) as caught:
        export_run(run_dir, made if isinstance(made, Path) else to, "adapter", None)
    assert "\n" not in str(caught.value)
    assert sorted(run_dir.rglob("*")) == before


def test_a_mount_point_is_refused(trained, tmp_path, monkeypatch):
    """An empty volume, as containers are given; the folder is written beside its place and moved there."""
    (tmp_path / "to").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "to")
    with pytest.raises(UsageError, match=r"is a mount point.*give one inside it"):
        export_run(trained, tmp_path / "to", "adapter", None)


def test_a_folder_that_may_not_be_written_to_is_refused(trained, tmp_path):
    with pytest.raises(UsageError, match=r"/proc may not be written to|could not write /proc/to"):
        export_run(trained, Path("/proc/to"), "adapter", None)


def test_an_empty_folder_is_filled(trained, tmp_path):
    (tmp_path / "to").mkdir()
    exported(trained, tmp_path / "to")
    assert (tmp_path / "to/adapter_config.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


@pytest.mark.parametrize("format", ["adapter", "portable", "merged"])
@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_refuses_leaves_nothing(format, there, trained, tmp_path):
    run_dir, to = trained, tmp_path / "to"
    if there:
        to.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # bytes a file may have: less than any weights here
    try:
        with pytest.raises(UsageError, match=r"could not write .*/to \(.*; nothing is left of it") as caught:
            export_run(run_dir, to, format, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.rglob("*")) == ([to] if there else [])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, Mismatch])
def test_an_export_that_is_cut_short_leaves_nothing(error, trained, tmp_path, monkeypatch):
    def cut_short(*args, **kwargs):
        assert any(tmp_path.rglob("adapter_model.safetensors")), "it was half written"
        raise error

    monkeypatch.setattr("lab.adapter.export.verify_export", cut_short)
    with pytest.raises(error):
        export_run(trained, tmp_path / "to", "adapter", None)
    assert list(tmp_path.iterdir()) == []


def test_whoever_may_read_the_folder_may_read_what_is_in_it(trained, tmp_path):
    before = os.umask(0o022)
    try:
        exported(trained, tmp_path / "to", "merged")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o644}
