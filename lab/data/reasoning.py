"""Tasks of reasoning-gym: generated from seeds, and judged by the library's own scoring or, from files, as numbers."""

import json
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lab.data import Drawn, Record, Splits
from lab.data.answer import check_answer_pattern
from lab.data.fields import Fields, kind
from lab.data.files import parse, text_of
from lab.data.judge import Judge, same_number
from lab.data.template import check_template
from lab.errors import UsageError, nearest
from lab.files import new_folder

SIDES = ("test", "val", "train")  # in the order in which they are drawn: more training examples change no other side
APART = 10**6  # seeds between two sides: an item follows from the sum of its seed and its index
DRAWS_PER_EXAMPLE, MORE_DRAWS = 20, 1000  # after which a side is not filled
MOST = (APART - MORE_DRAWS) // DRAWS_PER_EXAMPLE  # examples of a side
SETTINGS = ("task", "task_config", "seed", "train_examples", "val_examples", "test_examples")
FIELDS = Fields("prompt", "response", input=None, messages=None, text=None)  # of the files
ACCOUNT = "task.json"  # beside the files of a task: what made it


@dataclass(frozen=True, kw_only=True)
class ReasoningGym:
    """A task of reasoning-gym: question and answer, each side from a seed of its own, no question on two of them.

    With `folder` it is written there once, as JSON lines, and read from there: then it needs no reasoning-gym.
    """

    name: str
    task: str
    task_config: Mapping[str, Any] | None  # in the task's own words
    folder: str | None
    seed: int
    train_examples: int
    val_examples: int
    test_examples: int
    template: str | None
    max_length: int  # tokens
    retention: str | None
    answer_pattern: str | None

    def check(self) -> None:
        """Raises UsageError for a task or setting that is none, and where neither library nor files are here."""
        check_template(self.template)
        check_answer_pattern(self.answer_pattern)
        for side, least in (("train", 1), ("val", 1), ("test", 0)):
            if self._wanted(side) < least:
                raise UsageError(f"data.{side}_examples={self._wanted(side)} must be at least {least}.")
            if self._draws(side) > APART:
                raise UsageError(f"data.{side}_examples={self._wanted(side)} must be at most {MOST}.")
        if not self._is_written():
            self._generator("test")

    def fetch(self) -> None:
        """Generate the task into `folder`, for machines without reasoning-gym; nothing where it is there already."""
        if self.folder is None or self._is_written():
            return
        place, splits = Path(self.folder), self._generate()
        account = {
            **{key: _plain(getattr(self, key)) for key in self._settings()},
            "reasoning_gym": version("reasoning-gym"),
            "sha256": splits.sha256,
            "dropped": splits.dropped,
        }
        with new_folder(place.resolve()) as beside:
            for side in SIDES:
                rows = ({"prompt": pair.prompt, "response": pair.response} for pair in getattr(splits, side))
                (beside / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            (beside / ACCOUNT).write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")

    def load(self) -> Splits:
        """Generate the records, or read them from `folder`; raises UsageError where a task has too few questions."""
        if self.folder is None:
            return self._generate()
        self.fetch()
        place = Path(self.folder)
        account = self._account(place)
        splits = Splits(**{side: tuple(_read(place / f"{side}.jsonl")) for side in SIDES}, dropped=account["dropped"])
        if splits.sha256 != account["sha256"]:
            raise UsageError(
                f"data.folder={place} does not hold what was generated (its sha256 is not that of {ACCOUNT}); remove "
                f"it, and write it again by lab.fetch."
            )
        return splits

    def judge(self) -> Judge | None:
        """The library's own scoring, where only full marks are right; of a task from files, numbers."""
        if self.answer_pattern is None:
            return None
        patterns = self.answer_pattern, self.answer_pattern
        if self.folder is not None:
            return Judge("number", *patterns, lambda record, answer, reference: same_number(answer, reference))
        generators = cache(self._generator)

        def full_marks(record: Record, answer: str, reference: str) -> bool:
            assert isinstance(record, Drawn)
            generator = generators(self._side_of(record.seed))
            return float(generator.score_answer(answer, generator[record.index])) >= 1

        return Judge(f"reasoning-gym {version('reasoning-gym')}", *patterns, full_marks, tidy=False)

    def _settings(self) -> tuple[str, ...]:
        return SETTINGS

    def _wanted(self, side: str) -> int:
        return int(getattr(self, f"{side}_examples"))

    def _draws(self, side: str) -> int:
        return DRAWS_PER_EXAMPLE * self._wanted(side) + MORE_DRAWS

    def _seed_of(self, side: str) -> int:
        return APART * (len(SIDES) * self.seed + SIDES.index(side))

    def _side_of(self, seed: int) -> str:
        return SIDES[seed // APART % len(SIDES)]

    def _generator(self, side: str) -> Any:
        """The library's data set of a side, of as many items as may be drawn."""
        library = imported(self.name)
        from reasoning_gym.factory import DATASETS

        if self.task not in DATASETS:
            known = sorted(DATASETS)
            raise UsageError(
                f"data.task={self.task} is no task of reasoning-gym {version('reasoning-gym')}"
                f"{nearest(self.task, known) or f', which has {len(known)}, such as chain_sum.'}"
            )
        try:
            return library.create_dataset(
                self.task, **{**(self.task_config or {}), "seed": self._seed_of(side), "size": self._draws(side)}
            )
        except (TypeError, ValueError, AssertionError) as error:  # what its configs raise for a value or a name
            raise UsageError(
                f"data.task_config={_plain(self.task_config)} is refused by {self.task}: "
                f"{' '.join(str(error).split()) or type(error).__name__}; correct it."
            ) from error

    def _generate(self) -> Splits:
        seen: set[Hashable] = set()
        sides: dict[str, tuple[Drawn, ...]] = {}
        dropped = 0
        for side in SIDES:
            drawn: list[Drawn] = []
            generator = self._generator(side)
            for index in range(len(generator) if self._wanted(side) else 0):
                item = generator[index]
                key = self._key(generator, index, item)
                if key in seen or not self._belongs(generator, index, side):
                    continue
                seen.add(key)
                if self._contradicts(item):
                    dropped += 1
                    continue
                pair = Drawn(item["question"], self._response(item), seed=self._seed_of(side), index=index)
                drawn.append(pair)
                if len(drawn) == self._wanted(side):
                    break
            if len(drawn) < self._wanted(side):
                raise UsageError(
                    f"data.{side}_examples={self._wanted(side)}, but {self.task} gives {len(drawn)} different "
                    f"questions that are on no other side in {len(generator):,} draws; ask for fewer, or for a "
                    f"data.task_config with more."
                )
            sides[side] = tuple(drawn)
        return Splits(**sides, dropped=dropped)

    def _key(self, generator: Any, index: int, item: Mapping[str, Any]) -> Hashable:
        """What two items must not share."""
        return str(item["question"])

    def _belongs(self, generator: Any, index: int, side: str) -> bool:
        """True where an item may stand on a side."""
        return True

    def _contradicts(self, item: Mapping[str, Any]) -> bool:
        """True where an item is wrong in itself."""
        return False

    def _response(self, item: Mapping[str, Any]) -> str:
        """What a model is taught to say."""
        return str(item["answer"])

    def _is_written(self) -> bool:
        """True where `folder` holds the task; raises UsageError where it holds another."""
        if self.folder is None or not (Path(self.folder) / ACCOUNT).is_file():
            return False
        self._account(Path(self.folder))
        return True

    def _account(self, place: Path) -> dict[str, Any]:
        """What made the files of a folder; raises UsageError where they are of other settings."""
        try:
            account = json.loads((place / ACCOUNT).read_text(encoding="utf-8"))
            if not isinstance(account, dict):
                raise ValueError(f"it holds {kind(account)}, no object")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{place / ACCOUNT} cannot be read ({error}); remove the folder, and write it again by lab.fetch."
            ) from None
        for key in self._settings():
            if account.get(key) != _plain(getattr(self, key)):
                raise UsageError(
                    f"data.folder={place} was written with data.{key}={account.get(key)}, and "
                    f"{_plain(getattr(self, key))} is asked for; set it so, or name another folder."
                )
        return account


def imported(name: str) -> Any:
    """The library; raises UsageError where it, or something it needs, is not installed."""
    remedy = (
        f"pip install 'lowrank-lab[reasoning]' (two of its dependencies are compiled), or write the task to files "
        f"where it is installed, by python -m lab.fetch {name} data.folder=DIR, and give data.folder=DIR here"
    )
    if find_spec("reasoning_gym") is None:
        raise UsageError(f"data={name} needs reasoning-gym, which is not installed; {remedy}.")
    try:
        import reasoning_gym
    except ImportError as error:
        raise UsageError(f"data={name} needs reasoning-gym, which cannot be imported ({error}); {remedy}.") from error
    return reasoning_gym


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(dict(value) if isinstance(value, Mapping) else value))


def _read(file: Path) -> Iterator[Record]:
    for number, line in enumerate(text_of(file).split("\n"), start=1):
        if line:
            where = f"{file}, line {number}"
            yield FIELDS.record(parse(line, where), where)
