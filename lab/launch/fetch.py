"""Downloads from the hub that jobs need, made once and before any of them starts. No torch here."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lab.config import instantiate
from lab.data import retention
from lab.model import hub

# The parts of a config that may name something on the hub. A sweep's jobs that differ elsewhere need the same files.
PARTS = ("model", "data", "init", "experiment")
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # for jobs: what they need is in the cache, and nodes often have no network


def fetch(configs: Iterable[Mapping[str, Any]]) -> None:
    """Download what the configs (plain mappings) name into the hub's cache, each thing once; nothing if it is there.

    Raises UsageError for what cannot be had.
    """
    done: set[str] = set()
    for config in configs:
        for part, make in (("model", instantiate.make), ("data", instantiate.make_data)):
            key = json.dumps(config[part], sort_keys=True)
            fetch_part = getattr(make(config[part]), "fetch", None)
            if fetch_part is not None and key not in done:
                fetch_part()
            done.add(key)
        retention.fetch(config["data"].get("retention"))
        teacher = config["init"].get("teacher")  # not built: a scheme imports torch
        if teacher is not None and teacher not in done:
            hub.fetch(teacher, None, key="init.teacher")
            done.add(teacher)


@contextmanager
def offline() -> Iterator[None]:
    """Within the context, processes that are started work from the hub's cache alone."""
    before = {name: os.environ.get(name) for name in OFFLINE}
    os.environ.update(OFFLINE)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
