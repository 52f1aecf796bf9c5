"""The vision tasks: detect, segment, and the five maps in both directions.

From a map back to the picture the instruction states all the map does not show: which figure has
which colour, and the plain background. Such scenes are flat and have no shape twice, so map and
instruction determine the picture.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from datamodules.world.edits_region import edited
from datamodules.world.instructions import pick
from datamodules.world.maps import MAPS
from datamodules.world.palette import MARKS
from datamodules.world.render import draw_figure, seen
from datamodules.world.scene import Figure, Person
from datamodules.world.sprites import joints
from datamodules.world.studio import Edited, Rules, Studio

LINE = 1 / 32  # width of a detection's rectangle: two pixels at 64
GAP = 1 / 64  # between a figure and its rectangle


def detect(studio: Studio) -> Edited:
    """Draw a rectangle in a stated colour around a named figure."""
    scene, figure = studio.scene(Rules())
    mark = pick(studio.generator, tuple(MARKS))
    box = bounding_box(figure, studio.size)
    frame = frame_of(box, studio.size)
    source = studio.render(scene)
    target = source.copy()
    target[frame] = MARKS[mark]
    return Edited(
        source=source,
        target=target,
        mask=frame,
        instruction=studio.phrase("detect", "detect", {"thing": figure.name, "mark": mark}),
        source_caption=scene.caption,
        target_caption=f"{scene.caption}, with a {mark} box around the {figure.name}",
        extra={
            "kind": "detect",
            "thing": figure.name,
            "mark": mark,
            "mark_rgb": list(MARKS[mark]),
            "box": list(box),
        },
    )


def segment(studio: Studio) -> Edited:
    """Paint a named figure flat in a stated colour."""
    scene, figure = studio.scene(Rules())
    mark = pick(studio.generator, tuple(MARKS))
    painted = _painted(figure, mark)
    after = scene.swapped(figure, painted)
    # the paint's name may sort elsewhere among figures of the same base; the order is the source's
    after = replace(after, figures=tuple(painted if f is figure else f for f in scene.figures))
    words = {"thing": figure.name, "mark": mark}
    mask = seen(scene, figure, studio.size)
    pair = edited(studio, "segment", "segment", (scene, after), words, mask)
    caption = f"{scene.caption}, with the {figure.name} marked {mark}"
    return replace(
        pair, target_caption=caption, extra={**pair.extra, "mark_rgb": list(MARKS[mark])}
    )


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


def to_and_from_map(task: str) -> Callable[[Studio], Edited]:
    """Return the edit of one of the five map tasks; its direction is drawn."""

    def edit(studio: Studio) -> Edited:
        return _to_map(studio, task) if studio.chance(0.5) else _from_map(studio, task)

    return edit


def _to_map(studio: Studio, task: str) -> Edited:
    """Picture to map."""
    focus = "person" if task == "pose" else "any"
    things = (0, 1, 1, 2) if task == "pose" else Rules().things
    scene, _ = studio.scene(Rules(things=things, person=0.25, focus=focus))
    extra: dict[str, object] = {"kind": "to_map", "direction": "to_map"}
    if task == "pose":
        extra["joints"] = [
            np.round(joints(f), 4).tolist() for f in scene.figures if isinstance(f, Person)
        ]
    return Edited(
        source=studio.render(scene),
        target=MAPS[task](scene, studio.size),
        mask=np.ones((studio.size, studio.size), dtype=np.bool_),
        instruction=studio.phrase(task, "to_map", {}),
        source_caption=scene.caption,
        target_caption=f"{_MAP_NAMES[task]} of {scene.subjects}",
        extra=extra,
    )


def _from_map(studio: Studio, task: str) -> Edited:
    """Map to picture; the scene is told by the instruction."""
    only_person = Rules(things=(0,), flat=True, focus="person")
    flat = Rules(things=(1, 1, 2, 2, 3), person=0.2, flat=True)
    scene, _ = studio.scene(only_person if task == "pose" else flat)
    return Edited(
        source=MAPS[task](scene, studio.size),
        target=studio.render(scene),
        mask=np.ones((studio.size, studio.size), dtype=np.bool_),
        instruction=studio.phrase(task, "from_map", {"scene": scene.caption}),
        source_caption=f"{_MAP_NAMES[task]} of {scene.subjects}",
        target_caption=scene.caption,
        extra={"kind": "from_map", "direction": "from_map"},
    )


_MAP_NAMES = {
    "sketch": "a line sketch",
    "depth": "a depth map",
    "normal": "a normal map",
    "pose": "a pose skeleton",
    "segmap": "a segmentation map",
}


def _painted(figure: Figure, mark: str) -> Figure:
    if isinstance(figure, Person):
        return replace(figure, colour=mark)
    return replace(figure, colour=mark, texture="plain")
