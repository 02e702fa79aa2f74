"""Python's own library as data: one split by name, no text on two sides, and nothing made up."""

import statistics
import sys

import pytest

from lab.config import instantiate
from lab.data import Pair, Text, interpreter, stdlib
from lab.data.interpreter import Doc, Module, read_module
from lab.data.stdlib import SIDES, corpus, divide, side_of
from lab.errors import UsageError

LENGTH = 50  # characters


@pytest.fixture(scope="module")
def corpora():
    return {name: corpus(name) for name in ("docs", "code", "instruct")}


def texts(corpora, *sides):
    return [text for rows in corpora.values() for side in sides for row in rows[side] for text in row]


def slices(all_texts, length):
    return {text[i : i + length] for text in all_texts for i in range(len(text) - length + 1)}


def test_training_shares_no_50_characters_with_validation_or_test(corpora):
    # Wherever 50 characters are shared, so is one of the blocks of 25 at every 25th place; only those are looked up.
    held_out = slices(texts(corpora, "val", "test"), LENGTH)
    halves = slices(texts(corpora, "val", "test"), LENGTH // 2)
    assert len(held_out) > 1_000_000
    for text in texts(corpora, "train"):
        for block in range(0, len(text), LENGTH // 2):
            if text[block : block + LENGTH // 2] in halves:
                around = range(max(0, block - LENGTH // 2), block + 1)
                assert not any(text[i : i + LENGTH] in held_out for i in around), text[block - 50 : block + 50]


def test_no_docstring_is_on_two_sides(corpora):
    sides = [{text for _, _, text in corpora["instruct"][side]} for side in SIDES]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("asyncio.events", "train"),
        ("subprocess", "test"),
        ("http.client", "val"),
        ("doctest", "val"),
        ("topic:string-methods", "test"),
        ("topic:lambda", "val"),
        ("datetime", "train"),
    ],
)
def test_the_side_is_a_function_of_the_name_alone(name, side):
    assert side_of(name) == side  # written down: a change here would move text from one side to another


@pytest.mark.parametrize("name", ["datetime", "io", "decimal", "abc", "typing", "threading"])
def test_an_accelerator_sits_with_its_module(name):
    assert side_of(name) == side_of(f"_{name}") == side_of(f"_py{name}") == side_of(f"_py_{name}")


def test_about_nine_in_ten_names_train():
    names = sorted(sys.stdlib_module_names) + [f"package.module_{i}" for i in range(2000)]
    share = {side: sum(side_of(name) == side for name in names) / len(names) for side in SIDES}
    assert share["train"] == pytest.approx(0.90, abs=0.02)  # 3 standard errors of 2,300 draws
    assert share["val"] == pytest.approx(0.05, abs=0.015)


def test_every_side_of_every_corpus_has_enough_to_measure_on(corpora):
    for name, rows in corpora.items():
        sizes = {side: sum(len(row[-1]) for row in rows[side]) for side in SIDES}
        assert min(sizes["val"], sizes["test"]) > 40_000, (name, sizes)
        assert sizes["train"] > 5 * (sizes["val"] + sizes["test"]), (name, sizes)


def test_docstrings_are_those_of_the_interpreter(corpora):
    assert side_of("statistics") == "train"
    rows = {name: (signature, text) for name, signature, text in corpora["instruct"]["train"]}
    signature, text = rows["statistics.quantiles"]
    assert signature == "def quantiles(data, *, n=4, method='exclusive'):"
    assert text.split() == statistics.quantiles.__doc__.split()


def test_modules_in_c_and_topics_are_read(corpora):
    docs = "\n".join(text for side in SIDES for [text] in corpora["docs"][side])
    assert "math.atan2" in docs
    assert "builtins.str.casefold" in docs
    assert "Lambda expressions" in docs


def test_source_is_read_without_being_run():
    source = """raise SystemExit
if True:
    class A(B):
        "Of A."

        async def f(self,
                    x): "same line"

        def g(self,
              x):  # remark
            "own line"
"""
    assert read_module("m", source).docs == (
        Doc("m.A", "class A(B):", "Of A."),
        Doc("m.A.f", "", "same line"),
        Doc("m.A.g", "def g(self,\n      x):  # remark", "own line"),
    )


def test_a_line_shared_with_a_held_out_module_leaves_training():
    shared = "This sentence stands in two modules, on both sides of the split."
    modules = [
        Module("subprocess", f"# {shared}", ()),
        Module("asyncio.events", f"import this\n# {shared}\nx = 1\n", (Doc("asyncio.events.f", "def f():", shared),)),
    ]
    assert divide(modules)["code"]["train"] == [["import this\nx = 1\n"]]
    assert divide(modules)["instruct"]["train"] == []


def test_a_second_load_reads_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    collected = []

    def collect(files):
        collected.append(len(files))
        return [Module("subprocess", "x = 1\n", ()), Module("asyncio.events", "y = 2\n", ())]

    monkeypatch.setattr(stdlib, "source_files", lambda: [("a", b"x")])
    monkeypatch.setattr(stdlib, "collect", collect)
    assert corpus("code") == corpus("code") == {"train": [["y = 2\n"]], "val": [], "test": [["x = 1\n"]]}
    assert corpus("docs")["train"] == []
    assert len(collected) == 1
    monkeypatch.setattr(stdlib, "source_files", lambda: [("a", b"other bytes")])
    corpus("code")
    assert len(collected) == 2


def test_a_python_without_source_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(interpreter.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UsageError, match=r"no Python source under .*; use a Python that carries"):
        interpreter.source_files()


def test_data_sets_give_records_of_their_kind():
    common = {"template": None, "max_length": 256, "retention": None, "answer_pattern": None}
    text = stdlib.Stdlib(name="t", corpora=("docs", "code"), **common).load()
    docs = stdlib.Stdlib(name="d", corpora=("docs",), **common).load()
    pairs = instantiate.make({"_target_": "lab.data.stdlib.StdlibInstruct", "name": "i", **common}).load()
    assert list(text.val[: len(docs.val)]) == list(docs.val)
    assert len(text.train) > len(docs.train)
    assert all(isinstance(record, Text) for record in text.train)
    assert all(isinstance(record, Pair) and record.input and record.response for record in pairs.train)
    assert len({docs.sha256, text.sha256, pairs.sha256}) == 3
    assert docs.sha256 == stdlib.Stdlib(name="d", corpora=("docs",), **common).load().sha256
