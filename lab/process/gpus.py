"""The GPUs of this machine, shared out to the jobs that run beside each other on it. No torch here."""

import fcntl
import itertools
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def visible() -> list[str]:
    """The GPUs a process here may use, as CUDA_VISIBLE_DEVICES names them: that variable's, else all the driver has."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip() and name.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:  # a container may have the devices and not the tool
        return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listing.stdout.splitlines()))]


@contextmanager
def claim(jobs: int = 1, folder: Path | None = None) -> Iterator[str]:
    """The name of a GPU with a free place; waits for one. The lock on it ends with the context, or the process.

    With so many `jobs` at once each GPU has ⌈jobs / GPUs⌉ places, of which those of the emptiest are taken first.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"lab-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        names = visible()
        for place, name in itertools.product(range(math.ceil(jobs / max(1, len(names)))), names):
            descriptor = os.open(folder / f"{name.replace('/', '_')}.{place}", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            try:
                yield name
            finally:
                os.close(descriptor)
            return
        time.sleep(0.2)
