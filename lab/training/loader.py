"""Batches: the examples of each step, a pure function of (seed, step), and the loader that serves them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lab.data.encode import Sample

POOL = 64  # batches that are sorted by length together
JITTER = 0.25  # relative noise on the length before sorting, so that batches differ between epochs


class BatchPlan:
    """The examples of the global batch of every optimizer step.

    Batches hold examples of similar length. An epoch visits each example once; its last batch may be smaller.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = torch.tensor(lengths, dtype=torch.float64)
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = -(-len(lengths) // batch_size)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, step: int) -> list[int]:
        """Indices of the examples of one optimizer step, counted from 0 over the whole run."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[index]

    def _make_epoch(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(len(self.lengths), generator=generator)
        noise = 1 + JITTER * torch.rand(len(self.lengths), generator=generator, dtype=torch.float64)
        key = self.lengths * noise
        full = len(order) // self.batch_size * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, full, POOL * self.batch_size):
            pool = order[start : min(start + POOL * self.batch_size, full)]
            pool = pool[torch.argsort(key[pool], stable=True)]
            batches += [chunk.tolist() for chunk in pool.split(self.batch_size)]
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        if full < len(order):
            batches.append(order[full:].tolist())
        return batches


@dataclass(frozen=True)
class Split:
    """How a global batch is split: `world` processes, each with `accumulate` micro-batches of `micro` examples."""

    micro: int
    accumulate: int
    world: int
    rank: int


class MicroBatches(Dataset[dict[str, Any]]):
    """Micro-batch k of this process, over the whole run; a pure function of k."""

    def __init__(self, samples: Sequence[Sample], plan: BatchPlan, split: Split, steps: int, pad_id: int) -> None:
        self.samples, self.plan, self.split, self.pad_id = samples, plan, split, pad_id
        self.steps = steps

    def __len__(self) -> int:
        return self.steps * self.split.accumulate

    def __getitem__(self, k: int) -> dict[str, Any]:
        step, part = divmod(k, self.split.accumulate)
        chosen = sorted(self.plan.batch(step), key=lambda i: (-len(self.samples[i].input_ids), i))
        slot = part * self.split.world + self.split.rank  # neighbours in length run side by side on the ranks
        own = chosen[slot * self.split.micro : (slot + 1) * self.split.micro]
        batch = collate([self.samples[i] for i in own], self.pad_id)
        return {
            **batch,
            "step": step,
            "slot": slot,
            "examples": own,
            "denominator": sum(int((self.samples[i].labels != -100).sum()) for i in chosen),
            "share": len(chosen) / self.plan.batch_size,
            "tokens": sum(len(self.samples[i].input_ids) for i in chosen),
        }


def collate(samples: Sequence[Sample], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids` and `labels`, each (examples, longest); (0, 0) for no samples.

    No attention mask is needed: under causal attention a real token never sees the padding behind it.
    """
    longest = max((len(sample.input_ids) for sample in samples), default=0)
    input_ids = torch.full((len(samples), longest), pad_id, dtype=torch.long)
    labels = torch.full((len(samples), longest), -100, dtype=torch.long)
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample.input_ids)] = sample.input_ids
        labels[row, : len(sample.labels)] = sample.labels
    return {"input_ids": input_ids, "labels": labels}


class TrainLoader:
    """A sized, stateful loader over the whole run; its position is the number of micro-batches handed out."""

    def __init__(self, batches: MicroBatches, num_workers: int) -> None:
        self.batches, self.num_workers, self.position = batches, num_workers, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        ahead: DataLoader[dict[str, Any]] = DataLoader(
            self.batches,
            batch_size=None,
            sampler=range(self.position, len(self.batches)),
            num_workers=self.num_workers,
        )
        for batch in ahead:
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue behind the micro-batches already handed out."""
        self.position = state["position"]
