"""The promises of `make_session`: exact, chained, interleaved, pure."""

import numpy as np
import pytest

from datamodules.world.palette import COLOURS, HELDOUT_PAIRS, SHAPES, Split
from datamodules.world.sessions import MOST_THINGS, TASKS, make_session
from emu_edit.errors import InputError

SPLITS: tuple[Split, ...] = ("train", "heldout")


def sessions(number: int = 25, split: Split = "heldout", turns: int = 10):
    return [make_session(5, i, turns=turns, size=32, split=split) for i in range(number)]


@pytest.mark.parametrize("split", SPLITS)
def test_each_turn_goes_on_from_the_picture_the_one_before_should_give(split: Split):
    for session in sessions(split=split):
        pictures = [session.original, *(turn.target for turn in session.turns)]
        for turn, picture in zip(session.turns, pictures, strict=False):
            np.testing.assert_array_equal(turn.source, picture)


@pytest.mark.parametrize("split", SPLITS)
def test_nothing_changes_outside_the_mask_and_something_does_inside(split: Split):
    for session in sessions(split=split):
        for turn in session.turns:
            differs = (turn.source != turn.target).any(axis=2)
            assert not (differs & ~turn.mask).any()
            assert differs.any() != turn.is_noop


def test_outside_all_masks_the_last_picture_is_the_first_one_bit_for_bit():
    for session in sessions():
        union = np.logical_or.reduce([turn.mask for turn in session.turns])
        last = session.turns[-1].target
        np.testing.assert_array_equal(last[~union], session.original[~union])
        assert union.mean() < 0.7  # enough is left to measure on


def test_odd_turns_edit_and_even_turns_ask_for_nothing():
    for session in sessions():
        assert [turn.is_noop for turn in session.turns] == [False, True] * 5
        for turn in session.turns[1::2]:
            np.testing.assert_array_equal(turn.source, turn.target)


def test_every_task_and_every_kind_of_turn_occurs():
    turns = [turn for session in sessions(40) for turn in session.turns]
    assert {turn.task for turn in turns} == set(TASKS)
    kinds = {(str(turn.extra["kind"]), turn.is_noop) for turn in turns}
    edits = ("recolour", "swap", "resize", "pattern", "plain", "remove", "add")
    nothing = ("recolour", "pattern", "plain", "remove")
    assert kinds == {(kind, False) for kind in edits} | {(kind, True) for kind in nothing}


def test_a_request_for_nothing_asks_for_what_holds_or_for_the_removal_of_what_is_absent():
    for session in sessions():
        for turn in session.turns[1::2]:
            words, caption = turn.extra, turn.source_caption
            thing = str(words["thing"])
            match str(words["kind"]):
                case "recolour":
                    assert thing in caption
                    assert thing.split()[0] == words["colour"]
                case "pattern":
                    assert f"{words['texture']} {thing}" in caption
                case "plain":
                    assert f" {thing}" in caption
                    assert not any(f"{t} {thing}" in caption for t in ("striped", "dotted"))
                case "remove":
                    assert thing.split()[1] not in caption


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_stay_as_crowded_as_those_of_training(split: Split):
    for session in sessions(split=split):
        for turn in session.turns:
            caption = turn.target_caption
            number = sum(caption.count(f" {shape}") for shape in SHAPES)
            assert 1 <= number <= MOST_THINGS


def test_training_sessions_hold_no_pair_that_is_held_out():
    held = [f"{colour} {shape}" for colour, shape in HELDOUT_PAIRS]
    for session in sessions(60, split="train"):
        for turn in session.turns:
            assert not any(pair in turn.target_caption for pair in held)
            assert not any(pair in turn.instruction for pair in held)


def test_names_stay_unique():
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    for session in sessions(60):
        for turn in session.turns:
            assert all(turn.target_caption.count(name) <= 1 for name in names)


def test_a_session_depends_on_nothing_but_its_arguments():
    first, again = (make_session(1, 3, size=32) for _ in range(2))
    assert [t.instruction for t in first.turns] == [t.instruction for t in again.turns]
    np.testing.assert_array_equal(first.turns[-1].target, again.turns[-1].target)
    for other in (make_session(2, 3, size=32), make_session(1, 4, size=32)):
        assert [t.instruction for t in first.turns] != [t.instruction for t in other.turns]


def test_neither_size_nor_the_number_of_turns_changes_what_is_asked():
    long, short, large = (
        make_session(1, 3, turns=turns, size=size) for turns, size in ((10, 32), (4, 32), (10, 48))
    )
    asked = [turn.instruction for turn in long.turns]
    assert [turn.instruction for turn in short.turns] == asked[:4]
    assert [turn.instruction for turn in large.turns] == asked


def test_a_session_without_turns_is_refused():
    with pytest.raises(InputError, match="a session needs at least 1 turn, got 0"):
        make_session(0, 0, turns=0)


def test_pictures_too_small_for_the_world_are_refused():
    with pytest.raises(InputError, match="size=8 is too small for the world; give 16 or more"):
        make_session(0, 0, size=8)
