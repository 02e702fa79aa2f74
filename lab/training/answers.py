"""Answers of a model: samples generated during a run, and the share of right answers before and after it."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import torch
from rich.text import Text as Styled
from torch import Tensor, nn

from lab.config import Evaluate
from lab.data import Pair, Record, Text
from lab.data.answer import check_answer_pattern, closing, end_token, question_and_answer
from lab.data.corpus import Corpus
from lab.data.encode import prompt_ids
from lab.data.judge import judge_of
from lab.errors import UsageError
from lab.model import base_of
from lab.record.proportion import wilson
from lab.training.generate import complete
from lab.training.positions import room_for_prompt
from lab.training.progress import console

log = logging.getLogger(__name__)
TAIL = 60  # characters of a response that show how it ends, which is where answers stand


@dataclass(frozen=True)
class Counted:
    """Answers of a model to the test side, counted."""

    judged: int
    right: int
    unmatched: int  # completions without an answer
    cut: int  # prompts that lost their beginning

    def accuracy(self, name: str) -> dict[str, float | None]:
        """The share of right answers, with its 95 % interval over the examples (Wilson's), as metrics of a record."""
        if not self.judged:
            return {name: None}
        share = self.right / self.judged
        low, high = wilson(share, self.judged)
        return {name: share, f"{name}_low": low, f"{name}_high": high}


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
        self.judge = judge_of(data) if settings.accuracy else None
        self.judged = self._references() if self.judge is not None else []
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
        """Share of answers that are the reference's, and how many it is a share of, as metrics of a record.

        `test_accuracy` is None where nothing is judged.
        """
        counted = self.count(net)
        if not counted.judged:
            return counted.accuracy("test_accuracy")
        return counted.accuracy("test_accuracy") | {
            "test_answers_judged": counted.judged,
            "test_answers_unmatched": counted.unmatched,
            "test_references_unmatched": self.unmatched,
            "test_prompts_cut": counted.cut,
        }

    def count(self, net: nn.Module) -> Counted:
        """Generate and judge.

        Judged are the test examples whose loss is measured and whose reference the pattern matches; a completion
        without a match, or whose search takes too long, is wrong.
        """
        if not self.judged or self.judge is None:
            return Counted(judged=0, right=0, unmatched=0, cut=0)
        completions, cut = self._complete(net, self._judged_prompts(), "max_new_tokens")
        answers = [self._answer(completion) for completion in completions]
        right = sum(
            answer is not None and self.judge.equal(record, answer, reference)
            for answer, (record, reference) in zip(answers, self.judged, strict=True)
        )
        return Counted(judged=len(self.judged), right=right, unmatched=answers.count(None), cut=cut)

    def sha256(self) -> str:
        """Identity of what `count` asks and how it judges, whatever model answers."""
        digest = hashlib.sha256(repr((self.end_ids, self.unspoken, self.settings.max_new_tokens)).encode())
        if self.judge is not None:
            judge = self.judge
            digest.update(repr((judge.label, judge.of_references, judge.of_completions, judge.tidy)).encode())
        for ids, judged in zip(self._judged_prompts(), self.judged, strict=True):
            digest.update(ids.numpy().tobytes() + repr(judged).encode())
        return digest.hexdigest()

    def _judged_prompts(self) -> list[Tensor]:
        return self._prompt_ids([record for record, _ in self.judged])

    def _references(self) -> list[tuple[Record, str]]:
        """The test records to be judged, up to their answers, each with the answer to be found."""
        assert self.judge is not None
        pattern = self.judge.of_references
        if not self.corpus.splits.test:
            console.print("no accuracy: data.answer_pattern is set, and the data has no test side to judge answers on")
            return []
        pairs = map(question_and_answer, self.corpus.test_records)
        given = [pair for pair in pairs if pair is not None]
        check_answer_pattern(pattern, running_text=not given)
        try:
            answers = [self.judge.reference(response) for _, response in given]
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
        assert self.judge is not None
        try:
            return self.judge.answer(completion)
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
