"""The order of the data is a pure function of (seed, step), whatever the hardware."""

import pytest
import torch

from lab.data.encode import Sample
from lab.training.loader import BatchPlan, MicroBatches, Split, TrainLoader, collate

LENGTHS = [5 + (7 * i) % 23 for i in range(37)]


def samples():
    return [
        Sample(input_ids=torch.full((n,), i), labels=torch.tensor([-100] + [i] * (n - 1)), num_bytes=n)
        for i, n in enumerate(LENGTHS)
    ]


@pytest.mark.parametrize("seed", [0, 3])
def test_an_epoch_visits_every_example_once(seed):
    plan = BatchPlan(LENGTHS, 8, seed)
    for epoch in range(3):
        seen = [i for k in range(plan.steps_per_epoch) for i in plan.batch(epoch * plan.steps_per_epoch + k)]
        assert sorted(seen) == list(range(37))


def test_batches_depend_on_seed_and_epoch_only():
    first, again, other = BatchPlan(LENGTHS, 8, 0), BatchPlan(LENGTHS, 8, 0), BatchPlan(LENGTHS, 8, 1)
    steps = range(3 * first.steps_per_epoch)
    assert [first.batch(k) for k in reversed(steps)] == [again.batch(k) for k in reversed(steps)]
    assert [first.batch(k) for k in steps] != [other.batch(k) for k in steps]
    epochs = [sorted(map(tuple, (first.batch(e * 5 + k) for k in range(5)))) for e in (0, 1)]
    assert epochs[0] != epochs[1]


def test_batches_hold_similar_lengths():
    lengths = torch.randint(10, 500, (4096,), generator=torch.Generator().manual_seed(0)).tolist()
    plan = BatchPlan(lengths, 16, 0)
    padded = sum(max(lengths[i] for i in plan.batch(k)) * 16 for k in range(plan.steps_per_epoch))
    # unsorted batches of 16 uniform lengths would pad to about 15/16 of 500 each: 1.85 times the real tokens
    assert padded / sum(lengths) < 1.25


@pytest.mark.parametrize(("micro", "accumulate", "world"), [(8, 1, 1), (2, 4, 1), (4, 1, 2), (1, 4, 2)])
def test_every_split_of_a_batch_holds_the_same_examples_and_denominator(micro, accumulate, world):
    plan = BatchPlan(LENGTHS, 8, 0)
    for step in range(2 * plan.steps_per_epoch):
        seen, denominators = [], set()
        for rank in range(world):
            batches = MicroBatches(samples(), plan, Split(micro, accumulate, world, rank), 10, pad_id=0)
            for part in range(accumulate):
                batch = batches[step * accumulate + part]
                seen += batch["examples"]
                denominators.add((batch["denominator"], batch["share"], batch["tokens"]))
        chosen = plan.batch(step)
        assert sorted(seen) == sorted(chosen)
        labels = sum(LENGTHS[i] - 1 for i in chosen)
        assert denominators == {(labels, len(chosen) / 8, sum(LENGTHS[i] for i in chosen))}


def test_a_restored_loader_goes_on_where_it_stopped():
    plan = BatchPlan(LENGTHS, 8, 0)
    batches = MicroBatches(samples(), plan, Split(4, 2, 1, 0), 12, pad_id=0)
    whole = [batch["examples"] for batch in TrainLoader(batches, num_workers=0)]
    first = TrainLoader(batches, num_workers=0)
    iterator = iter(first)
    head = [next(iterator)["examples"] for _ in range(9)]
    second = TrainLoader(batches, num_workers=0)
    second.load_state_dict(first.state_dict())
    assert head + [batch["examples"] for batch in second] == whole


def test_collate_pads_on_the_right_and_masks_the_padding():
    batch = collate(samples()[:3], pad_id=9)
    longest = max(LENGTHS[:3])
    assert batch["input_ids"].shape == (3, longest)
    for row, length in enumerate(LENGTHS[:3]):
        assert (batch["input_ids"][row, length:] == 9).all()
        assert (batch["labels"][row, length:] == -100).all()
