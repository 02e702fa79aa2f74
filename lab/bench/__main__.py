"""Speed, side by side in one call.      python -m lab.bench [SUITE] [--quick]"""

import argparse
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from lab import command
from lab.bench import SPECTRA
from lab.config import CONF

SUITES = ("train", "job", "init", "spectral", "pretrain")
RESULTS = "multirun/bench"
LEAST_SIDE = 32  # of a layer of the suite `init`: lora_ga takes twice the rank of 16


def main(arguments: list[str] | None = None) -> None:
    """Run one suite; rows go to the console and to bench_<suite>.json, among the runs unless told otherwise."""
    schemes = sorted(path.stem for path in (CONF / "init").glob("*.yaml"))
    parser = command.Parser(prog="lab-bench", description=__doc__)
    parser.add_argument("suite", nargs="?", choices=SUITES, default="train")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repeats")
    parser.add_argument("--to", type=command.path, default=None, metavar="DIR", help=f"where the JSON goes ({RESULTS})")
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="OUTxIN", help="init: these layers and no model")
    parser.add_argument("--spectra", nargs="+", choices=SPECTRA, help="init: these spectra of the layers")
    parser.add_argument("--schemes", nargs="+", choices=schemes, metavar="NAME", help="init: these and no model")
    given = parser.parse_args(arguments)
    narrowings = ("shapes", "spectra", "schemes")
    narrowed: dict[str, Any] = {name: value for name in narrowings if (value := getattr(given, name))}
    if narrowed and given.suite != "init":
        parser.error(f"--{min(narrowed)} narrows the suite init and has no meaning for {given.suite}.")
    to = Path(RESULTS) if given.to is None else given.to
    if given.to is None:
        to.mkdir(parents=True, exist_ok=True)
    if not to.is_dir():
        sys.exit(f"--to {to} is no folder.")
    suite = importlib.import_module(f"lab.bench.{given.suite}")
    path = to / f"bench_{given.suite}.json"
    if given.suite == "init":  # the longest: what is finished is kept if it is cut short
        narrowed["lines"] = path.with_suffix(".jsonl")
    rows = suite.run(quick=given.quick, **narrowed)
    path.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"wrote {path}")


def _shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None or min(int(match[1]), int(match[2])) < LEAST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is no layer of at least {LEAST_SIDE} a side, such as 4096x11008.")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    main()
