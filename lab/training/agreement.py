"""Every process of a job must hold the same: rank 0 decides, and what came of it is compared."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class Disagreement(RuntimeError):
    """The processes of a job hold different things where they must be the same; nothing is trained on them."""


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def from_rank_0(decide: Callable[[], T]) -> T:
    """What rank 0 decides, on every rank; in plain types. Elsewhere `decide` is not called."""
    if _alone():
        return decide()
    shared: list[Any] = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    result: T = shared[0]
    return result


def check_equal(facts: Mapping[str, Any]) -> None:
    """Compare facts, by name and in plain types, over all ranks; raises Disagreement, on every rank, naming one.

    The processes run the same code on the same config, so what differs is a file (another model or checkpoint in a
    node's cache, a shared file system that shows an old one) or a machine.
    """
    if _alone():
        return
    found: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, {name: json.dumps(fact, sort_keys=True) for name, fact in facts.items()})
    for name, first in found[0].items():
        for rank, theirs in enumerate(found):
            if theirs[name] != first:
                raise Disagreement(
                    f"{name} is {first[:120]} on rank 0 and {theirs[name][:120]} on rank {rank}; every process must "
                    f"see the same files: look for an old copy in a node's cache or run directory."
                )
