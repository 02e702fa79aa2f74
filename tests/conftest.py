"""What every test needs before the first import: no hub, few threads, a cache of its own."""

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers of `pytest -n` share their starter's cache
    os.environ["LAB_CACHE"] = tempfile.mkdtemp(prefix="lab-cache-")
    atexit.register(shutil.rmtree, os.environ["LAB_CACHE"], ignore_errors=True)
