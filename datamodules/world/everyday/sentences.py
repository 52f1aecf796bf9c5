"""How people ask: sentences made of everyday patterns and words, for the task predictor.

The patterns are data: a section a task in `region.txt`, `freeform.txt` and `vision.txt`, one
pattern a line, with words from `words*.txt` and `nouns.txt`. A section of two tasks holds what may
be meant either way, the section "nothing" what asks for no edit. A sentence is a pure function of
seed and index. Around the pattern come the manners of people: polite, in a hurry, with a reason or
a story, with slips of the keyboard.

Every eighth pattern is held back: no training sentence is made of it, so what a predictor makes of
those says how sure it may be of words nobody thought of.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from datamodules.world.instructions import corpus, fix_articles, pick
from emu_edit.errors import InputError
from emu_edit.randomness import keyed_generator
from emu_edit.tasks import SIXTEEN

FOLDER = Path(__file__).parent
PATTERN_FILES = ("region.txt", "freeform.txt", "vision.txt")
WORD_FILES = ("words.txt", "words_maps.txt", "nouns.txt")
MAPS = ("sketch", "depth", "normal", "pose", "segmap")
NOTHING = SIXTEEN.names  # what may be meant by a sentence that asks for no edit
HELD_BACK = 8  # one pattern in so many
BEFORE, AFTER = 0.25, 0.2  # shares of the sentences with polite words around them,
REASON, REASON_AFTER = 0.12, 0.08  # with a reason or a story before or behind,
SLIP, AGAIN = 0.25, 0.5  # with a slip, and another one after each

SOUNDS_LIKE = {
    **{"a": "e", "e": "i", "i": "e", "o": "u", "u": "o", "y": "i", "c": "k", "k": "c", "s": "z"},
    **{"z": "s", "f": "v", "v": "w", "w": "v", "d": "t", "t": "d", "g": "k", "b": "p", "m": "n"},
}  # letters that people take for another

_SHARED = {"maps": [(task,) for task in MAPS], "nothing": [NOTHING]}
_CHOICE = re.compile(r"\(([^()]*)\)")
_BAR = re.compile(r"\|(?![^()]*\))")  # between entries, not inside parentheses
_SLOT = re.compile(r"\{(\w+)\}")
_BLANKS = re.compile(r"\s+")
_BEFORE_MARK = re.compile(r" ([,.:;?!])")


@dataclass(frozen=True)
class Pattern:
    """One way to ask.

    Attributes:
        text: with alternatives in parentheses and slots in braces.
        tasks: what may be meant, usually one task; of several, each is right.
        is_command: whether "could you" may stand before it.
    """

    text: str
    tasks: tuple[str, ...]
    is_command: bool


def everyday(seed: int, count: int, *, held_back: bool = False) -> list[tuple[str, str]]:
    """Return `count` everyday requests and the task of each; sixteen in a row are of sixteen tasks.

    What may be meant either way comes under one of its tasks as often as under the other.

    Args:
        seed: of all choices.
        count: how many.
        held_back: make them of the patterns that are not for training.

    Raises:
        InputError: if `count` is below 1.
    """
    return [(text, task) for text, task, _ in drawn(seed, count, held_back=held_back)]


def drawn(
    seed: int, count: int, *, held_back: bool = False
) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return what `everyday` does, each with all tasks that may be meant."""
    if count < 1:
        raise InputError(f"{count} instructions are too few, give 1 or more")
    known = _heldout_sentences()
    purpose = "everyday held back" if held_back else "everyday"
    made = []
    for index in range(count):
        task = SIXTEEN.names[index % len(SIXTEEN)]
        generator = keyed_generator(seed, purpose, index)
        while True:
            pattern = pick(generator, patterns_of(task, held_back))
            text = sentence(pattern, task, generator)
            if text.lower() not in known:
                break
        made.append((text, task, pattern.tasks))
    return made


def sentence(pattern: Pattern, task: str, generator: np.random.Generator) -> str:
    """Return a sentence of a pattern, asked for a task, as somebody might type it."""
    text = _tidied(_filled(pattern.text, task, generator))
    before, after, reason, reason_after, slip = generator.random(5)
    if before < BEFORE and pattern.is_command:
        text = f"{_spoken('before', task, generator)} {text}"
    if reason < REASON:
        text = f"{_spoken('reason', task, generator)} {text}"
    if reason_after < REASON_AFTER:
        text = _joined(text, _spoken("reason_after", task, generator))
    if after < AFTER:
        text = _joined(text, _spoken("after", task, generator))
    while slip < SLIP:
        text = with_slip(text, generator)
        slip = SLIP * generator.random() / AGAIN
    return text


def with_slip(text: str, generator: np.random.Generator) -> str:
    """Return the text with one slip: a letter left out, doubled, swapped, or spelt as it sounds."""
    places = [i for i in range(1, len(text) - 1) if text[i].isalpha() and text[i - 1].isalpha()]
    if not places:
        return text
    i, kind = pick(generator, places), int(generator.integers(4))
    if kind == 0:
        return text[:i] + text[i + 1 :]
    if kind == 1:
        return text[:i] + text[i] + text[i:]
    if kind == 2:
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    return text[:i] + SOUNDS_LIKE.get(text[i], text[i]) + text[i + 1 :]


def _spoken(slot: str, task: str, generator: np.random.Generator) -> str:
    """Return words of people around a request."""
    return _tidied(_filled(pick(generator, words()[slot]), task, generator))


def _joined(text: str, more: str) -> str:
    return f"{text} {more}" if more[0].isalpha() or more[0] == "-" else f"{text}{more}"


def _tidied(text: str) -> str:
    """Return a text with single blanks, none before a mark, and "an" before a vowel."""
    return fix_articles(_BEFORE_MARK.sub(r"\1", _BLANKS.sub(" ", text).strip()))


@cache
def patterns() -> tuple[Pattern, ...]:
    """Return all patterns; those that the maps share are there once for each map."""
    found = []
    for file in PATTERN_FILES:
        for header, lines in _sections(FOLDER / file):
            for tasks in _SHARED.get(header, (tuple(header.split(", ")),)):
                found += [
                    Pattern(line.removeprefix("= "), tasks, is_command=line[:2] != "= ")
                    for line in lines
                ]
    return tuple(found)


@cache
def patterns_of(task: str, held_back: bool) -> tuple[Pattern, ...]:
    """Return the patterns of a task for training, or those held back from it."""
    found = [pattern for pattern in enumerate(patterns()) if task in pattern[1].tasks]
    if held_back:  # what asks for nothing has no right answer to be sure of
        found = [(i, pattern) for i, pattern in found if pattern.tasks != NOTHING]
    return tuple(pattern for i, pattern in found if (i % HELD_BACK == HELD_BACK - 1) == held_back)


def _filled(text: str, task: str, generator: np.random.Generator) -> str:
    """Return a text whose alternatives are chosen and whose slots are filled."""
    while _CHOICE.search(text):
        text = _CHOICE.sub(lambda found: pick(generator, found[1].split("|")), text)
    return _SLOT.sub(lambda found: _word(found[1], task, generator), text)


def _word(slot: str, task: str, generator: np.random.Generator) -> str:
    """Return a filling of a slot, of the task's own words where it has some."""
    entries = words().get(f"{task}: {slot}") or words()[slot]
    return _filled(pick(generator, entries), task, generator)


@cache
def words() -> dict[str, tuple[str, ...]]:
    """Return the entries of each slot."""
    return {
        header: tuple(entry.strip() for line in lines for entry in _BAR.split(line))
        for file in WORD_FILES
        for header, lines in _sections(FOLDER / file)
    }


def _sections(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the header and the lines of each section of a file."""
    header, lines = "", []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            if header:
                yield header, lines
            header, lines = line[1 : line.index("]")], []
        elif line and not line.startswith("#"):
            lines.append(line)
    yield header, lines


@cache
def _heldout_sentences() -> frozenset[str]:
    """Return the sentences that only test a predictor, in small letters."""
    return frozenset(text.lower() for text, _ in corpus("heldout"))
