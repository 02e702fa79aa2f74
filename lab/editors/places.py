"""Places of parameters in an optimizer: found, and taken by others with their states."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lab.editors.moments import State
from lab.errors import Mismatch
from lab.training.distributed import broadcast


def place_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> tuple[dict[str, Any], int]:
    """The group of a parameter and its place there."""
    for group in optimizer.param_groups:
        for place, held in enumerate(group["params"]):
            if held is parameter:
                return group, place
    raise Mismatch(f"a weight of shape {tuple(parameter.shape)} is to switch, and the optimizer does not hold it.")


def put_in_place(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    place: int,
    old: Sequence[nn.Parameter],
    new: Mapping[nn.Parameter, State],
    leaves: Sequence[str],
) -> None:
    """Parameters in the place of others, which lie side by side, with their states; all else stays as it is."""
    for i, parameter in enumerate(old):
        assert group["params"][place + i] is parameter, "the factors of a layer lie side by side"
        optimizer.state.pop(parameter, None)
    group["params"][place : place + len(old)] = list(new)
    if "param_names" in group:
        stem = group["param_names"][place].rpartition(".")[0]
        group["param_names"][place : place + len(old)] = [f"{stem}.{leaf}" for leaf in leaves]
    for parameter, state in new.items():
        if state:
            optimizer.state[parameter] = dict(state)


def state_from_0(before: State, parameter: nn.Parameter, made: State | None) -> State:
    """Rank 0's state of a new parameter, on every rank: of the kinds that the one before had."""
    empty = {key: torch.zeros_like(parameter) if value.ndim else value.clone() for key, value in before.items()}
    return {key: broadcast(value if made is None else made[key]) for key, value in sorted(empty.items())}


def bytes_of(state: Mapping[str, Any]) -> int:
    """What a parameter's state takes, numbers of no dimension not counted."""
    return sum(value.nbytes for value in state.values() if isinstance(value, Tensor) and value.ndim > 0)
