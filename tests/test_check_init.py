import dataclasses

import pytest
import torch

from lab.init import Factors
from lab.init.random import Random
from lab.testing import check_init

GOOD = Random(distribution="kaiming", filled="A")


@dataclasses.dataclass
class Mine:
    """A user's scheme: the good one, with one thing changed."""

    change: dict
    needs: frozenset = frozenset()

    def factors(self, target, weight, rank, scaling, evidence, generator):
        made = GOOD.factors(target, weight, rank, scaling, evidence, generator)
        return dataclasses.replace(made, **{key: value(made) for key, value in self.change.items()})


def test_a_good_scheme_passes():
    check_init(Mine({}))
    check_init(GOOD)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"A": lambda made: made.A.T}, "A of a square layer has shape"),
        ({"B": lambda made: made.B.double()}, "is torch.float64, not float32"),
        ({"A": lambda made: made.A / 0}, "A of a square layer is not finite"),
        ({"A": lambda made: made.A * 0}, "both zero and never train"),
        ({"A": lambda made: torch.randn_like(made.A)}, "one seed gave two different pairs"),
        ({"A": lambda made: made.A.clone().requires_grad_()}, "still carries a graph"),
        ({"offset": lambda made: "away"}, "offset 'away' is not"),
        ({"info": lambda made: {"norm": torch.ones(())}}, "info holds something other than numbers"),
        ({"base": lambda made: torch.ones(3, 3)}, "the base of a square layer has shape"),
    ],
)
def test_each_breach_of_the_protocol_is_named(change, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_init(Mine(change))


def test_an_unknown_need_and_a_changed_weight_are_named():
    with pytest.raises(AssertionError, match=r"needs \['hessian'\] are none of"):
        check_init(Mine({}, needs=frozenset({"hessian"})))

    class Careless:
        needs = frozenset()

        def factors(self, target, weight, rank, scaling, evidence, generator):
            A, B = torch.ones(rank, target.shape[1]), torch.zeros(target.shape[0], rank)
            weight -= B @ A + 1
            return Factors(A, B)

    with pytest.raises(AssertionError, match="was changed in place"):
        check_init(Careless())
