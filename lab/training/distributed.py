"""The processes of one job: which this is, what they add up, what rank 0 decides, and whether all hold the same."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lab.process import heartbeat

T = TypeVar("T")


class Disagreement(RuntimeError):
    """The processes of a job hold different things where they must be the same; nothing is trained on them."""


def rank() -> int:
    """Of this process."""
    return dist.get_rank() if _grouped() else 0


def world() -> int:
    """How many processes train this model."""
    return dist.get_world_size() if _grouped() else 1


def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
    """In place, over all processes; nothing where there is one."""
    if _grouped():
        with heartbeat.strict():
            dist.all_reduce(tensor, op=op)


def any_of(flag: bool, device: torch.device) -> bool:
    """True on every rank where it is on one."""
    anywhere = torch.tensor([flag], dtype=torch.int32, device=device)
    with heartbeat.strict():  # a GPU's collective is over when its result is looked at
        all_reduce(anywhere, dist.ReduceOp.MAX)
        return bool(anywhere)


def from_rank_0(decide: Callable[[], T]) -> T:
    """What rank 0 decides, on every rank; in plain types. Elsewhere `decide` is not called."""
    if world() == 1:
        return decide()
    shared: list[Any] = [decide() if rank() == 0 else None]
    with heartbeat.strict():
        dist.broadcast_object_list(shared, src=0)
    result: T = shared[0]
    return result


def broadcast(tensor: Tensor) -> Tensor:
    """The tensor of rank 0, on every rank."""
    if world() > 1:
        with heartbeat.strict():
            dist.broadcast(tensor := tensor.contiguous(), src=0)
    return tensor


def at_rank_0(own: T) -> list[T]:
    """What each process holds, on rank 0 in the order of ranks; elsewhere an empty list."""
    if world() == 1:
        return [own]
    parts: list[Any] | None = [None] * world() if rank() == 0 else None
    with heartbeat.strict():
        dist.gather_object(own, parts, dst=0)
    return parts or []


def of_all(own: T) -> list[T]:
    """What each process holds, on every rank, in the order of ranks."""
    if world() == 1:
        return [own]
    parts: list[Any] = [None] * world()
    with heartbeat.strict():
        dist.all_gather_object(parts, own)
    return parts


def check_equal(facts: Mapping[str, Any]) -> None:
    """Compare facts, by name and in plain types, over all ranks; raises Disagreement, on every rank, naming one.

    The processes run the same code on the same config, so what differs is a file (another model or checkpoint in a
    node's cache, a shared file system that shows an old one) or a machine.
    """
    everywhere = of_all({name: json.dumps(fact, sort_keys=True) for name, fact in facts.items()})
    for name, first in everywhere[0].items():
        for place, theirs in enumerate(everywhere):
            if theirs[name] != first:
                raise Disagreement(
                    f"{name} is {first[:120]} on rank 0 and {theirs[name][:120]} on rank {place}; every process must "
                    f"see the same files: look for an old copy in a node's cache or run directory."
                )


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
