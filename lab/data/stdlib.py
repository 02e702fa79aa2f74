"""Python's own library as data: its documentation, its code, both, and signatures with their docstrings."""

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, cast

from lab.cache import cache_dir, keep_json, read_json
from lab.data import Pair, Splits, Text, interpreter, overlap
from lab.data.answer import check_answer_pattern
from lab.data.interpreter import Doc, Module, collect, library, source_files
from lab.data.overlap import Windows
from lab.data.template import check_template

SIDES = ("train", "val", "test")
Rows = dict[str, list[list[str]]]  # side -> the fields of each record


def side_of(name: str) -> str:
    """The side of a module or topic: a pure function of its name, so the same in every Python version.

    About 90 % of names are `train`, 5 % `val`, 5 % `test`. A leading `_` or `_py` does not count, so that an
    accelerator and its fallback (`_datetime`, `_pydatetime`) sit with the module they serve.
    """
    digest = hashlib.sha256(re.sub(r"^_(py_?)?", "", name).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.90 else "val" if share < 0.95 else "test"


def documentation(modules: list[Module]) -> Iterator[tuple[str, list[Doc]]]:
    """(side, docstrings) of each module; a docstring seen before, on a held-out side first, is left out."""
    seen: set[str] = set()
    for side in reversed(SIDES):
        for module in modules:
            if side_of(module.name) != side:
                continue
            fresh = []
            for doc in module.docs:
                if doc.text not in seen:
                    seen.add(doc.text)
                    fresh.append(doc)
            if fresh:
                yield side, fresh


def divide(modules: list[Module]) -> dict[str, Rows]:
    """Corpus -> side -> rows. Training loses every line, and every pair, that shares 50 bytes with a held-out side."""
    corpora: dict[str, Rows] = {name: {side: [] for side in SIDES} for name in ("docs", "code", "instruct")}
    for module in modules:
        if module.source:
            corpora["code"][side_of(module.name)].append([module.source])
    for side, docs in documentation(modules):
        is_topic = docs[0].name.startswith("topic:")
        corpora["docs"][side].append(
            ["\n\n".join(doc.text if is_topic else f"{doc.name}\n\n{doc.text}" for doc in docs)]
        )
        corpora["instruct"][side] += [[doc.name, doc.signature, doc.text] for doc in docs if doc.signature]

    held_out = Windows(
        text for rows in corpora.values() for side in ("val", "test") for row in rows[side] for text in row
    )
    for name in ("docs", "code"):
        kept = (held_out.without(text) for [text] in corpora[name]["train"])
        corpora[name]["train"] = [[text] for text in kept if text.strip()]
    corpora["instruct"]["train"] = [
        row for row in corpora["instruct"]["train"] if not any(held_out.touch(text) for text in row)
    ]
    return corpora


def corpus(name: str) -> Rows:
    """One of `docs`, `code`, `instruct`, collected from the running interpreter at first use (seconds) and then cached.

    The cache key holds the Python version, the bytes of the library's source and of the files that collect it.
    """
    files = source_files()
    digest = hashlib.sha256(sys.version.encode())
    for source in (__file__, interpreter.__file__, overlap.__file__):
        digest.update(Path(source).read_bytes())
    for module, data in files:
        digest.update(f"\0{module}\0".encode() + data)
    folder, key = cache_dir("stdlib"), digest.hexdigest()[:16]
    found = read_json(folder and folder / f"{key}_{name}.json")
    if found is not None:
        return cast(Rows, found)
    corpora = _collected(key)
    kept = [keep_json(folder and folder / f"{key}_{each}.json", rows) for each, rows in corpora.items()]
    if all(kept):
        _collected.cache_clear()
    return corpora[name]


@lru_cache(maxsize=1)
def _collected(key: str) -> dict[str, Rows]:
    """The corpora of the interpreter whose library has this digest: once a process where no file can be kept."""
    return divide(collect(source_files()))


@dataclass(frozen=True, kw_only=True)
class Stdlib:
    """Documentation, code, or both, as running text: one record per module."""

    generated: ClassVar[bool] = True

    name: str
    corpora: tuple[str, ...]  # of docs, code
    template: str | None
    max_length: int
    retention: str | None
    answer_pattern: str | None

    def check(self) -> None:
        """Raises UsageError where the interpreter carries no source, or an answer is asked of running text."""
        library()
        check_answer_pattern(self.answer_pattern, running_text=True)

    def load(self) -> Splits:
        """The records, docs first where there are both."""
        rows = [corpus(name) for name in self.corpora]
        return Splits(*([Text(text) for each in rows for [text] in each[side]] for side in SIDES))


@dataclass(frozen=True, kw_only=True)
class StdlibInstruct:
    """Signature -> docstring, the input being the qualified name."""

    generated: ClassVar[bool] = True

    name: str
    template: str | None
    max_length: int
    retention: str | None
    answer_pattern: str | None

    def check(self) -> None:
        """Raises UsageError where the interpreter carries no source, or template or answer pattern are none."""
        library()
        check_template(self.template)
        check_answer_pattern(self.answer_pattern)

    def load(self) -> Splits:
        """The pairs, in the order of the modules."""
        rows = corpus("instruct")
        return Splits(*([Pair(signature, text, name) for name, signature, text in rows[side]] for side in SIDES))
