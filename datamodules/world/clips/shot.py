"""A shot: a still scene before and after an edit, and how its figures and its camera move.

What a shot shows is drawn so that every figure stays in the picture: its middle never leaves it,
and it never fills it. Two shots of a clip have the same figures, so that what an instruction names
is in both; a cut changes sides, camera, and mostly the background.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from math import hypot, sqrt
from typing import TypeVar

import numpy as np

from datamodules.world.clips.motion import (
    DIRECTIONS,
    Camera,
    Gesture,
    Motion,
    mirrored,
    motion_words,
    seen_by,
)
from datamodules.world.instructions import pick
from datamodules.world.palette import BACKGROUNDS, stands_out
from datamodules.world.scene import AT_REST, Background, Figure, Person, Scene, Thing, View
from datamodules.world.studio import Studio

STILL, STILL_CAMERA = 0.2, 0.5  # chances that a figure, or the camera, does not move
WAY, WALK, PAN = (0.15, 0.4), (0.12, 0.3), (0.08, 0.2)  # in fractions of the world's side
TURN = (0.5, 2.0)  # radians
GROW, SHRINK = (1.25, 1.5), (0.65, 0.8)
NEARER, FARTHER = (0.72, 0.85), (1.18, 1.4)  # the side a zoom ends with
STARTS = (0.85, 1.0, 1.2)  # sides of the views that a shot after a cut begins with
EDGE = 0.06  # how near the picture's edge the middle of a figure comes
LARGEST = 0.34  # radius in the picture
# of flat shots: how near the edge a middle comes, the shortest and longest way, and how far two
# figures stay apart, in their radii
FLAT_EDGE, FLAT_WAY, APART = 0.12, (0.14, 0.4), 0.9
TRIES = 8
Choice = TypeVar("Choice")
MOMENTS = (0.0, 0.5, 1.0)  # at which it is made sure that figures stay in the picture


@dataclass(frozen=True)
class Shot:
    """Scenes before and after an edit at the shot's first moment, at rest, and what moves.

    Attributes:
        before: the scene of the source.
        after: that of the target; figures that the edit leaves alone are the same objects.
        motions: of the figures of both scenes by name; an edited one moves as the one it was.
        camera: of the shot.
        frames: how many there are.
    """

    before: Scene
    after: Scene
    motions: Mapping[str, Motion]
    camera: Camera
    frames: int

    def frame(self, number: int) -> tuple[Scene, Scene]:
        """Return the scenes of a frame, before and after the edit."""
        moment = number / (self.frames - 1) if self.frames > 1 else 0.0
        view = self.camera.at(moment)
        # each once: what an edit leaves alone must be one object in both scenes
        everyone = {id(f): f for f in (*self.before.figures, *self.after.figures)}
        moved = {
            number: seen_by(self.motions[f.name].at(f, moment), view)
            for number, f in everyone.items()
        }

        def at_moment(scene: Scene) -> Scene:
            # a stable sort: figures of one base keep the order they have at rest
            order = sorted((moved[id(f)] for f in scene.figures), key=lambda f: f.base)
            return replace(
                scene, background=replace(scene.background, view=view), figures=tuple(order)
            )

        return at_moment(self.before), at_moment(self.after)

    def words(self, scene: Scene) -> str:
        """Return what moves in one of the two scenes."""
        if self.frames == 1:
            return motion_words([], Camera())
        return motion_words([(f.name, self.motions[f.name]) for f in scene.figures], self.camera)


def draw_shot(studio: Studio, before: Scene, after: Scene, frames: int, start: View) -> Shot:
    """Return a shot of an edited scene, its motions drawn; `start` is what the camera sees first.

    A figure that is only there after the edit stands still in the world.
    """
    forms = {old.name: (old, *new) for old, new in _forms(before, after)}
    everyone = {id(f): f for f in (*before.figures, *after.figures)}.values()

    def shows_all(camera: Camera) -> bool:
        return all(_stays(figure, Motion(), camera) for figure in everyone)

    camera = _first(lambda: _camera(studio, start), shows_all)
    camera = camera or next(
        c for c in (Camera(start), Camera()) if shows_all(c) or c.start == AT_REST
    )
    motions = {figure.name: Motion() for figure in after.figures}
    for group in forms.values():
        motion = None
        if not studio.chance(STILL):
            motion = _first(
                lambda group=group: _motion(studio, group),
                lambda motion, group=group: all(_stays(f, motion, camera) for f in group),
            )
        motions.update({figure.name: motion or Motion() for figure in group})
    return Shot(before, after, motions, camera, frames)


def flat_shot(studio: Studio, scene: Scene, frames: int) -> Shot:
    """Return a shot of a scene of plain things in which each stands still or moves along an axis.

    The camera stands still. Every direction is as likely, however far there is room that way; where
    two figures would meet, one waits.
    """
    motions: dict[str, Motion] = {figure.name: Motion() for figure in scene.figures}
    for figure in scene.figures:
        dx, dy = pick(studio.generator, tuple(DIRECTIONS.values())[:4])
        at = figure.x if dx else figure.y
        room = (1 - at if dx + dy > 0 else at) - FLAT_EDGE
        way = studio.between(FLAT_WAY[0], max(min(FLAT_WAY[1], room), FLAT_WAY[0]))
        motion = Motion(dx=dx * way, dy=dy * way)
        is_still = studio.chance(STILL)
        if not is_still and _apart(scene, {**motions, figure.name: motion}):
            motions[figure.name] = motion
    return Shot(scene, scene, motions, Camera(), frames)


def _apart(scene: Scene, motions: Mapping[str, Motion]) -> bool:
    """Tell whether things stay apart at all moments looked at."""
    for moment in np.linspace(0, 1, 9):
        seen = [motions[f.name].at(f, float(moment)) for f in scene.figures]
        for a, b in combinations(seen, 2):
            assert isinstance(a, Thing)
            assert isinstance(b, Thing)
            if hypot(a.x - b.x, a.y - b.y) < APART * (a.radius + b.radius):
                return False
    return True


def other_side(
    studio: Studio, before: Scene, after: Scene, *, keeps_background: bool
) -> tuple[Scene, Scene]:
    """Return the scenes after a cut: sides changed, and mostly another background."""
    mirror = {id(f): mirrored(f) for f in (*before.figures, *after.figures)}
    scenes = [
        Scene(s.background, tuple(mirror[id(f)] for f in s.figures), s.word)
        for s in (before, after)
    ]
    colours = {f.colour for f in (*before.figures, *after.figures)}
    colours |= {scene.word.ink for scene in scenes if scene.word is not None}
    fitting = [
        name
        for name in BACKGROUNDS
        if name != after.background.name and all(stands_out(c, name) for c in colours)
    ]
    if keeps_background or not fitting:
        return scenes[0], scenes[1]
    behind = Background(pick(studio.generator, fitting))
    is_edited = before.background != after.background
    return (
        replace(scenes[0], background=behind),
        scenes[1] if is_edited else replace(scenes[1], background=behind),
    )


def _forms(before: Scene, after: Scene) -> list[tuple[Figure, tuple[Figure, ...]]]:
    """Return each figure, and what an edit makes of it, if it makes another of it."""
    new = [f for f in after.figures if all(f is not other for other in before.figures)]
    return [
        (f, () if any(f is other for other in after.figures) else tuple(new))
        for f in before.figures
    ]


def _first(draw: Callable[[], Choice], fits: Callable[[Choice], bool]) -> Choice | None:
    """Return the first of some draws that fits."""
    return next((choice for _ in range(TRIES) if fits(choice := draw())), None)


def _stays(figure: Figure, motion: Motion, camera: Camera) -> bool:
    """Tell whether a figure stays in the picture, and does not fill it."""
    for moment in MOMENTS:
        seen = seen_by(motion.at(figure, moment), camera.at(moment))
        if not (EDGE <= seen.x <= 1 - EDGE and EDGE <= seen.y <= 1 - EDGE):
            return False
        if isinstance(seen, Thing) and seen.radius > LARGEST:
            return False
    return True


def _camera(studio: Studio, start: View) -> Camera:
    if studio.chance(STILL_CAMERA):
        return Camera(start)
    if studio.chance(0.5):
        dx, dy = pick(studio.generator, tuple(DIRECTIONS.values())[:4])
        way = studio.between(*PAN)
        return Camera(start, dx=dx * way, dy=dy * way)
    return Camera(start, zoom=studio.between(*pick(studio.generator, (NEARER, FARTHER))))


def _motion(studio: Studio, forms: tuple[Figure, ...]) -> Motion:
    """Return a motion that can be seen of a figure in every form it has."""
    if isinstance(forms[0], Person):
        return _persons_motion(studio)
    can_turn = all(
        isinstance(f, Thing) and (f.shape != "circle" or f.texture != "plain") for f in forms
    )
    parts = [("shift",), ("shift",), ("grow",), ("shift", "grow")]
    if can_turn:
        parts += [("turn",), ("turn",), ("shift", "turn"), ("turn", "grow")]
    chosen = pick(studio.generator, parts)
    motion = Motion()
    if "shift" in chosen:
        dx, dy = pick(studio.generator, tuple(DIRECTIONS.values()))
        way = studio.between(*WAY) / sqrt(abs(dx) + abs(dy))
        motion = replace(motion, dx=dx * way, dy=dy * way)
    if "turn" in chosen:
        motion = replace(motion, turn=studio.between(*TURN) * pick(studio.generator, (-1, 1)))
    if "grow" in chosen:
        growth = studio.between(*pick(studio.generator, (GROW, SHRINK)))
        motion = replace(motion, growth=growth)
    return motion


def _persons_motion(studio: Studio) -> Motion:
    gestures: tuple[Gesture, ...] = ("walk", "walk", "wave left", "wave right")
    gesture = pick(studio.generator, gestures)
    if gesture != "walk":
        return Motion(gesture=gesture)
    return Motion(dx=studio.between(*WALK) * pick(studio.generator, (-1, 1)), gesture=gesture)
