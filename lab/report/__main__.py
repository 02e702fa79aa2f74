"""Read a study and write its report.      python -m lab.report multirun/rank_sweep/2026-01-01_12-00-00"""

import argparse
import sys
from pathlib import Path

from lab import command
from lab.errors import UsageError
from lab.record import RESULT

MARKS = ("all_results.json", "comparisons.json")  # which every report has had, and nobody writes by hand


def main() -> None:
    """Report a study, compare two, or show the card of one run; exit code 2 for a user's mistake.

    1 where every contrast was refused because data or base models differ.
    """
    parser = command.Parser(
        prog="lab-report",
        description="Report a study, compare two studies, or show the card of a single run. Needs no GPU and no torch.",
    )
    parser.add_argument("study", type=command.path, nargs="?", help="a study directory, or a single run's")
    parser.add_argument("study2", type=command.path, nargs="?", help="a second study, judged against the first")
    parser.add_argument("--baseline", help="the arm that others are compared with (default: as declared)")
    parser.add_argument("--margin", help="equivalence margin, in units of the metric or as 1%% of the baseline")
    parser.add_argument("--to", type=command.path, help="where the report goes (default: STUDY/report)")
    parser.add_argument(
        "--calibration", type=command.path, nargs="+", metavar="DIR", help="how often these studies' A/A arms differed"
    )
    options = parser.parse_args()
    if options.calibration and (options.study or options.baseline or options.margin or options.to):
        parser.error("--calibration reads the studies named behind it, and takes nothing else.")
    if not (options.study or options.calibration):
        parser.error("the following arguments are required: study")
    if options.calibration:
        try:
            _calibrate(options.calibration)
        except UsageError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        return
    print(f"Reading {options.study}{f' and {options.study2}' if options.study2 else ''}", flush=True)
    try:
        sys.exit(report(options))
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _calibrate(directories: list[Path]) -> None:
    from lab.report.calibration import calibration
    from lab.report.render import show

    show(calibration(directories))


def report(options: argparse.Namespace) -> int:
    """Do what the command line asks; the exit code."""
    from lab.report import load_run, load_study

    if (options.study / RESULT).exists():
        if options.study2 or options.baseline or options.margin or options.to:
            raise UsageError(f"{options.study} is a single run, which is not compared; name the study that holds it.")
        from lab.report.card import card
        from lab.report.render import show

        show(card(load_run(options.study)))
        return 0
    first = load_study(options.study)
    second = load_study(options.study2) if options.study2 else None
    for study in filter(None, (first, second)):
        if not (study.declared or study.runs or study.problems):
            raise UsageError(
                f"{study.path} holds no run and no study; name a study, such as multirun/rank_sweep/<time>."
            )
    if options.to is None and (first.path / "report").is_symlink():
        raise UsageError(f"{first.path / 'report'} is a link; remove it, or choose a folder with --to.")
    folder = options.to or first.path / "report" / (f"vs_{second.path.name}" if second else "")
    command.check_folder(folder, f"--to {folder}")
    if options.to is not None:
        _check_replaceable(folder)
    # numpy, scipy and matplotlib take a second or two, and a wrong path should not.
    from lab.report.analysis import analysis_of
    from lab.report.pair import analyse_pair
    from lab.report.render import show, summary, write_report

    chosen = {"baseline": options.baseline, "margin": options.margin}
    analysis = analyse_pair(first, second, **chosen) if second else analysis_of(first, **chosen)
    show(summary(analysis))
    print(f"Report: {write_report(analysis, folder)}")
    refused = [row.reason for row in analysis.contrasts if row.reason.startswith("refused")]
    if refused and len(refused) == len(analysis.contrasts):
        print(f"Nothing was compared; {refused[0]}", file=sys.stderr)
        return 1
    return 0


def _check_replaceable(folder: Path) -> None:
    """Raise UsageError where a report would replace files that are no earlier report's."""
    earlier = all((folder / name).is_file() for name in MARKS)
    if folder.is_dir() and any(folder.iterdir()) and not earlier:
        raise UsageError(
            f"--to {folder} is not empty and holds no earlier report, whose files a new one replaces; choose a new "
            "folder, or remove what lies there."
        )


if __name__ == "__main__":
    main()
