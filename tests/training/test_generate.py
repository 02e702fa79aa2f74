"""Generation is an argmax per token, whatever the model's folder, its architecture and its neighbours in a batch."""

import json

import pytest
import torch
from generation import WORDS, by_argmax, small
from jobs import run
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

from lab import config
from lab.config import instantiate
from lab.training.generate import complete

NEW = 24
SETTINGS = {  # of a folder
    **{"do_sample": False, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.8, "min_new_tokens": 20},
    **{"max_length": 50, "eos_token_id": [0, 5], "mine": 3},
}


@pytest.fixture(scope="module")
def tiny():
    """The shipped base, prompts of several lengths, and the argmax of its logits after each of them."""
    model = instantiate.make(config.compose("model=tiny").model)
    net, tokenizer = model.load(torch.float32, 0).eval(), model.tokenizer()
    texts = ("def f(x):\n    return", "Question: two dice are thrown. What", "The", "Return the number of items. " * 5)
    prompts = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return net, prompts, [by_argmax(net, prompt, [0], NEW) for prompt in prompts]


def hostile(expected):
    """Settings of a generation_config.json, each of which changes what `generate` writes, prints, or whether it does.

    `expected` is what the logits alone give; to forbid its tokens is to change it.
    """
    first = sorted({tokens[0] for tokens in expected})
    return {
        "repetition_penalty": 1.8,
        "encoder_repetition_penalty": 2.0,
        "no_repeat_ngram_size": 2,
        "num_beams": 3,
        "length_penalty": 2.0,
        "early_stopping": True,
        "min_length": 70,
        "min_new_tokens": 20,
        "max_length": 2,
        "max_time": 1e-9,
        "stop_strings": ["e"],
        "suppress_tokens": first,
        "begin_suppress_tokens": first,
        "bad_words_ids": [[token] for token in first],
        "sequence_bias": [[[first[0]], -50.0]],
        "forced_bos_token_id": 5,
        "forced_eos_token_id": 7,
        "exponential_decay_length_penalty": [2, 50.0],
        "guidance_scale": 3.0,
        "watermarking_config": {"greenlist_ratio": 0.2, "bias": 9.0},
        "do_sample": True,
        "temperature": 3.0,
        "top_k": 5,
        "top_p": 0.3,
        "penalty_alpha": 0.6,
        "dola_layers": "low",
        "constraints": [1],
        "force_words_ids": [[3]],
        "use_mtp": True,
        "prompt_lookup_num_tokens": 3,
        "assistant_early_exit": 2,
        "token_healing": True,
        "return_dict_in_generate": True,
        "use_cache": False,
        "cache_implementation": "quantized",
        "cache_config": {"nbits": 4},
        "eos_token_id": [expected[0][2]],
        "pad_token_id": 9,
    }


@pytest.fixture
def with_settings(tiny):
    """The base under the generation settings of a folder; what it had before comes back."""
    net, own = tiny[0], tiny[0].generation_config

    def under(**settings):
        net.generation_config = GenerationConfig(**settings)
        return net

    yield under
    net.generation_config = own


def completed(net, prompts, end_ids, new_tokens=NEW):
    return [tokens.tolist() for tokens in complete(net, prompts, end_ids, 1, new_tokens, torch.device("cpu"))]


def test_none_of_a_models_own_generation_settings_counts(tiny, with_settings):
    _, prompts, expected = tiny
    wrong = []
    for name, value in hostile(expected).items():
        net = with_settings(**{name: value})
        if completed(net, prompts, [0]) != expected:
            wrong.append(name)
    assert not wrong


def test_nor_do_all_of_them_at_once_and_they_stay_the_models_own(tiny, with_settings, caplog, recwarn):
    _, prompts, expected = tiny
    net = with_settings(**hostile(expected))
    before = net.generation_config.to_json_string(use_diff=False)
    caplog.clear()
    recwarn.clear()
    assert completed(net, prompts, [0]) == expected
    assert not caplog.records
    assert not recwarn.list
    assert net.generation_config.to_json_string(use_diff=False) == before


def test_an_early_end_is_an_end_whatever_the_shortest_answer_of_the_folder(tiny, with_settings):
    _, prompts, expected = tiny
    ends = [0, expected[0][3], expected[2][1]]
    shorter = [by_argmax(tiny[0], prompt, ends, NEW) for prompt in prompts]
    assert shorter != expected
    for name in ("min_length", "min_new_tokens"):
        assert completed(with_settings(**{name: hostile(expected)[name]}), prompts, ends) == shorter


def test_the_models_settings_come_back_when_generation_fails(tiny, with_settings, monkeypatch):
    prompts = tiny[1]
    net = with_settings(repetition_penalty=1.8)
    monkeypatch.setattr(net, "forward", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError):
        completed(net, prompts, [0])
    assert net.generation_config.repetition_penalty == 1.8


@pytest.mark.parametrize(
    "model_type",
    [
        *("gpt2", "opt", "gpt_neo", "gpt_bigcode", "codegen"),  # tables of positions
        *("llama", "qwen3", "gpt_neox", "phi3"),  # rotary
        *("mistral", "gemma2", "starcoder2"),  # sliding windows of 6 tokens
        *("bloom", "mpt"),  # biases by distance
    ],
)
def test_a_prompts_continuation_does_not_depend_on_its_neighbours(model_type):
    """Prompts of 1 to 20 tokens in one batch, against the argmax of each alone, up to the last position."""
    net = small(model_type)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, WORDS, (n,), generator=generator) for n in (20, 1, 7, 13, 2)]
    expected = [by_argmax(net, prompt, [2], 12) for prompt in prompts]
    assert len({tuple(tokens) for tokens in expected}) == len(prompts)
    assert completed(net, prompts, [2], 12) == expected


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One model twice, once with settings for generation that no run should notice."""
    model = instantiate.make(config.compose("model=micro").model)
    places = [tmp_path_factory.mktemp(name) for name in ("as_is", "hostile")]
    for place in places:
        model.load(torch.float32, 0).save_pretrained(place)
        model.tokenizer().save_pretrained(place)
    (places[1] / "generation_config.json").write_text(json.dumps(SETTINGS))
    return places


def test_a_run_neither_obeys_nor_mentions_the_settings_and_exports_them(folders, tmp_path, caplog, capfd):
    caplog.set_level("INFO", "lab")
    said, results = [], []
    for place in folders:
        caplog.clear()
        chosen = ("model=pretrained", f"model.name_or_path={place}", "method=full", "evaluate.sample_tokens=30")
        results.append(run(tmp_path / place.name, *chosen, "schedule.max_steps=4"))
        said.append([line for line in caplog.messages if line.startswith("step 4: ")])
    assert said[0] == said[1]
    assert len(said[0]) == 2
    assert results[0].metrics == results[1].metrics
    assert "generation" not in capfd.readouterr().err
    assert not [record for record in caplog.records if "generation" in record.name]
    written = json.loads((tmp_path / folders[1].name / "model/generation_config.json").read_text())
    assert {key: written[key] for key in SETTINGS} == SETTINGS


def test_a_frozen_head_is_not_repeated_for_every_prompt():
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = [value for value in pytree.tree_leaves(out) if isinstance(value, torch.Tensor)]
            self.numbers = max([self.numbers, *(value.numel() for value in tensors)])
            return out

    net = small("llama").eval().requires_grad_(False)
    head = net.get_output_embeddings().weight
    prompts = [torch.arange(1, 9), torch.arange(2, 10), torch.arange(3, 9)]
    with Largest() as largest:
        complete(net, prompts, [0], 0, 2, torch.device("cpu"))
    assert 0 < largest.numbers < len(prompts) * head.numel()
