"""Factors that one process of a job has computed, given to all: a decomposition is paid for once."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from lab.init import Factors


def from_owner(
    ask: Callable[[], Factors], turn: int, shape: tuple[int, int], rank: int, device: torch.device
) -> Factors:
    """The factors of a layer of shape (out, in), asked for by the process whose turn it is; a job's only process asks.

    What `ask` raises ends that process, and with it the job: the others wait for it in vain until they are stopped.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ask()
    owner = turn % dist.get_world_size()
    own = ask() if dist.get_rank() == owner else None
    header: list[Any] = [None if own is None else (own.offset, dict(own.info), own.base is not None)]
    dist.broadcast_object_list(header, src=owner)
    offset, info, replaces = header[0]
    out, inner = shape

    def give(mine: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        tensor = torch.empty(size, device=device) if mine is None else mine.detach().to(device).contiguous()
        dist.broadcast(tensor, src=owner)
        return tensor

    A = give(None if own is None else own.A, (rank, inner))
    B = give(None if own is None else own.B, (out, rank))
    base = give(None if own is None else own.base, shape) if replaces else None
    return Factors(A=A, B=B, offset=offset, base=base, info=info)
