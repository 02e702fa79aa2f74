"""A run's ledger on disk: what is written comes back, and a kill costs at most the last line."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lab import ledger
from lab.errors import UsageError
from lab.testing import example_rows

HEADER = {"policy": {"_target_": "x.Y", "k": 4}, "targets": {"check.0.40x40": {"shape": [40, 40]}}}


@pytest.fixture(scope="module")
def rows():
    return example_rows()


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(other) and all(same(value, vars(other)[name]) for name, value in vars(one).items())
    return one == other


def write(run_dir, rows):
    book = ledger.Ledger(run_dir, HEADER)
    for step in sorted({row.step for row in rows}):
        book.append([row for row in rows if row.step == step])
    return book


@pytest.mark.parametrize("engine", ["warm", "exact"])
def test_rows_come_back_bit_for_bit(tmp_path, engine):
    rows = example_rows(engine=engine)
    write(tmp_path, rows)
    found = ledger.read(tmp_path)
    assert found.header == {"schema": ledger.SCHEMA, **HEADER}
    assert not found.cut
    assert len(found.rows) == len(rows)
    assert all(same(one, other) for one, other in zip(found.rows, rows, strict=True))
    assert list(found.by_layer()) == [row.layer for row in rows[:4]]


def test_a_row_takes_a_few_kilobytes_even_with_a_whole_spectrum(tmp_path):
    rows = example_rows(engine="exact", k=10, ticks=2, shapes=[(256, 256)])
    book = write(tmp_path, rows[:1])
    assert book.path.stat().st_size < 8192
    assert len(rows[0].counts) <= 65


@pytest.mark.parametrize("lost", [1, 40, 700])
def test_a_cut_tail_is_left_out_and_said_so(tmp_path, rows, lost):
    book = write(tmp_path, rows)
    os.truncate(book.path, book.path.stat().st_size - lost)
    found = ledger.read(tmp_path)
    assert found.cut
    assert 0 < len(rows) - len(found.rows) <= 2
    assert all(same(one, other) for one, other in zip(found.rows, rows, strict=False))


def test_damage_in_the_middle_is_refused_with_its_line(tmp_path, rows):
    book = write(tmp_path, rows)
    data = bytearray(book.path.read_bytes())
    place = data.index(b"\n", data.index(b"\n") + 1) + 300
    data[place] ^= 1
    book.path.write_bytes(data)
    with pytest.raises(UsageError, match=r"line 3 of .* is damaged"):
        ledger.read(tmp_path)


def test_cutting_back_to_a_step_lets_a_resumed_run_repeat_what_follows(tmp_path, rows):
    book = write(tmp_path, rows)
    whole = book.path.read_bytes()
    os.truncate(book.path, len(whole) - 100)
    ledger.cut_back(tmp_path, 40)
    assert {row.step for row in ledger.read(tmp_path).rows} == {20, 40}
    resumed = ledger.Ledger(tmp_path, HEADER)  # writes no second header
    for step in (60, 80):
        resumed.append([row for row in rows if row.step == step])
    assert book.path.read_bytes() == whole


def test_cutting_back_before_the_first_tick_keeps_the_header(tmp_path, rows):
    write(tmp_path, rows)
    ledger.cut_back(tmp_path, 0)
    assert ledger.read(tmp_path).rows == []
    ledger.cut_back(tmp_path / "elsewhere", 0)  # a run without a ledger has nothing to cut


def test_a_run_without_a_ledger_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UsageError, match="holds no ledger; run with svd_policy=observe"):
        ledger.read(tmp_path)
    assert not ledger.exists(tmp_path)


def test_another_schema_is_refused(tmp_path, rows):
    book = write(tmp_path, [])
    book.path.write_bytes(ledger._line({"schema": 99}))
    with pytest.raises(UsageError, match="schema 99; this version reads schema 1"):
        ledger.read(tmp_path)


def test_reading_a_ledger_imports_neither_torch_nor_lightning(tmp_path, rows):
    write(tmp_path, rows)
    code = (
        f"import sys; from lab import ledger; assert len(ledger.read({str(tmp_path)!r}).rows) == {len(rows)}\n"
        "assert not {'torch', 'lightning', 'hydra'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


WRITER = """
import sys
from pathlib import Path
from lab import ledger
from lab.testing import example_rows
rows = example_rows(ticks=2)
book = ledger.Ledger(Path(sys.argv[1]), {"policy": {}})
print("ready", flush=True)
while True:
    book.append(rows)
"""


@pytest.mark.slow
def test_a_kill_while_writing_costs_at_most_the_last_line(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = ledger.read(tmp_path)
    assert len(found.rows) > 8
    expected = example_rows(ticks=2)
    assert all(same(row, expected[i % len(expected)]) for i, row in enumerate(found.rows[:40]))
