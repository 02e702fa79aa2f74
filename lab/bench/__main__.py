"""Speed, side by side in one call.      python -m lab.bench [SUITE] [--quick]"""

import argparse
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from lab import command
from lab.bench import BUDGET, MODELS, SPECTRA, lacks
from lab.errors import UsageError
from lab.paths import CONF

SUITES = ("train", "job", "init", "spectral", "pretrain", "study", "trainer", "waits", "switch", "gpu")
RESULTS = "multirun/bench"
LEAST_SIDE = 32  # of a layer of the suite `init`: lora_ga takes twice the rank of 16
OWN = {  # options of one suite
    "model": "train",
    "batch": "train",
    "shapes": "init",
    "spectra": "init",
    "schemes": "init",
    "busy": "job",
    "overrides": "trainer",
    "budget": "gpu",
    "tiny": "gpu",
}
LINES = ("init", "gpu")  # the longest suites: what is finished is kept if they are cut short


def main(arguments: list[str] | None = None) -> None:
    """Run one suite; rows go to the console and to bench_<suite>.json, among the runs unless told otherwise."""
    schemes = sorted(path.stem for path in (CONF / "init").glob("*.yaml"))
    parser = command.Parser(prog="lab-bench", description=__doc__)
    parser.add_argument("suite", nargs="?", choices=SUITES, default="train")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repeats")
    parser.add_argument("--to", type=command.path, default=None, metavar="DIR", help=f"where the JSON goes ({RESULTS})")
    parser.add_argument("--model", choices=MODELS, help="train: the base, the shipped one unless told otherwise")
    parser.add_argument("--batch", type=_count, metavar="N", help="train: examples a step (16; of 135m 8)")
    parser.add_argument("--busy", action="store_true", help="job: the default job, alone and beside busy processes")
    parser.add_argument(
        "--overrides", nargs="+", metavar="KEY=VALUE", help="trainer: another job, in the words of lab.train"
    )
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="OUTxIN", help="init: these layers and no model")
    parser.add_argument("--spectra", nargs="+", choices=SPECTRA, help="init: these spectra of the layers")
    parser.add_argument("--schemes", nargs="+", choices=schemes, metavar="NAME", help="init: these and no model")
    parser.add_argument("--budget", type=_count, metavar="SECONDS", help=f"gpu: for all its parts together ({BUDGET})")
    parser.add_argument("--tiny", action="store_true", help="gpu: every shape shrunk, to try the script, on a CPU too")
    given = parser.parse_args(arguments)
    own: dict[str, Any] = {name: value for name in OWN if (value := getattr(given, name))}
    strange = [name for name in own if OWN[name] != given.suite]
    if strange:
        parser.error(f"--{strange[0]} is of the suite {OWN[strange[0]]} and has no meaning for {given.suite}.")
    if given.suite == "gpu" and given.quick:
        parser.error("--quick has no meaning for gpu, which has --tiny, and --budget SECONDS.")
    to = Path(RESULTS) if given.to is None else given.to
    if given.to is None:
        to.mkdir(parents=True, exist_ok=True)
    if not to.is_dir():
        sys.exit(f"--to {to} is no folder.")
    try:
        suite = importlib.import_module(f"lab.bench.{given.suite}")
        path = to / f"bench_{given.suite}.json"
        if given.suite in LINES:
            own["lines"] = path.with_suffix(".jsonl")
        rows = suite.run(quick=given.quick, **own)
    except UsageError as error:
        sys.exit(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "lab":
            raise
        sys.exit(lacks(given.suite, [error.name]))
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def _count(text: str) -> int:
    if re.fullmatch(r"[1-9]\d{0,5}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 999999")
    return int(text)


def _shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None or min(int(match[1]), int(match[2])) < LEAST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is no layer of at least {LEAST_SIDE} a side, such as 4096x11008.")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    main()
