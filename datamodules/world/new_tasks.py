"""Five tasks that no model is trained for: what task inversion is tried, shown and measured on.

They are kept out of the sixteen and of every training world. Like those of `pair.py`, a pair is a
pure function of (seed, index, task, split, size), with an exact target and mask. Four of the tasks
are the paper's: super-resolution, contours, inpainting, and a composition of two known tasks;
counting is ours.
Source: Sheynin et al. 2023, arXiv:2311.10089, section 4.3.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from datamodules.world.backgrounds import pixel_centres
from datamodules.world.edits_region import addition
from datamodules.world.edits_vision import framed
from datamodules.world.instructions import pick
from datamodules.world.palette import MARKS
from datamodules.world.photographs import Photos
from datamodules.world.render import coverage, draw_figure, quantise, seen
from datamodules.world.scene import Scene
from datamodules.world.studio import Rules, Studio, WorldPair
from emu_edit.errors import InputError, closest

FACTOR = 4  # of super-resolution
CONTOUR = 0.025  # half the width of a contour, in fractions of the side; a sketch's is half of it
HOLE_GREY = 128
HOLE_SIDES = (0.2, 0.4)
HIDDEN = 0.6  # a figure of which more is hidden could be another one
HOLE_DRAWS = 12
REFERENCE = 64  # size at which holes are judged, so that they do not depend on the pair's size
MAX_DOTS = 5
DOT_RADIUS = 0.06


def superres(studio: Studio) -> WorldPair:
    """Give back what was lost: each pixel of a quarter of the side was a mean of sixteen."""
    scene = _photograph(studio) or studio.scene(Rules(word=0.2))[0]
    target, caption = studio.render(scene), _caption(scene)
    captions = (f"a coarse picture of {caption}", caption)
    return studio.pair("superres", "superres", (coarse(target), target), captions, words={})


def contour(studio: Studio) -> WorldPair:
    """Draw one thick black line around each group of figures that touch, on white."""
    scene, _ = studio.scene(Rules(person=0.25))
    pictures = (studio.render(scene), contours(scene, studio.size))
    captions = (scene.caption, f"the contours of {scene.subjects}")
    return studio.pair("contour", "contour", pictures, captions, words={})


def inpaint(studio: Studio) -> WorldPair:
    """Show what a grey rectangle hides; enough of every figure is seen to tell what it is."""
    scene = _photograph(studio) or _scene_in_colour(studio)
    x0, y0, x1, y1 = hole = _hole(studio, scene)
    target = studio.render(scene)
    mask = np.zeros(target.shape[:2], dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    source = target.copy()
    source[mask] = HOLE_GREY
    captions = (f"{_caption(scene)}, partly covered", _caption(scene))
    extra: dict[str, object] = {"hole": list(hole)}
    return studio.pair(
        "inpaint", "inpaint", (source, target), captions, words={}, mask=mask, extra=extra
    )


def count(studio: Studio) -> WorldPair:
    """Draw as many equal dots, in a row from the left on white, as there are figures."""
    scene, _ = studio.scene(Rules(things=tuple(range(1, MAX_DOTS + 1)), person=0.0))
    number = len(scene.figures)
    pictures = (studio.render(scene), dots(number, studio.size))
    captions = (scene.caption, f"{number} dots")
    return studio.pair("count", "count", pictures, captions, words={}, extra={"count": number})


def add_detect(studio: Studio) -> WorldPair:
    """Insert a thing at a stated place and draw a rectangle in a stated colour around it."""
    scene, new, place = addition(studio)
    after = scene.with_figure(new)
    mark = pick(studio.generator, tuple(MARKS))
    target, frame, about = framed(studio.render(after), new, mark)
    words = {"new": new.full_name, "place": place, "mark": mark}
    return studio.pair(
        "add_detect",
        "add_detect",
        (studio.render(scene), target),
        (scene.caption, f"{after.caption}, with a {mark} box around the {new.name}"),
        words=words,
        mask=frame | seen(after, new, studio.size),
        extra={**words, **about},
    )


NEW_TASKS: dict[str, Callable[[Studio], WorldPair]] = {
    "superres": superres,
    "contour": contour,
    "inpaint": inpaint,
    "count": count,
    "add_detect": add_detect,
}


def make_new_pair(
    seed: int,
    index: int,
    *,
    task: str,
    size: int = 64,
    split: str = "train",
    photos: Photos | None = None,
) -> WorldPair:
    """Return the pair of an index, a pure function of the arguments; these are as in `make_pair`.

    Photographs are backgrounds of contour, count and add_detect, and all there is to see in the
    pictures of superres and inpaint.

    Raises:
        InputError: if the task or split is unknown, the index negative, or the size too small.
    """
    if task not in NEW_TASKS:
        raise InputError(
            f"unknown new task {task!r}; give one of {', '.join(NEW_TASKS)}."
            f"{closest(task, list(NEW_TASKS))}"
        )
    studio = Studio.of(f"new {task}", task, seed, index, size=size, split=split, photos=photos)
    return NEW_TASKS[task](studio)


def coarse(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture brought to a quarter of its sides by box means and enlarged again."""
    image = Image.fromarray(picture)
    # pixels beyond a multiple of four make a last, narrower row and column of the small picture
    whole = (0, 0, image.width / FACTOR, image.height / FACTOR)
    return np.asarray(image.reduce(FACTOR).resize(image.size, Image.Resampling.BICUBIC, box=whole))


def contours(scene: Scene, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return the contours of a scene, black on white.

    Unlike a sketch, which outlines each figure with a thin line, figures that touch have one line
    around them all, twice as thick: there is none where one passes before another.
    """
    distance = np.full((size, size), np.inf, dtype=np.float32)
    for figure in scene.figures:
        layer = draw_figure(figure, size)
        window = distance[layer.rows, layer.columns]
        np.minimum(window, layer.distance, out=window)
    paper = 255 * np.clip(0.5 + (np.abs(distance) - np.float32(CONTOUR)) * size, 0, 1)
    return quantise(np.repeat(paper[:, :, None], 3, axis=2))


def dots(number: int, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return a row of black dots on white, from the left, with places for `MAX_DOTS`."""
    paper = np.full((size, size), 255, dtype=np.float32)
    for distance in _dot_distances(size)[:number]:
        paper *= np.clip(0.5 + (distance - np.float32(DOT_RADIUS)) * size, 0, 1)
    return quantise(np.repeat(paper[:, :, None], 3, axis=2))


def count_dots(picture: UInt8[np.ndarray, "size size 3"]) -> int:
    """Return at how many of the places for dots a picture is dark."""
    grey = picture.mean(axis=2)
    return sum(
        bool(grey[distance < DOT_RADIUS].mean() < 255 / 2)
        for distance in _dot_distances(len(picture))
    )


def _dot_distances(size: int) -> list[np.ndarray]:
    """Return how far each pixel is from the centre of each place for a dot."""
    at = pixel_centres(size)
    return [
        np.hypot(at[None, :] - np.float32((i + 0.5) / MAX_DOTS), at[:, None] - np.float32(0.5))
        for i in range(MAX_DOTS)
    ]


def _photograph(studio: Studio) -> Scene | None:
    return None if studio.photos is None else Scene.of(studio.background(), ())


def _caption(scene: Scene) -> str:
    return scene.caption if scene.figures else "a photograph"


def _scene_in_colour(studio: Studio) -> Scene:
    """Return a scene on which a grey rectangle can be seen."""
    scene, _ = studio.scene(Rules())
    while scene.background.name == "grey":
        scene, _ = studio.scene(Rules())
    return scene


def _hole(studio: Studio, scene: Scene) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of a rectangle that leaves enough of every figure to be seen."""
    shares = coverage(scene, REFERENCE).figures

    def hidden(hole: tuple[float, ...]) -> float:
        x0, y0, x1, y1 = _pixels(hole, REFERENCE)
        parts = [float(share[y0:y1, x0:x1].sum() / share.sum()) for share in shares]
        return max(parts, default=0.0)

    holes = []
    for _ in range(HOLE_DRAWS):
        width, height = studio.between(*HOLE_SIDES), studio.between(*HOLE_SIDES)
        left, top = studio.between(0.0, 1 - width), studio.between(0.0, 1 - height)
        holes.append((left, top, left + width, top + height))
    # the first that hides little enough; if there is none, the one that hides least
    return _pixels(min(holes, key=lambda hole: max(hidden(hole), HIDDEN)), studio.size)


def _pixels(hole: tuple[float, ...], size: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (round(side * size) for side in hole)
    return x0, y0, x1, y1
