"""The vision tasks: detect, segment, and the five maps in both directions.

From a map back to the picture the instruction states all the map does not show: which figure has
which colour, and the plain background. Such scenes are flat and have no shape twice, so map and
instruction determine the picture.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, UInt8

from datamodules.world.instructions import pick
from datamodules.world.maps import MAPS
from datamodules.world.palette import MARKS
from datamodules.world.phrasings import MAP_WORDS
from datamodules.world.render import draw_figure
from datamodules.world.scene import Figure, Person, Scene
from datamodules.world.sprites import joints
from datamodules.world.studio import Change, Drawn, Rules, Studio, WorldPair, everywhere

LINE = 1 / 32  # width of a detection's rectangle: two pixels at 64
GAP = 1 / 64  # between a figure and its rectangle


def detect(studio: Studio) -> WorldPair:
    """Draw a rectangle in a stated colour around a named figure."""
    scene, figure = studio.scene(Rules())
    mark = pick(studio.generator, tuple(MARKS))
    words = {"thing": figure.name, "mark": mark}
    captions = (scene.caption, f"{scene.caption}, with a {mark} box around the {figure.name}")
    extra = {**words, **framed(studio.render(scene), figure, mark)[2]}

    def draw(studio: Studio, before: Scene, after: Scene) -> Drawn:
        del after  # the same scene
        source = studio.render(before)
        return source, *framed(source, before.named(figure.name), mark)[:2]

    return studio.drawn(
        Change("detect", "detect", scene, words), draw, scene, captions, extra=extra
    )


def segment(studio: Studio) -> WorldPair:
    """Paint a named figure flat in a stated colour."""
    scene, figure = studio.scene(Rules())
    mark = pick(studio.generator, tuple(MARKS))
    if isinstance(figure, Person):
        painted = replace(figure, colour=mark)
    else:
        painted = replace(figure, colour=mark, texture="plain")
    # in place: the paint's name may sort elsewhere among figures of the same base
    after = replace(scene, figures=tuple(painted if f is figure else f for f in scene.figures))
    words = {"thing": figure.name, "mark": mark}
    pair = studio.pair_of(scene, Change("segment", "segment", after, words))
    caption = f"{scene.caption}, with the {figure.name} marked {mark}"
    extra = {**pair.extra, "mark_rgb": list(MARKS[mark])}
    return replace(pair, target_caption=caption, extra=extra)


def framed(
    picture: UInt8[np.ndarray, "size size 3"], figure: Figure, mark: str
) -> tuple[UInt8[np.ndarray, "size size 3"], Bool[np.ndarray, "size size"], dict[str, object]]:
    """Return a picture with a rectangle around a figure, the rectangle's pixels, and its facts."""
    size = len(picture)
    box = bounding_box(figure, size)
    frame = frame_of(box, size)
    target = picture.copy()
    target[frame] = MARKS[mark]
    return target, frame, {"mark_rgb": list(MARKS[mark]), "box": list(box)}


def bounding_box(figure: Figure, size: int) -> tuple[int, int, int, int]:
    """Return the rectangle drawn around a figure: x0, y0, x1, y1 in pixels, the last two exclusive.

    It holds the whole figure, hidden parts included, a gap, and the line itself; it is cut at the
    picture's border.
    """
    layer = draw_figure(figure, size)
    rows, columns = (np.flatnonzero((layer.alpha > 0).any(axis=axis)) for axis in (1, 0))
    room = max(1, round(GAP * size)) + max(1, round(LINE * size))
    x0, y0 = layer.columns.start + columns[0] - room, layer.rows.start + rows[0] - room
    x1, y1 = layer.columns.start + columns[-1] + 1 + room, layer.rows.start + rows[-1] + 1 + room
    return max(int(x0), 0), max(int(y0), 0), min(int(x1), size), min(int(y1), size)


def frame_of(box: tuple[int, int, int, int], size: int) -> Bool[np.ndarray, "size size"]:
    """Return the pixels of the rectangle drawn along the inside of a box."""
    x0, y0, x1, y1 = box
    line = max(1, round(LINE * size))
    frame = np.zeros((size, size), dtype=np.bool_)
    frame[y0:y1, x0:x1] = True
    frame[y0 + line : y1 - line, x0 + line : x1 - line] = False
    return frame


def to_and_from_map(task: str) -> Callable[[Studio], WorldPair]:
    """Return the edit of one of the five map tasks; its direction is drawn."""

    def edit(studio: Studio) -> WorldPair:
        return _to_map(studio, task) if studio.chance(0.5) else _from_map(studio, task)

    return edit


def _to_map(studio: Studio, task: str) -> WorldPair:
    """Picture to map."""
    focus = "person" if task == "pose" else "any"
    things = (0, 1, 1, 2) if task == "pose" else Rules().things
    scene, _ = studio.scene(Rules(things=things, person=0.25, focus=focus))
    extra: dict[str, object] = {"direction": "to_map"}
    if task == "pose":
        people = (figure for figure in scene.figures if isinstance(figure, Person))
        extra["joints"] = [np.round(joints(person), 4).tolist() for person in people]
    captions = (scene.caption, f"a {MAP_WORDS[task][0]} of {scene.subjects}")

    def draw(studio: Studio, before: Scene, after: Scene) -> Drawn:
        return everywhere(studio.render(before), MAPS[task](after, studio.size))

    return studio.drawn(Change(task, "to_map", scene, {}), draw, scene, captions, extra=extra)


def _from_map(studio: Studio, task: str) -> WorldPair:
    """Map to picture; the instruction says what the map does not show."""
    only_person = Rules(things=(0,), flat=True, focus="person")
    flat = Rules(things=(1, 1, 2, 2, 3), person=0.2, flat=True)
    scene, _ = studio.scene(only_person if task == "pose" else flat)
    captions = (f"a {MAP_WORDS[task][0]} of {scene.subjects}", scene.caption)
    change = Change(task, "from_map", scene, {"scene": scene.caption})

    def draw(studio: Studio, before: Scene, after: Scene) -> Drawn:
        return everywhere(MAPS[task](before, studio.size), studio.render(after))

    return studio.drawn(change, draw, scene, captions, extra={"direction": "from_map"})
