from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lab.cache import cache_dir, read_json
from lab.config import Hardware
from lab.data.encode import Sample
from lab.training import base_loss as module
from lab.training.base_loss import base_loss
from lab.training.evaluate import evaluate
from lab.training.hardware import resolve
from lab.training.loss import Scorer

HARDWARE = resolve(Hardware(accelerator="cpu", precision="32-true", threads=1), 8)


@pytest.fixture
def scorer(tmp_path, monkeypatch) -> Scorer:
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape))
    return Scorer(net, torch.device("cpu"), autocast=False)


def sample(seed: int) -> Sample:
    ids = torch.randint(50, (9,), generator=torch.Generator().manual_seed(seed))
    return Sample(input_ids=ids, labels=ids.clone(), num_bytes=20)


SAMPLES = [sample(0), sample(1)]


def files() -> list[Path]:
    return sorted(cache_dir("base_loss").glob("*.json"))


def test_what_was_kept_is_what_was_computed_to_the_last_bit(scorer, monkeypatch):
    fresh = evaluate(scorer, SAMPLES, 0)
    made = base_loss(scorer, SAMPLES, 0, "w", HARDWARE)
    monkeypatch.setattr(module.evaluation, "evaluate", lambda *_: pytest.fail("it was known"))
    assert base_loss(scorer, SAMPLES, 0, "w", HARDWARE) == made == fresh


def test_other_weights_texts_labels_or_ways_to_compute_are_other_files(scorer):
    masked = replace(SAMPLES[0], labels=SAMPLES[0].labels.clone().index_fill_(0, torch.tensor([1]), -100))
    base_loss(scorer, SAMPLES, 0, "w", HARDWARE)
    base_loss(scorer, SAMPLES, 0, "other", HARDWARE)
    base_loss(scorer, SAMPLES[:1], 0, "w", HARDWARE)
    base_loss(scorer, [masked, SAMPLES[1]], 0, "w", HARDWARE)
    base_loss(scorer, SAMPLES, 0, "w", replace(HARDWARE, threads=2))
    scorer.net.config.rope_parameters["rope_theta"] = 77.0
    base_loss(scorer, SAMPLES, 0, "w", HARDWARE)
    assert len(files()) == 6


@pytest.mark.parametrize("damage", ["doubled", "from before there were checksums"])
def test_a_number_that_was_changed_is_not_believed(damage, scorer, caplog):
    made = base_loss(scorer, SAMPLES, 0, "w", HARDWARE)
    path = files()[0]
    checksum, _, text = path.read_text().partition(" ")
    other = text.replace(str(made.nats), str(2 * made.nats))
    assert other != text
    path.write_text(f"{checksum} {other}" if damage == "doubled" else other)
    assert base_loss(scorer, SAMPLES, 0, "w", HARDWARE) == made
    assert "does not match its checksum" in caplog.text


def test_a_file_that_is_cut_short_is_computed_again_and_said_so(scorer, caplog):
    made = base_loss(scorer, SAMPLES, 0, "w", HARDWARE)
    files()[0].write_text('{"nats": 3')
    assert base_loss(scorer, SAMPLES, 0, "w", HARDWARE) == made
    assert "not readable" in caplog.text
    assert read_json(files()[0])["nats"] == made.nats


def test_a_probe_is_computed_once_a_process_and_never_kept_for_another(scorer, monkeypatch):
    monkeypatch.setattr(module, "_probed", {})
    first = module.probe_loss(scorer, SAMPLES, 0, "a", HARDWARE)
    assert first == evaluate(scorer, SAMPLES, 0).loss
    monkeypatch.setattr(module.evaluation, "evaluate", lambda *_: pytest.fail("it is known"))
    assert module.probe_loss(scorer, SAMPLES, 0, "a", HARDWARE) == first
    assert not files()
    for other in ((SAMPLES[:1], "a", HARDWARE), (SAMPLES, "b", HARDWARE), (SAMPLES, "a", replace(HARDWARE, threads=2))):
        with pytest.raises(pytest.fail.Exception, match="it is known"):
            module.probe_loss(scorer, other[0], 0, other[1], other[2])
