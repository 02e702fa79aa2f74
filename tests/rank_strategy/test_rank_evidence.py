"""Strategies that measure, on matrices built to have known measures."""

import numpy as np
import pytest
import torch

from lab.errors import UsageError
from lab.layer import Evidence, Target
from lab.rank_strategy.components import Eva, Posthoc
from lab.rank_strategy.sensitivity import Fisher, Gora
from lab.rank_strategy.spectrum import GradientRank, WeightSpectrum, energies

PARAMS = {"budget": "params", "min_rank": 1, "max_rank": None}
NONE = {"budget": "none", "min_rank": 1, "max_rank": None}


def with_spectrum(sigma, shape=(40, 40), seed=0):
    """A matrix (out, in) with these singular values between random frames."""
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(shape[0], len(sigma), generator=generator)).Q
    V = torch.linalg.qr(torch.randn(shape[1], len(sigma), generator=generator)).Q
    return (U * torch.tensor(sigma, dtype=torch.float32)) @ V.T


def layers(*shapes):
    return [Target(f"layers.{i}.mlp.up", "mlp", i, shape, False) for i, shape in enumerate(shapes)]


def allocate(strategy, targets, rank, weights=None, evidence=None):
    names = [target.name for target in targets]
    return list(
        strategy.allocate(
            targets,
            rank,
            dict(zip(names, weights or [None] * len(names), strict=True)),
            dict(zip(names, evidence or [Evidence()] * len(names), strict=True)),
            torch.Generator(),
        ).values()
    )


@pytest.mark.parametrize("shape", [(40, 40), (60, 24), (24, 60)])
def test_energies_are_squared_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
    np.testing.assert_allclose(energies(matrix).numpy(), expected, rtol=1e-10)  # both float64


def test_energies_beyond_the_rank_are_exactly_zero():
    found = energies(with_spectrum([3.0, 2.0]))
    assert found[:2].tolist() == pytest.approx([9.0, 4.0], rel=1e-5)  # float32 matrix
    assert not found[2:].any()


def test_effective_rank_decides():
    # k equal singular values have effective rank k exactly
    targets = layers((40, 40), (40, 40))
    strategy = WeightSpectrum(measure="effective_rank", **PARAMS)
    assert allocate(strategy, targets, 8, [with_spectrum([2.0] * 30), with_spectrum([0.1] * 10)]) == [12, 4]


def test_stable_rank_decides():
    # stable rank Σσ²/σ₁²: 1 + 8·(1/2) = 5 and 1
    targets = layers((40, 40), (40, 40))
    weights = [with_spectrum([1.0] + [0.5**0.5] * 8), with_spectrum([7.0])]
    assert allocate(WeightSpectrum(measure="stable_rank", **PARAMS), targets, 6, weights) == [10, 2]


def test_tail_energy_decides():
    # beyond the first 4 of equal singular values: 4/8 and 1/5 of the energy, so 5 : 2 of 8 ranks -> 5.7, 2.3
    targets = layers((40, 40), (40, 40))
    weights = [with_spectrum([1.0] * 8), with_spectrum([1.0] * 5)]
    assert allocate(WeightSpectrum(measure="tail_energy", **PARAMS), targets, 4, weights) == [6, 2]


def test_a_zero_weight_measures_zero_and_gets_what_is_left():
    targets = layers((40, 40), (40, 40))
    weights = [torch.zeros(40, 40), with_spectrum([1.0, 1.0])]
    for measure in ("effective_rank", "stable_rank"):
        assert allocate(WeightSpectrum(measure=measure, **PARAMS), targets, 8, weights) == [1, 15]
    with pytest.raises(UsageError, match="nothing to allocate by"):
        allocate(WeightSpectrum(measure="stable_rank", **PARAMS), targets, 8, [torch.zeros(40, 40)] * 2)


def test_gradient_rank_counts_directions_above_tau():
    targets = layers((40, 40), (40, 40))
    spectra = [[1.0, 0.5, 0.101, 0.099, 0.001], [10.0, 0.9]]
    evidence = [Evidence(gradient=with_spectrum(sigma)) for sigma in spectra]
    assert allocate(GradientRank(tau=0.1, **NONE), targets, 99, evidence=evidence) == [3, 1]
    assert allocate(GradientRank(tau=0.1, **PARAMS), targets, 4, evidence=evidence) == [6, 2]
    assert allocate(GradientRank(tau=0.0005, **NONE), targets, 99, evidence=evidence) == [5, 2]


def test_gora_weighs_by_mean_of_weight_times_gradient_over_root_cost():
    targets = layers((8, 8), (8, 8))
    ones = torch.ones(8, 8)
    evidence = [Evidence(gradient=-3 * ones), Evidence(gradient=ones)]
    assert allocate(Gora(cost_power=0.5, **PARAMS), targets, 4, [ones, -ones], evidence) == [6, 2]
    # equal importance, costs 16 and 64: ranks go as 2 : 1, and 16·2x + 64·x = 3·80 at x = 2.5, where both remainders
    # are less than their module: 5 and 2 cost 208, and 32 stay unspent
    targets = layers((8, 8), (32, 32))
    ones = [torch.ones(8, 8), torch.ones(32, 32)]
    found = allocate(Gora(cost_power=0.5, **PARAMS), targets, 3, ones, [Evidence(gradient=one) for one in ones])
    assert found == [5, 2]


def test_fisher_weighs_by_the_mean_squared_gradient():
    targets = layers((8, 8), (8, 8))
    evidence = [Evidence(gradient_square=torch.full((8, 8), value)) for value in (0.3, 0.1)]
    assert allocate(Fisher(**PARAMS), targets, 4, evidence=evidence) == [6, 2]


def test_eva_keeps_the_components_that_explain_most():
    # shares of variance: layer 0 .5 .3 .1 .1, layer 1 .7 .25 .05; the best four of both are .7 .5 .3 .25
    targets = layers((4, 4), (4, 4))
    diagonals = [[0.1, 0.3, 0.5, 0.1], [7.0, 0.5, 2.5, 0.0]]
    evidence = [Evidence(activations=torch.diag(torch.tensor(values))) for values in diagonals]
    assert allocate(Eva(rho=2.0, **PARAMS), targets, 2, evidence=evidence) == [2, 2]
    flat = [Evidence(activations=torch.diag(torch.tensor(values))) for values in ([1.0, 1, 1, 1], [1.0, 0, 0, 0])]
    assert allocate(Eva(rho=2.0, **PARAMS), targets, 2, evidence=flat) == [3, 1]


def test_eva_counts_ranks_as_the_paper_or_parameters_as_we_do():
    # shares .4 .3 .2 .1 at cost 8 against .55 .45 at cost 80, and one component of each is the minimum
    targets = layers((4, 4), (40, 40))
    large = torch.zeros(40)
    large[:2] = torch.tensor([0.55, 0.45])
    small = torch.tensor([0.4, 0.3, 0.2, 0.1])
    evidence = [Evidence(activations=torch.diag(moment)) for moment in (small, large)]
    # two ranks are left, and the best components are .45 and .3
    assert allocate(Eva(rho=2.0, **(PARAMS | {"budget": "ranks"})), targets, 2, evidence=evidence) == [2, 2]
    # 88 of 176 parameters are left; .3/8, .2/8 and .1/8 all exceed .45/80, which then no longer fits
    assert allocate(Eva(rho=2.0, **PARAMS), targets, 2, evidence=evidence) == [4, 1]


def test_eva_never_gives_more_than_rho_times_rank():
    targets = layers((40, 40), (40, 40), (40, 40))
    flat, peaked = torch.eye(40), torch.diag(torch.tensor([1.0] + [0.0] * 39))
    evidence = [Evidence(activations=flat), Evidence(activations=peaked), Evidence(activations=peaked)]
    assert allocate(Eva(rho=1.5, **PARAMS), targets, 4, evidence=evidence) == [6, 3, 3]


def test_posthoc_keeps_the_most_change_of_all_plans_of_its_cost():
    targets = layers((20, 20), (20, 20), (20, 20))
    spectra = [[5.0, 4.0, 0.1, 0.1, 0.1, 0.1], [3.0, 2.9, 2.8, 2.7, 0.1, 0.1], [0.5, 0.4, 0.3, 0.2, 0.1, 0.1]]
    evidence = [Evidence(delta=with_spectrum(sigma, (20, 20))) for sigma in spectra]
    plan = allocate(Posthoc(wide=2.0, **PARAMS), targets, 3, evidence=evidence)

    def kept(ranks):
        return sum(s**2 for sigma, r in zip(spectra, ranks, strict=True) for s in sigma[:r])

    every = [(a, b, 9 - a - b) for a in range(1, 7) for b in range(1, 7) if 1 <= 9 - a - b <= 6]
    assert kept(plan) == max(kept(ranks) for ranks in every)
    assert plan == [2, 4, 3]


def test_posthoc_still_spends_its_budget_where_the_change_has_less_rank():
    targets = layers((20, 20), (20, 20))
    evidence = [Evidence(delta=with_spectrum([1.0], (20, 20))), Evidence(delta=torch.zeros(20, 20))]
    assert allocate(Posthoc(wide=2.0, **PARAMS), targets, 4, evidence=evidence) == [4, 4]


def test_posthoc_plans_its_wide_run_within_each_smaller_side():
    wide = Posthoc(wide=4.0, **PARAMS).wide_ranks(layers((40, 40), (24, 60)), 8)
    assert list(wide.values()) == [32, 24]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: WeightSpectrum(measure="rank", **PARAMS), "measure='rank' is not one of effective_rank"),
        (lambda: GradientRank(tau=0.0, **PARAMS), "0 < tau <= 1"),
        (lambda: Eva(rho=0.9, **PARAMS), "rho=0.9 must be at least 1"),
        (lambda: Posthoc(wide=1.0, **PARAMS), "wide=1.0 must exceed 1"),
    ],
)
def test_parameters_out_of_range_are_refused_when_built(build, sentence):
    with pytest.raises(UsageError, match=sentence):
        build()


def test_components_that_compete_have_no_literal_table():
    with pytest.raises(UsageError, match="budget=none has no meaning"):
        allocate(Eva(rho=2.0, **NONE), layers((4, 4)), 2, evidence=[Evidence(activations=torch.eye(4))])


def test_non_finite_evidence_is_refused_with_the_layers_name():
    targets = layers((8, 8), (8, 8))
    good, bad = torch.ones(8, 8), torch.full((8, 8), float("nan"))
    with pytest.raises(UsageError, match=r"layers\.1\.mlp\.up is nan"):
        allocate(Gora(cost_power=0.5, **PARAMS), targets, 4, [good, good], [Evidence(gradient=g) for g in (good, bad)])
