"""Advice before a study, or beside one; no verdict.      python -m lab.suggest rank RUN | lr [overrides]"""

import argparse
import math
import sys
from pathlib import Path

from lab import command
from lab.errors import UsageError


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = command.Parser(prog="lab-suggest", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="rank | lr")
    rank = kinds.add_parser("rank", help="which smaller rank keeps a wide run's gain, by cutting its adapter")
    rank.add_argument("run", type=command.path, metavar="RUN", help="a completed LoRA run's directory")
    rank.add_argument("--to", type=command.path, metavar="DIR", help="a folder, such as RUN, for suggest_rank.json")
    rank.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=command.TRUST)
    lr = kinds.add_parser("lr", help="a learning rate for a run that was not made yet")
    lr.add_argument("overrides", nargs="*", help="as of lab.train: init=pissa rank=64 …")
    lr.add_argument("--anchor", type=float, metavar="RATE", help="plain LoRA's best rate on this model, where known")
    lr.add_argument("--examples", type=int, metavar="N", help="training examples that the curvature is of")
    lr.add_argument("--check", action="store_true", help="train a tenth of the steps at the rate and beside it")
    given = parser.parse_args(arguments)
    sys.path.append(str(Path.cwd()))  # a class of the user's own
    try:
        {"rank": _rank, "lr": _lr}[given.kind](given)
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


def _lr(given: argparse.Namespace) -> None:
    from lab.config.suggest import composed
    from lab.launch import checks
    from lab.launch.worker import quiet_not_ours
    from lab.suggest import lr

    quiet_not_ours()
    examples = lr.EXAMPLES if given.examples is None else given.examples
    if given.anchor is not None and not 0 < given.anchor < math.inf:
        raise UsageError(f"--anchor {given.anchor:g} is no learning rate; give one above 0, such as 3e-4.")
    if examples < 1:
        raise UsageError(f"--examples {examples} leaves nothing to look at; give 1 or more.")
    config = composed(given.overrides)
    checks.early(config)
    predicted = lr.predict(config, given.anchor, examples)
    print("\n".join([*predicted.reasons(), f"optim.lr={predicted.rate:g}: {lr.LICENCE}"]))
    if given.check:
        losses = lr.check(config, predicted.rate)
        for rate, loss in losses.items():
            print(f"  optim.lr={rate:<8g} validation loss {loss:.4f}" + " *" * (loss == min(losses.values())))


if __name__ == "__main__":
    main()
