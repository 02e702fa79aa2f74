"""Answers: the pattern that finds one in a text, the token that ends it, and the reference it is held against."""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lab.data import Chat, Pair, Record
from lab.data.special import SpecialTokens
from lab.data.template import Renderer
from lab.errors import UsageError

SECONDS_PER_SEARCH = 2.0  # one text takes microseconds; a pattern that backtracks without end takes years
PROBE = "any answer at all"  # stands in an assistant's turn to see what a chat template puts behind it


def check_answer_pattern(pattern: str | None, running_text: bool = False) -> None:
    """Raises UsageError for a pattern that does not compile or has not exactly one group, and beside running text."""
    if pattern is None:
        return
    if running_text:
        raise UsageError(
            f"data.answer_pattern={pattern} needs pairs or messages: running text has no answer to compare with; set "
            f"data.answer_pattern=null."
        )
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"data.answer_pattern={pattern} is no regular expression ({error}); correct it, or set "
            f"data.answer_pattern=null."
        ) from None
    if groups != 1:
        raise UsageError(
            f"data.answer_pattern={pattern} has {groups or 'no'} groups, and the answer is what its one group matches; "
            f"put (…) around the answer alone, and write (?:…) for any other group."
        )


def extract_answer(text: str, pattern: str, tidy: bool = True) -> str | None:
    """The answer in the last match whose group holds one, whitespace normalised; None without one.

    Unless `tidy`, only the whitespace around it is dropped. Raises TimeoutError after SECONDS_PER_SEARCH (in the main
    thread: only there can a search be interrupted).
    """
    with _time_limit(SECONDS_PER_SEARCH):
        found = [match[1] or "" for match in re.finditer(pattern, text)]
    answers = [" ".join(each.split()) if tidy else each.strip() for each in found]
    return next((answer for answer in reversed(answers) if answer), None)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block when its time is over."""
    if threading.current_thread() is not threading.main_thread():  # signals arrive in the main thread alone
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"a search took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before)


def question_and_answer(record: Record) -> tuple[Pair | Chat, str] | None:
    """A record up to its last answer, and that answer; None for text, and for turns without an assistant's.

    The prompt that `prompt_ids` makes of the first is the question: everything before the answer.
    """
    if isinstance(record, Pair):
        return record, record.response
    if isinstance(record, Chat):
        for last in reversed(range(len(record.messages))):
            role, content = record.messages[last]
            if role == "assistant":
                return Chat(record.messages[: last + 1]), content
    return None


def closing(record: Record, tokenizer: Any, template: str | None) -> str:
    """The text a chat template puts behind an answer, up to white space; empty where none is applied to the record.

    It is what a run learns to write at the end of a turn, so what ends an answer.
    """
    renderer = Renderer(tokenizer, template, SpecialTokens(tokenizer))
    parts = question_and_answer(record)
    if parts is None or not renderer.writes_turns(parts[0]):
        return ""
    turns = parts[0]
    if isinstance(turns, Pair):
        turns = replace(turns, response=PROBE)
    else:
        turns = Chat((*turns.messages[:-1], ("assistant", PROBE)))
    written = "".join(text for text, predicted in renderer.whole(turns) if predicted)
    return written.rpartition(PROBE)[2] if PROBE in written else ""


def end_token(closing: str, tokenizer: Any) -> tuple[str, int] | None:
    """The first of a closing's tokens that stands for no text, as (text, id); None where it is all ordinary text.

    Only a token of its own can end an answer: ordinary text, such as a quotation mark, may stand within one.
    """
    for number in tokenizer(closing, add_special_tokens=False)["input_ids"]:
        added = tokenizer.added_tokens_decoder.get(number)
        if added is not None and added.content.strip():  # some vocabularies add runs of blanks
            return added.content, number
    return None
