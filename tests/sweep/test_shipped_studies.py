"""Every study that is shipped can be judged, at every size, within its jobs."""

import re
import shlex

import pytest
from omegaconf import OmegaConf

from lab import config
from lab.config import CONF
from lab.record.study import role_of
from lab.sweep import metrics
from lab.sweep.block import SIZES
from lab.sweep.declaration import declare
from lab.sweep.runs import forecast
from lab.verdict.procedure import extensions_per_arm, fewest_jobs

BLOCKS = {
    path.stem: OmegaConf.to_container(block)
    for path in sorted((CONF / "experiment").glob("*.yaml"))
    if (block := OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.study")) is not None
}
JUDGED = {name: block for name, block in BLOCKS.items() if len(block["seeds"]) > 4}  # others give numbers by default


def test_the_studies_are_there():
    assert {"init_comparison", "rank_sweep", "rank_strategies"} <= set(BLOCKS)


REAL = [name for name in BLOCKS if name.endswith("_smollm2")]  # a job on a real base takes minutes
SEARCHED = [name for name in BLOCKS if declare(BLOCKS[name]).refine]  # others are too dear to search for rates


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", JUDGED)
def test_a_shipped_study_declares_what_it_judges(name, size):
    study = declare(BLOCKS[name], size)
    assert study.name == name
    assert study.baseline not in study.contrasts
    assert "%" in str(study.margin)
    if size != "quick":
        assert len(study.seeds) == study.horizon
        assert study.budget >= 4
        judged = [arm for arm in study.arms if role_of(study, arm) != "described"]
        assert all(len(study.learning_rates[arm]) >= 3 for arm in judged)
    if size != "quick" and name in SEARCHED:
        assert study.horizon == 20
        assert study.budget >= (8 if name in REAL else 12)
        assert all(len(grid) >= 4 for grid in study.learning_rates.values())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BLOCKS)
def test_the_jobs_of_a_shipped_study_measure_what_it_judges_and_tunes_by(name, size):
    study = declare(BLOCKS[name], size)
    job = config.compose(f"experiment={name}", *study.common, *study.arms[study.baseline])
    metrics.check_measured(study, config.plain_of(job), lambda: job.data["answer_pattern"] is not None)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_shipped_study_forecasts_its_hours_and_its_disk(name):
    cost = forecast(declare(BLOCKS[name]))
    assert 0.1 < cost.hours <= cost.most_hours < (4 if name in REAL else 2 if name in SEARCHED else 6)
    assert 0 < cost.gigabytes < 8  # of full training, whose checkpoints are large


@pytest.mark.parametrize("name", BLOCKS)
def test_a_size_whose_runs_are_of_other_lengths_says_what_a_job_of_it_takes(name):
    for own in BLOCKS[name].get("sizes", {}).values():
        if any(item.startswith("schedule.max_steps=") for item in own.get("common", [])):
            assert own.get("seconds_per_job", 0) > 0


@pytest.mark.parametrize("name", BLOCKS)
def test_the_commands_in_a_studys_header_compose(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]
    commands = text.replace("\n#  ", " ").split("python -m lab.train ")[1:]
    assert commands
    for command in commands:
        words = shlex.split(command.split("\n")[0])
        config.compose(*(re.sub(r"=([^,\[{']+),.*", r"=\1", word) for word in words))  # a list's first value


@pytest.mark.parametrize("name", JUDGED)
def test_a_default_study_that_is_decided_at_the_first_look_is_at_most_100_jobs_with_its_extensions(name):
    study = declare(BLOCKS[name])
    assert fewest_jobs(study) + extensions_per_arm(study) * len(study.arms) <= 100
    assert (extensions_per_arm(study) >= 1) == (name in SEARCHED)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_quick_study_is_a_few_jobs_on_seeds_too_few_for_a_verdict(name):
    study = declare(BLOCKS[name], "quick")
    assert fewest_jobs(study) <= 12
    assert len(study.seeds) < 4
