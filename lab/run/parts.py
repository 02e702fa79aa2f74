"""Parts of a run: the objects that its config describes, made once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.config import RunConfig, instantiate
from lab.data import DataSet
from lab.init import InitScheme
from lab.model import Model
from lab.rank_strategy import RankStrategy
from lab.svd_policy import SvdPolicy


@dataclass(frozen=True)
class Parts:
    """The objects of a config's groups."""

    model: Model
    data: DataSet
    svd_policy: SvdPolicy
    init: InitScheme | None  # None where no adapter is filled
    rank_strategy: RankStrategy | None  # None where there is no rank to give
    measures: dict[str, Callable[[Any, Any], Any]]  # the user's own

    @classmethod
    def of(cls, config: RunConfig) -> "Parts":
        """Made from a config; raises UsageError with what a class refuses of its values."""
        adapts = config.method == "lora"
        return cls(
            measures=instantiate.make_measures(config.metrics),
            model=instantiate.make(config.model),
            data=instantiate.make_data(config.data),
            svd_policy=instantiate.make(config.svd_policy),
            rank_strategy=instantiate.make(config.rank_strategy) if adapts else None,
            init=instantiate.make(config.init) if adapts else None,
        )
