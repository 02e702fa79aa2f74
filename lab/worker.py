"""One process of a job: build, fit, record.      python -m torch.distributed.run … -m lab.worker RUN_DIR"""

import gc
import logging
import os
import resource
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from lab import config as configuration
from lab import record
from lab.errors import UsageError
from lab.record import RunRecord


def run(run_dir: Path) -> RunRecord:
    """Run (or continue) the job whose config.yaml lies in a directory, and write its record at every ending.

    Raises UsageError for a user's mistake and whatever a bug raises, after recording it as `failed`; a run that
    diverged or was interrupted returns its record.
    """
    main = int(os.environ.get("RANK", "0")) == 0
    _quiet_lightning(run_dir, main)
    result = record.read(run_dir)
    with ExitStack() as stack:
        if main:
            stack.enter_context(record.lock(run_dir))
        result.status, result.error = "running", None
        if main:
            record.write(run_dir, result)
        from lab.training.stop import Diverged, Interrupted

        try:
            from lab.session import Session

            Session(run_dir, configuration.load(run_dir), result, main).run()
            result.status = "completed"
        except Diverged as error:
            result.status = "diverged"
            result.error = {
                "type": "Diverged",
                "message": str(error),
                "step": error.step,
                "examples": error.examples,
                "module": error.module,
            }
            print(f"diverged: {error}. The weights from before are kept.", file=sys.stderr)
        except (Interrupted, KeyboardInterrupt) as error:
            result.status = "interrupted"
            result.error = {"type": type(error).__name__, "message": str(error) or "interrupted at once"}
            print(f"interrupted: {result.error['message']}", file=sys.stderr)
        except BaseException as error:
            result.status = "failed"
            result.error = {
                "type": type(error).__name__,
                "message": str(error) or type(error).__name__,
                "rank": int(os.environ.get("RANK", "0")),
                "traceback": None if isinstance(error, UsageError) else traceback.format_exc(),
            }
            raise
        finally:
            result.peak_memory_bytes = max(result.peak_memory_bytes or 0, _peak_memory_bytes())
            if main or result.status == "failed":
                record.write(run_dir, result)
            gc.collect()
    return result


def _peak_memory_bytes() -> int:
    """Peak of the device's memory where there is a GPU, else of this process's resident memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _quiet_lightning(run_dir: Path, main: bool) -> None:
    """One log file per process; Lightning's own console handler would repeat every line."""
    if not main:
        rank = os.environ["RANK"]
        logging.basicConfig(filename=run_dir / f"train_rank{rank}.log", level=logging.INFO, force=True)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the life of the process
    started = time.perf_counter()
    from lightning.pytorch.utilities.warnings import PossibleUserWarning

    logging.getLogger("lightning").handlers.clear()
    logging.getLogger("lightning.pytorch").handlers.clear()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    import warnings

    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    logging.getLogger(__name__).info("imports took %.1f s", time.perf_counter() - started)


def main() -> None:
    """A process that `launch` started."""
    try:
        result = run(Path(sys.argv[1]))
    except UsageError as error:
        sys.exit(str(error))
    sys.exit(0 if result.status == "completed" else 3)


if __name__ == "__main__":
    main()
