"""A command in this process, as a user's shell would start it: its exit code, what it said, and nothing left of it."""

import io
import logging
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line of an ending that a user's mistake has."""
        assert self.code != 0, self.out
        (line,) = self.err.strip().splitlines()
        return line


def call(main: Callable[[], object], *arguments: str, cwd: Path) -> Said:
    """Run a console script's function; an exception that it lets through is a failure of the test."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        environment = dict(os.environ)
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["lab", *arguments])
        patch.setattr(sys, "path", list(sys.path))
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):  # as the interpreter does at its end
                print(code, file=sys.stderr)
                code = 1
        finally:
            os.environ.clear()
            os.environ.update(environment)
            for handler in [each for each in root.handlers if each not in handlers]:
                root.removeHandler(handler)
                handler.close()
            for handler in [each for each in handlers if each not in root.handlers]:
                root.addHandler(handler)
            root.setLevel(level)
    return Said(int(code or 0), out.getvalue(), err.getvalue())


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with its size and time of change: equal trees mean that nothing was touched."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_size if path.is_file() else 0, status.st_mtime_ns)
    return found
