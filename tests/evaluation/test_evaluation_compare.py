"""Published rows stand beside one's own only under the same protocol; they are never ranked."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from emu_edit.errors import InputError
from emu_edit.evaluation.compare import compare, compare_table, group_text
from emu_edit.metrics.published import PACKAGED, PublishedRow, load_published
from tests.evaluation.benchmark_example import emu_results, magicbrush_results


def published(model: str = "theirs", **given: Any) -> PublishedRow:
    fields: dict[str, Any] = {
        "benchmark": "emu-edit",
        "protocol": "emu-l14",
        "values": {"clip_dir": 0.11},
        "source": "a paper",
        "split": "test",
    }
    return PublishedRow(model, **{**fields, **given})


def test_the_same_benchmark_and_protocol_is_comparable_and_shows_the_own_row():
    (group,) = compare(emu_results(), [published()])
    assert group.why_not == ""
    assert group.own["clip_dir"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"protocol": "emu-b32"}, "this run follows emu-l14"),
        ({"protocol": "mixed/unknown"}, "this run follows emu-l14"),
        ({"split": "validation"}, "this run has no validation"),
        ({"split": ""}, "this run has no split of that kind"),
        ({"items": 3589}, "this run scored 3 edits, the source 3589"),
    ],
)
def test_anything_else_is_not_comparable_and_says_why(given: dict[str, Any], reason: str):
    (group,) = compare(emu_results(), [published(**given)])
    assert (group.why_not, group.own) == (reason, {})


def test_a_part_of_the_benchmark_is_comparable_to_nothing():
    (group,) = compare(emu_results(items=20, of=3589), [published()])
    assert group.why_not == "this run scored only 20 of 3,589 edits"


def test_rows_of_another_benchmark_are_left_out():
    assert compare(emu_results(), [published(benchmark="magicbrush")]) == ()
    assert compare_table({**emu_results(), "benchmark": "other"}, None) == ""


def test_each_protocol_has_its_own_heading_in_the_order_of_names_comparable_first():
    rows = [
        published("Zed", values={"clip_dir": 0.9}),
        published("beta", protocol="mixed/unknown"),
        published("alpha", protocol="mixed/unknown"),
        published("Alpha", values={"clip_dir": 0.1}),
    ]
    groups = compare(emu_results(), [*rows[1:3], rows[0], rows[3]])
    assert [[row.model for row in group.rows] for group in groups] == [
        ["Alpha", "Zed"],
        ["beta", "alpha"][::-1],
    ]


def test_rows_of_the_own_protocol_come_before_those_of_others():
    rows = [published(protocol="mixed/unknown"), published(items=9), published(split="validation")]
    groups = compare(emu_results(), rows)
    assert [group.protocol for group in groups] == ["emu-l14", "emu-l14", "mixed/unknown"]


def test_magicbrush_turns_are_compared_with_their_own_block():
    rows = [row for row in load_published(PACKAGED) if row.protocol == "magicbrush"]
    groups = compare(magicbrush_results(all_turns=1053, final_turns=500), rows)
    assert groups == compare(magicbrush_results(1053, 500), [*rows[11:], *rows[:11]])
    found = {group.split: group.why_not for group in groups}
    assert found == {
        "all turns": "",
        "final turns": "this run scored 500 edits, the source 535",
    }


def test_numbers_are_printed_with_the_digits_of_their_source():
    rows = [
        published(values={"clip_dir": 0.09, "dino": 0.8}),
        published("b", values={"l1": 0.1066}),
    ]
    results = emu_results()
    text = compare_table_of(results, rows[:1])
    assert "| theirs   | 0.090     | 0.800  | a paper |" in text
    assert "| this run | 0.100     | 0.800  |         |" in text
    assert "0.1066" in compare_table_of(results, rows[1:])


def compare_table_of(results: dict[str, Any], rows: list[PublishedRow]) -> str:
    return "\n\n".join(group_text(group) for group in compare(results, rows))


def test_the_text_marks_what_cannot_be_compared():
    text = compare_table(magicbrush_results(), None)
    assert "## Published, protocol magicbrush, all turns (same benchmark and protocol)" in text
    assert "protocol mixed/unknown, split not stated (not comparable: " in text
    assert text.index("same benchmark") < text.index("not comparable")


def test_a_bar_in_a_name_does_not_end_its_cell(tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([asdict(published("a|b"))]), encoding="utf-8")
    table = [line for line in compare_table(emu_results(), path).splitlines() if line[:1] == "|"]
    assert len({line.count("|") for line in table}) == 1
    with pytest.raises(InputError, match="there is no file"):
        compare_table(emu_results(), tmp_path / "nowhere.json")
