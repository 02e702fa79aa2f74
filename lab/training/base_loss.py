"""The base's loss on a set of samples, kept between runs: the jobs of a study evaluate one base on one text once.

A file is named by all that decides the sums to their last bit: weights, architecture, tokens, labels, and how the
machine computes. So a run that finds it records the same numbers as the run that made it.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict

import torch
import torch.distributed as dist

from lab import __version__
from lab.cache import cache_dir, write_atomically
from lab.data.encode import Sample
from lab.training import evaluate as evaluation
from lab.training.evaluate import Evaluation
from lab.training.hardware import Resolved
from lab.training.loss import Scorer

log = logging.getLogger(__name__)


def base_loss(
    scorer: Scorer, samples: Sequence[Sample], pad_id: int, weights_sha256: str, hardware: Resolved
) -> Evaluation:
    """The evaluation of a pristine model whose weights have this digest; every process returns the same."""
    name = _name(scorer, samples, weights_sha256, hardware)
    path = cache_dir("base_loss") / f"{name}.json"
    found: list[dict[str, float] | None] = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            found = [json.loads(path.read_text())]
        except FileNotFoundError:
            pass
        except json.JSONDecodeError:
            log.warning("%s is not readable and is computed again", path)
    if dist.is_initialized():  # whether to compute together must not depend on who sees the file
        dist.broadcast_object_list(found)
    if found[0] is not None:
        log.info("the base's loss on %d samples is known: %s", len(samples), path.name)
        return Evaluation(**found[0])  # type: ignore[arg-type]
    result = evaluation.evaluate(scorer, samples, pad_id)
    if not dist.is_initialized() or dist.get_rank() == 0:
        text = json.dumps(asdict(result))
        write_atomically(path, lambda temporary: temporary.write_text(text))
    return result


def _name(scorer: Scorer, samples: Sequence[Sample], weights_sha256: str, hardware: Resolved) -> str:
    digest = hashlib.sha256(weights_sha256.encode())
    digest.update(scorer.net.config.to_json_string().encode())  # type: ignore[operator,union-attr]
    computed = [hardware.device_name, hardware.precision, hardware.threads, hardware.devices]
    digest.update(repr([*computed, __version__, torch.__version__, evaluation.TOKENS_PER_BATCH]).encode())
    for sample in samples:
        digest.update(sample.input_ids.numpy().tobytes() + sample.labels.numpy().tobytes())
        digest.update(sample.num_bytes.to_bytes(8, "little"))
    return digest.hexdigest()[:32]
