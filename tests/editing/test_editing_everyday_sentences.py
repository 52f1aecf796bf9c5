"""The everyday test sentences are as promised: enough of each task, known tasks, no doubles.

`everyday_sentences.jsonl` was written by eyes that never saw the phrasings a predictor learns from:
never learn from it. `tasks` holds the right tasks, the best first. Rules of the labels:

- a thing swapped, or its shape, age, expression, posture or dress: `local`; its material, pattern
  or coating: `texture`; the colour of one thing: both are right;
- the scene behind a thing: `background`, also "put her in ...", and blurred: `color` too; weather,
  season, hour: `global`, also where falling snow is "added"; light, tint and focus of the picture,
  black and white too: `color`; an art form, a medium or an artist: `style`, and `sketch` is
  right as well for pencil and charcoal; plain lines, edges or outlines: `sketch`;
- writing, however it changes: `text`; a mark that is erased (watermark, stamp, logo): `remove` too;
- "find", "where is" and a box: `detect`; a colour or mask over the exact shape of a named thing:
  `segment`; a highlight of no form: both; every region by its class: `segmap`;
- each map (`sketch`, `depth`, `normal`, `pose`, `segmap`) is one task in both directions.
"""

import json
import re
from collections import Counter
from pathlib import Path

from emu_edit.tasks import SIXTEEN

HERE = Path(__file__).parent
ROWS = [
    json.loads(line)
    for line in (HERE / "everyday_sentences.jsonl").read_text(encoding="utf-8").splitlines()
]
UNPLANNED = (HERE / "unplanned_sentences.txt").read_text(encoding="utf-8").splitlines()


def words(text: str) -> str:
    """Return the lower-cased words of `text` without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def test_each_task_is_the_best_answer_of_at_least_36_sentences() -> None:
    counts = Counter(row["tasks"][0] for row in ROWS)
    assert {name: counts[name] for name in SIXTEEN.names if counts[name] < 36} == {}


def test_each_task_is_asked_for_in_nine_manners() -> None:
    manners = {(row["tasks"][0], row["style"]) for row in ROWS}
    assert len({style for _, style in manners}) == 9
    assert len(manners) == 9 * len(SIXTEEN)


def test_only_known_tasks_are_named_and_none_twice() -> None:
    for row in ROWS:
        assert set(row["tasks"]) <= set(SIXTEEN.names), row
        assert len(set(row["tasks"])) == len(row["tasks"]), row


def test_no_sentence_comes_twice_whatever_its_case_and_punctuation() -> None:
    counts = Counter(words(text) for text in [*(row["text"] for row in ROWS), *UNPLANNED])
    assert "" not in counts
    assert [text for text, count in counts.items() if count > 1] == []


def test_at_most_15_percent_of_the_sentences_have_two_right_tasks() -> None:
    assert max(len(row["tasks"]) for row in ROWS) == 2
    assert sum(len(row["tasks"]) == 2 for row in ROWS) <= 0.15 * len(ROWS)


def test_ten_sentences_nobody_planned_for_lie_beside_them() -> None:
    assert len(UNPLANNED) == 10
