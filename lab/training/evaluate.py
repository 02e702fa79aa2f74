"""Loss on held-out text: exact sums of nats over labelled tokens, whatever the batching and the processes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lab.data.encode import Sample
from lab.process import heartbeat
from lab.training.distributed import all_reduce, rank, world
from lab.training.loader import collate
from lab.training.loss import Scorer

TOKENS_PER_BATCH = 4096  # padded; twice as many were slower on a CPU and took twice the memory


@dataclass(frozen=True)
class Evaluation:
    """Sums over a set of samples."""

    nats: float
    labels: int
    num_bytes: int

    @property
    def loss(self) -> float:
        """Mean loss, in nats per labelled token."""
        return self.nats / self.labels

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bpb(self) -> float | None:
        """Bits per byte of the labelled text; None where it has no bytes."""
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else None


def batches_of(samples: Sequence[Sample], tokens: int = TOKENS_PER_BATCH) -> Iterator[list[Sample]]:
    """Samples of similar length, longest first, at most `tokens` padded tokens together."""
    ordered = sorted(samples, key=lambda sample: -len(sample.input_ids))
    batch: list[Sample] = []
    for sample in ordered:
        if batch and (len(batch) + 1) * len(batch[0].input_ids) > tokens:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


@heartbeat.strict()
@torch.no_grad()
def evaluate(scorer: Scorer, samples: Sequence[Sample], pad_id: int) -> Evaluation:
    """The loss of a model on samples, shared over the processes; leaves mode and random state as they were."""
    device = scorer.device
    was_training = scorer.net.training
    scorer.net.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for i, batch in enumerate(batches_of(samples)):
        if i % world() != rank():
            continue
        tensors = {key: value.to(device) for key, value in collate(batch, pad_id).items()}
        sums[0] += scorer.nats(**tensors).double()
        sums[1] += sum(int((sample.labels != -100).sum()) for sample in batch)
        sums[2] += sum(sample.num_bytes for sample in batch)
    scorer.net.train(was_training)
    all_reduce(sums)
    nats, labels, num_bytes = sums.tolist()
    return Evaluation(nats, int(labels), int(num_bytes))
