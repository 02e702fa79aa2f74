"""Windows of 50 bytes, against Python's own substring search."""

import random

import pytest

from lab.data.overlap import WINDOW, Windows


def slices(text: str) -> set[bytes]:
    data = text.encode()
    return {data[i : i + WINDOW] for i in range(len(data) - WINDOW + 1)}


def lines(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdef é", k=draw.randrange(90))) for _ in range(count)]


def test_starts_are_those_of_substring_search():
    held, mine = "\n".join(lines(0, 40)), lines(1, 40)
    mine[7] = held[200:270]
    data = "\n".join(mine).encode()
    known = slices(held)
    expected = [i for i in range(len(data) - WINDOW + 1) if data[i : i + WINDOW] in known]
    assert expected
    assert Windows([held]).starts(data).tolist() == expected


def test_only_the_lines_a_window_touches_leave():
    shared = "x" * 20 + "\n" + "y" * 40  # 61 bytes, over two lines
    text = f"first\n{shared}\nlast"
    assert Windows([f"before {shared} after"]).without(text) == "first\nlast"
    assert Windows([f"before {shared}\n"]).without(text) == "first"  # the line end before `last` is shared too


@pytest.mark.parametrize("seed", range(5))
def test_nothing_shared_is_left_even_where_a_gap_closes(seed):
    draw = random.Random(seed)
    held = "\n".join(draw.choices(["ab", "abc", "b" * 30, "c" * 30], k=300))
    text = "\n".join(draw.choices(["ab", "abc", "b" * 30, "c" * 30, "own words"], k=300))
    assert not slices(held) & slices(Windows([held]).without(text))


def test_nothing_shared_changes_nothing():
    windows = Windows(["z" * 200])
    assert windows.without("a\n\nb\n") == "a\n\nb\n"
    assert not windows.touch("z" * (WINDOW - 1))
    assert windows.touch("z" * WINDOW)
    assert Windows([]).without("z" * 99) == "z" * 99
