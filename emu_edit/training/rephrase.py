"""Vary instructions as people would write them, and then some, while a task predictor is trained.

People write capitals and full stops, say please, make slips, and use words no training set has. A
predictor that has only seen tidy sentences relies on one or two telling words; with words left out,
put in, swapped or replaced by invented ones it has to use all that is left. Half of the invented
words are spliced from known ones, so that no piece of a word is a sure sign of a task either.
Ours; in the spirit of Wei & Zou 2019, "EDA", arXiv:1901.11196.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORTEST, LONGEST = 2, 6  # letters of a word invented letter by letter: each may be a token
FIRST = 0.2  # share of the texts whose first word is an invented one
CHANGED = 0.7  # share of the texts in which words are changed,
MOST_CHANGED = 0.35  # each word with a probability drawn up to this
SHUFFLED = 0.05  # share of the texts whose words are put in another order


@dataclass(frozen=True)
class Rephraser:
    """Makes variants of instructions; `words` are those it splices new ones from."""

    words: tuple[str, ...]

    @staticmethod
    def of(texts: Iterable[str]) -> "Rephraser":
        """Return a rephraser that knows the words of some texts, each once."""
        found = dict.fromkeys(word for text in texts for word in text.split(" "))
        return Rephraser(tuple(found))

    def __call__(self, text: str, generator: np.random.Generator) -> str:
        """Return a variant of an instruction that asks for the same, as far as words can tell."""
        words = text.split(" ")
        # the verb of a request comes first, and of all its words people vary it most
        if len(words) > 1 and generator.random() < FIRST:
            words[0] = self._invented(generator)
        if generator.random() < CHANGED:
            words = self._changed(words, generator) or words
        if generator.random() < SHUFFLED:
            words = [words[i] for i in generator.permutation(len(words))]
        return _in_another_hand(" ".join(words), generator)

    def _changed(self, words: list[str], generator: np.random.Generator) -> list[str]:
        """Return the words, some replaced, left out, or followed by one that means nothing."""
        rate = MOST_CHANGED * generator.random()
        kept: list[str] = []
        for word, draw in zip(words, generator.random(len(words)), strict=True):
            if draw >= rate:
                kept.append(word)
            elif draw < 0.5 * rate:
                kept.append(self._invented(generator))
            elif draw < 0.75 * rate:
                kept += [word, self._invented(generator)]
        return kept

    def _invented(self, generator: np.random.Generator) -> str:
        if generator.random() < 0.5:
            length = int(generator.integers(SHORTEST, LONGEST + 1))
            return "".join(LETTERS[i] for i in generator.integers(len(LETTERS), size=length))
        first, second = (self.words[i] for i in generator.integers(len(self.words), size=2))
        cut, other = generator.random(2)
        return first[: 1 + int(cut * len(first))] + second[int(other * len(second)) :]


def _in_another_hand(text: str, generator: np.random.Generator) -> str:
    """Return the text with other capitals, an end mark, or a "please"."""
    case, end, please = generator.random(3)
    if please < 0.05:
        text = f"please {text}"
    elif please < 0.1:
        text = f"{text} please"
    if case < 0.1:
        text = text.lower()
    elif case < 0.35:
        text = text[:1].upper() + text[1:]
    if end < 0.15:
        return f"{text}."
    return f"{text}!" if end < 0.2 else text
