"""Faults of one rank among two: whatever happens to it, the job ends with one true record and one sentence, or goes on.

Two seconds each: the fault is that of a real process, put before or into a call that a run makes.
"""

import socket
from pathlib import Path

import pytest
from faults import Fault, Job
from jobs import losses, run

from lab import record
from lab.errors import UsageError

pytestmark = pytest.mark.slow
IN_A_STEP = "lab.training.module:CausalLM.training_step"
BEHIND_A_STEP = "lab.training.callbacks:Checkpoints.after_step"
KILLED = "was killed by SIGKILL, as the system does when memory runs out; resume="


def said_last(console: str) -> str:
    return console.strip().splitlines()[-1]


ENDINGS = {  # faults by rank; the rank recorded (None: either), and what the record's message says
    "killed before the group meets": ({1: Fault("is killed", "lab.run.host:hardware.join_group")}, 1, KILLED),
    "killed in the base's evaluation": ({1: Fault("is killed", "lab.run.host:base_loss")}, 1, KILLED),
    "killed in a step": ({1: Fault("is killed", IN_A_STEP, 3)}, 1, KILLED),
    "both killed": (dict.fromkeys((0, 1), Fault("is killed", BEHIND_A_STEP, 2)), None, KILLED),
    "left with status 0": (
        {1: Fault("leaves", BEHIND_A_STEP, 2)},
        1,
        "the process of rank 1 exited with 0 in the middle of the run; resume=",
    ),
    "called exit": ({1: Fault("calls exit", BEHIND_A_STEP, 2)}, 1, "rank 1 called exit(0) in the middle of the run"),
    "met a mistake": (
        {1: Fault("meets a mistake", "lab.run.parts:instantiate.make_measures")},
        1,
        "this rank's data are gone",
    ),
    "ran out of memory": ({1: Fault("runs out of memory", IN_A_STEP, 3)}, 1, "memory ran out on rank 1 (MemoryError)"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_rank_that_ended_first_is_recorded_and_named_in_one_sentence(ending, tmp_path):
    faults, rank, message = ENDINGS[ending]
    job = Job(tmp_path, faults=faults)
    status, console = job.end()
    result = record.read(job.run_dir)
    assert (status, result.status) == (1, "failed")
    assert message in result.error["message"]
    assert said_last(console).endswith(result.error["message"])
    assert "Traceback" not in console
    assert rank in (None, result.error["rank"])
    if message is KILLED:
        assert f"the process of rank {result.error['rank']} {message}" in result.error["message"]
        assert (result.error["signal"], result.error["exit_code"]) == ("SIGKILL", None)


def test_a_bug_of_one_rank_is_shown_with_its_own_traceback(tmp_path):
    job = Job(tmp_path, faults={1: Fault("meets a bug", BEHIND_A_STEP, 2)})
    status, console = job.end()
    error = record.read(job.run_dir).error
    assert (status, error["type"], error["rank"]) == (1, "KeyError", 1)
    assert "failed on rank 1: 'a bug of this rank'" in console
    assert console.count("Traceback") == 1
    assert 'raise KeyError("a bug of this rank")' in console
    assert error["traceback"] in console


def test_a_rank_above_0_that_diverges_says_so_on_the_console(tmp_path):
    job = Job(tmp_path, faults={1: Fault("computes nan", "lab.training.module:Scorer.nats", 0)})
    status, console = job.end()
    result = record.read(job.run_dir)
    assert (status, result.status, result.error["rank"]) == (1, "diverged", 1)
    assert said_last(console).startswith("diverged on rank 1: the training loss is not finite at step ")
    assert console.count("diverged") == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("whole"))
    assert job.end()[0] == 0
    return losses(job.run_dir)


@pytest.mark.parametrize(
    ("fault", "arguments"),
    [
        ({0: Fault("is killed behind it", "torch:save", 2)}, ()),  # of the best one, behind the first of the last
        (
            {1: Fault("is killed", "lab.run.ending:_own_measure"), 0: Fault("sleeps", "lab.run.ending:_own_measure")},
            "a measure",
        ),
    ],
    ids=["rank 0, writing a checkpoint", "rank 1, while rank 0 works alone in the ending"],
)
def test_a_run_whose_rank_is_killed_goes_on_as_if_nothing_had_happened(fault, arguments, whole, tmp_path):
    given = ("+metrics.mine={_target_: faults.a_measure}",) if arguments else ()
    job = Job(tmp_path, *given, faults=fault)
    status, console = job.end()
    assert status == 1
    assert KILLED in said_last(console)
    again = Job(tmp_path, f"resume={job.run_dir}")
    status, console = again.end()
    assert status == 0, console
    assert "resuming from" in console
    assert record.read(job.run_dir).status == "completed"
    assert losses(job.run_dir) == whole


HANGS = {  # the fault, the ranks it befalls, and what is said of it
    "asleep": ({1: Fault("sleeps", BEHIND_A_STEP, 2)}, 1, "rank 1 hangs in <lambda>, "),
    "spinning in a step": ({0: Fault("spins", IN_A_STEP, 3)}, 0, "rank 0 hangs in "),
    "stopped": ({1: Fault("is stopped", BEHIND_A_STEP, 2)}, 1, "rank 1 is stopped in _stop, "),
}


@pytest.mark.parametrize("hang", HANGS)
def test_a_rank_that_hangs_ends_the_job_with_its_stack(hang, tmp_path):
    faults, rank, said = HANGS[hang]
    job = Job(tmp_path, "hardware.timeout_s=2", faults=faults)
    status, console = job.end(60)
    result = record.read(job.run_dir)
    assert (status, result.status, result.error["type"], result.error["rank"]) == (1, "failed", "Hung", rank)
    message = result.error["message"]
    assert message.startswith(f"no sign of life for 2 s: {said}")
    assert message.count("rank ") == 1
    assert said_last(console).endswith(message)
    assert "Traceback" not in console
    stack = result.error["traceback"]
    assert "in on_train_batch_end" in stack or "in training_step" in stack
    logs = [(job.run_dir / name).read_text() for name in ("train.log", "train_rank1.log")]
    assert stack in logs[rank]
    assert message.partition("; resume")[0] in logs[1 - rank]


def test_a_job_is_not_ended_while_any_rank_moves_or_stands_still_for_a_while_only(tmp_path):
    faults = {
        # Rank 1 fills layers for three seconds while rank 0 waits, and is stopped for half the timeout.
        1: (
            Fault("is slow", "lab.adapter.initialise:_check", 0),
            Fault("is stopped for a while", BEHIND_A_STEP, 1),
        ),
        # Rank 0 answers for three seconds, a token at a time, while rank 1 waits behind the next step.
        0: Fault("is slow", "transformers.generation.utils:GenerationMixin.prepare_inputs_for_generation", 0),
    }
    given = ("schedule.max_steps=1", "evaluate.num_samples=1", "evaluate.sample_tokens=8", "hardware.timeout_s=2")
    job = Job(tmp_path, *given, faults=faults)
    status, console = job.end()
    assert status == 0, console
    assert record.read(job.run_dir).status == "completed"


def test_a_job_of_one_process_ends_where_it_hangs(tmp_path):
    given = ("hardware=cpu", "evaluate.accuracy=true", "hardware.timeout_s=2")
    job = Job(tmp_path, *given, faults={0: Fault("sleeps", "lab.run.host:Answers.accuracy")})
    status, console = job.end(60)
    result = record.read(job.run_dir)
    assert (status, result.status, result.error["type"], result.error["rank"]) == (1, "failed", "Hung", 0)
    assert said_last(console).endswith(result.error["message"])
    assert "Traceback" not in console
    assert result.error["message"].startswith("no sign of life for 2 s: the process hangs in <lambda>, ")
    assert result.error["message"].endswith(f"; resume={job.run_dir}")
    assert "time.sleep(1000)" in result.error["traceback"]
    assert "time.sleep(1000)" in (job.run_dir / "train.log").read_text()


def under_torchrun(folder: Path, *arguments: str, faults: dict[int, Fault]) -> tuple[Path, tuple[int, str]]:
    """The run directory of a job whose ranks another has started, and how rank 0 ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        Job(folder / str(rank), *arguments, faults=faults, RANK=str(rank), LOCAL_RANK=str(rank), **group)
        for rank in range(2)
    ]
    ended = [rank.end(60) for rank in ranks]
    assert ended[1][0] != 0
    return ranks[0].run_dir, ended[0]


OUTSIDE = {  # the fault of rank 1, the record's status, type and rank, and what rank 0 says
    "diverges": (
        Fault("computes nan", "lab.training.module:Scorer.nats", 0),
        ("diverged", "Diverged", 1),
        "diverged on rank 1: the training",
    ),
    "is killed": (Fault("is killed", BEHIND_A_STEP, 2), ("failed", "Lost", None), "rank 0 lost the other processes"),
    "hangs": (Fault("sleeps", BEHIND_A_STEP, 2), ("failed", "Hung", 1), "no sign of life for 2 s: the process hangs"),
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_in_a_group_that_torchrun_started_rank_0_says_what_befell_rank_1(what, tmp_path):
    fault, expected, said = OUTSIDE[what]
    run_dir, (status, console) = under_torchrun(tmp_path, "hardware.timeout_s=2", faults={1: fault})
    result = record.read(run_dir)
    assert status == 1
    assert (result.status, result.error["type"], result.error["rank"]) == expected
    assert said in said_last(console)
    assert "Traceback" not in console


def test_two_jobs_in_one_directory_are_refused_and_the_first_keeps_its_record(tmp_path):
    record.write(tmp_path, record.RunRecord(steps=7))
    before = (tmp_path / record.RESULT).read_text()
    with record.lock(tmp_path), pytest.raises(UsageError, match="is still live"):
        run(tmp_path)
    assert (tmp_path / record.RESULT).read_text() == before


def test_rank_0_alone_decides_which_ranks_adalora_cuts_and_every_rank_has_its_cuts(tmp_path):
    """Were rank 1 to decide too, it would meet a bug; were it not told, its replica would differ and the run abort."""
    given = ("rank_strategy=adalora", "rank_strategy.every_n_steps=1", "schedule.max_steps=6")
    job = Job(
        tmp_path, *given, faults={1: Fault("meets a bug", "lab.editors.adalora:AdaLoraModel.update_and_allocate", 0)}
    )
    status, console = job.end()
    assert status == 0, console
    result = record.read(job.run_dir)
    assert result.budget["used"] < result.budget["at_start"]
