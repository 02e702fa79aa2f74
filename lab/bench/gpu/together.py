"""Two processes that train on one GPU against one: does it have room for both?"""

from collections.abc import Iterator
from typing import Any

from lab.bench.device import Stopwatch, bench_device, name_of
from lab.bench.gpu import packed
from lab.bench.gpu.part import processes

STEPS, TINY_STEPS = 60, 5
PATIENCE = 120  # seconds for all processes to be ready


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """A row for one process and one for two: steps a second of all together, and how many times one's that is."""
    alone = 0.0
    for count in (1, 2):
        seconds = _train(count, tiny)
        speed = count * (TINY_STEPS if tiny else STEPS) / max(seconds)
        alone = alone or speed
        yield {"processes": count, "steps_per_second": speed, "times_one_process": speed / alone} | {
            "seconds": seconds,
            "device": name_of(bench_device()) if count == 2 else None,  # CUDA stays asleep here until the last of them
        }


def _train(count: int, tiny: bool) -> list[float]:
    context = processes()
    ready, results = context.Barrier(count), context.SimpleQueue()
    workers = [context.Process(target=_work, args=(tiny, ready, results)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    failed = [worker.exitcode for worker in workers if worker.exitcode != 0]
    if failed:
        raise RuntimeError(f"{len(failed)} of {count} processes ended with {failed[0]}; their own words stand above.")
    return [results.get() for _ in workers]


def _work(tiny: bool, ready: Any, results: Any) -> None:
    device = bench_device()
    net, ids = packed.base_and_ids(tiny, 1, device)
    step = packed.step_of(net, packed.pack(net, packed.layers_of(net), 1), ids, 1)
    for _ in range(packed.WARM_UP):
        step()
    watch = Stopwatch(device)
    ready.wait(PATIENCE)
    watch.start()
    for _ in range(TINY_STEPS if tiny else STEPS):
        step()
    results.put(watch.stop())
