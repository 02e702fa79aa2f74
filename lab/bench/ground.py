"""Grounds of the training bench: the base and its batch, and who is measured on it."""

from dataclasses import dataclass

from lab import config
from lab.bench.shapes import LLAMA_135M, Shape
from lab.config import RunConfig

RANK, LR = 16, 1e-3
MAX_LENGTH, EXAMPLES = 256, 512
CONTENDERS = ("lab", "lab init=svd", "bare loop", "Trainer + peft", "Trainer + peft bf16")


@dataclass(frozen=True)
class Ground:
    """A base, and what is measured on it."""

    overrides: tuple[str, ...]  # that choose the base
    batch: int  # examples, unless told otherwise
    contenders: tuple[str, ...]
    same_batches: bool  # True: the Trainer takes the lab's batches in their order; False: its own, as by default

    def settings(self, batch: int, *others: str) -> RunConfig:
        """The config of the lab's own contenders."""
        return config.compose(
            "data=stdlib_instruct",  # pairs of very different lengths, as instruction data has
            f"data.max_length={MAX_LENGTH}",
            f"rank={RANK}",
            f"schedule.batch_size={batch}",
            f"hardware.micro_batch_size={batch}",
            f"evidence.num_examples={batch}",  # init=svd's look at the data is not timed
            f"optim.lr={LR}",
            "schedule.lr_scheduler=constant",
            "schedule.warmup_steps=0",
            *self.overrides,
            *others,
        )


def scratch(shape: Shape) -> tuple[str, ...]:
    """Overrides for a model of a shape with random weights, which reads the shipped tokenizer's ids."""
    return ("model=micro", *(f"++model.architecture.{key}={value}" for key, value in shape.items()))


GROUNDS: dict[str, Ground] = {
    "base": Ground((), 16, tuple(name for name in CONTENDERS if name != "lab init=svd"), same_batches=False),
    "135m": Ground(scratch(LLAMA_135M), 8, CONTENDERS, same_batches=True),
}
