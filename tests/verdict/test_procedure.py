"""The procedure of a study's pairs: what tuning may have cost either arm, and the seeds that each still needs."""

import math
import random
from dataclasses import replace

import pytest

from lab.report.looks import Looked
from lab.sweep.declaration import declare
from lab.verdict import procedure
from lab.verdict.choice import Tuned
from lab.verdict.procedure import Chosen

LEAD = 0.1  # by which `a` is better than `b`


def study(**fields):
    arms = {"base": "x=1", "a": "x=2", "b": "x=3"}
    block = {"name": "s", "question": "?", "arms": arms, "baseline": "base", "contrasts": ["a/b", "a"], "margin": 0.01,
             "seeds": list(range(1, 21)), "learning_rates": [1e-3], "aa": False}  # fmt: skip
    return declare(block | fields)


def tuned(regret):
    return Tuned(rate=1e-3, rule="vertex", reason="", curve={}, regret=regret)


def ended(most):
    """Values of so many seeds an arm; `base` and `a` differ by noise alone."""

    def of(arm, rate, seed):
        noise = random.Random(f"{arm} {seed}").gauss(0, 0.005)
        return seed <= most.get(arm, 20), 2 + (LEAD if arm == "b" else 0.0) + noise

    return of


@pytest.mark.parametrize(("regrets", "clear"), [({"a": 0.3, "b": 0.0}, True), ({"a": 0.0, "b": 0.3}, False)])
def test_a_pair_is_clear_of_what_tuning_may_have_cost_the_one_that_loses(regrets, clear):
    """Better tuning of the winner would only widen its lead; the loser might have been as good."""
    costs = {"base": 0.0, **regrets}
    chosen = Chosen(tuned={arm: tuned(cost) for arm, cost in costs.items()}, margin=0.01)
    judged = procedure.look(study(), chosen, ended({})).judged["a/b"]
    assert (judged.verdict, judged.clear) == ("better", clear)


def test_each_arm_wants_the_seeds_of_its_own_open_contrasts():
    chosen = Chosen(tuned={arm: tuned(0.0) for arm in ("base", "a", "b")}, margin=1e-6)
    found = procedure.look(study(), chosen, ended({"base": 4, "a": 4, "b": 4}))
    assert found.judged["a/b"].stopped_because == "difference"
    assert found.judged["a"].stopped_because == "open"
    assert found.wanted == {"base": 5, "a": 5, "b": 4}


def test_an_arm_without_a_rate_takes_its_pairs_with_it_and_no_other():
    chosen = Chosen(
        tuned={"base": tuned(0.0), "a": tuned(0.0), "b": Tuned(rate=None, rule="none", reason="", curve={})},
        margin=0.01,
    )
    found = procedure.look(study(), chosen, ended({}))
    assert list(found.judged) == ["a"]
    assert found.wanted.keys() == {"base", "a"}


def accuracy(arm, rate, seed):
    """Shares of right answers, alike in all arms but `b`."""
    noise = random.Random(f"{arm} {seed}").gauss(0, 0.002)
    return True, 0.5 + (0.2 if arm == "b" else 0.0) + noise


@pytest.mark.parametrize(
    ("fields", "at_best", "rates"),
    [
        ({"metric": "test_accuracy", "margin": 0.02}, False, 7),
        ({"metric": "my_score", "selection_metric": "my_other_score", "margin": 0.02}, False, 7),
        ({"metric": "test_loss", "margin": 10.0}, True, 7),
        ({"metric": "test_loss", "margin": 0.02}, True, 9),
    ],
)
def test_nats_that_a_rate_may_have_cost_are_not_held_against_answers(fields, at_best, rates):
    """Where six nats a decade are lost on either side of a kink, a rate may have cost 0.12: six margins of answers."""
    higher = fields["metric"] in ("test_accuracy", "my_score")
    grid = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    own = study(**fields, higher_is_better=higher, learning_rates=grid, contrasts=["a", "b"])
    tried = set()

    def ran(arm, rate, seeds):
        tried.add((arm, rate))
        return [2 + 6 * abs(math.log10(rate / 1.2e-3)) for _ in seeds]

    chosen = procedure.choose(own, ran, lambda *_: [(None, 2.0)])
    assert sum(arm == "base" for arm, _ in tried) == rates, (
        "the step at an eighth where a regret beyond the margin is told"
    )
    judged = procedure.look(own, chosen, accuracy).judged
    looked = {
        name: Looked(judged=each, horizon=20, arm=chosen.tuned[name], other=chosen.tuned["base"], margin=chosen.margin)
        for name, each in judged.items()
    }
    assert [each.at_best for each in looked.values()] == [at_best, at_best]
    # An equivalence within 0.02 says nothing of best rates that may have cost 0.06 each.
    alike = replace(looked["a"], judged=replace(judged["a"], verdict="equivalent"))
    assert alike.at_best == (at_best and fields["margin"] > 0.02)
    if higher:
        assert {name: each.verdict for name, each in judged.items()} == {"a": "equivalent", "b": "better"}
        assert judged["a"].seeds == judged["b"].seeds == 4
        assert [each.regret for each in looked.values()] == [None, None]
