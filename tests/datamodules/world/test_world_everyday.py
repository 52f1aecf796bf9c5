"""Everyday sentences: enough patterns for every task, filled, told apart, and none for testing."""

import re
from collections import Counter

import pytest

from datamodules.world.everyday.sentences import (
    FOLDER,
    Pattern,
    drawn,
    everyday,
    patterns,
    patterns_of,
    sentence,
    with_slip,
    words,
)
from datamodules.world.instructions import corpus
from emu_edit.errors import InputError
from emu_edit.randomness import keyed_generator
from emu_edit.tasks import SIXTEEN
from emu_edit.text_rules import clean_instruction


@pytest.fixture(scope="module")
def texts() -> list[tuple[str, str, tuple[str, ...]]]:
    return drawn(0, 480)


@pytest.mark.parametrize("task", SIXTEEN.names)
def test_every_task_has_sixty_patterns_of_its_own(task: str) -> None:
    own = {pattern.text for pattern in patterns() if pattern.tasks == (task,)}
    assert len(own) >= 60


def test_every_pattern_is_of_known_tasks_and_can_be_filled() -> None:
    for i, pattern in enumerate(patterns()):
        assert set(pattern.tasks) <= set(SIXTEEN.names)
        for task in pattern.tasks[:1]:
            text = sentence(pattern, task, keyed_generator(0, "test", i))
            assert not re.search(r"[(){}|]|  ", text), pattern.text
            assert clean_instruction(text) == text


def test_a_text_is_a_function_of_seed_and_index() -> None:
    assert everyday(3, 32) == everyday(3, 64)[:32]
    assert everyday(3, 32) != everyday(4, 32)


def test_the_tasks_are_dealt_equally_and_what_is_meant_is_among_the_answers(
    texts: list[tuple[str, str, tuple[str, ...]]],
) -> None:
    assert set(Counter(task for _, task, _ in texts).values()) == {30}
    assert all(task in answers for _, task, answers in texts)
    assert 0.03 < sum(1 < len(answers) < 16 for _, _, answers in texts) / len(texts) < 0.25
    assert 0.05 < sum(len(answers) == 16 for _, _, answers in texts) / len(texts) < 0.2


def test_no_sentence_is_one_that_only_tests(texts: list[tuple[str, str, tuple[str, ...]]]) -> None:
    heldout = {text.lower() for text, _ in corpus("heldout")}
    assert not heldout & {text.lower() for text, _, _ in texts}


def test_no_sentence_is_of_a_pattern_held_back() -> None:
    for task in SIXTEEN.names:
        training, held_back = set(patterns_of(task, False)), set(patterns_of(task, True))
        assert not training & held_back
        assert 0.05 < len(held_back) / len(training | held_back) < 0.2
    assert not set(everyday(0, 160)) & set(everyday(0, 160, held_back=True))


def test_what_is_no_command_is_not_asked_for_with_could_you() -> None:
    statement = Pattern("no dog at all", ("remove",), is_command=False)
    made = [sentence(statement, "remove", keyed_generator(0, "test", i)) for i in range(100)]
    assert not any("could you" in text for text in made)
    command = Pattern("remove it", ("remove",), is_command=True)
    asked = [sentence(command, "remove", keyed_generator(0, "test", i)) for i in range(100)]
    assert any("could you" in text for text in asked)
    assert sum("remove it" in text for text in asked) > 60  # but for slips


def test_a_slip_changes_one_letter_or_the_order_of_two() -> None:
    text = "remove the dog"
    made = {with_slip(text, keyed_generator(0, "test", i)) for i in range(300)}
    assert {"remve the dog", "removve the dog", "reomve the dog", "remowe the dog"} <= made
    assert all(abs(len(slip) - len(text)) <= 1 for slip in made)
    assert with_slip("a b", keyed_generator(0, "test", 0)) == "a b"


def test_the_words_are_thousands_and_those_of_wordnet_come_with_their_licence() -> None:
    assert len({entry for entries in words().values() for entry in entries}) > 3000
    assert "WordNet" in (FOLDER / "LICENSE.wordnet").read_text()


def test_no_sentences_are_refused() -> None:
    with pytest.raises(InputError, match="0 instructions are too few"):
        everyday(0, 0)
