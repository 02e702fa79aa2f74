"""Answers of a model: samples generated during a run, and exact match of extracted answers at its end."""

import logging
from collections.abc import Sequence
from textwrap import indent
from typing import Any

import torch
from rich.text import Text as Styled
from torch import Tensor, nn

from lab.config import Evaluate
from lab.data import Pair, Record, Text
from lab.data.answer import check_answer_pattern, closing, end_token, extract_answer, question_and_answer
from lab.data.corpus import Corpus
from lab.data.encode import prompt_ids
from lab.errors import UsageError
from lab.model import base_of
from lab.training.generate import complete
from lab.training.positions import room_for_prompt
from lab.training.progress import console

log = logging.getLogger(__name__)
TAIL = 60  # characters of a response that show how it ends, which is where answers stand


class Answers:
    """Prompts of a corpus and how their completions are judged.

    Raises UsageError for an answer pattern that could judge none of the test side: what the end of a run needs is
    looked at before its start.
    """

    def __init__(self, data: Any, corpus: Corpus, tokenizer: Any, settings: Evaluate, device: torch.device) -> None:
        self.data, self.corpus, self.tokenizer = data, corpus, tokenizer
        self.settings, self.device = settings, device
        self.end_ids, self.unspoken = self._ends()
        self.unmatched = 0  # references without a match
        self.judged = self._references() if settings.accuracy and data.answer_pattern is not None else []
        self.cut: set[str] = set()  # settings under which the cut of a prompt has been told

    def samples(self, net: nn.Module) -> list[tuple[str, str]]:
        """The user's prompts, written as the data's are, or the first of the validation side; with greedy answers."""
        val = self.corpus.splits.val
        typed = [text if isinstance(val[0], Text) else Pair(text, "") for text in self.settings.prompts]
        ids = self._prompt_ids(typed or val[: self.settings.num_samples])
        shown = [self.tokenizer.decode(tokens) for tokens in ids]
        texts, _ = self._complete(net, ids, "sample_tokens")
        return list(zip(shown, texts, strict=True))

    def show(self, net: nn.Module, step: int, loggers: Sequence[Any]) -> None:
        """Samples into the log and into every logger that takes text."""
        shown = self.samples(net)
        for prompt, text in shown:
            log.info("step %d: %r -> %r", step, prompt, text)
        for logger in loggers:
            add_text = getattr(getattr(logger, "experiment", None), "add_text", None)
            if add_text is not None and shown:
                add_text("samples", as_markdown(shown), step)

    def accuracy(self, net: nn.Module) -> dict[str, float | None]:
        """Share of answers that equal the reference's, and how many it is a share of, as metrics of a record.

        Judged are the test examples whose loss is measured and whose reference the pattern matches; a completion
        without a match, or whose search takes too long, is wrong. `test_accuracy` is None where nothing is judged.
        """
        if not self.judged:
            return {"test_accuracy": None}
        prompts = self._prompt_ids([record for record, _ in self.judged])
        completions, cut = self._complete(net, prompts, "max_new_tokens")
        answers = [self._answer(completion) for completion in completions]
        right = sum(answer == reference for answer, (_, reference) in zip(answers, self.judged, strict=True))
        return {
            "test_accuracy": right / len(self.judged),
            "test_answers_judged": len(self.judged),
            "test_answers_unmatched": answers.count(None),
            "test_references_unmatched": self.unmatched,
            "test_prompts_cut": cut,
        }

    def _references(self) -> list[tuple[Record, str]]:
        """The test records to be judged, up to their answers, each with the answer to be found."""
        pattern = self.data.answer_pattern
        if not self.corpus.splits.test:
            console.print("no accuracy: data.answer_pattern is set, and the data has no test side to judge answers on")
            return []
        pairs = map(question_and_answer, self.corpus.test_records)
        given = [pair for pair in pairs if pair is not None]
        check_answer_pattern(pattern, running_text=not given)
        try:
            answers = [extract_answer(response, pattern) for _, response in given]
        except TimeoutError as error:
            raise UsageError(
                f"data.answer_pattern={pattern} backtracks without end on a reference of the test side ({error}); "
                f"write it without a repetition inside a repetition."
            ) from None
        missed = [response for (_, response), answer in zip(given, answers, strict=True) if answer is None]
        if len(missed) == len(given):
            raise UsageError(
                f"data.answer_pattern={pattern} finds an answer in none of the {len(given)} test references, such as "
                f"{_tail(missed[0])}; correct it (a backslash too many, perhaps: a shell's single quotes keep them as "
                f"they are), or set data.answer_pattern=null."
            )
        if missed:
            sentence = (
                f"accuracy is over {len(given) - len(missed)} of {len(given)} test examples: in the other references, "
                f"such as {_tail(missed[0])}, data.answer_pattern={pattern} finds no answer"
            )
            console.print(Styled(sentence))
        self.unmatched = len(missed)
        return [(record, a) for (record, _), a in zip(given, answers, strict=True) if a is not None]

    def _answer(self, completion: str) -> str | None:
        try:
            return extract_answer(completion, self.data.answer_pattern)
        except TimeoutError as error:
            log.warning("%s in %r: no answer", error, completion)
            return None

    def _ends(self) -> tuple[list[int], str]:
        """Ids of the tokens that end an answer, and the text that a template puts between the answer and such a one."""
        records = (record for record in self.corpus.splits.train if question_and_answer(record) is not None)
        record = next(records, None)
        behind = closing(record, self.tokenizer, self.data.template) if record is not None else ""
        end = end_token(behind, self.tokenizer)
        if end is None:
            return [self.corpus.eos_id], behind
        token, number = end
        return sorted({self.corpus.eos_id, number}), behind[: behind.index(token)]

    def _prompt_ids(self, records: Sequence[Record | str]) -> list[Tensor]:
        return prompt_ids(records, self.tokenizer, self.data.template)

    def _complete(self, net: nn.Module, prompts: Sequence[Tensor], limit: str) -> tuple[list[str], int]:
        """What follows each prompt, in at most `evaluate.<limit>` tokens, and how many prompts had to be cut.

        Where positions are limited, a prompt loses its beginning rather than the room for its answer.
        """
        longest = getattr(self.settings, limit)
        room = room_for_prompt(base_of(net), longest, f"evaluate.{limit}") if prompts else None
        kept = prompts if room is None else [ids[-room:] for ids in prompts]
        cut = sum(len(short) < len(ids) for short, ids in zip(kept, prompts, strict=True))
        if cut and limit not in self.cut:
            self.cut.add(limit)
            console.print(
                f"{cut} of {len(prompts)} prompts are longer than the {room} positions beside "
                f"evaluate.{limit}={longest} and lose their beginning"
            )
        with torch.compiler.set_stance("force_eager"):  # every new length of the cache would be compiled again
            out = complete(net, kept, self.end_ids, self.corpus.pad_id, longest, self.device)
        return [self._decoded(tokens) for tokens in out], cut

    def _decoded(self, tokens: Tensor) -> str:
        """Generated tokens as text, letter by letter, without what the template puts behind it."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).removesuffix(self.unspoken)


def _tail(text: str) -> str:
    return repr(text if len(text) <= TAIL else f"…{text[-TAIL:]}")


def as_markdown(samples: Sequence[tuple[str, str]]) -> str:
    """Prompts and completions as code blocks, so that nothing in them is taken for markup."""
    blocks = (("prompt", 0), ("completion", 1))
    return "\n\n".join(
        f"**{name} {number}**\n\n{indent(sample[part] or ' ', '    ', lambda line: True)}"
        for number, sample in enumerate(samples, 1)
        for name, part in blocks
    )
