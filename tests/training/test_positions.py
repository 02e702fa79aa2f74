"""The positions a model has are found from its shapes, and what would exceed them is refused before weights load."""

import pytest
import torch
from generation import POSITIONS, WORDS, small
from jobs import SMALL, run

from lab import config
from lab.errors import UsageError
from lab.run import dry_run
from lab.training.positions import position_limit, room_for_prompt

TABLES = ("gpt2", "opt", "gpt_neo", "gpt_bigcode", "openai-gpt", "biogpt", "ctrl", "codegen", "gptj", "bart", "bert")
COMPUTED = ("llama", "mistral", "gemma2", "qwen3", "phi3", "gpt_neox", "nanochat", "starcoder2", "bloom", "mamba")


def reads(net, length):
    try:
        with torch.no_grad():
            net(input_ids=torch.randint(3, WORDS, (1, length)))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("model_type", [*TABLES, "mpt", "roberta"])
def test_the_limit_is_the_longest_text_a_model_can_read(model_type):
    net = small(model_type)
    limit = position_limit(net)
    assert limit == (POSITIONS - 2 if model_type == "roberta" else POSITIONS)  # whose padding takes two rows
    assert reads(net, limit)
    assert not reads(net, limit + 1)


@pytest.mark.parametrize("model_type", COMPUTED)
def test_a_model_that_computes_its_positions_has_no_limit(model_type):
    net = small(model_type)
    assert position_limit(net) is None
    assert reads(net, 3 * POSITIONS)


@pytest.mark.parametrize("model_type", ["gpt2", "codegen", "llama"])
def test_a_skeleton_tells_as_much(model_type):
    with torch.device("meta"):
        net = small(model_type)
    assert position_limit(net) == (None if model_type == "llama" else POSITIONS)


def test_a_prompt_has_the_room_that_new_tokens_leave():
    assert room_for_prompt(small("gpt2"), 31, "evaluate.max_new_tokens") == 1
    assert room_for_prompt(small("llama"), 31, "evaluate.max_new_tokens") is None
    with pytest.raises(UsageError, match=r"evaluate.max_new_tokens=32 leaves no room for a prompt in the model's 32"):
        room_for_prompt(small("gpt2"), 32, "evaluate.max_new_tokens")


SHORT = ("schedule.max_epochs=null", "schedule.max_steps=1", "evaluate.max_examples=4")


def gpt2(positions):
    numbers = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": positions}
    drop = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    drop = (*drop, "max_position_embeddings", "tie_word_embeddings")
    return (
        *(f"~model.architecture.{key}" for key in drop),
        *(f"{'' if key == 'model_type' else '+'}model.architecture.{key}={value}" for key, value in numbers.items()),
    )


@pytest.fixture
def without_weights(monkeypatch):
    from lab.model.scratch import Scratch

    monkeypatch.setattr(Scratch, "load", lambda *_: pytest.fail("weights were loaded"))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    ("positions", "overrides", "sentence"),
    [
        (100, (), r"the longest example has 128 tokens and the model 100 positions; set data.max_length=100 or less"),
        (
            200,
            ("data.retention=stdlib_docs",),
            r"data.retention=stdlib_docs is read 256 tokens at a time and the model has 200 positions; set data.retent",
        ),
        (
            130,
            ("evaluate.max_new_tokens=130",),
            r"evaluate.max_new_tokens=130 leaves no room for a prompt in the model's 130 positions; set it below 130",
        ),
        (130, ("evaluate.sample_tokens=500",), r"evaluate.sample_tokens=500 leaves no room for a prompt in the mod"),
    ],
)
def test_what_exceeds_the_positions_is_refused_before_weights_load(
    tmp_path, without_weights, method, positions, overrides, sentence
):
    with pytest.raises(UsageError, match=sentence):
        run(tmp_path, *gpt2(positions), *SHORT, f"method={method}", *overrides)


def test_what_nobody_asks_for_needs_no_position(tmp_path):
    asked = ("evaluate.max_new_tokens=500", "evaluate.accuracy=false")
    asked = (*asked, "evaluate.sample_tokens=500", "evaluate.num_samples=0")
    assert run(tmp_path, *gpt2(128), *SHORT, *asked).status == "completed"


def test_long_prompts_are_cut_and_counted_in_a_run(tmp_path, capsys):
    result = run(tmp_path, *gpt2(128), *SHORT, "evaluate.max_new_tokens=100", "evaluate.sample_tokens=100")
    assert result.metrics["test_prompts_cut"] == result.metrics["test_answers_judged"] == 4
    said = " ".join(capsys.readouterr().out.split())
    assert "4 of 4 prompts are longer than the 28 positions beside evaluate.max_new_tokens=100" in said
    assert said.count("positions beside evaluate.sample_tokens=100") == 1


def test_texts_beyond_what_a_rotary_model_was_made_for_are_read_and_said(tmp_path, capsys):
    result = run(tmp_path, "model.architecture.max_position_embeddings=64", *SHORT)
    assert result.status == "completed"
    said = " ".join(capsys.readouterr().out.split())
    assert "the longest example has 128 tokens and the model was made for 64" in said


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (gpt2(100), "the longest example has 128 tokens and the model 100 positions"),
        (("data.answer_pattern='nowhere (.+)'",), "finds an answer in none of the 27 test references"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(overrides, sentence):
    with pytest.raises(UsageError, match=sentence):
        dry_run.report(config.compose(*SMALL, *overrides))
