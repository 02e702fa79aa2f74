"""Records are strict JSON: a number that is none is absent."""

import json
import math

from lab import record
from lab.record import RunRecord


def test_what_is_not_finite_is_written_as_null_at_any_depth(tmp_path):
    numbers = {"val_loss": math.nan, "train_loss": math.inf, "test_loss": 1.5}
    record.write(tmp_path, RunRecord(metrics=numbers, init={"deep": [{"norm": -math.inf}]}))
    raw = json.loads((tmp_path / record.RESULT).read_text(), parse_constant=lambda name: f"JSON has no {name}")
    assert raw["metrics"] == {"val_loss": None, "train_loss": None, "test_loss": 1.5}
    assert raw["init"] == {"deep": [{"norm": None}]}
    assert record.read(tmp_path).metrics == raw["metrics"]
