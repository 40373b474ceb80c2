from __future__ import annotations

import pytest

from dlmon.commands._table import UNKNOWN, Cell, Column, Squeeze, counted, duration, percent, render

COLUMNS = (Column("NAME"), Column("N", right=True), Column("MORE"))
ROWS = ([Cell("a"), Cell("1"), Cell("x")], [Cell("abcdefghij"), Cell("1,000"), Cell("", "red")])


def test_columns_are_as_wide_as_what_is_in_them_and_numbers_end_together() -> None:
    assert render(COLUMNS, ROWS) == [
        "NAME            N  MORE",
        "a               1  x",
        "abcdefghij  1,000",
    ]


def test_what_is_too_wide_is_squeezed_in_order_and_by_no_more_than_needed() -> None:
    squeezes = (Squeeze("NAME", 6), Squeeze("MORE"), Squeeze("NAME", 2))

    def squeezed(width: int) -> tuple[str, str]:
        heading, _, line = render(COLUMNS, ROWS, width=width, squeezes=squeezes)
        return " ".join(heading.split()), line

    assert squeezed(23) == ("NAME N MORE", "abcdefghij  1,000")
    assert squeezed(22) == ("NAME N MORE", "abcd…ghij  1,000")
    assert squeezed(19) == ("NAME N MORE", "abc…ij  1,000")
    assert squeezed(18) == ("NAME N", "abcdefghij  1,000")  # without MORE there is room again
    assert squeezed(16) == ("NAME N", "abcd…ghij  1,000")
    assert squeezed(12) == ("NAME N", "ab…ij  1,000")
    assert squeezed(1) == ("N… N", "a…  1,000")


def test_what_is_twice_as_wide_on_the_screen_counts_twice() -> None:
    lines = render(
        (Column("A"), Column("B")), [[Cell("画像"), Cell("x")], [Cell("e\u0301"), Cell("y")]]
    )
    assert lines == ["A     B", "画像  x", "e\u0301     y"]


def test_a_name_cannot_move_the_cursor_or_end_the_line() -> None:
    (_, line) = render((Column("A"),), [[Cell("a\x1b[2J\nb\r\ud800")]])
    assert line == "a\ufffd[2J\ufffdb\ufffd\ufffd"


def test_colours_take_no_room() -> None:
    plain, coloured = (render(COLUMNS, ROWS, colour=colour) for colour in (False, True))
    assert plain != coloured
    for style in ("\x1b[1m", "\x1b[31m", "\x1b[0m"):
        coloured = [line.replace(style, "") for line in coloured]
    assert [line.rstrip() for line in coloured] == plain


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, UNKNOWN),
        (-1, "0 ms"),
        (0.0124, "12 ms"),
        (0.9996, "1.0 s"),
        (2.14, "2.1 s"),
        (9.96, "10 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3569, "59 min"),
        (3570, "1.0 h"),
        (36_000, "10 h"),
        (172_800, "2 d"),
        (1e8, "1,157 d"),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_numbers_are_written_for_people() -> None:
    assert counted(12_345) == "12,345"
    assert [percent(ratio) for ratio in (None, 0, 0.734, 1)] == [UNKNOWN, "0 %", "73 %", "100 %"]
