"""The family of contrasts: Holm at any moment, verdicts that stand, and who still needs a seed."""

import itertools

import numpy as np
import pytest

from lab.errors import UsageError
from lab.verdict.family import (
    DIFFERENT,
    EQUIVALENT,
    GAVE_UP,
    Rules,
    decide,
    holm,
    judge,
    looks,
)

TRUTHS = {"a": 0.0, "b": 2.5, "c": -3.0, "d": 0.6}
CORRELATION = 0.35


def differences(seed: int, seeds: int = 12, truths: dict[str, float] = TRUTHS) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(mean, 1.0, seeds).tolist() for name, mean in truths.items()}


def studies(truth: list[float], count: int, seed: int, seeds: int = 12) -> np.ndarray:
    """(studies, contrasts, seeds), correlated through the baseline they share; unit spread."""
    rng = np.random.default_rng(seed)
    shared, own = rng.standard_normal((count, 1, seeds)), rng.standard_normal((count, len(truth), seeds))
    return np.array(truth)[:, None] + CORRELATION**0.5 * shared + (1 - CORRELATION) ** 0.5 * own


def test_holm_is_the_one_in_the_paper():
    # Four p values, smallest times 4, next times 3, and never below the one before: worked by hand.
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])


def test_an_effect_a_null_and_both_directions_get_their_verdicts():
    judged = judge(differences(0), 1.2, higher_is_better=False).judged
    assert (judged["b"].verdict, judged["b"].stopped_because) == ("worse", "difference")
    assert (judged["c"].verdict, judged["c"].stopped_because) == ("better", "difference")
    assert judge(differences(0), 1.2, higher_is_better=True).judged["c"].verdict == "worse"
    tight = {name: [0.1 * x for x in own] for name, own in differences(1, truths={"a": 0.0}).items()}
    assert judge(tight, 1.0).judged["a"].verdict == "equivalent"


@pytest.mark.parametrize("seed", range(20))
def test_a_verdict_stands_whatever_seeds_come_later(seed):
    whole = differences(seed)
    early: dict[str, object] = {}
    for n in range(1, 13):
        for name, own in judge({k: v[:n] for k, v in whole.items()}, 1.0).judged.items():
            if own.stopped_because in ("difference", "equivalence"):
                early.setdefault(name, own)
    for later in (whole, {k: [*v, *[99.0] * 8] for k, v in whole.items()}):
        for name, first in early.items():
            now = judge(later, 1.0).judged[name]
            assert (now.verdict, now.seeds, now.contrast) == (first.verdict, first.seeds, first.contrast)


@pytest.mark.parametrize("seed", range(10))
def test_giving_seeds_only_where_they_are_wanted_changes_nothing(seed):
    whole = differences(seed)
    given: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(20):
        wanted = judge(given, 1.0).wanted
        if not wanted:
            break
        given = {name: whole[name][: max(wanted.get(name, 0), len(own))] for name, own in given.items()}
    lean, full = judge(given, 1.0), judge(whole, 1.0)
    assert lean.judged == full.judged
    assert sum(map(len, given.values())) == sum(own.seeds for own in full.judged.values())


def test_a_look_waits_for_every_open_contrast():
    whole = differences(3, truths={"a": 0.1, "b": 4.0})
    short = {"a": whole["a"][:5], "b": whole["b"][:8]}
    waiting = judge(short, 0.05, rules=Rules(give_up=False))
    assert waiting.judged["a"].seeds == 5
    assert waiting.wanted["a"] == 6
    order = judge({"a": whole["a"][:3], "b": whole["b"][:8]}, 0.05)
    assert [own.seeds for own in order.judged.values()] == [3, 3]
    assert judge({"a": whole["a"][:3], "b": whole["b"][:8]}, 0.05, ended=True).judged["b"].verdict == "worse"


def test_the_first_look_wants_four_seeds_at_once():
    assert judge({"a": [], "b": [0.1]}, 1.0).wanted == {"a": 4, "b": 4}


def test_the_budget_ends_what_is_open_and_more_budget_goes_on():
    d = {"a": np.random.default_rng(11).normal(0.9, 1.0, 12).tolist()}
    spent = judge(d, 0.1, rules=Rules(give_up=False, budget=8))
    assert spent.judged["a"].verdict in ("inconclusive", "worse")
    d = {"a": [1.0, -1.0] * 6}
    spent = judge(d, 0.1, rules=Rules(give_up=False))
    assert (spent.judged["a"].verdict, spent.judged["a"].stopped_because) == ("inconclusive", "budget")
    assert spent.wanted == {}
    assert judge(d, 0.1, rules=Rules(give_up=False, budget=20)).wanted == {"a": 13}


def test_what_its_own_estimates_would_never_decide_is_given_up_from_six_pairs():
    hopeless = {"a": [1.0, -1.0, 0.9, -1.1, 1.2, -0.8, 1.0]}
    family = judge(hopeless, 0.2)
    assert (family.judged["a"].stopped_because, family.judged["a"].seeds) == ("gave_up", 6)
    assert family.judged["a"].verdict == "inconclusive"
    assert judge(hopeless, 0.2, rules=Rules(give_up=False)).wanted == {"a": 8}


def test_a_diverged_seed_spends_the_budget_but_is_no_pair():
    own = differences(5, truths={"a": 0.4})["a"]
    family = judge({"a": [*own[:3], None, *own[3:]]}, 0.1, rules=Rules(give_up=False, budget=12))
    assert (family.judged["a"].seeds, family.judged["a"].contrast.pairs) == (13, 12)
    held = judge({"a": [*own[:3], None, *own[3:11]]}, 0.1, rules=Rules(give_up=False))
    assert (held.judged["a"].stopped_because, held.judged["a"].contrast.pairs) == ("budget", 11)


@pytest.mark.parametrize("bad", [[0.1] * 8, [0.1, float("nan"), 0.2, 0.3, 0.1, 0.2]])
def test_a_contrast_that_cannot_be_judged_is_withheld_and_holds_up_nobody(bad):
    family = judge({"a": differences(2, truths={"a": 3.0})["a"], "bad": bad}, 0.5)
    assert family.judged["bad"].verdict == "withheld"
    assert family.judged["a"].verdict == "worse"
    assert "bad" not in family.wanted


def test_a_difference_is_clear_only_beyond_what_the_loser_may_have_lost():
    d = {"a": (0.5 + 0.1 * np.random.default_rng(1).standard_normal(12)).tolist()}  # the arm is worse by 0.5
    of_the_loser = judge(d, None, regrets={"a": (0.6, 0.0)}).judged["a"]
    of_the_winner = judge(d, None, regrets={"a": (0.0, 0.6)}).judged["a"]
    assert (of_the_loser.verdict, of_the_loser.clear) == ("worse", False)
    assert (of_the_winner.verdict, of_the_winner.clear) == ("worse", True)
    swapped = {"a": [-x for x in d["a"]]}
    assert judge(swapped, None, regrets={"a": (0.6, 0.0)}).judged["a"].clear
    assert judge(swapped, None, regrets={"a": (0.6, 0.0)}, higher_is_better=True).judged["a"].clear is False


def test_a_difference_goes_on_until_it_is_clear():
    d = {"a": (0.5 + 0.2 * np.random.default_rng(2).standard_normal(12)).tolist()}
    at_once = judge(d, None).judged["a"]
    beyond = judge(d, None, regrets={"a": (0.15, 0.0)}).judged["a"]
    assert beyond.clear
    assert beyond.seeds > at_once.seeds
    # One that its own estimates would never clear ends where the difference itself is there, and says so.
    never = judge(d, None, regrets={"a": (0.4, 0.0)}).judged["a"]
    assert (never.verdict, never.stopped_because, never.clear) == ("worse", "difference", False)


def test_a_shift_of_the_null_is_a_shift_of_the_data():
    """Clear of ρ at p is the same as different from zero at p once ρ is taken off."""
    d = studies([1.0, 1.5], 50, seed=4)
    seen = looks(d, None, Rules(), regrets=np.full((2, 2), 0.4))
    less = looks(d - 0.4, None, Rules())
    same = (d.cumsum(-1) / np.arange(1, 13) > 0.4)[..., 3:].all(axis=(-1, -2))
    assert same.any()
    np.testing.assert_allclose(seen.p_clear[same], less.p[same], rtol=1e-9)


def test_many_studies_at_once_are_judged_as_one_by_one():
    d = studies([0.0, 1.0, 2.0, -2.0], 100, seed=9)
    at_once = decide(looks(d, 1.0, Rules()), np.full((100, 4), 12))
    names = {DIFFERENT: "difference", EQUIVALENT: "equivalence", GAVE_UP: "gave_up"}
    for i, study in enumerate(d):
        judged = judge({str(k): own.tolist() for k, own in enumerate(study)}, 1.0).judged
        for k, own in enumerate(judged.values()):
            assert own.stopped_because == names.get(int(at_once.state[i, k]), "budget")
            assert own.seeds == at_once.seeds[i, k]


@pytest.mark.parametrize(("truth", "margin"), [([0.0] * 4, 0.2), ([0.0] * 4, 1.0), ([0.0] * 3 + [3.0], 1.0)])
def test_a_study_errs_in_five_of_a_hundred_for_differences(truth, margin):
    count = 6000
    decided = decide(looks(studies(truth, count, seed=1), margin, Rules()), np.full((count, 4), 12))
    nulls = np.array(truth) == 0
    false = ((decided.state == DIFFERENT) & nulls).any(axis=-1).mean()
    assert false <= 0.05 + 3 * (0.05 * 0.95 / count) ** 0.5


@pytest.mark.parametrize("signs", [(1, 1, 1, 1), (1, -1, 1, -1)])
@pytest.mark.parametrize("edge", [0.8, 1.5, 3.0])
def test_a_study_errs_in_five_of_a_hundred_for_equivalence_at_the_edge_of_the_margin(signs, edge):
    count = 4000
    d = studies([edge * sign for sign in signs], count, seed=2)
    decided = decide(looks(d, edge, Rules()), np.full((count, 4), 12))
    assert (decided.state == EQUIVALENT).any(axis=-1).mean() <= 0.05 + 3 * (0.05 * 0.95 / count) ** 0.5


def test_peeking_without_calibration_would_err_four_times_as_often():
    """The same looks at the plain p values: what the calibration is there for (0.175 in an independent simulation)."""
    from lab.verdict.sequential import paired_p

    d = studies([0.0] * 4, 4000, seed=3)
    plain = holm(np.moveaxis(np.minimum.accumulate(paired_p(d), axis=-1), -1, -2))
    assert (plain <= 0.05).any(axis=(-1, -2)).mean() > 0.12


@pytest.mark.parametrize(
    ("given", "words"),
    [({"horizon": 15}, "horizon 15"), ({"budget": 3}, "budget of 3"), ({"budget": 21}, "budget of 21")],
)
def test_rules_that_contradict_themselves_are_refused(given, words):
    with pytest.raises(UsageError, match=words):
        Rules(**given)


def test_no_contrast_is_no_family():
    assert judge({}, 1.0).judged == {}


def test_the_order_of_contrasts_does_not_matter():
    whole = differences(4)
    reference = judge(whole, 1.0).judged
    for names in itertools.permutations(whole):
        assert judge({name: whole[name] for name in names}, 1.0).judged == reference
