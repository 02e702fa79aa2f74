"""Who hangs and who does not: signs of life, stacks, and a process that watches itself."""

import subprocess
import sys
import threading
import time

import pytest

from lab.process import hang, heartbeat
from lab.process.hang import Hang, Hung, Stack, Watch
from lab.process.heartbeat import Slot


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr("lab.process.hang.time.monotonic", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def a_group(seconds=60.0, ranks=2):
    """Slots, seconds of the processor by rank, and the watch on them."""
    slots, used = [Slot(bytearray(16)) for _ in range(ranks)], [0.0] * ranks
    return slots, used, Watch(slots, seconds, lambda rank: used[rank])


def silence(clock, watch, seconds, living=(0, 1), each=lambda: None):
    """True where the watch sees a hang within so many seconds, looking every second."""
    for _ in range(seconds):
        clock(1.0)
        each()
        if watch.hangs(living):
            return True
    return False


def test_a_job_hangs_when_no_rank_has_given_a_sign_of_life_for_the_timeout(clock):
    _, _, watch = a_group()
    assert not silence(clock, watch, 59)
    assert silence(clock, watch, 1)


def test_one_rank_that_beats_keeps_the_others_waiting(clock):
    slots, _, watch = a_group()

    def beat():
        slots[1].count += 1

    assert not silence(clock, watch, 600, each=beat)
    assert silence(clock, watch, 60)


def test_a_rank_that_has_ended_beats_no_more_and_is_not_waited_for(clock):
    slots, _, watch = a_group()

    def beat():
        slots[1].count += 1

    assert silence(clock, watch, 60, living=(0,), each=beat)


@pytest.mark.parametrize("strict", [False, True])
def test_using_the_processor_is_a_sign_of_life_outside_of_loops_that_beat(strict, clock):
    slots, used, watch = a_group()
    slots[0].strict = strict

    def work():
        used[0] += 0.5

    assert silence(clock, watch, 600, each=work) is strict


def test_a_thread_that_wakes_now_and_then_does_not_hide_a_hang(clock):
    _, used, watch = a_group()

    def wake():
        used[0] += 0.002

    assert silence(clock, watch, 120, each=wake)


def test_where_the_system_tells_nothing_of_the_processor_only_loops_that_beat_are_watched(clock):
    slots = [Slot(bytearray(16))]
    watch = Watch(slots, 60.0, lambda rank: None)
    assert not silence(clock, watch, 600, living=(0,))
    slots[0].strict = True
    assert silence(clock, watch, 61, living=(0,))


def test_time_in_which_the_watcher_itself_was_suspended_is_not_silence(clock):
    _, _, watch = a_group()
    assert not silence(clock, watch, 30)
    clock(3600.0)
    assert not watch.hangs([0, 1])
    assert not silence(clock, watch, 20)
    assert silence(clock, watch, 20)


def test_only_beats_count_inside_strict_and_a_long_call_may_be_let_out_of_it():
    @heartbeat.long()
    def decompose():
        return heartbeat.own.strict

    before = heartbeat.own.count
    with heartbeat.strict():
        assert heartbeat.own.strict
        assert not decompose()
        assert heartbeat.own.strict
    assert not heartbeat.own.strict
    assert heartbeat.own.count > before


def test_processes_count_in_one_file(tmp_path):
    ranks = heartbeat.slots(tmp_path / "beats", 3)
    code = f"""
from pathlib import Path
from lab.process import heartbeat
heartbeat.join(Path({str(tmp_path / "beats")!r}), 1)
for _ in range(5): heartbeat.beat()
heartbeat.own.word = heartbeat.DONE
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [(slot.count, slot.word) for slot in ranks] == [(0, heartbeat.NOTHING), (5, heartbeat.DONE), (0, 0)]


def standing_in(file, stopped=False):
    return Stack(
        f'Thread 0x1 (most recent call first):\n  File "{file}", line 7 in work\n  File "b.py", line 1 in b', stopped
    )


COLLECTIVE, BACKWARD = "/x/torch/distributed/distributed_c10d.py", "/x/torch/autograd/graph.py"


def test_who_waits_for_others_is_not_the_one_who_hangs():
    found = Hang({0: standing_in(COLLECTIVE), 1: standing_in("mine.py"), 2: standing_in(BACKWARD)}, 60)
    assert found.culprits == [1]
    assert str(found) == (
        "no sign of life for 60 s: rank 1 hangs in work, mine.py:7; where it was only slow, raise hardware.timeout_s"
    )


def test_who_is_stopped_or_shows_nothing_hangs_wherever_it_stands():
    found = Hang({0: standing_in(COLLECTIVE), 1: standing_in(COLLECTIVE, stopped=True), 2: Stack("")}, 60)
    assert found.culprits == [1, 2]
    assert "rank 1 is stopped in work, /x/torch" in str(found)
    assert "rank 2 hangs in what shows no line" in str(found)


def test_where_all_wait_for_each_other_all_are_named():
    found = Hang({0: standing_in(COLLECTIVE), 1: standing_in(BACKWARD)}, 60)
    assert found.culprits == [0, 1]
    assert "rank 0 waits in work" in str(found)


def nobody(message, stack):
    raise AssertionError("the main thread hears it")


def test_a_process_that_hangs_raises_where_it_stands():
    with (
        pytest.raises(
            Hung, match=r"^no sign of life for 0\.2 s: the process hangs in test_a_process\w+, .*; resume=it$"
        ),
        hang.watch_self(0.2, "resume=it", False, nobody),
    ):
        time.sleep(20)


def test_a_call_that_catches_every_exception_does_not_swallow_it():
    with pytest.raises(Hung), hang.watch_self(0.2, "", False, nobody):
        try:
            threading.Event().wait(20)
        except Exception:
            pytest.fail("taken for a failed call")


def test_a_process_that_beats_is_left_alone():
    with hang.watch_self(0.5, "", False, nobody):
        for _ in range(20):
            time.sleep(0.05)
            heartbeat.beat()


@pytest.mark.parametrize("group", [True, False])
def test_waiting_for_processes_that_others_started_is_no_silence(group):
    scope = {"time": time}
    exec(compile("def all_reduce(): time.sleep(1.2)", COLLECTIVE, "exec"), scope)
    if group:
        with hang.watch_self(0.2, "", group, nobody):
            scope["all_reduce"]()
    else:
        with pytest.raises(Hung), hang.watch_self(0.2, "", group, nobody):
            scope["all_reduce"]()


def test_outside_the_main_thread_nothing_is_watched():
    done = []

    def work():
        with hang.watch_self(0.1, "", False, nobody):
            time.sleep(0.5)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_main_thread_that_hears_nothing_is_given_up_with_its_stack():
    code = """
import signal, time
from lab.process import hang

def stuck():
    signal.pthread_sigmask(signal.SIG_BLOCK, [hang.SHOW])  # as where C code never comes back to Python
    time.sleep(30)

hang.GRACE = 0.3
with hang.watch_self(0.3, "resume=it", False, lambda message, stack: print(message, stack, sep="\\n", flush=True)):
    stuck()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1, done.stderr
    first, *stack = done.stdout.splitlines()
    assert first.startswith("no sign of life for 0.3 s: the process hangs in stuck, <string>:7; ")
    assert '  File "<string>", line 7 in stuck' in stack[:3]
