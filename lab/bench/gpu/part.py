"""One part of the suite gpu in a process of its own.      python -m lab.bench.gpu.part NAME TINY FOLDER"""

import importlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from typing import Any

from lab.bench import with_one_gpu

ROWS, LOG = "rows.jsonl", "log.txt"
LAST_LINES = 40  # of what a part said, kept where it was not done


class Started:
    """A part whose imports are under way, and which waits to be told to go."""

    def __init__(self, name: str, tiny: bool, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        with (folder / LOG).open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lab.bench.gpu.part", name, str(int(tiny)), str(folder)],
                env=with_one_gpu(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it, and all that it starts, can be ended together
            )

    def go(self, deadline: float) -> dict[str, Any]:
        """Let it measure for at most so many seconds; its status, seconds, rows, and its error or None."""
        began = time.monotonic()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and its log says of what
            self.process.stdin.write(b"go\n")
            self.process.stdin.close()
        try:
            code = self.process.wait(deadline)
            status, error = ("done", None) if code == 0 else ("failed", self._last_words(code))
        except subprocess.TimeoutExpired:
            status, error = "timed out", f"killed after {deadline:.0f} s"
        finally:
            self.end()
        seconds = time.monotonic() - began
        row = {"status": status, "seconds": seconds, "deadline": deadline, "rows": self._rows(), "error": error}
        return row if status == "done" else row | {"log": self._said()[-LAST_LINES:]}

    def end(self) -> None:
        """Kill it with all that it has started, whether or not it has ended itself."""
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _rows(self) -> list[dict[str, Any]]:
        path = self.folder / ROWS
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]  # a kill cuts one

    def _last_words(self, code: int) -> str:
        said = self._said()
        return f"exit code {code}: {said[-1][:500] if said else 'it said nothing'}"

    def _said(self) -> list[str]:
        return (self.folder / LOG).read_text(errors="replace", encoding="utf-8").strip().splitlines()


def finite(value: Any) -> Any:
    """Plain types for strict JSON: a number that is not finite is its name."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def processes() -> ForkContext | SpawnContext:
    """How a part starts others: as copies of itself, or anew where CUDA is awake, which bitsandbytes' import can do."""
    import torch

    awake = torch.cuda.is_initialized()
    return multiprocessing.get_context("spawn") if awake else multiprocessing.get_context("fork")


def main() -> None:
    """Import the part, wait for the word, and write its rows; ends with 1 and the error's own line where it fails."""
    name, tiny, folder = sys.argv[1], bool(int(sys.argv[2])), Path(sys.argv[3])
    part = importlib.import_module(f"lab.bench.gpu.{name}")
    if sys.stdin.readline() != "go\n":
        sys.exit("it was not told to go.")
    try:
        with (folder / ROWS).open("a", buffering=1, encoding="utf-8") as file:
            for row in part.rows(tiny):
                file.write(json.dumps(finite(row), allow_nan=False) + "\n")
    except Exception as error:
        traceback.print_exc()
        message = " ".join(str(error).split())
        sys.exit(f"{type(error).__name__}: {message}")


if __name__ == "__main__":
    main()
