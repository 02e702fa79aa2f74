"""Rows of a layer that a test makes up, and policies that are asked about them as in a run."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import yaml

from lab.config import CONF
from lab.ledger import Row, Trial
from lab.replay.__main__ import make_policy
from lab.spectral.diagnosis import Shares
from lab.svd_policy import Settles
from lab.svd_policy.switching import Switching
from lab.testing import example_rows

K = 4


def policy(name: str, **changes: Any) -> Any:
    """A policy of a YAML on the small layers of these tests."""
    settings = yaml.safe_load((CONF / "svd_policy" / f"{name}.yaml").read_text())
    usual = {key: value for key, value in {"k": K, "warmup_steps": 0}.items() if key in settings}
    return make_policy({**settings, **usual, **changes})


@cache
def _base() -> Row:
    return next(row for row in example_rows(k=K) if row.previous is not None and row.reason is None)


def row(step: int, *, overlap: float = 1.0, core: float | None = None, layer: str = "a", **fields: Any) -> Row:
    """A row whose directions overlap so much with the last tick's; `core` is its momentum's energy there."""
    base = _base()
    turn = base.previous
    still = {name: np.full_like(getattr(turn, name), overlap) for name in ("overlap_left", "overlap_right")}
    curve = np.full(len(base.counts), K**2 / (base.shape[0] * base.shape[1]) if core is None else core, np.float32)
    shares = Shares(total=1.0, concentration=0.1, sketched=False, left=curve, right=curve, core=curve)
    given = {"loss": 3.0 + 1e-3 * (-1) ** (step // 20), "lr_factor": 1.0, "mode": "full", "rank": None, **fields}
    return replace(base, step=step, layer=layer, previous=replace(turn, **still), momentum=shares, **given)


def asked(policy: Any, at: Row, state: Any, jump: float = 0.0, outside: float = 0.0) -> tuple[Any, Any]:
    """The policy's decision on a row, with the trial that it wants, at a jump and a share outside."""
    rank = policy.trial_rank(at, state) if isinstance(policy, Switching) else None
    if rank is not None:
        at = replace(at, trial=Trial(rank, 3.0, 3.0 + jump, outside))
    decision, after = policy.decide(at, state)
    if isinstance(policy, Settles):
        (decision,), (after,) = policy.settle([at], [decision], [after], {})
    return decision, after
