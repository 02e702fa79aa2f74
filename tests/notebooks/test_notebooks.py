"""The notebooks run from top to bottom, and hold no output."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
from synthetic import init_comparison, rank_sweep

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
STUDIES = {"read_a_study": init_comparison, "choose_a_rank": rank_sweep, "spectra_of_a_base": None}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_every_notebook_is_run_here():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_a_notebook_holds_no_output(name):
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.parametrize("name", STUDIES)
def test_a_notebook_imports_the_lab_before_torch_reads_its_settings(name):
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    first = {module: text.find(f'"import {module}') for module in ("lab", "torch")}
    assert first["torch"] == -1 or 0 < first["lab"] < first["torch"]


@pytest.mark.parametrize("name", STUDIES)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    make = STUDIES[name]
    if make is not None:
        make(tmp_path / "study")
        monkeypatch.setenv("LAB_STUDY", str(tmp_path / "study"))
    monkeypatch.setenv("PYTHONPATH", f"{NOTEBOOKS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("MPLBACKEND", "agg")
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    kernel = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(book, timeout=200, kernel_name="python3", resources=kernel).execute()
    printed = "".join(out.get("text", "") for cell in book.cells for out in cell.get("outputs", []))
    assert len(printed.splitlines()) > 10
