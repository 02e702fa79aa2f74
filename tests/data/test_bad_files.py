"""What files hold by mistake: one sentence with the file and the line or row, or read for what it is."""

import datetime
import json

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from lab.config import CONF, instantiate
from lab.data import Chat, Pair
from lab.errors import UsageError

GOOD = '{"prompt": "p", "response": "r"}\n'
DEEP = 100_000  # far beyond any recursion limit


def load(name, path, **overrides):
    """The training records of a file that is its own validation side."""
    node = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text())
    return list(instantiate.make({**node, "path": str(path), "val_path": str(path), **overrides}).load().train)


def refused(name, path, **overrides):
    """The one sentence, which stands on one line, can be written anywhere and names the file."""
    with pytest.raises(UsageError) as error:
        load(name, path, **overrides)
    sentence = str(error.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    assert sentence.encode()
    return sentence


LINES = {
    '{"prompt": "a \\ud800 b", "response": "r"}': r"line 2: field 'prompt' holds '\ud800' at character 3",
    '{"prompt": "p", "response": "\\udc00"}': r"line 2: field 'response' holds '\udc00' at character 1",
    '{"\\ud800": "p", "response": "r"}': r"line 2 has no field 'prompt' (it has \ud800, response)",
    '{"prompt": NaN, "response": "r"}': "line 2: field 'prompt' is a number, not text",
    '{"prompt": "p", "response": -Infinity}': "line 2: field 'response' is a number, not text",
    "[" * DEEP: "line 2 is nested too deeply",
    '{"prompt": ' + '{"a":' * DEEP + "1" + "}" * DEEP + ', "response": "r"}': "line 2 is nested too deeply",
    '{"x": ' + "[" * DEEP + "]" * DEEP + ', "prompt": "p", "response": "r"}': "line 2 is nested too deeply",
    '{"prompt": ' + "1" * 5000 + ', "response": "r"}': "line 2: field 'prompt' is a number, not text",
    '{"prompt": "p", "prompt": "q", "response": "r"}': "line 2: field 'prompt' is given twice, not text",
    '{"prompt": "p", "response": "r", "response": "r"}': "line 2: field 'response' is given twice, not text",
    "\ufeff" + GOOD.strip(): "line 2 begins with a byte order mark",
    '{"prompt": "a\x00b", "response": "r"}': "line 2 is not JSON: Invalid control character",
    "\x00": "line 2 is not JSON",
    '{"prompt": "p"}\u2028{"response": "r"}': "line 2 is not JSON: Extra data at column 16",
}


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_line_that_cannot_be_read_is_named(tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_text(GOOD + line + "\n" + GOOD, encoding="utf-8")
    assert LINES[line] in refused("jsonl", path)


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        ('{"prompt": "\\ud83d\\ude42", "response": "r"}', Pair("🙂", "r")),  # a whole pair of surrogates
        ('{"prompt": "a\\u0000b", "response": "r"}', Pair("a\x00b", "r")),
        ('{"prompt": "a\x85b", "response": "\u2028r"}', Pair("a\x85b", "\u2028r")),  # no line ends of JSON
        ('{"x": ' + "1" * 5000 + ', "prompt": "p", "response": "r"}', Pair("p", "r")),
        ('{"x": NaN, "y": {"z": 1, "z": 2}, "prompt": "p", "response": "r"}', Pair("p", "r")),
        ('{"\\ud800": "\\ud800", "prompt": "p", "response": "r"}', Pair("p", "r")),
    ],
)
def test_what_is_odd_but_text_or_not_asked_for_is_read(tmp_path, line, pair):
    path = tmp_path / "data.jsonl"
    path.write_text(line + "\r\n", encoding="utf-8")
    assert load("jsonl", path) == [pair]


@pytest.mark.parametrize(
    ("message", "part"),
    [
        ({"role": "assistant", "content": None}, "field 'content' is null, not text"),
        ({"role": "user", "content": [{"type": "text", "text": "hi"}]}, "field 'content' is a list, not text"),
        ({"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}, "a message has tool_calls"),
        ({"role": "assistant", "content": None, "function_call": {"name": "add"}}, "a message has function_call"),
        ({"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}, "a message has reasoning_content"),
        ({"role": None, "content": "hi"}, "field 'role' is null, not text"),
        ({"role": "\ud800", "content": "hi"}, r"field 'role' holds '\ud800'"),
        ({"role": "user", "content": "\udfff"}, r"field 'content' holds '\udfff'"),
    ],
)
def test_a_message_that_is_not_read_whole_is_named(tmp_path, message, part):
    path = tmp_path / "data.jsonl"
    good = {"messages": [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]}
    bad = {"messages": [*good["messages"], message]}
    path.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    sentence = refused("jsonl", path, messages_field="messages")
    assert "line 2: " in sentence
    assert part in sentence


def test_keys_of_a_message_that_say_nothing_are_left_out(tmp_path):
    path = tmp_path / "data.jsonl"
    turns = [
        {"role": "user", "content": "U", "name": "bob", "weight": 0},
        {"role": "tool", "content": "3", "tool_call_id": "x"},
        {"role": "assistant", "content": "A", "tool_calls": None, "function_call": None, "reasoning_content": ""},
    ]
    path.write_text(json.dumps({"messages": turns}))
    expected = Chat((("user", "U"), ("tool", "3"), ("assistant", "A")))
    assert load("jsonl", path, messages_field="messages") == [expected]


@pytest.mark.parametrize("name", ["text", "jsonl"])
@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"ok\nlatin \xe9\n", "not UTF-8 at byte 9, in line 2"),
        (b"ok\n\n\xed\xa0\x80", "not UTF-8 at byte 4, in line 3"),  # a surrogate, as some databases write it
        ("ok".encode("utf-16"), "not UTF-8 at byte 0, in line 1"),
        (b"ok\n\xc3", "not UTF-8 at byte 3, in line 2"),
    ],
)
def test_bytes_that_are_no_utf8_are_named_by_their_line(tmp_path, name, data, place):
    path = tmp_path / "data"
    path.write_bytes(data)
    assert place in refused(name, path)


@pytest.mark.parametrize("sample_by", ["line", "paragraph"])
def test_only_line_ends_end_a_line_of_text(tmp_path, sample_by):
    odd = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\x00"  # where str.splitlines cuts, all but the last
    path = tmp_path / "data.txt"
    path.write_bytes(f"{odd}\r\n\r\n{odd}\n\n{odd}\r\r{odd}".encode())
    assert [record.text for record in load("text", path, sample_by=sample_by)] == [odd] * 4


def parquet(path, prompts, **columns):
    pyarrow.parquet.write_table(pyarrow.table({"prompt": prompts, "response": ["r"] * len(prompts), **columns}), path)
    return path


BAD_UTF8 = pyarrow.Array.from_buffers(
    pyarrow.string(), 3, [None, *map(pyarrow.py_buffer, (b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0", b"ab\xff"))]
)
COLUMNS = {
    "bytes": (pyarrow.array([b"x"]), "row 1: field 'prompt' is bytes, not text"),
    "date": (pyarrow.array([datetime.date(2020, 1, 1)]), "row 1: field 'prompt' is date, not text"),
    "time": (pyarrow.array([1], pyarrow.timestamp("ns")), "row 1"),
    "null": (pyarrow.nulls(1), "row 1: field 'prompt' is null, not text"),
    "one null": (pyarrow.array(["a", None]), "row 2: field 'prompt' is null, not text"),
    "number": (pyarrow.array([1.5]), "row 1: field 'prompt' is a number, not text"),
    "object": (pyarrow.array([{"a": 1}]), "row 1: field 'prompt' is an object, not text"),
    "no UTF-8": (BAD_UTF8, "row 3 cannot be read ('utf-8' codec"),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_row_that_is_no_text_is_named(tmp_path, column):
    values, part = COLUMNS[column]
    assert part in refused("parquet", parquet(tmp_path / "data.parquet", values))


@pytest.mark.parametrize("kind", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())])
def test_every_way_to_store_text_in_parquet_is_text(tmp_path, kind):
    path = parquet(tmp_path / "data.parquet", pyarrow.array(["a", "b"]).cast(kind))
    assert load("parquet", path) == [Pair("a", "r"), Pair("b", "r")]


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "data.parquet"
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["r"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["prompt", "prompt", "response"]), path)
    assert "has 2 columns 'prompt'" in refused("parquet", path)


@pytest.mark.parametrize("cut", [slice(12, 200), slice(-60, -8), slice(200, -8)], ids=["page", "footer", "most"])
def test_a_damaged_parquet_file_is_named(tmp_path, cut):
    path = parquet(tmp_path / "data.parquet", [f"{i} " * 50 for i in range(200)])
    data = bytearray(path.read_bytes())
    data[cut] = b"\xff" * len(data[cut])
    path.write_bytes(data)
    assert "no readable Parquet file" in refused("parquet", path)
