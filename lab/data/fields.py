"""Rows of named columns as records: which column is the prompt, the response, the turns or the text."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lab.data import Chat, Pair, Record, Text
from lab.errors import UsageError, nearest

NOT_READ = ("tool_calls", "function_call", "reasoning_content")  # of a message; what they hold would be lost
USUAL = {"messages": "messages_field", "text": "text_field"}  # names that columns of other forms usually have


class Twice:
    """Stands for the value of a field that a row gives more than once."""


@dataclass(frozen=True)
class Fields:
    """The columns to read: those of messages where named, else the text, else prompt, input and response."""

    prompt: str | None
    response: str | None
    input: str | None
    messages: str | None
    text: str | None

    def __post_init__(self) -> None:
        if not self.messages and not self.text and not (self.prompt and self.response):
            raise UsageError(
                "no field to read is named; set data.prompt_field and data.response_field, or data.messages_field, or "
                "data.text_field."
            )

    def named(self) -> dict[str, str]:
        """Config key -> column, of the columns that are read."""
        if self.messages:
            return {"messages_field": self.messages}
        if self.text:
            return {"text_field": self.text}
        pair = {"prompt_field": self.prompt, "response_field": self.response, "input_field": self.input}
        return {key: column for key, column in pair.items() if column}

    def check(self, columns: Collection[str], where: str) -> None:
        """Raises UsageError for a column that is not there, with the nearest names."""
        for key, column in self.named().items():
            if column not in columns:
                known = sorted(name.encode(errors="backslashreplace").decode() for name in columns)
                raise UsageError(
                    f"{where} has no field {column!r}{nearest(column, known)} (it has {', '.join(known) or 'none'}); "
                    f"set data.{self._other_form(columns) or key}."
                )

    def _other_form(self, columns: Collection[str]) -> str | None:
        """What reads columns of the usual names that hold another form than the one asked for."""
        if self.messages:  # which come first whatever else is named
            return None
        return next((f"{key}={name}" for name, key in USUAL.items() if name in columns), None)

    def record(self, row: object, where: str) -> Record:
        """The record of a row; raises UsageError naming the place where the row is no object or a field is no text."""
        if not isinstance(row, Mapping):
            raise UsageError(f"{where} is not an object but {kind(row)}; write one {{...}} with named fields per line.")
        self.check(row.keys(), where)
        if self.messages:
            return Chat(tuple(turn(each, where) for each in turns(row[self.messages], self.messages, where)))
        if self.text:
            return Text(string(row[self.text], self.text, where))
        assert self.prompt is not None
        assert self.response is not None
        given = row[self.input] if self.input else None
        return Pair(
            string(row[self.prompt], self.prompt, where),
            string(row[self.response], self.response, where),
            string(given, self.input or "", where) if given is not None else "",
        )


def rows_of(table: Any, where: str, first: int) -> Iterator[tuple[Any, str]]:
    """(row, its place) of an Arrow table or batch; raises UsageError naming the first row that Python cannot hold."""
    try:
        rows = table.to_pylist()
    except ValueError:  # text that is not UTF-8, times finer than Python's
        for i in range(len(table)):
            try:
                table.slice(i, 1).to_pylist()
            except ValueError as error:
                raise UsageError(f"{where}, row {first + i} cannot be read ({error}); mend or drop it.") from None
        raise
    for i, row in enumerate(rows, first):
        yield row, f"{where}, row {i}"


def string(value: object, field: str, where: str) -> str:
    """The value, which must be text."""
    if not isinstance(value, str):
        raise UsageError(f"{where}: field {field!r} is {kind(value)}, not text; write it as a string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: field {field!r} holds {value[error.start]!a} at character {error.start + 1}, half of a pair of "
            f"surrogates and no character; write both, or drop it."
        ) from None
    return value


def turns(value: object, field: str, where: str) -> list[Any]:
    """The value, which must be a list with something in it."""
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else kind(value)
        raise UsageError(f"{where}: field {field!r} is {what}; write a list of {{role, content}} objects.")
    return value


def turn(value: object, where: str) -> tuple[str, str]:
    """(role, content) of one message."""
    if not isinstance(value, Mapping) or not {"role", "content"} <= value.keys():
        what = f"an object with {', '.join(map(str, value))}" if isinstance(value, Mapping) else kind(value)
        raise UsageError(f"{where}: a message is {what}; write {{role, content}}.")
    for key in NOT_READ:
        if value.get(key):
            raise UsageError(
                f"{where}: a message has {key}, which would be lost; write it into the content, or drop it."
            )
    return string(value["role"], "role", where), string(value["content"], "content", where)


def kind(value: object) -> str:
    """The name that JSON has for a value."""
    if value is None:
        return "null"
    if isinstance(value, Twice):
        return "given twice"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
