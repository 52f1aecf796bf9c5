"""Human raters: which of two videos of a caption is better, by the votes of several people.

The protocol is Emu Video's: quality and faithfulness are asked apart, a rater chooses a side and
ticks why, which made raters agree more (JUICE), and the majority of five votes decides an item.
Agreement is Fleiss' kappa. Answers are what the page of `emu_edit.evaluation.rater_page` gives.
Source: Emu Video, Girdhar et al. 2023, arXiv:2311.10709, section 4 and appendix.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from emu_edit.errors import InputError
from emu_edit.metrics.intervals import wilson_share
from emu_edit.models.directory import read_json

VERSION = 1
LEFT, RIGHT = "left", "right"
QUESTIONS = {  # name: what is asked, and the reasons to tick, in our words
    "quality": (
        "Which one looks better, whatever the text says?",
        (
            "things are recognisable and whole",
            "sharper picture",
            "smoother motion",
            "things stay what they are",
            "livelier motion",
            "fewer artefacts or less flicker",
        ),
    ),
    "faithfulness": (
        "Which one shows better what the text says?",
        (
            "the things of the text are there",
            "their colours, number or places are right",
            "what the text says happens",
            "the setting or style is right",
            "nothing is added to the text",
        ),
    ),
}


@dataclass(frozen=True)
class Key:
    """What raters are not told.

    Attributes:
        page: identity of the page; answers name it.
        names: of the two sets.
        items: name of each item and which set is on its left, 0 or 1.
    """

    page: str
    names: tuple[str, str]
    items: tuple[tuple[str, int], ...]

    @staticmethod
    def read(path: Path) -> "Key":
        """Read it.

        Raises:
            InputError: if the file is no key.
        """
        values = read_json(path)
        try:
            first, second = (str(name) for name in values["names"])  # type: ignore[attr-defined]
            items = tuple((str(n), [0, 1].index(left)) for n, left in values["items"])  # type: ignore[attr-defined]
            return Key(str(values["page"]), (first, second), items)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: is no key of 'emu-edit rate page'; give that file"
            ) from error


@dataclass(frozen=True)
class Vote:
    """One rater's answer to one question about one item; `choice` is a set, 0 or 1."""

    item: int
    question: str
    choice: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What the raters say to a question.

    Attributes:
        question: its name.
        items: that have a vote.
        votes: of each item, smallest and largest number.
        wins: items that most raters give to each set; ties are neither's.
        ties: items with as many votes for one as for the other.
        share: of the decided items that the first set wins; None without any.
        low: lower end of its 95 % interval.
        high: upper end.
        kappa: Fleiss' kappa; None where it has no value.
        reasons: of each set, the reasons ticked by those who chose it, the most frequent first.
    """

    question: str
    items: int
    votes: tuple[int, int]
    wins: tuple[int, int]
    ties: int
    share: float | None
    low: float | None
    high: float | None
    kappa: float | None
    reasons: tuple[dict[str, int], dict[str, int]]


def read_votes(path: Path, key: Key) -> tuple[str, list[Vote]]:
    """Read a rater's answers; return the rater's name and the votes.

    Raises:
        InputError: if they are of another page, or damaged.
    """
    values = read_json(path)
    if values.get("page") != key.page:
        raise InputError(f"{path}: are answers to another page; give those to page {key.page}")
    votes, seen = [], set()
    answers = values.get("answers")
    for number, answer in enumerate(answers if isinstance(answers, list) else [None], 1):
        try:
            item, question, side = int(answer["item"]), answer["question"], answer["choice"]  # type: ignore[index]
            reasons = tuple(str(reason) for reason in answer["reasons"])  # type: ignore[index]
            left = key.items[item][1] if item >= 0 else None
            place = (LEFT, RIGHT).index(side)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"{path}: answer {number} is none to this page; let the rater download it again"
            ) from error
        if left is None or question not in QUESTIONS or (item, question) in seen:
            raise InputError(
                f"{path}: answer {number} is given twice or to no question of the page"
            )
        seen.add((item, question))
        votes.append(Vote(item, question, left if place == 0 else 1 - left, reasons))
    return str(values.get("rater", path.stem)), votes


def outcome_of(question: str, votes: Iterable[Vote]) -> Outcome:
    """Count the votes on a question."""
    votes = [vote for vote in votes if vote.question == question]
    tables: dict[int, list[int]] = {}
    reasons: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for vote in votes:
        tables.setdefault(vote.item, [0, 0])[vote.choice] += 1
        reasons[vote.choice].update(vote.reasons)
    rows = list(tables.values())
    wins = sum(a > b for a, b in rows), sum(b > a for a, b in rows)
    decided = sum(wins)
    low, high = wilson_share(wins[0], decided) if decided else (None, None)
    counts = [sum(row) for row in rows] or [0]
    return Outcome(
        question,
        len(rows),
        (min(counts), max(counts)),
        wins,
        len(rows) - decided,
        wins[0] / decided if decided else None,
        low,
        high,
        fleiss_kappa(rows),
        (dict(reasons[0].most_common()), dict(reasons[1].most_common())),
    )


def fleiss_kappa(table: Sequence[Sequence[int]]) -> float | None:
    """Return by how much raters agree beyond chance: 1 always, 0 as by chance.

    kappa = (P - P_e) / (1 - P_e),  P = mean of P_i,  P_e = sum of p_j^2,
    P_i = (sum of n_ij^2 - n_i) / (n_i (n_i - 1)),    p_j = sum of n_ij over all votes.

    Items with fewer than two votes tell nothing and are left out; where n_i differ, they are the
    item's own. None without items, or where all votes are for one category.
    Source: Fleiss 1971, Measuring nominal scale agreement among many raters.

    Args:
        table: n_ij, how many raters put item i into category j.
    """
    rows = [row for row in table if sum(row) > 1]
    if not rows:
        return None
    agreements = [
        (sum(n * n for n in row) - sum(row)) / (sum(row) * (sum(row) - 1)) for row in rows
    ]
    total = sum(map(sum, rows))
    by_chance = sum((sum(column) / total) ** 2 for column in zip(*rows, strict=True))
    if by_chance == 1:
        return None
    return (sum(agreements) / len(rows) - by_chance) / (1 - by_chance)


def outcome_rows(outcomes: Sequence[Outcome], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return a table as text: a header and a row for each question."""
    a, b = names
    head = ("question", "items", "votes each", f"{a} wins", f"{b} wins", "ties")
    rows: list[tuple[str, ...]] = [(*head, f"{a} of decided", "kappa")]
    for each in outcomes:
        share = "-"
        if each.share is not None and each.low is not None and each.high is not None:
            share = f"{each.share:.1%} ({each.low:.0%}-{each.high:.0%})"
        low, high = each.votes
        numbers = (each.items, low if low == high else f"{low}-{high}", *each.wins, each.ties)
        kappa = "-" if each.kappa is None else f"{each.kappa:.2f}"
        rows.append((each.question, *map(str, numbers), share, kappa))
    return rows


def result_of(key: Key, votes: Mapping[str, Sequence[Vote]]) -> tuple[list[Outcome], dict]:
    """Return the outcome of every question, and all of it as JSON-ready primitives.

    Args:
        key: of the page.
        votes: by rater.
    """
    every = [vote for each in votes.values() for vote in each]
    outcomes = [outcome_of(question, every) for question in QUESTIONS]
    told = {
        "version": VERSION,
        "page": key.page,
        "names": key.names,
        "raters": {name: len(each) for name, each in votes.items()},
        "questions": [asdict(each) for each in outcomes],
    }
    return outcomes, told
