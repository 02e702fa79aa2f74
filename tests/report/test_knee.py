import numpy as np
import pytest

from lab.report.knee import knee

RANKS = (1, 2, 4, 8, 16)


def planted(true_rank, noise=0.004, seeds=6, seed=0):
    """Loss falls in proportion to the captured directions of a rank-r* change, then stays."""
    random = np.random.default_rng(seed)
    common = random.normal(0, 0.03, seeds)
    return {
        rank: list(3.0 - 0.5 * min(rank, true_rank) / true_rank + common + random.normal(0, noise, seeds))
        for rank in RANKS
    }


@pytest.mark.parametrize("true_rank", [2, 4, 8])
def test_the_knee_of_a_planted_rank_is_that_rank(true_rank):
    found = [knee(planted(true_rank, seed=seed), 3.0) for seed in range(20)]
    assert all(each.rank == true_rank for each in found)
    assert all(each.low <= true_rank <= each.high for each in found)


def test_without_a_base_loss_the_smallest_rank_is_the_reference():
    assert knee(planted(8)).rank == 8
    assert "from rank 1" in knee(planted(8)).reason


def test_a_flat_curve_has_no_knee():
    random = np.random.default_rng(0)
    flat = [knee({rank: list(random.normal(2, 0.01, 6)) for rank in RANKS}) for _ in range(200)]
    # a false knee in 5 % of flat curves is the level; 200 draws have a standard error of 1.5 %
    assert sum(each.rank is not None for each in flat) <= 20
    assert "cannot be told from zero" in next(each for each in flat if each.rank is None).reason


def test_a_knee_at_the_edge_says_so():
    steep = {rank: [3.0 - 0.1 * rank + 0.001 * seed for seed in range(6)] for rank in RANKS}
    assert "beyond" in knee(steep).reason


@pytest.mark.parametrize("seeds", [0, 1, 2, 3, 4])
def test_a_knee_needs_four_seeds_and_says_so(seeds):
    found = knee({rank: values[:seeds] for rank, values in planted(4).items()}, 3.0)
    assert (found.rank, found.low is None) == ((4, False) if seeds == 4 else (None, True))
    assert ("a knee needs 4" in found.reason) == (seeds < 4)
    assert f"{seeds or 'no'} seed" in found.reason or seeds == 4


@pytest.mark.parametrize("bad", [{1: [1.0], 2: [0.5]}, {1: [], 2: [], 4: []}, {1: [1.0], 2: [float("nan")], 4: [1.0]}])
def test_no_curve_no_knee(bad):
    assert knee(bad).rank is None


def test_unequal_seeds_are_refused():
    with pytest.raises(ValueError, match="every rank"):
        knee({1: [1.0], 2: [1.0, 2.0], 4: [1.0]})
