"""What a model says: sample generations during a run, and exact match of extracted answers at its end."""

import logging
from collections.abc import Sequence
from textwrap import indent
from typing import Any

import torch
from torch import Tensor, nn

from lab.config import Evaluate
from lab.data import Pair, Record, Text
from lab.data.corpus import Corpus
from lab.data.encode import extract_answer, prompt_ids
from lab.training.generate import complete

log = logging.getLogger(__name__)


class Answers:
    """Prompts of a corpus and how their completions are judged."""

    def __init__(self, data: Any, corpus: Corpus, tokenizer: Any, settings: Evaluate, device: torch.device) -> None:
        self.data, self.corpus, self.tokenizer = data, corpus, tokenizer
        self.settings, self.device = settings, device

    def samples(self, net: nn.Module) -> list[tuple[str, str]]:
        """The user's prompts, written as the data's are, or the first of the validation side; with greedy answers."""
        val = self.corpus.splits.val
        typed = [text if isinstance(val[0], Text) else Pair(text, "") for text in self.settings.prompts]
        ids = self._prompt_ids(typed or val[: self.settings.num_samples])
        shown = [self.tokenizer.decode(tokens) for tokens in ids]
        return list(zip(shown, self._complete(net, ids, self.settings.sample_tokens), strict=True)) if ids else []

    def show(self, net: nn.Module, step: int, loggers: Sequence[Any]) -> None:
        """Samples into the log and into every logger that takes text."""
        shown = self.samples(net)
        for prompt, text in shown:
            log.info("step %d: %r -> %r", step, prompt, text)
        for logger in loggers:
            add_text = getattr(getattr(logger, "experiment", None), "add_text", None)
            if add_text is not None and shown:
                add_text("samples", as_markdown(shown), step)

    def accuracy(self, net: nn.Module) -> float | None:
        """Share of test pairs whose extracted answer equals the reference's; None where the data has no pattern."""
        pattern = self.data.answer_pattern
        pairs = [record for record in self.corpus.splits.test if isinstance(record, Pair)]
        if pattern is None or not pairs:
            return None
        completions = self._complete(net, self._prompt_ids(pairs), self.settings.max_new_tokens)
        right = 0
        for pair, completion in zip(pairs, completions, strict=True):
            answer = extract_answer(completion, pattern)
            right += answer is not None and answer == extract_answer(pair.response, pattern)
        return right / len(pairs)

    def _prompt_ids(self, records: Sequence[Record | str]) -> list[Tensor]:
        return prompt_ids(records, self.tokenizer, self.data.template)

    def _complete(self, net: nn.Module, ids: Sequence[Tensor], longest: int) -> list[str]:
        with torch.compiler.set_stance("force_eager"):  # every new length of the cache would be compiled again
            out = complete(net, ids, self.corpus.eos_id, self.corpus.pad_id, longest, self.device)
        return [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in out]


def as_markdown(samples: Sequence[tuple[str, str]]) -> str:
    """Prompts and completions as code blocks, so that nothing in them is taken for markup."""
    blocks = (("prompt", 0), ("completion", 1))
    return "\n\n".join(
        f"**{name} {number}**\n\n{indent(sample[part] or ' ', '    ', lambda line: True)}"
        for number, sample in enumerate(samples, 1)
        for name, part in blocks
    )
