import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from lab.errors import UsageError
from lab.record.study import AA, Study
from lab.sweep.declaration import declare
from lab.sweep.job import Seen
from lab.sweep.planner import plan
from lab.verdict.procedure import extensions_per_arm, fewest_jobs, most_jobs, tuning_jobs

GRID = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
BASE = 4.0  # the base's loss
CURVATURE = 4.0  # nats per decade²


def study(**fields) -> Study:
    block = {
        "name": "init_comparison",
        "question": "Does it?",
        "arms": {"random": "init=random", "svd[gradient]": "init=svd", "pissa": "init=pissa"},
        "baseline": "random",
        "margin": 0.05,
        "seeds": list(range(1, 21)),
        "learning_rates": GRID,
        "max_jobs": 200,
    }
    return declare(block | fields)


def noise(*key) -> float:
    """The same every time, with a standard deviation of 0.01."""
    return random.Random(str(key)).gauss(0, 0.01)


class World:
    """Runs jobs by a formula: loss is a parabola over the learning rate's decades, `effect` what an arm adds to it."""

    def __init__(self, study, best=1e-3, status=lambda job: "completed", effect=None):
        self.study, self.best, self.status, self.seen, self.log = study, best, status, [], []
        self.effect = effect or {}

    def run(self, job):
        self.log.append(job)
        best = self.best[job.arm] if isinstance(self.best, dict) else self.best
        bent = CURVATURE / 2 * math.log10(job.learning_rate / best) ** 2
        loss = 2 + bent + self.effect.get(job.arm, 0.0)
        done = self.status(job) == "completed"
        own = noise(job.arm, job.seed) if job.stage == "verdict" else 0.0
        run = Seen(
            path=job.resume or Path(f"{len(self.log)}_{job.id}"),
            stage=job.stage,
            arm=job.arm,
            learning_rate=job.learning_rate,
            seed=job.seed,
            status=self.status(job),
            outcome=loss if done else None,
            base=BASE,
            value=loss + 0.05 * math.sin(job.data_seed) + own if done else None,
            seconds=10.0,
            size=1000,
        )
        self.seen = [other for other in self.seen if other.path != run.path] + [run]

    def go(self, most=1000, together=None):
        attempts = {}
        while not (now := plan(self.study, self.seen, attempts=attempts)).finished:
            for job in now.jobs[:together]:
                attempts[job.id] = attempts.get(job.id, 0) + 1
                self.run(job)
                if len(self.log) >= most:
                    return now
        return now

    def jobs(self, stage, arm=None):
        return [job for job in self.log if job.stage == stage and arm in (None, job.arm)]

    def rates(self, arm):
        return sorted(job.learning_rate for job in self.jobs("tune", arm))


def test_the_baseline_searches_its_grid_the_others_around_its_best_and_each_refines():
    world = World(study())
    end = world.go()
    quarters = [5.62e-4, 1.78e-3]
    assert world.rates("random") == sorted([*GRID, *quarters])
    for arm in ("svd[gradient]", "pissa", AA):
        assert world.rates(arm) == sorted([3e-4, 1e-3, 3e-3, *quarters])
    assert len(world.jobs("tune")) == tuning_jobs(world.study) == 7 + 3 * 5
    assert all(end.tuned[arm].rate == pytest.approx(1e-3, rel=0.01) for arm in world.study.arms)


def test_each_arm_is_judged_at_the_vertex_of_its_own_parabola():
    best = {"random": 1e-3, "svd[gradient]": 1.4e-3, "pissa": 7e-4, AA: 1e-3}
    end = World(study(), best=best).go()
    for arm, rate in best.items():
        assert end.tuned[arm].rate == pytest.approx(rate, rel=0.01), "exact on a parabola, but for three digits"
        assert end.tuned[arm].curvature == pytest.approx(CURVATURE, rel=0.02)


def test_the_a_a_arm_is_the_baseline_on_tuning_and_verdict_seeds_of_its_own():
    world = World(study())
    world.go()
    assert {job.seed for job in world.jobs("tune", AA)} == {1000}
    assert {job.data_seed for job in world.jobs("tune", AA)} == {1000}
    assert {(job.seed, job.data_seed) for job in world.jobs("verdict", AA)} >= {(1001 + i, 1 + i) for i in range(4)}
    mine = [item for item in world.jobs("verdict", AA)[0].overrides if item.startswith("init")]
    assert mine == ["init=random"]


def test_equal_arms_are_equivalent_after_few_seeds_and_no_seed_more_is_run():
    world = World(study())
    world.go()
    counts = {arm: len(world.jobs("verdict", arm)) for arm in world.study.arms}
    assert all(4 <= count <= 6 for count in counts.values()), counts
    assert counts["random"] == max(counts.values()), "the baseline runs as long as any contrast is open"


def test_a_clear_difference_ends_its_contrast_and_the_open_one_goes_on():
    world = World(study(margin=0.004, give_up=False), effect={"pissa": 0.5})
    world.go()
    assert len(world.jobs("verdict", "pissa")) < 6
    assert len(world.jobs("verdict", "svd[gradient]")) == world.study.budget == 12, "open up to the budget"
    assert len(world.jobs("verdict", "random")) == 12


def test_a_described_arm_has_the_seeds_of_the_first_look():
    world = World(study(contrasts=["pissa"]))
    world.go()
    assert len(world.jobs("verdict", "svd[gradient]")) == 4


def test_arms_take_turns_so_that_a_slow_hour_is_shared():
    world = World(study())
    world.go()
    first = [job.data_seed for job in world.jobs("verdict")][:16]
    assert first == [seed for seed in (1, 2, 3, 4) for _ in range(4)]


def test_a_job_says_all_it_is_in_hydras_grammar():
    world = World(study())
    world.go()
    job = world.jobs("verdict", "svd[gradient]")[0]
    rate = f"optim.lr={job.learning_rate!r}"
    assert job.overrides == (
        "init=svd", rate, "seed=1", "data_seed=1", "study='init_comparison'", "stage=verdict", "arm='svd[gradient]'",
    )  # fmt: skip


@pytest.mark.parametrize(("best", "tried"), [(3e-2, [3e-2, 0.1]), (3e-5, [1e-5, 3e-5])])
def test_an_optimum_at_an_edge_extends_the_grid_until_it_is_inside(best, tried):
    world = World(study(), best=best)
    end = world.go()
    assert set(tried) < set(world.rates("random"))
    assert end.tuned["random"].rate == pytest.approx(best, rel=0.03)
    assert not end.notes


def test_an_optimum_that_runs_away_is_used_and_said():
    world = World(study(max_jobs=1000), best=1e5)
    end = world.go()
    assert any("random: the best learning rate is still at the edge" in note for note in end.notes)
    assert extensions_per_arm(world.study) == 4
    assert max(world.rates("random")) <= 1.0 * 10 ** (5 * 0.25) * 1.01, "four half decades, and five quarters"


def test_extensions_stay_within_the_jobs_of_a_study():
    declared = study(max_jobs=fewest_jobs(study()) + 4)
    assert extensions_per_arm(declared) == 1
    world = World(declared, best=1e5)
    world.go()
    assert max(world.rates("random")) <= 3e-2 * 10 ** (5 * 0.25) * 1.01


def test_where_all_diverged_the_grid_grows_downward():
    end = World(study(), best=2e-5, status=lambda job: "diverged" if job.learning_rate > 5e-5 else "completed").go()
    assert 1e-5 < end.tuned["random"].rate < 4e-5


def test_a_cliff_is_kept_away_from():
    end = World(study(), status=lambda job: "diverged" if job.learning_rate > 1.2e-3 else "completed").go()
    for arm in ("random", "pissa"):
        assert end.tuned[arm].rule == "cliff"
        assert end.tuned[arm].rate <= 1e-3


def test_a_second_tuning_seed_is_run_at_the_last_three_rates_alone():
    world = World(study(tune_seeds=[0, 101]))
    world.go()
    for arm, seed in (("random", 101), ("pissa", 101), (AA, 1101)):
        second = [job.learning_rate for job in world.jobs("tune", arm) if job.seed == seed]
        assert sorted(second) == [5.62e-4, 1e-3, 1.78e-3]
    assert len(world.jobs("tune")) == tuning_jobs(world.study)


def test_a_failed_job_is_retried_once_and_stops_no_other():
    world = World(
        study(), status=lambda job: "failed" if "seed=3" in job.overrides and job.arm == "pissa" else "completed"
    )
    end = world.go()
    failed = [job for job in world.jobs("verdict", "pissa") if job.seed == 3]
    assert len(failed) == 2
    assert end.given_up == [failed[0].id]
    assert len(world.jobs("verdict", "pissa")) > 5, "the lost pair is made up for by a further seed"


def test_an_arm_that_cannot_run_gets_no_verdict_and_the_others_do():
    world = World(study(), status=lambda job: "failed" if job.arm == "pissa" else "completed")
    end = world.go()
    assert "pissa: every tuning job failed, so it gets no verdict" in end.notes
    assert not world.jobs("verdict", "pissa")
    assert len(world.jobs("verdict", "svd[gradient]")) >= 4


@pytest.mark.parametrize("killed_after", [1, 6, 9, 17, 23, 30, 38])
def test_a_planner_that_dies_is_replaced_without_doing_anything_twice(killed_after):
    whole = World(study())
    whole.go()
    world = World(study())
    world.go(most=killed_after)
    world.go(together=3)
    assert sorted(job.id for job in world.log) == sorted(job.id for job in whole.log)


def test_queued_and_running_jobs_are_waited_for_and_not_submitted_again():
    now = plan(study(), [])
    first, *others = now.jobs
    waiting = plan(study(), [], queued=[first.id])
    assert [job.id for job in waiting.jobs] == [job.id for job in others]
    assert waiting.waiting == 1
    world = World(study(), status=lambda job: "running")
    for job in now.jobs:
        world.run(job)
    again = plan(study(), world.seen)
    assert not again.jobs
    assert again.waiting == len(now.jobs)
    assert not again.finished


def test_an_interrupted_job_continues_in_its_own_directory():
    world = World(study(), status=lambda job: "interrupted" if job.resume is None else "completed")
    first = plan(study(), []).jobs[0]
    world.run(first)
    again = plan(study(), world.seen).jobs[0]
    assert again.resume == world.seen[0].path
    assert again.overrides == ()


def test_one_learning_rate_leaves_nothing_to_tune():
    world = World(study(learning_rates=[2e-4]))
    end = world.go()
    assert world.jobs("tune") == []
    assert end.tuned["pissa"].rule == "declared"


def test_fewer_than_four_seeds_give_numbers_no_look_and_no_a_a_arm():
    declared = study(seeds=[1, 2])
    assert (declared.horizon, declared.budget, declared.twin_seeds) == (None, None, [])
    assert AA not in declared.arms
    world = World(declared)
    world.go()
    assert len(world.jobs("verdict")) == 6 == most_jobs(declared) - tuning_jobs(declared)


@pytest.mark.parametrize(("margin", "value"), [(0.03, 0.03), ("5% of gain", 0.05 * (BASE - 2)), ("1%", 0.01 * 2.0)])
def test_a_margin_is_known_before_the_first_verdict_job(margin, value):
    world = World(study(margin=margin))
    margins = []
    attempts = {}
    while not (now := plan(world.study, world.seen, attempts=attempts)).finished:
        if any(job.stage == "verdict" for job in now.jobs):
            margins.append(now.margin)
        for job in now.jobs:
            world.run(job)
    assert margins == pytest.approx([value] * len(margins))
    assert margins


def test_a_margin_that_was_written_down_is_kept():
    world = World(replace(study(margin="1%"), margin_value=0.4))
    assert world.go().margin == 0.4


def test_verdict_jobs_lie_between_the_fewest_and_the_most():
    for margin in (0.05, 0.001):
        world = World(study(margin=margin))
        world.go()
        assert fewest_jobs(world.study) <= len(world.log) <= most_jobs(world.study)


def test_the_budget_may_be_raised_up_to_the_horizon_and_the_looks_go_on():
    short = World(study(margin=0.004, give_up=False))
    short.go()
    assert len(short.jobs("verdict", "pissa")) == 12
    more = World(replace(short.study, budget=20))
    more.seen = short.seen
    more.go()
    assert {job.data_seed for job in more.jobs("verdict", "pissa")} == set(range(13, 21))


@pytest.mark.parametrize(("metric", "spared"), [("val_loss", True), ("best_val_loss", True), ("test_loss", False)])
def test_a_tuning_job_measures_what_chooses_its_rate_and_a_verdict_everything(metric, spared):
    world = World(study(selection_metric=metric))
    world.go()
    assert all(("evaluate.test=false" in job.overrides) == spared for job in world.jobs("tune"))
    assert not any("evaluate.test=false" in job.overrides for job in world.jobs("verdict"))


def test_a_study_that_says_what_its_jobs_evaluate_is_heeded():
    world = World(study(common=["evaluate.test=true"]))
    world.go()
    overrides = world.jobs("tune")[0].overrides
    assert overrides.index("evaluate.test=false") < overrides.index("evaluate.test=true"), "Hydra takes the last"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"margin": "1 nat"}, "margin='1 nat' is no margin"),
        ({"margin": -0.1}, "margin=-0.1 is no margin"),
        ({"margin": "0% of gain"}, "is no margin"),
        ({"horizon": 13}, "13"),
        ({"budget": 30}, "a budget of"),
        ({"budget": 3}, "a budget of 3"),
        ({"rungs": [10, 20]}, "rungs halve within a schedule"),
        ({"arms": {"random": "init=random", "aa": "init=svd"}}, "has the name of the A/A arm"),
        ({"seeds": [1, 2, 3, 1001]}, "must be distinct"),
        ({"procedure": 1}, "declares no 'procedure'"),
    ],
)
def test_a_declaration_that_contradicts_the_procedure_is_refused(fields, sentence):
    with pytest.raises(UsageError, match=sentence):
        study(**fields)
