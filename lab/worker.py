"""One process of a job: build, fit, record.      python -m lab.worker RUN_DIR, started by lab.process_group"""

import gc
import itertools
import json
import logging
import os
import resource
import sys
import time
import traceback
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab import config as configuration
from lab import files, process_group, record
from lab.errors import UsageError
from lab.record import RunRecord

ENDING = ".first_ending.json"  # of the rank that was the first to fail or diverge
# Warnings of one library about another's use of it, which no setting of ours or the user's can change: the start of the
# message, and its category.
NOT_OURS: tuple[tuple[str, type[Warning]], ...] = (
    (r"`is_gradient_checkpointing` is deprecated", FutureWarning),  # transformers 5, of peft's reading the old name
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),  # torch 2.13, of Lightning's _pytree
)
_jobs = itertools.count()  # of this process
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(run_dir: Path) -> RunRecord:
    """Run (or continue) the job whose config.yaml lies in a directory, and write its record at every ending.

    Raises UsageError for a user's mistake and whatever a bug raises, after recording it as `failed`; a run that
    diverged or was interrupted returns its record. Rank 0 alone writes the record, with the error of the rank that
    was the first to fail: what follows on the others is only the loss of its connection.
    """
    rank = int(os.environ.get("RANK", "0"))
    main = rank == 0
    first = _begin()
    _log_to_file(run_dir, rank)
    _import_quietly()
    result = record.read(run_dir)
    with ExitStack() as stack:
        if main:
            stack.enter_context(record.lock(run_dir))
        result.status, result.error, result.files = "running", None, {}
        if main:
            files.sweep(run_dir)
            record.write(run_dir, result)
        from lab.training.stop import Diverged, Interrupted

        try:
            from lab.session import Session

            Session(run_dir, configuration.load_own(run_dir), result, main).run()
            result.status = "completed"
        except Diverged as error:
            details = {"step": error.step, "examples": error.examples, "module": error.module}
            _end(run_dir, result, "diverged", {"type": "Diverged", "message": str(error), **details})
            print(f"diverged: {error}. The weights from before are kept.", file=sys.stderr)
        except (Interrupted, KeyboardInterrupt) as error:
            result.status = "interrupted"
            result.error = {"type": type(error).__name__, "message": str(error) or "interrupted at once"}
            result.error["signal"] = getattr(error, "signal", None)
            print(f"interrupted: {result.error['message']}", file=sys.stderr)
        except BaseException as error:
            shown: BaseException = _out_of_memory(error) or error
            details = {
                "type": type(shown).__name__,
                "message": str(shown) or type(shown).__name__,
                "rank": rank,
                "traceback": None if isinstance(error, UsageError) else traceback.format_exc(),
            }
            _end(run_dir, result, "failed", details)
            if result.status == "failed":
                if shown is error:
                    raise
                raise shown from error
        finally:
            result.peak_memory_bytes = max(result.peak_memory_bytes or 0, _peak_memory_bytes(first) or 0) or None
            if main:
                record.write(run_dir, result)
            _leave_group()
            gc.collect()
    return result


def _end(run_dir: Path, result: RunRecord, status: str, error: dict[str, Any]) -> None:
    """Note a bad ending, for all ranks; where another rank's came first, it is the one to record."""
    try:
        with (run_dir / ENDING).open("x") as file:
            json.dump(record.strict({"status": status, "error": error}), file)
    except FileExistsError:
        first = first_ending(run_dir)
        if first is not None:
            status, error = first["status"], first["error"]
    result.status, result.error = status, error


def first_ending(run_dir: Path) -> dict[str, Any] | None:
    """Status and error of the rank that was the first to end badly; None where none did."""
    path = run_dir / ENDING
    for _ in range(20):  # the rank that made the file may still be writing it
        if not path.exists():
            return None
        try:
            ending = json.loads(path.read_text())
        except json.JSONDecodeError:
            time.sleep(0.05)
            continue
        assert isinstance(ending, dict)
        return ending
    return None


def forget_ending(run_dir: Path) -> None:
    """Before a job starts or goes on: how it ended last time no longer counts."""
    (run_dir / ENDING).unlink(missing_ok=True)


def _out_of_memory(error: BaseException) -> UsageError | None:
    """The sentence for an allocation that failed, on a GPU or on the CPU; None for any other error."""
    name, text = type(error).__name__, str(error)
    if name != "OutOfMemoryError" and not isinstance(error, MemoryError) and "can't allocate memory" not in text:
        return None
    return UsageError(
        f"memory ran out ({text.splitlines()[0][:160] if text else name}); the last checkpoint is intact: resume it "
        f"with a smaller hardware.micro_batch_size, which changes no result, or with hardware.gradient_checkpointing."
    )


def _leave_group() -> None:
    """Close the connections to the other ranks, so that a job in this process after this one starts afresh."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _begin() -> bool:
    """Count a job of this process, clear the GPU's peak of the one before, and say whether it is the first."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    return next(_jobs) == 0


def _peak_memory_bytes(first: bool) -> int | None:
    """Peak of the device's memory where there is a GPU, else of this process's resident memory.

    None on a CPU where the job is not the first of its process, whose peak and leavings it may be.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if first else None


def _log_to_file(run_dir: Path, rank: int) -> None:
    """Every rank's log is a file, train.log or train_rank1.log; a rank above 0 has no other output at all."""
    if rank > 0:
        log = (run_dir / f"train_rank{rank}.log").open("a", buffering=1)
        sys.stdout.flush()
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT, force=True)
    elif not logging.getLogger().handlers:  # where Hydra runs in this process, it has done so
        logging.basicConfig(filename=run_dir / "train.log", level=logging.INFO, format=LOG_FORMAT)


def quiet_not_ours() -> None:
    """Keep what nobody here can act on from the console."""
    for message, category in NOT_OURS:
        warnings.filterwarnings("ignore", message=message, category=category)
    # Of what a model's generation_config.json should say; a run uses nothing of it.
    logging.getLogger("transformers.generation.configuration_utils").setLevel(logging.ERROR)


def _import_quietly() -> None:
    """Import what a job needs, and let Lightning and others be silent.

    Lightning's own console handler would repeat every line; what nobody here can act on is not shown at all. Importing
    makes no garbage, and Python's search for it, then and later among what was imported, took an eighth of the time.
    """
    started, searched = time.perf_counter(), gc.isenabled()
    gc.disable()
    try:
        from lightning.pytorch.utilities.warnings import PossibleUserWarning

        if "lab.session" not in sys.modules:
            import lab.session  # noqa: F401

            gc.freeze()
    finally:
        if searched:
            gc.enable()
    logging.getLogger("lightning").handlers.clear()
    logging.getLogger("lightning.pytorch").handlers.clear()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)  # advice on loaders and logging intervals
    quiet_not_ours()
    logging.getLogger(__name__).info("imports took %.1f s", time.perf_counter() - started)


def main() -> None:
    """A process that `launch` started; its exit status says whether the record has the ending."""
    run_dir = Path(sys.argv[1])
    process_group.stop_when_orphaned()
    for name in ("config.yaml", record.RESULT):
        process_group.wait_for(run_dir / name)
    try:
        result = run(run_dir)
    except Exception:
        logging.getLogger(__name__).exception("rank %s failed", os.environ.get("RANK", "0"))
        sys.exit(1)  # the process that started us tells the user, once
    sys.exit(0 if result.status == "completed" else process_group.STOPPED)


if __name__ == "__main__":
    main()
