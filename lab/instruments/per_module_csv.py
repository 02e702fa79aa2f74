"""The CSV files of a LoRA run that have a row per module."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.files import write_atomically

INIT, FIRST_STEP, LEARNED = "init.csv", "first_step.csv", "learned.csv"
Row = dict[str, Any]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A CSV file of rows that need not all have every column."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def read_rows(path: Path) -> list[Row]:
    """The rows as text; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
