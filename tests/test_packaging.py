"""The wheel: what it carries, and that it runs from any folder, with a user's own class, without the checkout."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from jobs import SMALL

from lab import record

CHECKOUT = Path(__file__).resolve().parent.parent

MINE = '''
"""A scheme of somebody else's."""

from dataclasses import dataclass

import torch

from lab.init import Factors


@dataclass(frozen=True, kw_only=True)
class Ones:
    size: float

    @property
    def needs(self):
        return frozenset()

    def factors(self, target, weight, rank, scaling, evidence, generator):
        out, inner = target.shape
        return Factors(A=torch.full((rank, inner), self.size), B=torch.zeros(out, rank))
'''

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the checkout, built by its own backend."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel, installed where nothing of the checkout is; its dependencies are those of this interpreter."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, text=True)
    return folder


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A user's folder with a class and a YAML of their own."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "conf" / "init").mkdir(parents=True)
    (tmp_path / "conf" / "init" / "mine.yaml").write_text("_target_: mine.Ones\nsize: 0.5\n")
    return tmp_path


def run(command: list[str], installed: Path, cwd: Path) -> str:
    """Standard output of a command that sees the installed package and not the checkout; fails with its error."""
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_carries_every_config_and_asset_and_no_test(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"lab/conf/{path.relative_to(CHECKOUT / 'conf')}" for path in (CHECKOUT / "conf").rglob("*.yaml")}
    expected |= {
        str(path.relative_to(CHECKOUT))
        for path in (CHECKOUT / "lab").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    assert not [name for name in names if name.startswith(("tests/", "conf/", "docs/"))]


def test_every_console_script_exists_and_answers(installed, tmp_path):
    scripts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {path.name for path in (installed / "bin").iterdir()} >= set(scripts)
    for script in scripts:
        assert run([str(installed / "bin" / script), "--help"], installed, tmp_path).strip()


def test_module_and_script_read_the_installed_config(installed, tmp_path):
    where = run([sys.executable, "-c", "import lab.config; print(lab.config.CONF)"], installed, tmp_path)
    assert Path(where.strip()) == installed / "lab" / "conf"
    for command in ([sys.executable, "-m", "lab.train"], [str(installed / "bin" / "lab-train")]):
        assert "rank: 7" in run([*command, "rank=7", "--cfg", "job"], installed, tmp_path)


def test_hydra_finds_the_wheels_own_sweeper_for_studies(installed, tmp_path):
    where = "import hydra_plugins.lab_study_sweeper as plugin; print(plugin.__file__)"
    assert Path(run([sys.executable, "-c", where], installed, tmp_path).strip()).is_relative_to(installed)
    said = run([str(installed / "bin" / "lab-train"), "experiment=rank_sweep", "dry_run=true"], installed, tmp_path)
    assert "76 to 124 jobs, 0 done" in said


def test_users_own_class_composes_and_trains_from_an_installed_wheel(installed, elsewhere):
    script = [str(installed / "bin" / "lab-train"), "--config-dir=./conf", "init=mine"]
    assert "_target_: mine.Ones" in run([*script, "--cfg", "job"], installed, elsewhere)
    small = [*SMALL, "schedule.max_steps=2", "evaluate.accuracy=false", "hydra.run.dir=out"]
    run([*script, *small], installed, elsewhere)
    result = record.read(elsewhere / "out")
    assert result.status == "completed"
    assert result.choices["init"] == "mine"
    assert result.init["modules_initialised"] == result.init["modules_targeted"] == 14
