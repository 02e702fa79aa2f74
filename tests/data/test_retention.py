"""The text on which forgetting is measured: the lab's, a file, or a data set of the hub."""

import datasets
import pytest
from jobs import run

from lab.config import compose, instantiate
from lab.data import Splits, Text, hub, retention
from lab.data.corpus import load_corpus
from lab.data.stdlib import corpus
from lab.errors import UsageError
from lab.launch import fetch

PAGES = ["The quick brown fox jumps over the lazy dog.\n" * 5, "Etwas anderes, mit Umlauten: äöü.\n" * 5]


def test_a_name_of_the_lab_is_the_validation_side_of_pythons_library():
    assert [text.text for text in retention.texts("stdlib_docs")] == [text for [text] in corpus("docs")["val"]]


def test_a_file_is_one_text_and_a_folder_one_a_file(tmp_path):
    for number, page in enumerate(PAGES):
        (tmp_path / f"{number}.txt").write_text(page)
    assert retention.texts(str(tmp_path / "1.txt")) == [Text(PAGES[1])]
    assert retention.texts(str(tmp_path)) == [Text(page) for page in PAGES]


def test_a_file_of_ones_own_is_measured_before_and_after_and_known_by_its_content(tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("".join(PAGES))
    result = run(tmp_path / "run", f"data.retention={file}", "schedule.max_steps=2", "evaluate.accuracy=false")
    assert result.data["retention"] == str(file)
    assert result.data["retention_sha256"] == Splits((), (), [Text("".join(PAGES))]).sha256
    before, after = (result.metrics[f"{side}retention_loss"] for side in ("base_", ""))
    assert result.metrics["forgetting"] == pytest.approx(after - before)
    assert before > 0


def test_a_file_that_changed_between_two_jobs_of_a_process_is_read_again(tmp_path):
    file = tmp_path / "own.txt"
    parts = compose("model=micro", f"data.retention={file}", "data.train_examples=4", "data.val_examples=2")
    data, tokenizer = instantiate.make(parts.data), instantiate.make(parts.model).tokenizer()
    found = []
    for page in PAGES:
        file.write_text(page)
        found.append(load_corpus(data, tokenizer).retention_sha256)
    assert found[0] != found[1]


@pytest.fixture
def served(monkeypatch):
    """One data set of the hub, as `datasets` gives it; what was asked for."""
    asked = []

    def load_split(*given):
        asked.append(given)
        return datasets.Dataset.from_dict(
            {"text": ["one", " ", "two"]} if given[0] == "owner/pages" else {"body": ["x"]}
        )

    monkeypatch.setattr(hub, "is_cached", lambda path: True)
    monkeypatch.setattr(hub, "load_split", load_split)
    return asked


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("owner/pages", ("owner/pages", None, None, "validation")),
        ("owner/pages:small", ("owner/pages", "small", None, "validation")),
        ("owner/pages:small:test", ("owner/pages", "small", None, "test")),
        ("owner/pages::train[:1%]", ("owner/pages", None, None, "train[:1%]")),
    ],
)
def test_a_data_set_of_the_hub_is_named_with_its_configuration_and_split(name, asked, served):
    assert retention.texts(name) == [Text("one"), Text("two")]
    assert served == [asked]


def test_a_data_set_without_a_column_of_text_is_refused_by_what_it_has(served):
    with pytest.raises(
        UsageError, match=r"data.retention=owner/rows: it has no column text, but body; write OWNER/NAME"
    ):
        retention.texts("owner/rows")


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        (["one", None, "two"], "split validation, row 1: field 'text' is null, not text"),
        ([1, 2], "split validation, row 0: field 'text' is a number, not text"),
        ([["one"]], "split validation, row 0: field 'text' is a list, not text"),
        ([" ", ""], "split validation holds no text in its 2 rows"),
        ([], "split validation holds no text in its 0 rows"),
    ],
    ids=str,
)
def test_a_row_without_a_text_is_refused_by_its_place(texts, fault, served, monkeypatch):
    monkeypatch.setattr(hub, "load_split", lambda *_: datasets.Dataset.from_dict({"text": texts}))
    with pytest.raises(UsageError, match=f"^data.retention=owner/pages: {fault}; write OWNER/NAME"):
        retention.texts("owner/pages")


def test_what_jobs_without_a_network_need_is_fetched_before_them(served):
    plain = {"model": compose("model=micro").model, "data": compose("data=stdlib_docs").data, "init": {}}
    fetch.fetch([plain | {"data": plain["data"] | {"retention": "owner/pages"}}])
    assert len(served) == 1
