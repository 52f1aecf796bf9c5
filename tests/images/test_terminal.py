"""What stands in a terminal: tables no wider than it, whole in files."""

import sys

import pytest

from emu_edit.terminal import aligned, fitted, markdown_table, plural, terminal_width

HEAD = ["task", "edits", "CLIPdir", "measured"]
ROWS = [
    ["add", "12", "0.1066 (0.0998 to 0.1131)", "box IoU 0.95, AP@0.5 1.00"],
    ["(no task)", "3", "0.0987 (0.0871 to 0.1100)", ""],
]
TEXT = f"# model\n\n{markdown_table(HEAD, ROWS)}\n\nclean: at most a quarter is left of the error"


@pytest.mark.parametrize("width", [20, 30, 40, 60, 79, 80])
def test_no_line_is_wider_than_the_terminal(width: int):
    lines = fitted(TEXT, width).split("\n")
    assert max(map(len, lines)) <= width
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    assert [line.split("|")[1].strip() for line in table[2:]] == ["add", "(no task)"]
    assert " ".join(lines[-6:]).endswith("clean: at most a quarter is left of the error")


def test_a_table_that_is_too_wide_loses_brackets_first_and_says_what_is_missing():
    lines = fitted(TEXT, 70).split("\n")
    assert lines[2:6] == [
        "| task      | edits | CLIPdir | measured                  |",
        "| --------- | ----- | ------- | ------------------------- |",
        "| add       | 12    | 0.1066  | box IoU 0.95, AP@0.5 1.00 |",
        "| (no task) | 3     | 0.0987  |                           |",
    ]
    assert lines[6] == "no room here for what is in brackets: see the written table"
    told = fitted(TEXT, 34).replace("\n", " ")
    assert "for what is in brackets, measured: see the written table" in told


def test_what_fits_and_what_goes_into_a_file_stays_as_it_is():
    assert fitted(TEXT, 200) == fitted(TEXT, None) == TEXT


def test_the_last_column_of_aligned_rows_is_broken_below_itself():
    rows = [["task", "description"], ["local", "swap one object for another, or change a part"]]
    assert aligned(rows, width=30) == [
        "task   description",
        "local  swap one object for",
        "       another, or change a",
        "       part",
    ]
    assert aligned(rows)[1] == "local  swap one object for another, or change a part"


def test_the_width_is_that_of_the_terminal_and_none_of_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "66")
    assert terminal_width() is None  # pytest keeps standard output
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert terminal_width() == 66


def test_one_is_not_many():
    assert [plural(n, "task") for n in (0, 1, 2, 1053)] == [
        "0 tasks",
        "1 task",
        "2 tasks",
        "1,053 tasks",
    ]
