"""The base's losses and answers, kept between runs: the jobs of a study evaluate one base on one text once.

A file is named by all that decides the sums to their last bit: weights, architecture, tokens, labels, and how the
machine computes. So a run that finds it records the same numbers as the run that made it.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict

import torch
import transformers
from torch import nn

from lab import __version__
from lab.cache import cache_dir, keep_json, read_json
from lab.data.encode import Sample
from lab.training import evaluate as evaluation
from lab.training.answers import Answers, Counted
from lab.training.distributed import from_rank_0
from lab.training.evaluate import Evaluation
from lab.training.generate import PROMPTS_PER_BATCH
from lab.training.hardware import Resolved
from lab.training.loss import Scorer

log = logging.getLogger(__name__)
_probed: dict[str, float] = {}  # of this process


def base_loss(
    scorer: Scorer, samples: Sequence[Sample], pad_id: int, weights_sha256: str, hardware: Resolved
) -> Evaluation:
    """The evaluation of a pristine model whose weights have this digest; every process returns the same."""
    name = _name(scorer, samples, weights_sha256, hardware)
    folder = cache_dir("base_loss")
    path = folder and folder / f"{name}.json"
    known = from_rank_0(lambda: read_json(path))  # whether all compute together must not depend on who sees the file
    if known is not None:
        log.info("the base's loss on %d samples is known: %s", len(samples), name)
        return Evaluation(**known)
    result = evaluation.evaluate(scorer, samples, pad_id)
    from_rank_0(lambda: keep_json(path, asdict(result)))
    return result


def probe_loss(
    scorer: Scorer, samples: Sequence[Sample], pad_id: int, weights_sha256: str, hardware: Resolved
) -> float:
    """The loss of a pristine model on the few samples step 0 is held against: known to later jobs of this process.

    Not kept in a file: what is held against it to the last digits must have been computed by this machine.
    """
    name = _name(scorer, samples, weights_sha256, hardware)
    if name not in _probed:
        _probed[name] = evaluation.evaluate(scorer, samples, pad_id).loss
    return _probed[name]


def base_answers(answers: Answers, net: nn.Module, weights_sha256: str, hardware: Resolved) -> Counted:
    """The answers of a pristine model whose weights have this digest, counted; kept as its losses are."""
    digest = _computed(net, weights_sha256, hardware)
    digest.update(f"{transformers.__version__} {PROMPTS_PER_BATCH} {answers.sha256()}".encode())
    name = digest.hexdigest()[:32]
    folder = cache_dir("base_loss")
    path = folder and folder / f"{name}.json"
    known = read_json(path)
    if known is not None:
        log.info("the base's answers to %d questions are known: %s", len(answers.judged), name)
        return Counted(**known)
    counted = answers.count(net)
    keep_json(path, asdict(counted))
    return counted


def _computed(net: nn.Module, weights_sha256: str, hardware: Resolved) -> "hashlib._Hash":
    """The digest of a model and of how this machine computes, to be gone on with."""
    digest = hashlib.sha256(weights_sha256.encode())
    digest.update(net.config.to_json_string().encode())  # type: ignore[operator,union-attr]
    computed = [hardware.device_name, hardware.precision, hardware.threads, hardware.devices]
    digest.update(repr([*computed, __version__, torch.__version__]).encode())
    return digest


def _name(scorer: Scorer, samples: Sequence[Sample], weights_sha256: str, hardware: Resolved) -> str:
    digest = _computed(scorer.net, weights_sha256, hardware)
    digest.update(repr(evaluation.TOKENS_PER_BATCH).encode())
    for sample in samples:
        digest.update(sample.input_ids.numpy().tobytes() + sample.labels.numpy().tobytes())
        digest.update(sample.num_bytes.to_bytes(8, "little"))
    return digest.hexdigest()[:32]
