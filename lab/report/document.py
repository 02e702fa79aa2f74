"""Document: a report as blocks, and these as Markdown and HTML; everything is escaped."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.errors import visible

MISSING = "–"  # a value nobody measured; never 0


@dataclass(frozen=True)
class Heading:
    """A section's title; level 1 is the report's own."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Prose, on one line however long."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Statements of equal weight."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells already formatted; the first column is text, the others are numbers unless named in `text`.

    Columns named in `screen` are left out of the LaTeX file, which must fit a paper's column: raw names and side facts.
    """

    name: str  # of its file: tables/<name>.tex
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[str] = field(default=())
    screen: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Figure:
    """A drawn figure, by the stem of its files."""

    name: str
    caption: str
    section: str  # heading under which it is shown


Block = Heading | Paragraph | Bullets | Table | Figure


def number(value: float | None, digits: int = 4) -> str:
    """A number for a reader: fixed digits where it is of ordinary size, a thousands separator where it is large.

    What fixed digits would show as nothing keeps its leading ones: 3e-05, and 0.04 where one digit is asked for.
    """
    if value is None:
        return MISSING
    least = max(0.001, 10.0**-digits)
    return _written(value, digits, least, "-")


def signed(value: float | None, digits: int = 4) -> str:
    """A difference, with its sign; written as a number is, and to its last fixed digit."""
    if value is None:
        return MISSING
    return _written(value, digits, 10.0**-digits, "+")


def counted(n: int, noun: str) -> str:
    """A number of things: 1 pair, 4 pairs."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _written(value: float, digits: int, least: float, sign: str) -> str:
    """A value in fixed digits unless it is smaller than the `least`, or large."""
    size = abs(value)
    if size == 0 or least <= size < 1000:
        return f"{abs(value) if value == 0 else value:{sign}.{digits}f}"
    return f"{value:{sign},.0f}" if 1000 <= size < 1e9 else f"{value:{sign}.{3 if size >= 1e9 or digits > 2 else 2}g}"


def p_text(value: float | None) -> str:
    """A p value; below a thousandth only that it is."""
    return MISSING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def span(values: Iterable[float | None]) -> str:
    """Whole numbers as one where they agree, else from the smallest to the largest."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return MISSING
    return f"{known[0]:,.0f}" if known[0] == known[-1] else f"{known[0]:,.0f} to {known[-1]:,.0f}"


def markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; figures lie beside the file."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {in_markdown(text)}")
            case Paragraph(text):
                parts.append(in_markdown(text))
            case Bullets(items):
                parts.append("\n".join(f"- {in_markdown(item)}" for item in items))
            case Figure(name, caption):
                parts.append(f"![{in_markdown(caption)}]({name}.png)\n\n*{in_markdown(caption)}*")
            case Table():
                rule = ["---" if c in block.text or i == 0 else "---:" for i, c in enumerate(block.columns)]
                rows = [list(map(_cell, block.columns)), rule, *(list(map(_cell, row)) for row in block.rows)]
                parts.append(in_markdown(block.caption) + "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts) + "\n"


def flat(text: str) -> str:
    return visible(" ".join(text.split()))


def _escape(text: str) -> str:
    return html.escape(visible(text))


def in_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no tags, no emphasis, no links, one line."""
    return re.sub(r"([\\`*]|<(?=[A-Za-z/!?])|^>|(?<=\])\(|(?<!\w)_|_(?!\w)|^#|^[-+](?= ))", r"\\\1", flat(text))


def _cell(text: str) -> str:
    return in_markdown(text).replace("|", "\\|")


def page(title: str, blocks: Sequence[Block], figures: Path) -> str:
    """One self-contained HTML file: style and pictures inside, no script, nothing fetched."""
    body = "\n".join(_html(block, figures) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _html(block: Block, figures: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_escape(item)}</li>" for item in items) + "</ul>"
        case Figure(name, caption):
            data = base64.b64encode((figures / f"{name}.png").read_bytes()).decode()
            shown = _escape(caption)
            return (
                f'<figure><img src="data:image/png;base64,{data}" alt="{shown}">'
                f"<figcaption>{shown}</figcaption></figure>"
            )
        case Table():
            left = [i == 0 or column in block.text for i, column in enumerate(block.columns)]
            rows = [
                "".join(
                    f"<{tag}{' class=t' if is_left else ''}>{_escape(cell)}</{tag}>"
                    for cell, is_left in zip(row, left, strict=True)
                )
                for tag, row in [("th", block.columns), *(("td", row) for row in block.rows)]
            ]
            body = "".join(f"<tr>{row}</tr>" for row in rows[1:])
            return (
                f'<p class="caption">{_escape(block.caption)}</p><div class="scroll" tabindex="0"><table>'
                f"<thead><tr>{rows[0]}</tr></thead><tbody>{body}</tbody></table></div>"
            )


STYLE = """
:root{color-scheme:light dark;--ink:#1c1f24;--soft:#5a6270;--rule:#d5d9e0;--paper:#fff}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8ec;--soft:#a2a9b5;--rule:#3a404b;--paper:#16181c}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:64rem;margin:0 auto;padding:1.5rem 1rem 4rem;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid var(--rule)}
.scroll{overflow-x:auto;max-width:100%;margin:0 0 1rem}
table{border-collapse:collapse;font-size:.875rem;overflow-wrap:normal}
.caption{color:var(--soft);font-size:.875rem;margin:1.2rem 0 .3rem}
th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid var(--rule);font-variant-numeric:tabular-nums}
th{vertical-align:bottom}th.t,td.t{text-align:left}td{white-space:nowrap}td.t{white-space:normal}
td.t:last-child{min-width:12rem}
figure{margin:1.5rem 0}img{max-width:min(100%,44rem);background:#fff}figcaption{color:var(--soft);font-size:.875rem}
@media print{.scroll{overflow:visible}table{font-size:.6rem}td{white-space:normal}}
"""
