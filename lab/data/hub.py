"""Data sets of the Hugging Face hub: from the local cache, else after one short request that they are there."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.data import Record, Splits
from lab.data.answer import check_answer_pattern
from lab.data.fields import Fields, rows_of
from lab.data.holdout import hold_out
from lab.data.judge import check_answer_as
from lab.data.template import check_template
from lab.errors import UsageError, nearest
from lab.model.hub import REQUEST_SECONDS, ask, is_offline

REMEDY = (
    "download it where there is a network and share the cache, or save it as a file and use data=jsonl or data=parquet "
    "with data.path; data=probability_qa and data=stdlib_instruct need no network."
)


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Any data set with named columns, in the words of `datasets.load_dataset`."""

    name: str
    path: str | None  # owner/name on the hub, or a folder
    config_name: str | None
    revision: str | None
    train_split: str
    val_split: str | None
    test_split: str | None
    val_fraction: float
    prompt_field: str | None
    response_field: str | None
    input_field: str | None
    messages_field: str | None
    text_field: str | None
    template: str | None
    max_length: int
    retention: str | None
    answer_pattern: str | None
    answer_as: str = "text"  # one of lab.data.judge.ANSWER_AS

    @property
    def fields(self) -> Fields:
        """The columns that are read; raises UsageError where none are named."""
        return Fields(self.prompt_field, self.response_field, self.input_field, self.messages_field, self.text_field)

    def check(self) -> None:
        """Raises UsageError within 3 s where the data set cannot be had; imports nothing heavy."""
        check_template(self.template)
        check_answer_pattern(self.answer_pattern, running_text="text_field" in self.fields.named())
        check_answer_as(self.answer_as)
        if not self.path:
            raise UsageError(f"data={self.name} needs a data set; set data.path=owner/name.")
        if not Path(self.path).is_dir() and not is_cached(self.path):
            ask_hub(self.path, self.revision)

    def fetch(self) -> None:
        """Download and prepare the splits, for jobs that have no network; raises UsageError if they cannot be had."""
        self.check()
        for split in filter(None, (self.train_split, self.val_split, self.test_split)):
            load_split(str(self.path), self.config_name, self.revision, split)

    def load(self) -> Splits:
        """Download or read from the cache; without `val_split`, hold out `val_fraction` of the training side."""
        self.check()
        train, test = self.side(self.train_split), self.side(self.test_split)
        if self.val_split:
            return Splits(train, self.side(self.val_split), test)
        return Splits(*hold_out(train, self.val_fraction, f"data set {self.path}, split {self.train_split}"), test)

    def for_test(self) -> list[Record]:
        """What other data's run is tested on: the test side or, where there is none, all."""
        return self.side(self.test_split) or [*self.side(self.train_split), *self.side(self.val_split)]

    def side(self, split: str | None) -> list[Record]:
        """The records of one split; none where no split is named."""
        if not split:
            return []
        rows = load_split(str(self.path), self.config_name, self.revision, split)
        where, fields = f"data set {self.path}, split {split}", self.fields
        fields.check(rows.column_names, where)
        table = rows.select_columns(list(fields.named().values())).with_format("arrow")[:]
        return [fields.record(row, place) for row, place in rows_of(table, where, 0)]


def load_split(path: str, config_name: str | None, revision: str | None, split: str) -> Any:
    """One split as `datasets` gives it; raises UsageError for a split, configuration or data set that cannot be had."""
    import datasets

    try:
        return datasets.load_dataset(path, name=config_name, revision=revision, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "split" in first.lower():
            known = datasets.get_dataset_split_names(path, config_name, revision=revision)
            raise UsageError(
                f"data set {path} has no split {split!r}{nearest(split, known)} (it has {', '.join(known)}); set "
                f"data.train_split, data.val_split or data.test_split."
            ) from error
        raise UsageError(f"data set {path} cannot be loaded ({first}); {REMEDY}") from error


def is_cached(path: str) -> bool:
    """True where `datasets` has prepared the data set before, or the hub's own cache holds a snapshot of it."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / path.replace("/", "___")
    snapshot = (
        Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"datasets--{path.replace('/', '--')}" / "snapshots"
    )
    return prepared.is_dir() or snapshot.is_dir()


def ask_hub(path: str, revision: str | None) -> None:
    """One request for the data set; raises UsageError where it cannot be had, or there is no answer in time."""

    def request() -> None:
        from huggingface_hub import HfApi

        HfApi().dataset_info(path, revision=revision, timeout=REQUEST_SECONDS)

    if is_offline():
        raise UsageError(f"data set {path} is not in the local cache and HF_HUB_OFFLINE is set; unset it, {REMEDY}")
    error = ask(request, f"data set {path}", REMEDY)
    if error is not None:
        raise UsageError(why_not(path, revision, error)) from error


def why_not(path: str, revision: str | None, error: BaseException) -> str:
    """The reason why a data set cannot be had, and the remedy, in one sentence."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"data set {path} is gated: accept its terms on its hub page, then `hf auth login` or set HF_TOKEN."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"data set {path} has no revision {revision!r}; check data.revision (null is the default branch)."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"data set {path} is not on the hub, or is private; check data.path, or `hf auth login` if private."
    if isinstance(error, errors.HFValidationError):
        return f"data.path={path} is neither a folder nor a hub name like owner/name."
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"data set {path} is not in the local cache and the hub cannot be reached ({first}); {REMEDY}"
