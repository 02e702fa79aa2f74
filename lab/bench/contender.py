"""One contender of the training bench in a process of its own; prints one JSON line.

python -m lab.bench.contender NAME STEPS FOLDER GROUND BATCH
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401
import peft
import torch
import transformers.trainer  # noqa: F401

from lab.bench.device import PeakMemory, bench_device, multiplied
from lab.bench.ground import EXAMPLES, GROUNDS, LR, RANK, Ground
from lab.bench.loops import Timing, Work, bare_loop, lab_loop, trainer_loop
from lab.config import RunConfig, instantiate
from lab.data.corpus import load_corpus
from lab.model import Model, combined, digests_of
from lab.run.parts import Parts
from lab.run.setup import Adapted, BaseHashes, adapt, load_base, resolve_hardware
from lab.training.hardware import Resolved


def main() -> None:
    """Measure one contender: real tokens a second, bytes above the imports, parameters multiplied with, last loss."""
    name, steps, folder, ground, batch = sys.argv[1:]
    print(json.dumps(measure(name, int(steps), Path(folder), GROUNDS[ground], int(batch))))


def measure(name: str, steps: int, folder: Path, ground: Ground, batch: int) -> dict[str, Any]:
    """What `main` prints."""
    settings = ground.settings(batch, *(["init=svd"] if name == "lab init=svd" else []))
    model: Model = instantiate.make(settings.model)
    tokenizer = model.tokenizer()
    corpus = load_corpus(instantiate.make({**settings.data, "retention": None}), tokenizer)
    work = Work(corpus.train.samples[:EXAMPLES], corpus.pad_id, batch, steps)
    device = bench_device()
    peak = PeakMemory(device)
    if name.startswith("Trainer"):
        net = model.load(torch.float32, 0)
        parameters = multiplied(net)
        lora = peft.LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        wrapped: Any = peft.get_peft_model(net, lora)
        bf16 = name.endswith("bf16")
        done: Timing = trainer_loop(wrapped, work, tokenizer, LR, device, folder, bf16, ground.same_batches)
        held = wrapped.device
    else:
        hardware = resolve_hardware(settings)
        adapted, parameters = adapted_base(model, settings, hardware, work)
        if name == "bare loop":
            done = bare_loop(adapted.net, work, settings, hardware)
        else:
            done = lab_loop(adapted.model, work, settings, hardware, folder)
        held = adapted.net.device
    assert held.type == device.type, f"{name} trained on {held}, under the name of {device}"
    return {
        "tokens_per_second": done.tokens / done.seconds,
        "peak_bytes": peak.bytes(),
        "loss": done.loss,
        "parameters": parameters,
    }


def adapted_base(model: Model, settings: RunConfig, hardware: Resolved, work: Work) -> tuple[Adapted, int]:
    """The base on its device with the lab's adapters, and the parameters that a token is multiplied with."""
    net, targets = load_base(model, settings, hardware)
    parameters = multiplied(net)
    of_each = digests_of(list(net.named_parameters()))  # not as stored: to draw weights once more takes their memory
    hashes = BaseHashes(None, combined(of_each), of_each)
    samples = work.samples
    return adapt(net, targets, Parts.of(settings), settings, hardware, samples, work.pad_id, hashes), parameters


if __name__ == "__main__":
    main()
