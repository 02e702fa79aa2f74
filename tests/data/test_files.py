"""The user's own files: what is read, what is held out, and the sentence for what is malformed."""

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from lab.config import CONF, instantiate
from lab.data import Chat, Pair, Text
from lab.data.holdout import hold_out
from lab.errors import UsageError

ROWS = [{"prompt": f"p{i}", "response": f"r{i}", "extra": i} for i in range(20)]


def data(name, **overrides):
    node = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text())
    assert overrides.keys() <= node.keys()
    node.pop("defaults", None)  # Hydra's
    return instantiate.make({**node, **overrides})


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture
def write(tmp_path):
    return {
        "jsonl": lambda rows, name="data": jsonl(tmp_path / f"{name}.jsonl", rows),
        "parquet": lambda rows, name="data": parquet(tmp_path / f"{name}.parquet", rows),
    }


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_become_pairs_in_order(write, kind):
    path = write[kind](ROWS)
    splits = data(kind, path=path, val_path=path, test_path=write[kind](ROWS[:3], "test")).load()
    expected = [Pair(row["prompt"], row["response"]) for row in ROWS]
    assert list(splits.train) == list(splits.val) == expected
    assert list(splits.test) == expected[:3]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_input_messages_and_text_fields_are_read(write, kind):
    turns = [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]
    rows = [{"q": "Q", "a": "A", "ctx": given, "chat": turns, "body": "B"} for given in ("C", "", None)]
    path = write[kind](rows)
    pairs = data(kind, path=path, val_path=path, prompt_field="q", response_field="a", input_field="ctx").load()
    assert list(pairs.train) == [Pair("Q", "A", "C"), Pair("Q", "A", ""), Pair("Q", "A", "")]
    chats = data(kind, path=path, val_path=path, messages_field="chat").load()
    assert chats.train[0] == Chat((("user", "U"), ("assistant", "A")))
    assert data(kind, path=path, val_path=path, text_field="body").load().train[0] == Text("B")


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", ["one", "two", "three"]),
        ("paragraph", ["one\ntwo", "three"]),
        ("document", ["one\ntwo\n\n \nthree\n"]),
    ],
)
def test_text_is_cut_where_asked(tmp_path, sample_by, expected):
    path = tmp_path / "a.txt"
    path.write_text("\ufeffone\ntwo\n\n \nthree\n", encoding="utf-8")
    splits = data("text", path=str(path), val_path=str(path), sample_by=sample_by).load()
    assert [record.text for record in splits.train] == expected


def test_a_folder_is_its_files_by_name(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "not_text.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    splits = data("text", path=str(tmp_path), val_path=str(tmp_path / "a.txt")).load()
    assert [record.text for record in splits.train] == ["a.txt", "b.txt", "sub/c.txt"]


def test_paths_are_relative_to_the_invoking_directory(tmp_path, monkeypatch):
    jsonl(tmp_path / "here.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert len(data("jsonl", path="here.jsonl").load().train) == 18


def test_what_is_held_out_depends_on_content_not_on_order():
    records = [Text(str(i)) for i in range(50)]
    train, val = hold_out(records, 0.1, "x")
    again = hold_out(records[::-1], 0.1, "x")
    assert len(val) == 5
    assert set(again[1]) == set(val)
    assert sorted([*train, *val], key=records.index) == records


def test_equal_records_share_a_side():
    train, val = hold_out([Text(str(i % 10)) for i in range(40)], 0.3, "x")
    assert not set(train) & set(val)
    assert (len(train), len(val)) == (28, 12)


@pytest.mark.parametrize(
    ("count", "fraction", "part"),
    [(1, 0.1, "too little to hold out"), (9, 0.0, "must lie between 0 and 1"), (9, 1.0, "must lie between 0 and 1")],
)
def test_a_hold_out_that_cannot_be_is_refused(count, fraction, part):
    with pytest.raises(UsageError, match=part):
        hold_out([Text(str(i)) for i in range(count)], fraction, "x")


GOOD = '{"prompt": "p", "response": "r"}\n'
BAD_LINES = {
    "[1, 2]": r"line 2 is not an object but a list",
    '"text"': r"line 2 is not an object but a string",
    "null": r"line 2 is not an object but null",
    "{prompt: 1}": r"line 2 is not JSON: .* at column 2",
    '{"prompt": "p", "respons": "r"}': r"line 2 has no field 'response'; did you mean respons\?.*data.response_f",
    '{"prompt": 3, "response": "r"}': r"line 2: field 'prompt' is a number, not text",
    '{"prompt": "p", "response": null}': r"line 2: field 'response' is null, not text",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_malformed_line_is_named_by_file_and_number(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(GOOD + line + "\n" + GOOD)
    with pytest.raises(UsageError, match=BAD_LINES[line]) as error:
        data("jsonl", path=str(path)).load()
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([], "an empty list"),
        ("hello", "a string"),
        ([{"from": "human", "value": "x"}], "an object with from, value"),
        (["hello"], "a message is a string"),
        ([{"role": "user", "content": None}], "field 'content' is null"),
    ],
)
def test_malformed_messages_are_named(write, messages, part):
    with pytest.raises(UsageError, match=part):
        data("jsonl", path=write["jsonl"]([{"messages": messages}]), messages_field="messages").check()


def test_blank_lines_do_not_count_but_keep_their_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + GOOD + "\n\n" + GOOD.replace('"r"', '"s"'))
    assert len(data("jsonl", path=str(path), val_path=str(path)).load().train) == 2
    path.write_text(GOOD + "\n\n7\n")
    with pytest.raises(UsageError, match="line 4 is not an object but a number"):
        data("jsonl", path=str(path)).load()


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_files_that_are_missing_or_empty_are_refused_early(tmp_path, kind):
    with pytest.raises(UsageError, match=rf"data={kind} needs a file; set data.path=FILE"):
        data(kind).check()
    with pytest.raises(UsageError, match=r"there is no file .*nowhere.*; check data.path"):
        data(kind, path=str(tmp_path / "nowhere")).check()
    with pytest.raises(UsageError, match=r"the folder .* holds no \."):
        data(kind, path=str(tmp_path)).check()
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    with pytest.raises(UsageError, match=r"empty is empty"):
        data(kind, path=str(empty)).check()


def test_a_missing_validation_file_names_its_own_key(write):
    with pytest.raises(UsageError, match=r"there is no file .*; check data.val_path"):
        data("jsonl", path=write["jsonl"](ROWS), val_path="nowhere.jsonl").check()


def test_a_file_with_blanks_alone_holds_no_example(tmp_path):
    path = tmp_path / "blank.jsonl"
    path.write_text("\n \n")
    with pytest.raises(UsageError, match="holds no example"):
        data("jsonl", path=str(path)).load()


def test_bytes_that_are_no_utf8_are_placed(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match="not UTF-8 at byte 3"):
        data("text", path=str(path)).check()


def test_a_file_that_is_no_parquet_is_refused(tmp_path, write):
    path = tmp_path / "fake.parquet"
    path.write_text("no parquet")
    with pytest.raises(UsageError, match="no readable Parquet file"):
        data("parquet", path=str(path)).check()
    with pytest.raises(UsageError, match=r"has no field 'promt'; did you mean prompt\? .*set data.prompt_field"):
        data("parquet", path=write["parquet"](ROWS), prompt_field="promt").check()


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        ({"messages": []}, "set data.messages_field=messages."),
        ({"text": "x"}, "set data.text_field=text."),
        ({"instruction": "p", "output": "r"}, "set data.prompt_field."),
    ],
)
def test_data_of_another_form_are_told_the_key_that_reads_them(row, remedy, write):
    with pytest.raises(UsageError) as caught:
        data("jsonl", path=write["jsonl"]([row])).check()
    assert str(caught.value).endswith(remedy)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"template": "no place"}, "has no {prompt}"),
        ({"response_field": None}, "no field to read is named"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_reading(write, overrides, part):
    with pytest.raises(UsageError) as error:
        data("jsonl", path=write["jsonl"](ROWS), **overrides).check()
    assert part in str(error.value)


def test_an_unknown_way_to_cut_text_is_refused():
    with pytest.raises(UsageError, match=r"data.sample_by='word' is none of line, paragraph, document"):
        data("text", path="x", sample_by="word").check()


@pytest.mark.parametrize("path", sorted((CONF / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_data_set_follows_the_protocol(path: Path):
    made = data(path.stem)
    assert made.name == path.stem
    assert callable(made.load)
    assert made.template is None or isinstance(made.template, str)
    assert made.max_length >= 2
    assert made.retention in (None, "auto", "stdlib_docs")
    assert made.answer_pattern is None or re.compile(made.answer_pattern).groups == 1
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
