"""Text on which forgetting is measured: of Python's own library, of your own files, or of the hub."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.data import Text, hub
from lab.data.fields import rows_of, string
from lab.data.files import files_at, text_of
from lab.errors import UsageError, nearest

KEY = "data.retention"
STDLIB = {"stdlib_docs": "docs", "stdlib_code": "code"}  # name -> corpus of lab.data.stdlib
SPLIT, COLUMN = "validation", "text"  # of a data set of the hub
ROWS = (".json", ".jsonl", ".parquet", ".csv")  # endings of files that hold no running text


def check(name: str | None) -> None:
    """Raise UsageError within 3 s where a retention text cannot be had; nothing heavy is imported."""
    if name is None or name in STDLIB:
        return
    if not isinstance(name, str):
        raise UsageError(f"{KEY}={name!r} is not text or null.")
    if _is_here(name):
        for file in _files(name):
            text_of(file)
        return
    path, *_ = _parts(name)
    owner, _, own = path.partition("/")
    if not owner.strip("~.") or not own or "/" in own:
        raise UsageError(
            f"{KEY}={name} is no text of the lab ({', '.join(STDLIB)}), no file, and no data set of the hub "
            f"(OWNER/NAME:CONFIG:SPLIT){nearest(name, list(STDLIB)) or '; give one of them, or null.'}"
        )
    if not hub.is_cached(path):
        with _of_retention(name):
            hub.ask_hub(path, None)


def fetch(name: str | None) -> None:
    """Download what the hub has of a retention text, for jobs that have no network."""
    if name is not None and name not in STDLIB and not _is_here(name):
        texts(name)


def texts(name: str) -> Sequence[Text]:
    """The texts of a name; raises UsageError where they cannot be had."""
    check(name)
    if name in STDLIB:
        from lab.data.stdlib import corpus  # numpy, which a check needs not

        return [Text(text) for [text] in corpus(STDLIB[name])["val"]]  # not of what the shipped base learned
    if _is_here(name):
        return [Text(text_of(file)) for file in _files(name)]
    path, config_name, split = _parts(name)
    with _of_retention(name):
        rows = hub.load_split(path, config_name, None, split)
        if COLUMN not in rows.column_names:
            raise UsageError(f"it has no column {COLUMN}, but {', '.join(rows.column_names)}")
        table = rows.select_columns([COLUMN]).with_format("arrow")[:]
        every = [string(row[COLUMN], COLUMN, place) for row, place in rows_of(table, f"split {split}", 0)]
        kept = [Text(text) for text in every if text.strip()]
        if not kept:
            raise UsageError(f"split {split} holds no text in its {len(every)} rows")
    return kept


def _is_here(name: str) -> bool:
    return Path(name).expanduser().exists()


def _files(name: str) -> list[Path]:
    files = files_at(name, ".txt", KEY)
    for file in files:
        if file.suffix in ROWS:
            raise UsageError(f"{KEY}={name} holds rows, and forgetting is measured on running text; give a text file.")
    return files


def _parts(name: str) -> tuple[str, str | None, str]:
    """Data set, configuration and split of `OWNER/NAME:CONFIG:SPLIT`, whose ends may be left out."""
    path, _, rest = name.partition(":")
    config_name, _, split = rest.partition(":")
    return path, config_name or None, split or SPLIT


@contextmanager
def _of_retention(name: str) -> Iterator[None]:
    """Turn what is said of a data set into a sentence about the key that names it here."""
    try:
        yield
    except UsageError as error:
        why = str(error).split(";")[0].rstrip(".")
        raise UsageError(
            f"{KEY}={name}: {why}; write OWNER/NAME:CONFIG:SPLIT of a data set with a column {COLUMN}, or give a text "
            f"file."
        ) from None
