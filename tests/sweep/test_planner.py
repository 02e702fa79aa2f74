import math
from dataclasses import replace
from pathlib import Path

import pytest

from lab.record.study import Study
from lab.sweep.declaration import declare
from lab.sweep.job import Seen
from lab.sweep.planner import extensions_per_arm, jobs_before_extensions, next_rate, plan

GRID = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]


def study(**fields) -> Study:
    block = {
        "name": "init_comparison",
        "question": "Does it?",
        "arms": {"random": "init=random", "svd[gradient]": "init=svd", "pissa": "init=pissa"},
        "baseline": "random",
        "margin": "1%",
        "seeds": [1, 2, 3],
        "learning_rates": GRID,
    }
    return declare(block | fields)


class World:
    """Runs jobs by a formula: loss is a parabola over the learning rate's decades."""

    def __init__(self, study, best=1e-3, status=lambda job: "completed"):
        self.study, self.best, self.status, self.seen, self.log, self.stops = study, best, status, [], [], []

    def run(self, job):
        self.log.append(job)
        bent = math.log10(job.learning_rate / self.best) ** 2 + 0.01 * job.seed
        run = Seen(
            path=job.resume or Path(f"{len(self.log)}_{job.id}"),
            stage=job.stage,
            arm=job.arm,
            learning_rate=job.learning_rate,
            seed=job.seed,
            status=self.status(job),
            outcome=2 + bent / (1 + (job.max_steps or 0)),
            rung=job.rung or 0,
            seconds=10.0,
            size=1000,
        )
        self.seen = [other for other in self.seen if other.path != run.path] + [run]

    def go(self, most=1000, together=None):
        attempts = {}
        while not (now := plan(self.study, self.seen, attempts=attempts)).finished:
            self.stops += now.stops
            for stop in now.stops:
                self.seen = [replace(r, status="stopped") if r.path == stop.path else r for r in self.seen]
            for job in now.jobs[:together]:
                attempts[job.key] = attempts.get(job.key, 0) + 1
                self.run(job)
                if len(self.log) >= most:
                    return now
        return now

    def jobs(self, stage, arm=None):
        return [job for job in self.log if job.stage == stage and arm in (None, job.arm)]


def test_every_arm_is_tuned_then_judged_on_all_seeds_at_its_own_optimum():
    world = World(study())
    end = world.go()
    assert end.chosen == {"random": 1e-3, "svd[gradient]": 1e-3, "pissa": 1e-3}
    assert len(world.jobs("tune")) == 15
    assert {job.seed for job in world.jobs("tune")} == {0}
    assert {job.learning_rate for job in world.jobs("verdict")} == {1e-3}
    assert [job.seed for job in world.jobs("verdict", "pissa")] == [1, 2, 3]
    assert len({job.id for job in world.log}) == len(world.log) == jobs_before_extensions(world.study)


def test_the_baseline_is_paired_with_itself_on_the_same_data_order():
    world = World(study())
    world.go()
    twins = [job for job in world.jobs("verdict") if job.seed != job.data_seed]
    assert [(job.arm, job.seed, job.data_seed) for job in twins] == [
        ("random", 1001, 1), ("random", 1002, 2), ("random", 1003, 3),
    ]  # fmt: skip
    assert "data_seed=1" in twins[0].overrides


def test_arms_take_turns_so_that_a_slow_hour_is_shared():
    world = World(study())
    world.go(together=1)
    stages = [job.stage for job in world.log]
    assert stages == sorted(stages)  # tune, then verdict
    assert [job.data_seed for job in world.jobs("verdict")] == [1] * 4 + [2] * 4 + [3] * 4
    assert {job.arm for job in world.jobs("verdict")[:4]} == {"random", "svd[gradient]", "pissa"}


def test_a_job_says_all_it_is_in_hydras_grammar():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    job = plan(study(common=["schedule.max_steps=30"]), []).jobs[5]
    parsed = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(list(job.overrides))}
    assert parsed == {
        "schedule.max_steps": 30, "init": "svd", "optim.lr": 1e-4, "seed": 0, "data_seed": 0,
        "study": "init_comparison", "stage": "tune", "arm": "svd[gradient]", "evaluate.test": False,
    }  # fmt: skip
    assert job.id == "tune_svd[gradient]_lr=0.0001_seed=0"


@pytest.mark.parametrize(("best", "tried"), [(1e-1, [3e-2, 1e-1, 3e-1]), (1e-5, [3e-5, 1e-5, 3e-6])])
def test_an_optimum_at_an_edge_extends_the_grid_until_it_is_inside(best, tried):
    world = World(study(), best=best)
    assert world.go().chosen["random"] == best
    assert [job.learning_rate for job in world.jobs("tune", "random")][5:] == tried


def test_an_optimum_that_runs_away_is_used_and_said():
    end = World(study(), best=1e9).go()
    assert "still at the edge" in end.notes[0]
    assert end.chosen["random"] == 1.0


def test_extensions_stay_within_the_jobs_of_a_study():
    tight = study(max_jobs=jobs_before_extensions(study()) + 5)
    world = World(tight, best=1e9)
    world.go()
    assert extensions_per_arm(tight) == 1
    assert len(world.log) <= tight.max_jobs


def test_where_all_diverged_the_grid_grows_downward():
    world = World(study(), status=lambda job: "diverged" if job.learning_rate >= 1e-4 else "completed", best=1e-9)
    end = world.go()
    # the best is the smallest that was tried, after four extensions
    assert end.chosen["random"] == 1e-6
    assert [job.learning_rate for job in world.jobs("tune", "random")][5:] == [3e-5, 1e-5, 3e-6, 1e-6]


def test_a_diverged_run_is_not_repeated_and_never_chosen():
    world = World(study(), status=lambda job: "diverged" if job.learning_rate == 1e-3 else "completed")
    assert world.go().chosen["random"] in (3e-4, 3e-3)
    assert len(world.jobs("tune")) == 15


def test_a_failed_job_is_retried_once_and_stops_no_other():
    world = World(study(), status=lambda job: "failed" if job.arm == "pissa" and job.seed == 2 else "completed")
    end = world.go()
    assert len([job for job in world.jobs("verdict", "pissa") if job.seed == 2]) == 2
    assert len(world.jobs("verdict", "random")) == 6
    assert any("given up" in note for note in end.notes)
    # started again, what failed is tried once more
    assert [job.id for job in plan(world.study, world.seen).jobs] == ["verdict_pissa_lr=0.001_seed=2"]


def test_an_arm_that_cannot_run_gets_no_verdict_and_the_others_do():
    world = World(study(), status=lambda job: "failed" if job.arm == "pissa" else "completed")
    end = world.go()
    assert set(end.chosen) == {"random", "svd[gradient]"}
    assert any("every tuning job failed" in note for note in end.notes)


@pytest.mark.parametrize("killed_after", [1, 7, 14, 15, 16, 22])
def test_a_planner_that_dies_is_replaced_without_doing_anything_twice(killed_after):
    world, whole = World(study()), World(study())
    whole.go()
    world.go(most=killed_after)
    world.go()
    assert sorted(job.id for job in world.log) == sorted(job.id for job in whole.log)


def test_queued_and_running_jobs_are_waited_for_and_not_submitted_again():
    first = plan(study(), [])
    again = plan(study(), [], queued={job.key for job in first.jobs})
    assert again.jobs == []
    assert again.waiting == 15
    assert not again.finished
    world = World(study(), status=lambda job: "running")
    for job in first.jobs:
        world.run(job)
    assert plan(world.study, world.seen).waiting == 15


def test_an_interrupted_job_continues_in_its_own_directory():
    world = World(study(), status=lambda job: "interrupted")
    job = plan(world.study, []).jobs[0]
    world.run(job)
    again = plan(world.study, world.seen).jobs[0]
    assert again.resume == world.seen[0].path
    assert again.overrides == ()


def test_one_learning_rate_leaves_nothing_to_tune():
    world = World(study(learning_rates=[2e-4]))
    world.go()
    assert world.jobs("tune") == []
    assert len(world.jobs("verdict")) == 12


def test_halving_stops_the_worse_half_at_each_rung_and_continues_survivors_in_place():
    world = World(study(rungs=[10, 20, 40]))
    end = world.go()
    assert end.chosen["random"] == 1e-3
    own = world.jobs("halve", "random")
    assert [sum(job.rung == rung for job in own) for rung in (0, 1, 2)] == [5, 3, 2]
    assert all(job.resume and job.overrides == (f"schedule.max_steps={job.max_steps}",) for job in own[5:])
    assert [run.status for run in world.seen if run.arm == "random"].count("stopped") == 3
    assert "worse half" in world.stops[0].reason
    assert all("schedule.max_steps=40" in job.overrides for job in world.jobs("verdict"))


@pytest.mark.parametrize("killed_after", [3, 5, 16, 18, 25])
def test_halving_survives_a_dead_planner(killed_after):
    whole, world = World(study(rungs=[10, 20, 40])), World(study(rungs=[10, 20, 40]))
    whole.go()
    world.go(most=killed_after)
    # half of the stops were written when the planner died
    stops = plan(world.study, world.seen).stops
    for stop in stops[: len(stops) // 2]:
        world.seen = [replace(r, status="stopped") if r.path == stop.path else r for r in world.seen]
    world.go()
    assert sorted(job.key for job in world.log) == sorted(job.key for job in whole.log)


def test_halving_keeps_the_last_of_an_arm():
    world = World(study(rungs=[10, 20], learning_rates=[1e-4, 1e-3]))
    world.go()
    assert len([job for job in world.jobs("halve", "pissa") if job.rung == 1]) == 1


@pytest.mark.parametrize(
    ("rate", "up", "down"), [(1e-3, 3e-3, 3e-4), (3e-4, 1e-3, 1e-4), (1.0, 3.0, 0.3), (2e-4, 6.32e-4, 6.32e-5)]
)
def test_neighbours_are_half_a_decade_away(rate, up, down):
    assert next_rate(rate, True) == up
    assert next_rate(rate, False) == down


@pytest.mark.parametrize(("metric", "spared"), [("val_loss", True), ("best_val_bpb", True), ("retention_loss", False)])
def test_a_tuning_job_measures_what_chooses_its_rate_and_a_verdict_everything(metric, spared):
    world = World(study(selection_metric=metric))
    world.go()
    without = {job.stage for job in world.log if "evaluate.test=false" in job.overrides}
    assert without == ({"tune"} if spared else set())
    assert {job.stage for job in world.log} == {"tune", "verdict"}


def test_a_study_that_says_what_its_jobs_evaluate_is_heeded():
    """Of two overrides of one key the later counts."""
    world = World(study(common=["evaluate.test=true"]))
    world.go()
    for job in world.log:
        assert [item for item in job.overrides if item.startswith("evaluate.test")][-1] == "evaluate.test=true"
