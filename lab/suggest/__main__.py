"""Advice before a study, or beside one; no verdict.      python -m lab.suggest rank RUN"""

import argparse
import sys
from pathlib import Path

from lab import command
from lab.errors import UsageError


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = command.Parser(prog="lab-suggest", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="rank")
    rank = kinds.add_parser("rank", help="which smaller rank keeps a wide run's gain, by cutting its adapter")
    rank.add_argument("run", type=command.path, metavar="RUN", help="a completed LoRA run's directory")
    rank.add_argument("--to", type=command.path, metavar="DIR", help="a folder, such as RUN, for suggest_rank.json")
    rank.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=command.TRUST)
    given = parser.parse_args(arguments)
    sys.path.append(str(Path.cwd()))  # a class of the user's own
    try:
        _rank(given)
    except UsageError as error:
        sys.exit(str(error))


def _rank(given: argparse.Namespace) -> None:
    from lab import record
    from lab.config import trust
    from lab.launch.worker import quiet_not_ours
    from lab.suggest import tables
    from lab.suggest.rank import FILE, curve

    quiet_not_ours()
    trust.allow_each(given.trust)
    if given.to is not None:
        command.check_folder(given.to, f"--to {given.to}")
    found = curve(given.run)
    tables.show_curve(found)
    if given.to is not None:
        given.to.mkdir(parents=True, exist_ok=True)
        record.write_json(given.to / FILE, found.plain(), "--to")
        print(f"wrote {given.to / FILE}")


if __name__ == "__main__":
    main()
