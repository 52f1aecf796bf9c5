"""From a kind of edit and its words to an instruction; and `corpus`, every sentence there is.

A slot takes its words from the same lists the scenes are drawn from. A phrasing is chosen by the
sample's generator; held-out phrasings occur exactly in the held-out split.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from string import Formatter
from typing import TypeVar

import numpy as np

from datamodules.world.palette import (
    BANDS,
    COLOURS,
    HELDOUT_PAIRS,
    INKS,
    MARKS,
    PLACES,
    PLAIN_BACKGROUNDS,
    SCENIC_BACKGROUNDS,
    SHAPES,
    TEXTURES,
    WORDS,
    Split,
)
from datamodules.world.phrasings import (
    NEW_PHRASINGS,
    PARAPHRASES,
    PHOTOGRAPH_PHRASINGS,
    PHRASINGS,
)

Choice = TypeVar("Choice")

# effect -> (as a command, as a statement)
EFFECTS: dict[str, tuple[str, str]] = {
    "night": ("make it night", "it is night"),
    "fog": ("add fog", "there is thick fog"),
    "snow": ("make it snow", "it is snowing"),
    "rain": ("make it rain", "it is raining"),
    "evening": ("bathe it in evening light", "the evening sun shines on it"),
    "underwater": ("put it under water", "it is deep under water"),
}
STYLES = ("poster", "mosaic", "sepia photograph", "film negative", "blueprint", "comic")
FILTERS: dict[str, str] = {
    "blur": "blur",
    "sharpen": "sharpen",
    "brighten": "brighten",
    "darken": "darken",
    "more_contrast": "increase the contrast of",
    "less_contrast": "lower the contrast of",
    "grayscale": "take all colour out of",
    "saturate": "boost the colours of",
}
SIZES = {"bigger": 1.45, "smaller": 0.65}


def pick(generator: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    """Return one of the choices, all equally likely."""
    return choices[int(generator.integers(len(choices)))]


def templates(task: str, kind: str, split: Split) -> tuple[str, ...]:
    """Return the phrasings of one kind of edit that a split may use.

    Kinds that share their phrasings, as all filters do, have those under the name of the task.
    """
    kinds = PHRASINGS.get(task) or {task: NEW_PHRASINGS[task]}
    kinds = {**kinds, **PHOTOGRAPH_PHRASINGS.get(task, {})}
    phrasings = kinds[kind if kind in kinds else task]
    return phrasings.heldout if split == "heldout" else phrasings.train


@cache
def paraphrased_templates(task: str, kind: str) -> tuple[str, ...]:
    """Return the training phrasings of one kind of edit and the paraphrases that fit it.

    Paraphrases are listed by task; those of a kind have the same slots as one of its phrasings.
    """
    own = templates(task, kind, "train")
    if kind in PHOTOGRAPH_PHRASINGS.get(task, {}):
        return own
    slots = {frozenset(slots_of(template)) for template in own}
    # the paraphrases call the new word of a text by another name than the new thing of a swap
    others = tuple(template.replace("{new_word}", "{new}") for template in PARAPHRASES[task])
    return (*own, *(other for other in others if frozenset(slots_of(other)) in slots))


def photograph_kinds(task: str) -> tuple[str, ...]:
    """Return the kinds of edit of a photograph that a task has."""
    return tuple(PHOTOGRAPH_PHRASINGS[task])


def phrase(generator: np.random.Generator, choices: Sequence[str], words: Mapping[str, str]) -> str:
    """Return an instruction: one of the phrasings, with its slots filled."""
    return fix_articles(pick(generator, choices).format_map(words))


def with_article(noun: str) -> str:
    """Return "a circle", "an orange circle"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def fix_articles(text: str) -> str:
    """Return the text with "a" turned into "an" before a vowel; templates always say "a"."""
    words = text.split(" ")
    for i, (word, following) in enumerate(pairwise(words)):
        if word == "a" and following[:1] in {"a", "e", "i", "o", "u"}:
            words[i] = "an"
    return " ".join(words)


def background_words(name: str) -> str:
    """Return a background in words: "a plain red backdrop", "a brick wall"."""
    return f"a plain {name} backdrop" if name in PLAIN_BACKGROUNDS else f"a {name}"


def slots_of(template: str) -> tuple[str, ...]:
    """Return the names in braces of a sentence, in order."""
    return tuple(slot for _, slot, _, _ in Formatter().parse(template) if slot)


@cache
def slot_words(task: str, kind: str, split: Split) -> dict[str, tuple[str, ...]]:
    """Return every filling of each slot, in an order in which neighbours differ."""
    held = split == "heldout"
    things = tuple(
        f"{colour} {shape}"
        for shape in (*SHAPES, "person")
        for colour in COLOURS
        if ((colour, shape) in HELDOUT_PAIRS) == held
    )
    shapes_only = tuple(thing for thing in things if not thing.endswith("person"))
    backgrounds = tuple(background_words(n) for n in (*PLAIN_BACKGROUNDS, *SCENIC_BACKGROUNDS))
    behind = tuple(f"on {words}" for words in map(background_words, PLAIN_BACKGROUNDS))
    pairs = [
        f"{with_article(first)} and {with_article(second)}"
        for first, second in zip(shapes_only, (*shapes_only[5:], *shapes_only[:5]), strict=True)
    ]
    persons = [with_article(t) for t in things if t.endswith("person")]
    subjects = persons if task == "pose" else [*pairs, *persons]
    return {
        "thing": things,
        "new": tuple(reversed(WORDS)) if task == "text" else _new_things(task, kind, shapes_only),
        "colour": tuple(COLOURS),
        "size": tuple(SIZES),
        "texture": TEXTURES,
        "place": tuple(PLACES),
        "background": backgrounds,
        "command": tuple(command for command, _ in EFFECTS.values()),
        "clause": tuple(clause for _, clause in EFFECTS.values()),
        "style": STYLES,
        "word": WORDS,
        "ink": tuple(INKS),
        "band": BANDS,
        "mark": tuple(MARKS),
        "filter": tuple(FILTERS.values()),
        "scene": tuple(f"{s} {behind[i % len(behind)]}" for i, s in enumerate(subjects)),
    }


def _new_things(task: str, kind: str, things: tuple[str, ...]) -> tuple[str, ...]:
    if task == "local" and kind == "swap":
        return tuple(reversed(things))
    return tuple(f"{TEXTURES[i // 4 % 3]} {t}" if i % 4 == 0 else t for i, t in enumerate(things))


@cache
def corpus(split: Split) -> tuple[tuple[str, str], ...]:
    """Return (instruction, task) pairs: every phrasing with every word of each of its slots."""
    pairs: dict[tuple[str, str], None] = {}
    for task, own in PHRASINGS.items():
        for kind in (*own, *PHOTOGRAPH_PHRASINGS.get(task, {})):
            words = slot_words(task, kind, split)
            for template in templates(task, kind, split):
                slots = slots_of(template)
                rows = max((len(words[slot]) for slot in slots), default=1)
                for row in range(rows):
                    filling = {slot: words[slot][row % len(words[slot])] for slot in slots}
                    pairs[fix_articles(template.format_map(filling)), task] = None
    return tuple(pairs)
