"""check_rank_strategy passes our strategies and catches each breach of the protocol."""

from dataclasses import dataclass

import pytest
import torch

from lab.rank_strategy.uniform import Uniform
from lab.testing import check_rank_strategy


@dataclass
class Broken:
    """Uniform with one fault."""

    fault: str
    budget: str = "params"

    @property
    def needs(self):
        return frozenset({"horoscope"}) if self.fault == "needs" else frozenset()

    def allocate(self, targets, rank, weights, evidence, generator):
        plan = {target.name: rank for target in targets}
        first = targets[0].name
        if self.fault == "missing":
            del plan[first]
        if self.fault == "unasked":
            plan["lm_head"] = rank
        if self.fault in ("zero", "fraction", "large"):
            plan[first] = {"zero": 0, "fraction": 2.5, "large": 33}[self.fault]
        if self.fault == "cost":
            plan = dict.fromkeys(plan, rank + 1)
        if self.fault == "seed":
            plan[first] = int(torch.randint(1, 17, ()))
        if self.fault == "write":
            weights[first].mul_(2)
        return plan


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("needs", "horoscope"),
        ("missing", r"without a rank or unasked for: \['model.layers.0.self_attn.q_proj'\]"),
        ("unasked", "lm_head"),
        ("zero", "got rank 0, not 1 to 32"),
        ("fraction", "got rank 2.5"),
        ("large", "got rank 33"),
        ("seed", "two different plans"),
        ("write", "changed in place"),
        ("cost", "the plan costs 2880 parameters and uniform at rank 4 costs 2304"),
    ],
)
def test_each_breach_is_caught(fault, sentence):
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=sentence):
        check_rank_strategy(Broken(fault))


def test_a_sound_strategy_passes():
    check_rank_strategy(Broken("none"))
    check_rank_strategy(Uniform())
