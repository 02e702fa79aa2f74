"""The search for a learning rate, on curves whose optimum is known and on measured ones."""

import math

import pytest

from lab.verdict.choice import FINE, Scale, Tuned, vertex
from lab.verdict.tuning import NEAR, Wanted, first_rates, neighbour, tune

GRID = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]


def search(loss, *, around=None, seeds=1, grid=GRID, scale=None, **given):
    """(choice, what was run in which order) of an arm whose loss is `loss(position, seed)`, None where it diverges."""
    known: dict[float, list[float | None]] = {}
    asked: list[tuple[float, int]] = []
    for _ in range(30):
        step = tune(grid, known, around=around, seeds=seeds, scale=scale, **given)
        if isinstance(step, Tuned):
            return step, asked
        for rate in step.rates:
            own = known.setdefault(rate, [])
            for seed in range(len(own), step.seeds):
                own.append(loss(math.log10(rate), seed))
                asked.append((rate, seed))
    raise AssertionError("the search does not end")


def parabola(optimum, curvature=2.6, right=1.0, cliff=math.inf):
    def loss(position, seed=0):
        d = position - math.log10(optimum)
        return None if d > cliff else 2.8 + 0.1 * seed + (right if d > 0 else 1.0) * curvature * d * d / 2

    return loss


@pytest.mark.parametrize("optimum", [2e-3, 3e-3, 4.4e-3, 7e-3, 1.4e-2])
@pytest.mark.parametrize("curvature", [1.2, 2.6, 13.0])
@pytest.mark.parametrize("seeds", [1, 2])
def test_on_a_parabola_the_vertex_is_found_wherever_the_grid_stands(optimum, curvature, seeds):
    choice, _ = search(parabola(optimum, curvature), seeds=seeds)
    assert choice.rule == "vertex"
    assert choice.rate == pytest.approx(optimum, rel=0.006)  # rates have three digits
    assert choice.curvature == pytest.approx(curvature, rel=1e-3)


def test_five_arms_cost_27_jobs_and_42_on_two_tuning_seeds():
    for seeds, jobs in ((1, 27), (2, 42)):
        base, asked = search(parabola(3.2e-3), seeds=seeds)
        counted = len(asked)
        assert [rate for rate, _ in asked[:5]] == GRID
        assert {seed for _, seed in asked[:7]} == {0}
        for optimum in (2.2e-3, 2.9e-3, 3.5e-3, 4.1e-3):
            counted += len(search(parabola(optimum), around=3e-3, seeds=seeds)[1])
        assert counted == jobs
        assert base.rule == "vertex"


def test_the_last_three_alone_run_on_the_second_seed():
    _, asked = search(parabola(3.2e-3), seeds=2)
    second = sorted(rate for rate, seed in asked if seed == 1)
    assert second == [1.69e-3, 3e-3, 5.33e-3]


def test_an_arm_of_the_same_grid_starts_round_the_baselines_best():
    assert first_rates(GRID, 3e-3) == [1e-3, 3e-3, 1e-2]
    assert first_rates(GRID, 3e-2) == [1e-2, 3e-2, 1e-1]
    assert first_rates(GRID, 3e-4) == [1e-4, 3e-4, 1e-3]


def test_an_arm_of_another_grid_keeps_its_own():
    assert first_rates([2e-5, 6e-5, 2e-4], 3e-3) == [2e-5, 6e-5, 2e-4]


@pytest.mark.parametrize(("optimum", "around"), [(1e-1, 3e-3), (2e-4, 3e-3), (1.0, 1e-2)])
def test_the_search_goes_on_beyond_an_edge(optimum, around):
    choice, _ = search(parabola(optimum), around=around)
    assert choice.rate == pytest.approx(optimum, rel=0.006)


def test_beyond_the_last_extension_the_choice_says_that_it_is_at_the_edge():
    choice, asked = search(parabola(1e3), around=3e-3)
    assert (choice.rule, choice.regret) == ("edge", None)
    assert "edge" in choice.reason
    assert len(asked) < 15


def test_where_everything_diverges_the_way_out_is_down():
    choice, asked = search(parabola(1e-5, cliff=0.2))
    assert choice.rate is not None
    assert choice.rate <= 1.6e-5
    assert min(rate for rate, _ in asked) <= 1e-5
    never, _ = search(lambda position, seed: None)
    assert (never.rate, never.rule) == (None, "none")
    assert "diverged" in never.reason


def test_a_rate_whose_runs_failed_is_left_out_and_not_asked_for_again():
    known = {rate: [parabola(3.2e-3)(math.log10(rate))] for rate in GRID} | {1e-2: []}
    step = tune(GRID, known)
    assert isinstance(step, Wanted)
    assert 1e-2 not in step.rates
    failed = tune(GRID, {rate: [] for rate in [*GRID, 1e-4, 3e-5, 1e-5, 3e-6]})
    assert isinstance(failed, Tuned)
    assert failed.reason == "every tuning job failed"


def test_a_grid_of_one_rate_is_a_declaration():
    assert tune([3e-3], {}) == Tuned(rate=3e-3, rule="declared", reason="declared, not tuned", curve={})


def test_where_the_curve_is_flat_the_best_of_three_is_taken():
    choice, _ = search(parabola(3.9e-3, curvature=0.3))
    assert choice.rule == "flat"
    assert choice.rate in (3e-3, 5.33e-3)
    # In other units the same shape is no longer flat.
    assert search(parabola(3.9e-3, curvature=0.3), scale=Scale(flat=0.03))[0].rule == "vertex"


@pytest.mark.parametrize("optimum", [2e-3, 2.6e-3, 3.3e-3, 4.2e-3, 5.5e-3])
@pytest.mark.parametrize("cliff", [0.05, 0.1, 0.2, 0.3])
def test_the_choice_stays_off_a_cliff_where_runs_diverge(optimum, cliff):
    choice, asked = search(parabola(optimum, 6.0, cliff=cliff))
    lost = [rate for rate, _ in asked if math.log10(rate / optimum) > cliff]
    assert choice.rate < min(lost)
    assert math.log10(choice.rate / optimum) <= cliff
    assert choice.rate < choice.largest_kept * 1.0001 or choice.rule == "vertex"


def test_a_parabola_is_no_cliff_wherever_the_three_stand():
    """The ratio of the two rises passes 3 from a fifteenth of a decade off, the curvatures agree everywhere."""
    for k in range(40):
        assert search(parabola(10 ** (-2.75 + k / 80), 6.0))[0].rule == "vertex"


@pytest.mark.parametrize("optimum", [3.0e-3, 3.2e-3, 3.5e-3])
def test_beside_a_steep_side_the_flat_sides_parabola_is_followed(optimum):
    choice, asked = search(parabola(optimum, 6.0, right=20.0))
    middle = min(asked, key=lambda each: parabola(optimum, 6.0, right=20.0)(math.log10(each[0])))[0]
    assert choice.rule == "cliff"
    assert choice.rate <= middle * 1.001
    plain = vertex(
        [(math.log10(r), parabola(optimum, 6.0, right=20.0)(math.log10(r))) for r in sorted(asked_near(asked, middle))]
    )
    ours, its = abs(math.log10(choice.rate / optimum)), abs(plain[0] - math.log10(optimum))
    assert ours <= its + 0.005


def test_a_cliff_says_on_which_side_it_is():
    above, _ = search(parabola(3.2e-3, 6.0, right=20.0))
    assert (above.rule, above.chosen_by) == ("cliff", "cliff above")

    def reached(position, seed):  # a measure that small rates do not come to, and that falls towards them
        return None if position < -3.0 else position + 3.0

    below, _ = search(reached)
    assert (below.rule, below.chosen_by) == ("cliff", "cliff below")


@pytest.mark.parametrize("edge", [-3.41 + k / 23 for k in range(12)])
@pytest.mark.parametrize("slope", [0.4, 1.0])
@pytest.mark.parametrize("curvature", [0.0, 1.0])
@pytest.mark.parametrize("side", [1, -1])
def test_the_regret_holds_where_the_loss_falls_up_to_a_rate_that_is_lost(edge, slope, curvature, side):
    """The best rate is the last one that is kept, and lies up to a spacing beyond the last that was run."""

    def loss(position, seed=0):
        d = side * (position - edge)
        return None if d < 0 else slope * d + curvature * d * d / 2

    for scale in (Scale(), Scale(tolerance=0.029)):
        choice, _ = search(loss, scale=scale)
        assert choice.rule == "cliff"
        assert loss(math.log10(choice.rate)) <= choice.regret + 1e-9
        # No more than the slope makes of the widest gap that counts as a spacing.
        assert choice.regret <= (slope + curvature) * NEAR * FINE


def asked_near(asked, middle):
    rates = sorted({rate for rate, _ in asked})
    i = rates.index(middle)
    return rates[i - 1 : i + 2]


def test_a_rate_that_diverged_on_the_second_seed_is_not_chosen():
    def loss(position, seed):
        return None if seed == 1 and position > -2.6 else parabola(3.2e-3)(position, seed)

    choice, _ = search(loss, seeds=2)
    assert (choice.rule, choice.regret) == ("edge", None)
    assert choice.rate == 1.69e-3
    assert "diverged on another" in choice.reason
    unreached, _ = search(loss, seeds=2, scale=Scale(missing="came to no value"))
    assert unreached.reason == choice.reason.replace("diverged", "came to no value")


def test_beyond_the_tolerance_a_finer_step_is_taken_and_states_less():
    coarse, few = search(parabola(3.9e-3, 13.0, right=5.0))
    fine, more = search(parabola(3.9e-3, 13.0, right=5.0), scale=Scale(tolerance=0.029))
    assert fine.regret < coarse.regret / 2
    assert len(more) == len(few) + 2


def test_the_largest_rate_that_did_not_lose_is_told():
    choice, _ = search(parabola(3.2e-3, 1.2, right=2.0))
    assert choice.largest_kept == 5.33e-3  # where 0.06 nats are lost; at 1e-2 they are 0.29
    assert choice.to_cliff == pytest.approx(math.log10(5.33e-3 / choice.rate))
    assert search(parabola(3.2e-3, 2.6), scale=Scale(lost=10.0))[0].largest_kept == 3e-2


def test_half_decades_follow_the_series():
    assert [neighbour(1e-3, True), neighbour(3e-3, True), neighbour(1e-3, False), neighbour(3e-3, False)] == [
        3e-3,
        1e-2,
        3e-4,
        1e-3,
    ]
    assert neighbour(2e-3, True) == pytest.approx(2e-3 * math.sqrt(10), rel=1e-2)


# Validation loss of tuning seed 0 and mean test loss of six other seeds, measured on the study that published "pissa is
# worse than random" at 1e-2. The losses at 3e-4, 1e-3 and 1.78e-2 were not measured: that they are far above is enough.
PISSA = {3e-4: 3.6, 1e-3: 3.2, 3e-3: 2.914, 5.62e-3: 2.8074, 1e-2: 2.857, 1.78e-2: 3.4, 3e-2: 5.65}
TEST_LOSS = {4.2e-3: 2.8637, 5.6e-3: 2.8469, 7.5e-3: 2.8799, 1e-2: 2.9576}


def test_the_rate_that_published_a_wrong_verdict_is_no_longer_chosen():
    choice = tune(GRID, {rate: [loss] for rate, loss in PISSA.items()})
    assert isinstance(choice, Tuned)
    assert 5e-3 < choice.rate < 7e-3
    points = [(math.log10(rate), TEST_LOSS[rate]) for rate in (4.2e-3, 5.6e-3, 7.5e-3)]
    best, curvature = vertex(points)
    lost = curvature * (math.log10(choice.rate) - best) ** 2 / 2
    assert lost < 0.015  # half a margin; at 1e-2 it was 0.11
    assert lost <= choice.regret
