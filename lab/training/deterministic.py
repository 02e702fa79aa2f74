"""Deterministic algorithms for the length of a job: what CUDA needs to give the same bits twice."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lab.errors import UsageError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # read by cuBLAS when a process first multiplies
REPEATABLE = (":4096:8", ":16:8")  # those of its values with which cuBLAS repeats itself; the first is the faster
_told: list[bool] = []  # of this process's cuBLAS, once CUDA has started within a context


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Within the context torch takes deterministic algorithms alone; afterwards all is as it was. Not asked: nothing.

    Raises UsageError where cuBLAS has been told otherwise, or CUDA runs in this process already and cannot be told.
    """
    if not asked:
        yield
        return
    given = os.environ.get(WORKSPACE)
    _check(given)
    started = torch.cuda.is_initialized()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault(WORKSPACE, REPEATABLE[0])
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        if torch.cuda.is_initialized() and not started:
            _told.append(True)
        if given is None:
            os.environ.pop(WORKSPACE, None)


def _check(given: str | None) -> None:
    if given is not None and given not in REPEATABLE:
        raise UsageError(
            f"{WORKSPACE}={given} does not let cuBLAS repeat itself, as hardware.deterministic=true asks; unset it, or "
            f"set it to {' or '.join(REPEATABLE)}."
        )
    if given is None and torch.cuda.is_initialized() and not _told:
        raise UsageError(
            f"hardware.deterministic=true comes too late for this process, in which CUDA has started without "
            f"{WORKSPACE}; start the job in a process of its own, or with {WORKSPACE}={REPEATABLE[0]} set."
        )
