"""The shipped base's tokenizer, trained on the training side of stdlib_text: python -m lab.assets.tokenizer DIR."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lab.data.stdlib import corpus

VOCAB_SIZE = 4096  # with 2.7 M characters of prose more would be rare words, and an embedding is most of a small model
END, PAD = "<|endoftext|>", "<|pad|>"  # ids 0 and 1; END both begins and ends a text
# Qwen2's split: a digit at a time (arithmetic on 4096 tokens needs them apart), line ends and indentation in runs.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE: every text has an encoding, and decoding gives the text back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, normalized=False, special=True) for token in (END, PAD)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Texts open with END, as they do in the packed stream that the base learns from.
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir", type=Path, metavar="DIR", help="where the files of the tokenizer go")
    folder = parser.parse_args().dir
    train(text for name in ("docs", "code") for [text] in corpus(name)["train"]).save_pretrained(folder)
    print(f"{VOCAB_SIZE} tokens in {folder}")


if __name__ == "__main__":
    main()
