"""The tests that need a GPU, run as pytest runs them."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from lab.paths import PACKAGE

TESTS = PACKAGE.parent / "tests" / "gpu"
BESIDE = 6  # tests on the card at once
ENDED = re.compile(r"^\[gw\d+\] \[ *\d+%\] (?P<outcome>PASSED|FAILED|ERROR|SKIPPED) (?P<test>\S.*)$")  # xdist's line


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """A row as each test ends; then one of pytest's last line and of what failed or was skipped, with the reason.

    Raises RuntimeError, behind the rows, where a test has failed.
    """
    absent = [name for name in ("pytest", "pytest_timeout", "xdist") if importlib.util.find_spec(name) is None]
    if absent or not TESTS.is_dir():
        yield {"skipped": f"{' and '.join(absent)} not installed" if absent else f"{TESTS} is not there: no checkout"}
        return
    line = [sys.executable, "-m", "pytest", "-o", "addopts=", "-m", "gpu", "-v", "-rfEs", "--tb=short"]
    line += ["--durations=10", "-n", str(BESIDE), str(TESTS)]
    environment = {**os.environ, "COLUMNS": "400"}  # of a line that pytest shortens
    with subprocess.Popen(
        line, cwd=PACKAGE.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as tests:
        assert tests.stdout is not None
        told: list[str] = []
        said = ""
        for said in map(str.strip, tests.stdout):
            print(said, flush=True)
            if ended := ENDED.search(said):
                yield {"test": ended["test"], "outcome": ended["outcome"].lower()}
            elif said.startswith(("FAILED", "ERROR", "SKIPPED", "E ")):
                told.append(said)
    yield {"exit_code": tests.returncode, "summary": said.strip("= "), "told": told}
    if tests.returncode != 0:
        raise RuntimeError(f"pytest -m gpu ended with {tests.returncode}")
