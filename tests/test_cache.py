"""Files are whole or not there, and as readable as their folder's owner wants them."""

import os

import pytest
import torch
from jobs import run
from safetensors.torch import save_file

from lab.cache import write_atomically
from lab.export import main


@pytest.mark.parametrize(
    "write",
    [lambda path: path.write_text("text"), lambda path: save_file({"x": torch.ones(2)}, path)],
    ids=["text", "safetensors"],
)
def test_the_umask_decides_who_may_read(tmp_path, write):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", write)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "file").write_text("old")

    def half(path):
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file", half)
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_runs_folder_can_be_read_by_others(tmp_path):
    """Whoever may enter the folder may read the record, the adapter and the weights in it."""
    before = os.umask(0o022)
    try:
        run(tmp_path / "lora", "schedule.max_steps=1", "init=loftq")
        run(tmp_path / "full", "schedule.max_steps=1", "method=full")
        main([str(tmp_path / "lora"), "--to", str(tmp_path / "merged"), "--format", "merged"])
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.name for path in files}
    assert kinds >= {"result.json", "init.csv", "last.ckpt", "adapter_model.safetensors", "model.safetensors"}
    assert [str(path) for path in files if path.stat().st_mode & 0o777 != 0o644] == []
