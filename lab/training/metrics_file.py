"""metrics.csv and files like it: a row per logged step, written as it happens and cut back on resume."""

import csv
from collections.abc import Sequence
from pathlib import Path

COLUMNS = ("step", "tokens", "train_loss", "val_loss", "val_bpb", "lr", "grad_norm", "tokens_per_second", "seconds")


class MetricsFile:
    """The file and its columns; a value nobody measured is an empty field."""

    def __init__(self, run_dir: Path, name: str = "metrics.csv", columns: Sequence[str] = COLUMNS) -> None:
        self.path, self.columns = run_dir / name, columns
        if not self.path.exists():
            self.path.write_text(",".join(columns) + "\n")

    def start(self, row: dict[str, float | int | None]) -> None:
        """Begin anew with one row, whatever an earlier start that reached no checkpoint had written."""
        self.path.write_text(",".join(self.columns) + "\n")
        self.append(row)

    def append(self, row: dict[str, float | int | None]) -> None:
        """Add one row; floats keep all their digits, so that runs can be compared bitwise."""
        assert set(row) <= set(self.columns), set(row) - set(self.columns)
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([_text(row.get(column)) for column in self.columns])

    def cut_back(self, step: int) -> None:
        """Drop the rows behind a step (and a last line that was cut short)."""
        with self.path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(self.columns)]
        kept = [row for row in rows if row[0] == "step" or int(row[0]) <= step]
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows(kept)


def _text(value: float | int | None) -> str:
    return "" if value is None else repr(value)
