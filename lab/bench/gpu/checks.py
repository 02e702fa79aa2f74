"""The tests that need a GPU, run as pytest runs them."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from lab.paths import PACKAGE

TESTS = PACKAGE.parent / "tests" / "gpu"


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """One row: pytest's last line, and a line for each test that failed or was skipped, with the reason.

    Raises RuntimeError, behind the row, where a test has failed.
    """
    absent = [name for name in ("pytest", "pytest_timeout") if importlib.util.find_spec(name) is None]
    if absent or not TESTS.is_dir():
        yield {"skipped": f"{' and '.join(absent)} not installed" if absent else f"{TESTS} is not there: no checkout"}
        return
    line = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfEs", "--tb=line", str(TESTS)]
    done = subprocess.run(line, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    said = done.stdout.strip().splitlines()
    told = [each for each in said if each.startswith(("FAILED", "ERROR", "SKIPPED", "E "))]
    yield {"exit_code": done.returncode, "summary": said[-1] if said else done.stderr[-500:], "told": told}
    if done.returncode != 0:
        raise RuntimeError(f"pytest -m gpu ended with {done.returncode}")
