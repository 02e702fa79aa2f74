"""Custom ranks: a map from layers to ranks that the user writes down."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Generator

from lab.errors import UsageError, nearest
from lab.layer import Target
from lab.rank_strategy import Gathered, RankPlan, Weights
from lab.rank_strategy.budget import Budgeted


@dataclass(frozen=True, kw_only=True)
class Custom(Budgeted):
    """A map from layer to rank; with a budget other than `none`, its proportions.

    A key is a layer's name, the end of one (`q_proj`), or a regular expression for the whole name. A name beats a
    pattern; among patterns the first that matches wins, as in peft's `rank_pattern`.
    """

    ranks: Mapping[str, int] | None  # None: no key, which leaves every layer to the default
    default: int | None  # rank of a layer that no key matches; None: such a layer is an error

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self._map, Mapping):
            raise UsageError(f"rank_strategy.ranks={self.ranks!r} is no map; write {{q_proj: 8, v_proj: 4}}.")
        for key, value in self._map.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"rank_strategy.ranks gives {key} {value!r}, which is not a whole number.")

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """The map read for every target; raises UsageError for a key without effect, a layer without a rank, a rank
        below 1 or above the layer's smaller side."""
        key_of = {target.name: self._key(target.name) for target in targets}
        for key in self._map:
            if key not in key_of.values():
                taken = any(_matches(key, name) for name in key_of)
                why = "is always preceded by another key" if taken else "matches no target"
                leaves = sorted({target.leaf for target in targets})
                raise UsageError(
                    f"rank_strategy.ranks key {key!r} {why}{'' if taken else nearest(key, leaves)} "
                    f"(the targets are {', '.join(leaves)})."
                )
        bare = [name for name, key in key_of.items() if key is None]
        if bare and self.default is None:
            raise UsageError(
                f"rank_strategy.ranks gives no rank to {len(bare)} of {len(targets)} layers, the first {bare[0]}; "
                f"add keys for them or set rank_strategy.default."
            )
        ranks = {name: self._rank(key) for name, key in key_of.items()}
        for target in targets:
            if not 1 <= ranks[target.name] <= target.max_rank:
                raise UsageError(
                    f"rank_strategy.ranks gives {target.name} rank {ranks[target.name]}, "
                    f"which is not between 1 and its smaller side, {target.max_rank}."
                )
        return self.spend(targets, rank, ranks)

    @property
    def _map(self) -> Mapping[str, int]:
        return self.ranks or {}

    def _key(self, name: str) -> str | None:
        if name in self._map:
            return name
        return next((key for key in self._map if _matches(key, name)), None)

    def _rank(self, key: str | None) -> int:
        value = self.default if key is None else self._map[key]
        assert value is not None
        return value


def _matches(key: str, name: str) -> bool:
    try:
        return name == key or name.endswith(f".{key}") or re.fullmatch(key, name) is not None
    except re.error as error:
        raise UsageError(f"rank_strategy.ranks key {key!r} is no regular expression ({error}).") from None
