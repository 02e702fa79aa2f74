"""A tokenizer with more ids than its model has rows: one sentence from the files, before anything is loaded."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from lab.errors import UsageError
from lab.model.pretrained import Pretrained
from lab.model.scratch import Scratch

WORDS = ["<unk>", "</s>", *(f"w{i}" for i in range(30))]
IDS = {word: number for number, word in enumerate(WORDS)}
MODELS = {
    "bpe": lambda: models.BPE(vocab=IDS, merges=[], unk_token="<unk>"),
    "word_piece": lambda: models.WordPiece(vocab=IDS, unk_token="<unk>"),
    "word_level": lambda: models.WordLevel(vocab=IDS, unk_token="<unk>"),
    "unigram": lambda: models.Unigram([(word, -1.0) for word in WORDS], unk_id=0),
}
NUMBERS = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def model_at(folder, kind="word_level", rows=32, prepare=lambda tokenizer: None, **numbers):
    """A model of so many rows with a tokenizer of 32 tokens; what should be its weights are never read."""
    tokenizer = Tokenizer(MODELS[kind]())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    prepare(made)
    made.save_pretrained(folder)
    AutoConfig.for_model("llama", **NUMBERS, vocab_size=rows, **numbers).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    return Pretrained(name_or_path=str(folder), revision=None, quantization=None, attn_implementation=None)


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("rows", [31, 32, 33, 128])
def test_a_row_for_every_token_is_enough_and_one_less_is_refused(tmp_path, kind, rows):
    model = model_at(tmp_path, kind, rows)
    for ask in (model.check, model.tokenizer):
        if rows >= 32:
            ask()
            continue
        with pytest.raises(UsageError, match=r"31 rows, and 1 of its tokenizer's 32 tokens .*'w29', id 31"):
            ask()


BEYOND = {
    "added": lambda tokenizer: tokenizer.add_tokens(["<tool>"]),
    "special": lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]}),
    "pad": lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "<tool>"}),
}


@pytest.mark.parametrize("beyond", BEYOND)
def test_a_token_that_was_added_needs_its_row_too(tmp_path, beyond):
    model = model_at(tmp_path, prepare=BEYOND[beyond])
    for ask in (model.check, model.tokenizer):
        with pytest.raises(UsageError, match=r"32 rows, and 1 of its tokenizer's 33 tokens .*'<tool>', id 32"):
            ask()
    enough = model_at(tmp_path, rows=33, prepare=BEYOND[beyond])
    enough.check()
    enough.tokenizer()


@pytest.mark.parametrize("named", ["<tool>", {"__type": "AddedToken", "content": "<tool>"}])
def test_a_pad_token_that_only_the_settings_name_gets_the_next_id(tmp_path, named):
    model = model_at(tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda settings: settings.update(pad_token=named))
    for ask in (model.check, model.tokenizer):
        with pytest.raises(UsageError, match=r"'<tool>', id 32"):
            ask()


def test_a_size_that_only_the_architecture_tells_is_seen_with_the_tokenizer(tmp_path):
    model = model_at(tmp_path, rows=50)
    (tmp_path / "tokenizer.json").rename(tmp_path / "other.json")
    edit(tmp_path / "config.json", lambda config: config.pop("vocab_size"))
    model.check()
    (tmp_path / "other.json").rename(tmp_path / "tokenizer.json")
    model.check()
    model.tokenizer()  # transformers' own default has 32,000 rows


def test_the_size_of_a_model_of_text_and_images_is_that_of_its_text(tmp_path):
    model = model_at(tmp_path, rows=31)
    edit(tmp_path / "config.json", lambda config: config.update(text_config={"vocab_size": config.pop("vocab_size")}))
    with pytest.raises(UsageError, match="31 rows"):
        model.check()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ['{"vocab_size": ', "[]", "[" * 100_000, "\udcff"])
def test_a_file_that_is_no_json_object_is_named(tmp_path, name, text):
    model = model_at(tmp_path)
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=rf"{name} is no"):
        model.check()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": 3}}),
        ("tokenizer.json", {"model": 3}),
        ("tokenizer.json", {"added_tokens": [1]}),
        ("tokenizer_config.json", {"pad_token": 3}),
        ("config.json", {"vocab_size": "many"}),
        ("config.json", {"hidden_size": None}),
    ],
)
def test_values_that_make_no_model_are_a_sentence_with_its_name(tmp_path, name, change):
    model = model_at(tmp_path)
    edit(tmp_path / name, lambda value: value.update(change))
    with pytest.raises(UsageError, match=rf"model {tmp_path} "):
        model.check()
        model.tokenizer()


def test_weights_of_another_shape_than_the_config_asks_for_are_named(tmp_path):
    model = model_at(tmp_path, rows=32)
    other = model_at(tmp_path / "other", rows=40).skeleton().to_empty(device="cpu")
    save_file(other.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"holds lm_head.weight of shape \(40, 8\), .* asks for \(32, 8\)"):
        model.load(torch.float32, 0)


def test_the_sentence_comes_before_anything_heavy_is_imported(tmp_path):
    model_at(tmp_path, rows=31)
    ask = (
        "import sys\nfrom lab.errors import UsageError\nfrom lab.model.pretrained import Pretrained\n"
        "try:\n    Pretrained(name_or_path=sys.argv[1], revision=None, quantization=None, attn_implementation=None)"
        ".check()\nexcept UsageError as error:\n    print(error)\nprint({'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask, str(tmp_path)], env=os.environ, capture_output=True, text=True, check=True
    )
    sentence, heavy = done.stdout.splitlines()
    assert "31 rows" in sentence
    assert heavy == "set()"


def test_a_pad_id_without_a_row_is_a_sentence(tmp_path):
    model = model_at(tmp_path, pad_token_id=32)
    for ask in (model.skeleton, lambda: model.load(torch.float32, 0)):
        with pytest.raises(UsageError, match=rf"model {tmp_path} cannot be loaded \(Padding_idx must be within"):
            ask()


def scratch(folder, **numbers):
    return Scratch(
        architecture={"model_type": "llama", **NUMBERS, **numbers},
        tokenizer_name_or_path=str(folder),
        attn_implementation=None,
    )


def test_a_model_from_scratch_has_a_row_for_the_highest_id_where_ids_have_gaps(tmp_path):
    model_at(tmp_path)
    edit(tmp_path / "tokenizer.json", lambda tokenizer: tokenizer["model"]["vocab"].update(w0=40))
    tokenizer = scratch(tmp_path).tokenizer()
    assert (len(tokenizer), tokenizer("w0")["input_ids"]) == (32, [40])
    assert scratch(tmp_path).skeleton().get_input_embeddings().num_embeddings == 41
    with pytest.raises(UsageError, match="vocab_size=40 is smaller than the 41"):
        scratch(tmp_path, vocab_size=40).skeleton()


@pytest.mark.parametrize("pad", [32, -1])
def test_a_pad_id_that_a_model_from_scratch_has_no_row_for_is_refused(tmp_path, pad):
    model_at(tmp_path)
    with pytest.raises(UsageError, match=rf"pad_token_id={pad} is no id of a vocabulary of 32"):
        scratch(tmp_path, pad_token_id=pad).skeleton()
