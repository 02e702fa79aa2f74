"""LaTeX of a table: booktabs, in the width of a paper's column, with minus signs and no name of a directory."""

import re
import textwrap
from collections.abc import Sequence

from lab.report.document import Table, flat

WIDEST_TEXT = 14  # letters of a text column before its cells wrap
WIDEST_PROSE = 34  # of one that holds sentences
EM = 0.5  # em a letter takes on average in a proportional face

_TEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{
        "<": "$<$",
        ">": "$>$",
        "–": "--",
        "±": r"$\pm$",
        "Σ": r"$\Sigma$",
        "·": r"$\cdot$",
        "−": "$-$",
        "×": r"$\times$",
    },
}


def latex(table: Table) -> str:
    """A table float that is at most one column wide; needs the packages array, booktabs and graphicx."""
    kept = [i for i, column in enumerate(table.columns) if column not in table.screen]
    columns = [table.columns[i] for i in kept]
    rows = [[row[i] for i in kept] for row in table.rows]
    is_text = [i == 0 or column in table.text for i, column in enumerate(columns)]
    wraps = [_wrap_at(cells) if text else None for text, cells in zip(is_text, _transposed(rows, columns), strict=True)]
    align = "".join(_align(text, letters) for text, letters in zip(is_text, wraps, strict=True))
    head = [
        _head(column, cells, text)
        for column, cells, text in zip(columns, _transposed(rows, columns), is_text, strict=True)
    ]
    body = [
        [_breakable(tex(cell)) if wrap else tex(cell) for cell, wrap in zip(row, wraps, strict=True)] for row in rows
    ]
    lines = [" & ".join(row) + r" \\" for row in (head, *body)]
    return "\n".join(
        [
            r"% needs \usepackage{array,booktabs,graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(table.caption)}}}",
            rf"\label{{tab:{table.name.replace('_', '-')}}}",
            r"\footnotesize\setlength{\tabcolsep}{3pt}",
            r"\resizebox{\ifdim\width>\columnwidth\columnwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _transposed(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> list[list[str]]:
    return [[row[i] for row in rows] for i in range(len(columns))]


def _wrap_at(cells: Sequence[str]) -> int | None:
    """Letters at which a text column wraps; None where its longest cell is short enough to stand on one line."""
    longest = max(map(len, cells), default=0)
    return None if longest <= WIDEST_TEXT else WIDEST_TEXT if longest <= 4 * WIDEST_TEXT else WIDEST_PROSE


def _align(text: bool, letters: int | None) -> str:
    if letters:
        return rf">{{\raggedright\arraybackslash}}p{{{letters * EM:g}em}}"
    return "l" if text else "r"


def _head(column: str, cells: Sequence[str], text: bool) -> str:
    """A column's name, stacked where it is wider than what stands below it."""
    width = max([*map(len, column.split()), *map(len, cells), 1])
    lines = textwrap.wrap(column, width, break_long_words=False, break_on_hyphens=False) or [""]
    if len(lines) == 1:
        return tex(column)
    return rf"\shortstack[{'l' if text else 'r'}]{{{(chr(92) * 2).join(map(tex, lines))}}}"


def _breakable(cell: str) -> str:
    return re.sub(r"(\\_|=|\])", r"\1\\allowbreak{}", cell)


def tex(text: str) -> str:
    """Text that LaTeX shows as it is, a minus before a number as one and 1e-05 as a power of ten."""
    safe = "".join(_TEX.get(c, c) for c in flat(text))
    powers = re.sub(r"(?<![\w.])([+-]?\d+(?:\.\d+)?)e([+-]?)0*(\d+)(?![\w.])", _power, safe)
    return re.sub(r"(?<![\w.${])-(?=\.?\d)", "$-$", powers)


def _power(found: re.Match[str]) -> str:
    mantissa, sign, exponent = found.groups()
    factor = "" if mantissa in ("1", "+1") else "-" if mantissa == "-1" else rf"{mantissa}\times "
    return f"${factor}10^{{{sign.replace('+', '')}{exponent}}}$"
