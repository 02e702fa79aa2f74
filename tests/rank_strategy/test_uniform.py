"""The baseline of every rank strategy."""

import pytest
from torch import Generator

from lab.errors import UsageError
from lab.layer import Target
from lab.rank_strategy.uniform import Uniform

TARGETS = [Target("a.0.q_proj", "attention", 0, (32, 32), False), Target("a.0.k_proj", "attention", 0, (8, 32), False)]


def test_every_target_gets_the_rank_that_was_asked() -> None:
    assert Uniform().allocate(TARGETS, 8, {}, {}, Generator()) == {"a.0.q_proj": 8, "a.0.k_proj": 8}


@pytest.mark.parametrize(("rank", "named"), [(0, "q_proj"), (-1, "q_proj"), (9, r"k_proj \(8 x 32\)")])
def test_a_rank_that_a_layer_cannot_have_names_it(rank: int, named: str) -> None:
    with pytest.raises(UsageError, match=f"rank={rank} is outside 1 to .*{named}"):
        Uniform().allocate(TARGETS, rank, {}, {}, Generator())
