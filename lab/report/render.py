"""Rendering of a report: prose, page, tables, figures and data, all from one analysis."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lab.errors import UsageError, visible
from lab.record import strict
from lab.report import document, findings
from lab.report.analysis import Analysis, all_results, run_row
from lab.report.decision import decision
from lab.report.document import Block, Bullets, Figure, Heading, Paragraph, Table
from lab.report.figure import drawings, style
from lab.report.latex import latex
from lab.report.methods import methods
from lab.report.sentences import aa_paragraph, sentence
from lab.report.tensorboard import write_events

FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four as wide as a kanji
NARROWEST = 120  # columns of a console that is no terminal: a log keeps whole tables


def write_report(analysis: Analysis, folder: Path) -> Path:
    """Write everything of design §3 into a folder, replacing an older report there; returns README.md.

    Raises UsageError where the folder cannot be written.
    """
    check_place(folder)
    try:
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        drawn, not_drawn = _draw(analysis, folder)
        blocks = findings.report(analysis, drawn, not_drawn)
        title = analysis.study.name
        prose = document.markdown(blocks)
        (folder / "README.md").write_text(prose, encoding="utf-8")
        write_events(analysis, prose, folder / "tensorboard")
        (folder / "report.html").write_text(document.page(title, blocks, folder), encoding="utf-8")
        (folder / "methods.md").write_text(methods(analysis), encoding="utf-8")
        _json(folder / "all_results.json", all_results(analysis))
        _json(folder / "comparisons.json", [row.row() for row in analysis.comparisons])
        _json(folder / "decision.json", decision(analysis))
        _runs(folder / "runs.csv", analysis)
        for old in (folder / "tables").glob("*.tex"):
            old.unlink()
        for block in blocks:
            if isinstance(block, Table):
                (folder / "tables" / f"{block.name}.tex").write_text(latex(block), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"could not write the report to {folder}: {error.strerror}; choose a folder with --to."
        ) from error
    return folder / "README.md"


def check_place(folder: Path) -> None:
    """Raise UsageError where what is written into a folder would land elsewhere."""
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_symlink():
            raise UsageError(f"{path} is a link to {path.readlink()}, and a report replaces files; remove the link.")


def _draw(analysis: Analysis, folder: Path) -> tuple[list[Figure], list[str]]:
    """Draw what can be drawn; returns the figures, and a phrase for each that has nothing to show."""
    drawn, not_drawn = [], []
    for drawing in drawings():
        paths = [folder / f"{drawing.name}{ending}" for ending in (".png", ".pdf", "_column.pdf")]
        for path in paths:
            path.unlink(missing_ok=True)
        figure, column = drawing.figure(analysis), drawing.column(analysis)
        if figure is None or column is None:
            not_drawn += [f"{drawing.name.replace('_', ' ')} ({drawing.nothing})"] if drawing.nothing else []
        else:
            for each, path in zip((figure, figure, column), paths, strict=True):
                style.save(each, path)
            drawn.append(Figure(drawing.name, drawing.caption_of(analysis), drawing.section))
    return drawn, not_drawn


def _json(path: Path, content: object) -> None:
    text = json.dumps(strict(content), indent=2, allow_nan=False, ensure_ascii=False)
    seen = "".join(each if each == "\n" or visible(each) == each else f"\\u{ord(each):04x}" for each in text)
    path.write_text(seen + "\n", encoding="utf-8")


def _runs(path: Path, analysis: Analysis) -> None:
    rows = [strict(run_row(run, analysis.switching.get(run.path))) for run in analysis.study.runs]
    columns = list(dict.fromkeys(column for row in rows for column in row)) or ["run", "status"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")  # as git keeps it
        writer.writerow([_plain(column) for column in columns])
        writer.writerows([_plain(row.get(column, "")) for column in columns] for row in rows)  # None: an empty cell


def _plain(value: object) -> object:
    """A cell that no spreadsheet takes for a formula; a number stays one."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) or text.startswith(("\t", "\n")) else text


def show(blocks: Sequence[Block]) -> None:
    """Print blocks to the console; nothing in them is read as markup."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(NARROWEST, console.width))
    for block in blocks:
        match block:
            case Heading(text):
                console.print(Text(visible(text), style="bold"))
            case Paragraph(text):
                console.print(Text(visible(text)))
            case Bullets(items):
                for item in items:
                    console.print(Text(visible(f"- {item}")))
            case Table():
                table = RichTable(title=Text(visible(block.caption)), title_justify="left", show_edge=False)
                for index, column in enumerate(block.columns):
                    is_text = index == 0 or column in block.text
                    table.add_column(Text(visible(column)), justify="left" if is_text else "right", overflow="fold")
                for row in block.rows:
                    table.add_row(*(Text(visible(cell)) for cell in row))
                console.print(table)
                console.print()


def summary(analysis: Analysis) -> list[Block]:
    """Summary of a report for the console: the headline, a sentence per contrast, two tables, and the gaps."""
    blocks: list[Block] = [Paragraph(line) for line in findings.headline(analysis)]
    blocks.append(Bullets([sentence(row) for row in analysis.contrasts]))
    blocks += [Paragraph("The baseline against itself: " + aa_paragraph(analysis)), *findings.console(analysis)]
    missing, problems = analysis.study.missing, analysis.study.problems
    if missing:
        blocks.append(Paragraph(f"{len(missing)} declared verdict jobs have no run yet; README.md lists them."))
    if problems:
        blocks.append(Paragraph(f"{len(problems)} things could not be read and were left out:"))
        blocks.append(Bullets([f"{problem.path.name}: {problem.reason}" for problem in problems]))
    return blocks
