import re

import pytest
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from synthetic import init_comparison, rank_strategies, rank_sweep

from lab.report.analysis import analyse
from lab.report.document import Table
from lab.report.findings import report
from lab.report.latex import latex, tex

COLUMN = 3.3 * 72.27  # points; a column of a two-column paper
SIZE = 8  # points of \footnotesize


def width(text):
    """Points of a line of text in Computer Modern, the commands of LaTeX taken out."""
    font = FT2Font(findfont(FontProperties(family="cmr10")))
    font.set_size(SIZE, 72.27)
    plain = re.sub(r"\\([&%$#_{}])|\\allowbreak\{\}|\$|\\[a-z]+\{?\}?", lambda m: m[1] or "", text)
    font.set_text(plain, 0)
    return font.get_width_height()[0] / 64


def columns_of(spec):
    return re.findall(r"p\{([\d.]+)em\}|([lr])", spec.replace(r">{\raggedright\arraybackslash}", ""))


def natural_width(source):
    """Points of a whole tabular before \\resizebox: every column as wide as its widest cell, or as its p{} says."""
    (spec,) = re.findall(r"\\begin\{tabular\}\{@\{\}(.*)@\{\}\}", source)
    columns = columns_of(spec)
    body = source.split(r"\toprule")[1].split(r"\bottomrule")[0].replace(r"\midrule", "")
    rows = [row.split(" & ") for row in re.split(r" \\\\\n", body) if row.strip()]
    assert {len(row) for row in rows} == {len(columns)}
    total = 0.0
    for i, (em, _) in enumerate(columns):
        cells = [
            line for row in rows for line in re.sub(r"\\shortstack\[.\]\{(.*)\}", r"\1", row[i].strip()).split(r"\\")
        ]
        total += float(em) * SIZE if em else max(map(width, cells))
    return total + 6 * (len(columns) - 1)  # twice \tabcolsep between columns


@pytest.fixture(scope="module", params=[rank_sweep, init_comparison, rank_strategies])
def tables(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.__name__)
    request.param(folder)
    blocks = report(analyse(folder), [], [])
    return {block.name: latex(block) for block in blocks if isinstance(block, Table)}


def test_every_table_fits_a_column_in_letters_that_can_be_read(tables):
    assert len(tables) >= 6
    for name, source in tables.items():
        assert r"\resizebox{\ifdim\width>\columnwidth\columnwidth\else\width\fi}{!}" in source
        # what is wider is scaled down to the column; 5.5 points is the smallest print journals take
        smallest = 4.5 if name.startswith("trace") else 5.5  # a trace has a column per arm, and the sweep seven arms
        assert SIZE * COLUMN / natural_width(source) >= smallest, (name, natural_width(source))


def test_no_table_shows_a_directory_and_a_minus_is_a_minus(tables):
    for name, source in tables.items():
        assert "verdict\\_" not in source, name
        outside = re.sub(r"(?<!\\)\$[^$]*\$", "", source)  # in mathematics a hyphen is a minus, as in a power of ten
        assert not re.search(r"(?<![\w.])-\d", outside), name
    assert re.search(r"& \$-\$0\.\d{4} to ", tables["contrasts"])
    assert r"{array,booktabs,graphicx}" in tables["contrasts"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0.01 to +0.02", "$-$0.01 to +0.02"),
        ("(-1.5)", "($-$1.5)"),
        ("2026-11-26", "2026-11-26"),
        ("SVD-guided rank-4", "SVD-guided rank-4"),
        ("1e-05", "$10^{-5}$"),
        ("-2.5e-07", r"$-2.5\times 10^{-7}$"),
        ("3e+10", r"$3\times 10^{10}$"),
        ("x1e-05_y", r"x1e-05\_y"),
        ("50 % & ~^\\", r"50 \% \& \textasciitilde{}\textasciicircum{}\textbackslash{}"),
    ],
)
def test_numbers_are_set_as_numbers_and_names_as_they_are(text, shown):
    assert tex(text) == shown


def test_long_words_of_a_cell_can_break_and_long_heads_are_stacked():
    source = latex(Table("t", "c", ["arm", "trainable parameters"], [["init=a_long_name rank_strategy=another", "1"]]))
    assert r"init=\allowbreak{}a\_\allowbreak{}long" in source
    assert r"\shortstack[r]{trainable\\parameters}" in source
    assert "p{7em}" in source
