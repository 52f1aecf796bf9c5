"""Tracks say who moved where, and who stayed what it was, from readings alone."""

from dataclasses import replace
from math import hypot

import pytest

from datamodules.world.clips.clip import make_clip
from datamodules.world.clips.motion import DIRECTIONS, direction
from datamodules.world.clips.track import MOVES, track
from datamodules.world.find import box_of
from datamodules.world.palette import PLAIN_BACKGROUNDS
from datamodules.world.read import ReadFigure, Reading, read_scene
from datamodules.world.render import quantise, render
from datamodules.world.scene import AT_REST, Figure, Scene, Thing, View
from datamodules.world.view import shown_view

STAR = Thing("star", "red", "plain", 0.5, 0.5, 0.15)


def reading_of(*figures: Figure, view: View = AT_REST) -> Reading:
    """Return the reading of figures that were read without an error."""
    return Reading(tuple(ReadFigure(f, box_of(f), 0.0) for f in figures), "beach", None, 0.0, view)


@pytest.mark.parametrize("words", DIRECTIONS)
def test_each_direction_has_its_words(words: str):
    dx, dy = DIRECTIONS[words]
    frames = [replace(STAR, x=0.5 + 0.1 * dx * t, y=0.5 + 0.1 * dy * t) for t in range(3)]
    (one,) = track([reading_of(frame) for frame in frames])
    assert one.direction == words
    assert one.way == pytest.approx(0.2 * hypot(dx, dy))
    assert one.is_kept


def test_what_a_camera_does_is_not_told_of_the_figures():
    # the camera pans right by 0.2, so that what stands still goes left in the picture
    frames = [replace(STAR, x=0.5 - 0.1 * t) for t in range(3)]
    readings = [reading_of(f, view=View(0.1 * t)) for t, f in enumerate(frames)]
    (one,) = track(readings)
    assert one.direction is None
    assert one.way < 1e-9


def test_a_figure_that_becomes_another_is_one_whose_identity_is_not_kept():
    circle = Thing("circle", "red", "plain", 0.52, 0.5, 0.15)
    other = Thing("heart", "blue", "dotted", 0.2, 0.2, 0.12)
    tracks = track([reading_of(STAR, other), reading_of(other, circle)])
    assert [one.names for one in tracks] == [("red star", "red circle"), ("dotted blue heart",) * 2]
    assert [one.is_kept for one in tracks] == [False, True]


def test_a_figure_that_is_missing_for_a_frame_comes_back():
    (one,) = track([reading_of(STAR), reading_of(), reading_of(replace(STAR, y=0.2))])
    assert one.names == ("red star", None, "red star")
    assert one.direction == "up"
    assert not one.is_kept


def way_of(scenes: tuple[Scene, ...], figure: Figure) -> tuple[float, float]:
    """Return the way of a figure of the first scene to the last, as far as a camera shows."""
    last = next(f for f in scenes[-1].figures if f.name == figure.name)
    old, new = (shown_view(scenes[i].background) for i in (0, -1))
    return (
        new.left + new.side * last.x - old.left - old.side * figure.x,
        new.top + new.side * last.y - old.top - old.side * figure.y,
    )


def counted(clips: int, frames: int) -> tuple[int, int]:
    """Return how many figures of clips translate along one of the directions, and are seen to."""
    total = right = 0
    for index in range(clips):
        scenes = make_clip(
            11, "heldout", index, task="texture", size=16, frames=frames
        ).output_scenes
        background = scenes[-1].background
        if background.view.side != 1 and background.name in ("meadow", *PLAIN_BACKGROUNDS):
            continue  # a zoom that does not show
        tracks = track([read_scene(quantise(render(s, 64)).transpose(2, 0, 1)) for s in scenes])
        for figure in scenes[0].figures:
            dx, dy = way_of(scenes, figure)
            is_along = min(abs(dx), abs(dy)) < 1e-6 or abs(abs(dx) - abs(dy)) < 1e-6
            if hypot(dx, dy) < 1.2 * MOVES or not is_along:
                continue
            clean = [round(v, 6) for v in (dx, dy)]
            found = [t.direction for t in tracks if figure.full_name in t.names]
            total += 1
            right += found == [direction(*clean)]
    return right, total


@pytest.mark.slow
def test_the_directions_of_clips_are_read():
    right, total = counted(3, frames=2)
    assert right == total >= 1


@pytest.mark.slow
def test_of_the_figures_that_move_so_many_are_seen_to():
    right, total = counted(60, frames=3)
    assert total >= 40
    assert right >= 0.95 * total
