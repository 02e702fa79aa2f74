"""Small tokenizers of every kind that causal language models have, trained here on a few lines."""

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "[SEP]", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
LINES = [
    "Question: What is the chance of two heads in a row?\n\nAnswer:\nThe answer is 1/4, as each toss has 1/2.\n",
    "return the value that the function returns; a café, an étude and 12345 numbers\n",
    "[INST] Who wrote this? [/INST] Nobody knows who wrote this. user assistant system\n",
    "the quick brown fox jumps over the lazy dog, and then the dog returns to the fox\n",
    "re turn return turning end of text im start <|> </> [ ] é π 🙂 . , ; : ! ? ' \" ( )\n",
]
CHATML = (  # the answer stands behind a line end
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (  # behind ordinary text and a blank of its own, trimmed
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }} </s>"
    "{% else %}<s>[INST] {{ m.content | trim }} [/INST]{% endif %}{% endfor %}"
)
PHI = (  # behind a special token
    "{% for m in messages %}{% if m.role == 'assistant' %}[SEP]{{ m.content }}</s>"
    "{% else %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[SEP]{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "phi": PHI}

SPACE = pre_tokenizers.Metaspace  # of sentencepiece


def bpe(normalizer, pre_tokenizer, decoder):
    """A BPE whose unknown characters are bytes."""
    tokenizer = train(Tokenizer(models.BPE(unk_token="<unk>")), trainers.BpeTrainer, normalizer, pre_tokenizer, decoder)
    written = json.loads(tokenizer.to_str())
    vocab = written["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    written["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(written))


def byte_level(**options):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=options.pop("trim_offsets", False))
    level = pre_tokenizers.ByteLevel(**options)
    return train(
        tokenizer,
        trainers.BpeTrainer,
        None,
        level,
        decoders.ByteLevel(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


def train(tokenizer, trainer, normalizer, pre_tokenizer, decoder, **options):
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    special = [AddedToken(name, special=True, normalized=False) for name in SPECIAL]
    made = trainer(special_tokens=special, vocab_size=600, show_progress=False, **options)
    tokenizer.train_from_iterator(LINES * 3, made)
    return tokenizer


LLAMA_DECODER = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
KINDS = {
    "byte_level": lambda: byte_level(add_prefix_space=False),
    "byte_level_with_a_blank_in_front": lambda: byte_level(add_prefix_space=True, trim_offsets=True),
    "metaspace_first": lambda: bpe(None, SPACE(prepend_scheme="first", split=False), LLAMA_DECODER),
    "metaspace_always": lambda: bpe(None, SPACE(prepend_scheme="always", split=True), LLAMA_DECODER),
    "metaspace_never": lambda: bpe(None, SPACE(prepend_scheme="never", split=True), LLAMA_DECODER),
    "llama_legacy": lambda: bpe(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, LLAMA_DECODER
    ),
    "unigram": lambda: train(
        Tokenizer(models.Unigram()),
        trainers.UnigramTrainer,
        None,
        SPACE(prepend_scheme="always"),
        decoders.Metaspace(prepend_scheme="always"),
        unk_token="<unk>",
    ),
    "unigram_of_words": lambda: train(
        Tokenizer(models.Unigram()),
        trainers.UnigramTrainer,
        normalizers.NFKC(),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), SPACE(prepend_scheme="always")]),
        decoders.Metaspace(prepend_scheme="always"),
        unk_token="<unk>",
    ),
    "word_piece": lambda: train(
        Tokenizer(models.WordPiece(unk_token="<unk>")),
        trainers.WordPieceTrainer,
        normalizers.BertNormalizer(lowercase=False),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(cleanup=False),
    ),
}
EXACT = {kind for kind in KINDS if not kind.startswith(("unigram", "word_piece"))}  # decoding gives every text back


@cache
def backend(kind):
    return KINDS[kind]().to_str()


def make(kind, chat_template=None, opens=True):
    """A tokenizer of a kind, of its own for every caller; with `opens`, texts begin with <s>."""
    tokenizer = Tokenizer.from_str(backend(kind))
    if opens:
        begin = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))])
        old = tokenizer.post_processor
        tokenizer.post_processor = begin if old is None else processors.Sequence([old, begin])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["[SEP]", "<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = TEMPLATES.get(chat_template)
    return made
