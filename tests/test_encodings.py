"""Every text file of ours is UTF-8, whatever the locale: a `→` in one ends no job, and another machine can read it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import with_checkout

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ("os", "gzip", "tarfile")  # whose `open` is of bytes


def of_the_locale(node: ast.Call) -> bool:
    """True for a call that opens a text file in the encoding of the locale."""
    function, given = node.func, {each.arg for each in node.keywords}
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if "encoding" in given or (isinstance(function, ast.Attribute) and ast.unparse(function.value) in OTHERS):
        return False
    if name == "open":
        modes = node.args[0 if isinstance(function, ast.Attribute) else 1 :][:1]
        modes += [each.value for each in node.keywords if each.arg == "mode"]
        return not any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)
    return name in ("read_text", "write_text", "FileHandler") or (name == "basicConfig" and "filename" in given)


def test_no_text_file_is_opened_in_the_encoding_of_the_locale():
    found = []
    for path in sorted([*ROOT.glob("lab/**/*.py"), *ROOT.glob("hydra_plugins/**/*.py")]):
        name = str(path.relative_to(ROOT))
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        found += [f"{name}:{node.lineno}" for node in calls if of_the_locale(node)]
    assert found == []


@pytest.mark.parametrize("what", ["console.log", "train.log"])
def test_what_a_job_says_is_kept_in_a_locale_without_the_letters(what, tmp_path):
    """A process whose locale is ASCII, and which Python is kept from taking for UTF-8."""
    writes = {
        "console.log": "with beside.one_line(folder): print('1 \\u2192 2')",
        "train.log": "worker._log_to_file(folder, 0); logging.info('1 \\u2192 2')",
    }
    code = f"import logging, pathlib\nfrom lab.launch import beside, worker\nfolder = pathlib.Path('.')\n{writes[what]}"
    env = {**with_checkout(), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 → 2" in (tmp_path / what).read_text("utf-8")
