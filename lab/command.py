"""Command lines: paths as users write them, mistakes in one sentence, any console. Standard library only."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from lab.errors import UsageError
from lab.paths import at_home

TRUST = "run this package's code where a directory that was not started here names it"


class Parser(argparse.ArgumentParser):
    """argparse's, answering a mistake with one sentence; a folder may be named `-run` where one lies there."""

    def parse_known_args(  # type: ignore[override]  # its overloads say no more
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse's, behind a console that can show everything."""
        show_everything()
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args(list(self._plain(given)), namespace)

    def _plain(self, arguments: Iterable[str]) -> Iterable[str]:
        for argument in arguments:
            option = argument.split("=", 1)[0] in self._option_string_actions
            named = argument.startswith("-") and not option and os.path.lexists(argument)
            yield f"./{argument}" if named else argument

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help says what it takes.\n")


def path(text: str) -> Path:
    """An argument that is a path, `~` being the home; argparse's complaint where it is empty."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path names nothing")
    return Path(at_home(text))


def check_folder(folder: Path, named: str) -> None:
    """Raise UsageError where no folder can be made, or written to, at that place; `named` is how the user gave it."""
    above = folder.absolute()
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise UsageError(f"{named} cannot be a folder: {above} is none; choose another place.")
    if not os.access(above, os.W_OK):
        raise UsageError(f"{named} cannot be written: {above} is read-only; choose another place.")


def show_everything(streams: Sequence[TextIO | Any] | None = None) -> None:
    """Let the console show `?` for a character that its encoding lacks, here and in the processes started from here.

    An encoding such as ASCII would otherwise end a run at its first `·`.
    """
    for stream in (sys.stdout, sys.stderr) if streams is None else streams:
        if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    encoding = os.environ.get("PYTHONIOENCODING")
    if encoding and ":" not in encoding:
        os.environ["PYTHONIOENCODING"] = f"{encoding}:replace"
