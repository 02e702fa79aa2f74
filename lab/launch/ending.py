"""Ending of a job: the word of the rank that failed first, and what the record must say."""

import json
import time
from pathlib import Path
from typing import Any

from lab import record
from lab.files import write_atomically
from lab.process import workers
from lab.process.hang import Hang
from lab.process.workers import End, Ending

WORD = ".first_ending.json"  # of the rank that was the first to fail or diverge
Told = tuple[str, dict[str, Any] | None]  # a record's status and error


def note(run_dir: Path, status: str, error: dict[str, Any], lost: bool = False) -> Told:
    """Note a bad ending, for all ranks, and return the one to record: another rank's, where it came first.

    One that only `lost` its connection to the others ended because of them, and gives way to whoever knows better.
    """
    mine = record.strict({"status": status, "error": error, "at": time.monotonic(), "lost": lost})
    try:
        with (run_dir / WORD).open("x", encoding="utf-8") as file:
            json.dump(mine, file)
    except FileExistsError:
        first = word(run_dir)
        if first is not None and (lost or not first["lost"]):
            return first["status"], first["error"]
        write_atomically(run_dir / WORD, lambda temporary: temporary.write_text(json.dumps(mine), encoding="utf-8"))
    return status, error


def word(run_dir: Path) -> dict[str, Any] | None:
    """Status, error and time of the rank that was the first to end badly; None where none did."""
    path = run_dir / WORD
    for _ in range(20):  # the rank that made the file may still be writing it
        if not path.exists():
            return None
        try:
            details = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            time.sleep(0.05)
            continue
        assert isinstance(details, dict)
        return details
    return None


def forget(run_dir: Path) -> None:
    """Before a job starts or goes on: how it ended last time no longer counts."""
    (run_dir / WORD).unlink(missing_ok=True)


def is_loss(error: BaseException) -> bool:
    """True for what a process raises when the connection to another is gone, or does not answer."""
    of_torch = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    return of_torch or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def lost(error: BaseException, rank: int, run_dir: Path) -> str:
    """The sentence for a process that lost the others, which no other's word explains."""
    reason = next(iter(str(error).splitlines()), type(error).__name__).rpartition("] ")[2].partition(". ")[0]
    return (
        f"rank {rank} lost the other processes ({reason[:160]}), and none has said why: one was killed, or its machine "
        f"is gone; look at who started them, and at the logs of the other ranks; resume={run_dir}"
    )


def verdict(ending: Ending, run_dir: Path, devices: int, recorded: Told) -> Told:
    """The status and error of a job whose processes are gone; `recorded` is what its record says.

    The first to end is the cause. One that died without a word comes before another's lost connection, whichever was
    noticed first, and before another's own error where it died earlier.
    """
    told, dead = word(run_dir), ending.first
    if recorded[0] in ("completed", "interrupted"):
        return recorded
    if ending.hang is not None:
        return "failed", _hung(ending.hang, run_dir)
    if dead is not None and (told is None or told["lost"] or dead.at < told["at"]):
        return "failed", _died(dead, run_dir)
    if told is not None:
        return told["status"], told["error"]
    if ending.signals:
        name = ending.signals[0]
        message = f"{name} before the first step"
        if len(ending.ends) < devices:
            message = f"{name}, and no checkpoint within {workers.STOP_GRACE:g} s; resume={run_dir}"
        return "interrupted", {"type": "Interrupted", "message": message, "signal": name}
    return "failed", {"type": "JobFailed", "message": "every process ended, and none said how", "traceback": None}


def _died(dead: End, run_dir: Path) -> dict[str, Any]:
    return {
        "type": "JobFailed",
        "message": f"the process of rank {dead.rank} {dead.how}; resume={run_dir}",
        "rank": dead.rank,
        "signal": dead.cause,
        "exit_code": dead.status if dead.cause is None else None,
        "traceback": None,
    }


def _hung(hang: Hang, run_dir: Path) -> dict[str, Any]:
    rank = hang.culprits[0]
    return {
        "type": "Hung",
        "message": f"{hang}; resume={run_dir}",
        "rank": rank,
        "traceback": hang.stacks[rank].text or None,
    }
