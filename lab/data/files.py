"""The user's own files: running text, JSON lines, Parquet. Paths are relative to where the command was given."""

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from lab.data import Record, Splits, Text
from lab.data.answer import check_answer_pattern
from lab.data.fields import Fields, Twice, rows_of
from lab.data.holdout import hold_out
from lab.data.judge import check_answer_as
from lab.data.template import check_template
from lab.errors import UsageError

SIDE_KEYS = ("path", "val_path", "test_path")
LINE_END = re.compile(r"\r\n|\r|\n")  # alone: str.splitlines also cuts at form feeds, U+0085 and U+2028
SAMPLE_BY = ("line", "paragraph", "document")  # the words of Hugging Face's `text` loader


@dataclass(frozen=True, kw_only=True)
class Files:
    """A data set of files or folders, one per side; a validation side is held out where none is given."""

    suffix: ClassVar[str]  # of the files that a folder contributes

    name: str
    path: str | None
    val_path: str | None
    test_path: str | None
    val_fraction: float
    template: str | None
    max_length: int
    retention: str | None
    answer_pattern: str | None

    @abstractmethod
    def read(self, file: Path) -> Iterator[Record]:
        """The records of one file, in order; raises UsageError naming the place of the first that is malformed."""

    def check(self) -> None:
        """Raises UsageError where a path or field is wrong as far as the first record of each file tells."""
        check_template(self.template)
        if not self.path:
            raise UsageError(f"data={self.name} needs a file; set data.path=FILE (and data.val_path, data.test_path).")
        for key in SIDE_KEYS:
            for file in self.files(key):
                list(islice(self.read(file), 1))

    def load(self) -> Splits:
        """Read every file; without `val_path`, hold out `val_fraction` of the training side."""
        self.check()
        train, test = self.side("path"), self.side("test_path")
        if self.val_path:
            return Splits(train, self.side("val_path"), test)
        return Splits(*hold_out(train, self.val_fraction, f"data.path={self.path}"), test)

    def for_test(self) -> list[Record]:
        """What other data's run is tested on: the test side or, where there is none, all."""
        return self.side("test_path") or [*self.side("path"), *self.side("val_path")]

    def files(self, key: str) -> list[Path]:
        """The files that `path`, `val_path` or `test_path` names; none where it is null."""
        path: str | None = getattr(self, key)
        return files_at(path, self.suffix, f"data.{key}") if path else []

    def side(self, key: str) -> list[Record]:
        """The records of all files of a side; UsageError where a file has none."""
        records: list[Record] = []
        for file in self.files(key):
            of_file = list(self.read(file))
            if not of_file:
                raise UsageError(f"{file} holds no example; fill it, or leave it out.")
            records += of_file
        return records


def files_at(path: str, suffix: str, key: str) -> list[Path]:
    """The file, or a folder's files by name; raises UsageError where there is nothing, or nothing in it."""
    place = (Path.cwd() / Path(path).expanduser()).resolve()
    if place.is_dir():
        files = sorted(file for file in place.rglob(f"*{suffix}") if file.is_file())
        if not files:
            raise UsageError(f"the folder {place} holds no {suffix} file; name the file itself if it ends differently.")
    elif place.is_file():
        files = [place]
    else:
        raise UsageError(f"there is no file {place} (paths are relative to the invoking directory); check {key}.")
    for file in files:
        if file.stat().st_size == 0:
            raise UsageError(f"{file} is empty; fill it, or leave it out.")
    return files


def text_of(file: Path) -> str:
    """The file as UTF-8; raises UsageError with the position of the first byte that is not."""
    data = b""
    try:
        data = file.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{file} is not UTF-8 at byte {error.start}, in line {line} ({error.reason}); convert it to UTF-8."
        ) from None
    except OSError as error:
        raise UsageError(f"could not read {file}: {error.strerror}; check its permissions.") from error


@dataclass(frozen=True, kw_only=True)
class TextFiles(Files):
    """Running text; an example is a line, a paragraph (blank lines between) or a whole file."""

    suffix = ".txt"

    sample_by: str

    def check(self) -> None:
        """Raises UsageError as for every file, for another `sample_by`, and for an answer asked of running text."""
        if self.sample_by not in SAMPLE_BY:
            raise UsageError(f"data.sample_by={self.sample_by!r} is none of {', '.join(SAMPLE_BY)}.")
        check_answer_pattern(self.answer_pattern, running_text=True)
        super().check()

    def read(self, file: Path) -> Iterator[Record]:
        """Every piece with something but whitespace in it."""
        text = text_of(file)
        ways: dict[str, Callable[[str], list[str]]] = {
            "line": LINE_END.split,
            "paragraph": paragraphs,
            "document": lambda whole: [whole],
        }
        for piece in ways[self.sample_by](text):
            if piece.strip():
                yield Text(piece)


def paragraphs(text: str) -> list[str]:
    """Runs of lines that are not blank."""
    blocks: list[list[str]] = [[]]
    for line in LINE_END.split(text):
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


@dataclass(frozen=True, kw_only=True)
class Rows(Files):
    """Files of rows with named fields."""

    prompt_field: str | None
    response_field: str | None
    input_field: str | None
    messages_field: str | None
    text_field: str | None
    answer_as: str = "text"  # one of lab.data.judge.ANSWER_AS

    def check(self) -> None:
        """Raises UsageError as for every file, and for an answer pattern that is none or is asked of running text."""
        check_answer_pattern(self.answer_pattern, running_text="text_field" in self.fields.named())
        check_answer_as(self.answer_as)
        super().check()

    @property
    def fields(self) -> Fields:
        """The columns that are read; raises UsageError where none are named."""
        return Fields(self.prompt_field, self.response_field, self.input_field, self.messages_field, self.text_field)


@dataclass(frozen=True, kw_only=True)
class JsonLines(Rows):
    """One JSON object per line; blank lines do not count."""

    suffix = ".jsonl"

    def read(self, file: Path) -> Iterator[Record]:
        """A record per line that is not blank."""
        fields = self.fields
        for number, line in enumerate(text_of(file).split("\n"), start=1):
            if line.strip():
                where = f"{file}, line {number}"
                yield fields.record(parse(line, where), where)


def parse(line: str, where: str) -> Any:
    """The value of a line, its numbers as floats; raises UsageError with the column where JSON ends to make sense."""
    if line.startswith("\ufeff"):
        raise UsageError(f"{where} begins with a byte order mark, left from a file that was joined here; remove it.")
    try:
        return json.loads(line, parse_int=float, object_pairs_hook=members)  # int() refuses numbers of many digits
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{where} is not JSON: {error.msg} at column {error.colno}; write one object per line."
        ) from None
    except RecursionError:
        raise UsageError(f"{where} is nested too deeply to be read; write one flat object per line.") from None


def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, where a name that it gives twice has no value."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        values |= {name: Twice() for name in values if names.count(name) > 1}
    return values


@dataclass(frozen=True, kw_only=True)
class Parquet(Rows):
    """Apache Parquet, read through pyarrow."""

    suffix = ".parquet"

    def read(self, file: Path) -> Iterator[Record]:
        """A record per row; only the named columns are read."""
        import pyarrow
        import pyarrow.parquet

        fields = self.fields
        try:
            with pyarrow.parquet.ParquetFile(file) as table:
                names = table.schema_arrow.names
                fields.check(names, str(file))
                for column in fields.named().values():
                    if names.count(column) > 1:
                        raise UsageError(f"{file} has {names.count(column)} columns {column!r}; rename all but one.")
                first = 1
                for batch in table.iter_batches(columns=list(fields.named().values())):
                    for row, where in rows_of(batch, str(file), first):
                        yield fields.record(row, where)
                    first += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise UsageError(f"{file} is no readable Parquet file ({str(error).splitlines()[0]}).") from error
