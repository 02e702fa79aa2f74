"""One process of a job: build, fit, record.      python -m lab.launch.worker RUN_DIR, started by lab.process.workers"""

import gc
import itertools
import logging
import os
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from lab import config as configuration
from lab import record
from lab.errors import UsageError
from lab.launch import ending
from lab.process import hang, heartbeat, process_group, workers
from lab.record import RunRecord, run_files
from lab.training.interrupt import Diverged, Interrupted

# Warnings of one library about another's use of it, which no setting of ours or the user's can change: the start of the
# message, and its category.
NOT_OURS: tuple[tuple[str, type[Warning]], ...] = (
    (r"`is_gradient_checkpointing` is deprecated", FutureWarning),  # transformers 5, of peft's reading the old name
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),  # torch 2.13, of Lightning's _pytree
)
_jobs = itertools.count()  # of this process
log = logging.getLogger(__name__)
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(run_dir: Path) -> RunRecord:
    """Run (or continue) the job whose config.yaml lies in a directory, and write its record at every ending.

    Raises UsageError for a user's mistake and whatever a bug raises, after recording it as `failed`; a run that
    diverged, was interrupted or lost another process returns its record. Rank 0 alone writes the record, with the error
    of the rank that was the first to fail: what follows on the others is only the loss of its connection.
    """
    rank = int(os.environ.get("RANK", "0"))
    main = rank == 0
    first = _begin()
    _log_to_file(run_dir, rank)
    result = record.read(run_dir)
    with ExitStack() as stack:
        if main:
            stack.enter_context(record.lock(run_dir))
        result.status, result.error, result.files = "running", None, {}
        if main:
            run_files.sweep(run_dir)
            record.write(run_dir, result)
        # A job of this process before this one may have ended anywhere.
        heartbeat.own.strict, heartbeat.own.word = False, heartbeat.NOTHING
        heartbeat.beat()
        try:
            config = configuration.load_own(run_dir)
            with _watched(run_dir, config.hardware.timeout_s, result, rank):
                _import_quietly()
                from lab.run.host import Host
                from lab.training.deterministic import deterministic

                if result.environment:  # it goes on: true of the run where it is of each of its starts
                    held = result.environment.get("deterministic", False)
                    result.environment["deterministic"] = held and config.hardware.deterministic
                with deterministic(config.hardware.deterministic):  # before anything asks CUDA
                    Host(run_dir, config, result, main).run()
            result.status = "completed"
        except Diverged as error:
            details = {"step": error.step, "examples": error.examples, "module": error.module, "rank": rank}
            details |= {"type": "Diverged", "message": str(error)}
            result.status, result.error = ending.note(run_dir, "diverged", details)
        except (Interrupted, KeyboardInterrupt) as error:
            result.status = "interrupted"
            result.error = {"type": type(error).__name__, "message": str(error) or "interrupted at once"}
            result.error["signal"] = getattr(error, "signal", None)
        except BaseException as error:
            shown: BaseException = _out_of_memory(error, rank) or _left(error, rank) or error
            details = {
                "type": type(shown).__name__,
                "message": str(shown) or type(shown).__name__,
                "rank": rank,
                "traceback": None if isinstance(error, UsageError) else traceback.format_exc(),
            }
            lost = ending.is_loss(error)
            if lost:
                details |= {"type": "Lost", "rank": None, "message": ending.lost(error, rank, run_dir)}
            result.status, result.error = ending.note(run_dir, "failed", details, lost)
            log.info("rank %d failed", rank, exc_info=True)
            if not lost:
                if shown is error:
                    raise
                raise shown from error
        finally:
            result.peak_memory_bytes = max(result.peak_memory_bytes or 0, _peak_memory_bytes(first) or 0) or None
            if main:
                record.write(run_dir, result)
            heartbeat.own.word = heartbeat.DONE if result.status == "completed" else heartbeat.TOLD
            _leave_group()
            gc.collect()
    return result


def _watched(run_dir: Path, timeout_s: float | None, result: RunRecord, rank: int) -> AbstractContextManager[None]:
    """A watch of this process on itself, where no other watches it: a single one, or one that torchrun started."""
    if heartbeat.own.shared:
        return nullcontext()

    def give_up(message: str, stack: str) -> None:
        details = {"type": "Hung", "message": message, "rank": rank, "traceback": stack}
        result.status, result.error = ending.note(run_dir, "failed", details)
        if rank == 0:
            record.write(run_dir, result)
        log.info("%s\n%s", message, stack)
        print(f"the job in {run_dir} failed: {message}", file=sys.stderr)

    group = process_group.outside() is not None
    return hang.watch_self(timeout_s, f"resume={run_dir}", group, give_up)


def _out_of_memory(error: BaseException, rank: int = 0) -> UsageError | None:
    """The sentence for an allocation that failed, on a GPU or on the CPU; None for any other error."""
    name, text = type(error).__name__, str(error)
    if name != "OutOfMemoryError" and not isinstance(error, MemoryError) and "can't allocate memory" not in text:
        return None
    where = f" on rank {rank}" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    reason = text.splitlines()[0][:160] if text else name
    return UsageError(
        f"memory ran out{where} ({reason}); the last checkpoint is intact: resume it with a smaller "
        f"hardware.micro_batch_size, which changes no result, or with hardware.gradient_checkpointing."
    )


def _left(error: BaseException, rank: int) -> UsageError | None:
    """The sentence where code of the user's has called exit, which would leave the run as if all were well."""
    if not isinstance(error, SystemExit):
        return None
    return UsageError(
        f"rank {rank} called exit({error.code or 0}) in the middle of the run; look for it in your own code."
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


def log_file(run_dir: Path, rank: int) -> Path:
    """The log of a rank."""
    return run_dir / (f"train_rank{rank}.log" if rank else "train.log")


def _log_to_file(run_dir: Path, rank: int) -> None:
    """Every rank's log is a file of its own; a rank above 0 has no other output at all."""
    if rank > 0:
        file = log_file(run_dir, rank).open("a", buffering=1, encoding="utf-8")
        sys.stdout.flush()
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT, force=True)
    elif not logging.getLogger().handlers:  # where Hydra runs in this process, it has done so
        logging.basicConfig(filename=log_file(run_dir, rank), level=logging.INFO, format=LOG_FORMAT, encoding="utf-8")


def quiet_not_ours() -> None:
    """Keep what nobody here can act on from the console."""
    for message, category in NOT_OURS:
        warnings.filterwarnings("ignore", message=message, category=category)
    # Of what a model's generation_config.json should say; a run uses nothing of it.
    logging.getLogger("transformers.generation.configuration_utils").setLevel(logging.ERROR)


@contextmanager
def no_garbage() -> Iterator[None]:
    """Imports within are kept out of Python's search for garbage, then and later.

    They make none, and the search took an eighth of the time.
    """
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if searched:
            gc.enable()


def _import_quietly() -> None:
    """Import what a job needs, and let Lightning and others be silent.

    Lightning's own console handler would repeat every line; what nobody here can act on is not shown at all.
    """
    started = time.perf_counter()
    if "lab.run.host" not in sys.modules:
        with no_garbage():
            import lab.run.host  # noqa: F401
    from lightning.pytorch.utilities.warnings import PossibleUserWarning

    logging.getLogger("lightning").handlers.clear()
    logging.getLogger("lightning.pytorch").handlers.clear()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)  # advice on loaders and logging intervals
    quiet_not_ours()
    log.info("imports took %.1f s", time.perf_counter() - started)


def main() -> None:
    """A process that `launch` started; its exit status says whether the record has the ending."""
    run_dir = Path(sys.argv[1])
    workers.show_signs_of_life()
    workers.stop_when_orphaned()
    for name in ("config.yaml", record.RESULT):
        process_group.wait_for(run_dir / name)
    try:
        result = run(run_dir)
    except Exception:
        if heartbeat.own.word == heartbeat.NOTHING:  # else it is in the log
            log.exception("rank %s could not start", os.environ.get("RANK", "0"))
        sys.exit(1)  # the process that started us tells the user, once
    sys.exit(0 if result.status == "completed" else workers.STOPPED)


if __name__ == "__main__":
    main()
