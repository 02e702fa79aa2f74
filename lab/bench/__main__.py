"""Speed, side by side in one call.      python -m lab.bench [SUITE] [--quick]"""

import argparse
import importlib
import json
import sys
from pathlib import Path

SUITES = ("train", "job", "init", "spectral", "pretrain")


def main(arguments: list[str] | None = None) -> None:
    """Run one suite, or list them; rows go to the console and to bench_<suite>.json."""
    parser = argparse.ArgumentParser(prog="lab-bench", description=__doc__)
    parser.add_argument("suite", nargs="?", choices=SUITES, default="train")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repeats")
    parser.add_argument("--to", type=Path, default=Path.cwd(), metavar="DIR", help="where the JSON goes")
    given = parser.parse_args(arguments)
    if not given.to.is_dir():
        sys.exit(f"--to {given.to} is no folder.")
    suite = importlib.import_module(f"lab.bench.{given.suite}")
    rows = suite.run(quick=given.quick)
    path = given.to / f"bench_{given.suite}.json"
    path.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
