"""Five tasks that no model is trained for: what task inversion is tried, shown and measured on.

They are kept out of the sixteen and of every training world. Like those of `pair.py`, a pair is a
pure function of (seed, index, task, split, size), with an exact target and mask. Four of the tasks
are the paper's: super-resolution, contours, inpainting, and a composition of two known tasks;
counting is ours.
Source: Sheynin et al. 2023, arXiv:2311.10089, section 4.3.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from datamodules.world.backgrounds import Photos, pixel_centres
from datamodules.world.edits_region import addition
from datamodules.world.edits_vision import bounding_box, frame_of
from datamodules.world.instructions import phrase, pick
from datamodules.world.pair import MIN_SIZE, SPLITS, WorldPair
from datamodules.world.palette import MARKS
from datamodules.world.phrasings import Phrasings
from datamodules.world.render import coverage, draw_figure, quantise, seen
from datamodules.world.scene import Scene
from datamodules.world.studio import Edited, Rules, Studio
from emu_edit.errors import InputError, closest
from emu_edit.randomness import keyed_generator

FACTOR = 4  # of super-resolution
CONTOUR = 0.025  # half the width of a contour, in fractions of the side; a sketch's is half of it
HOLE_GREY = 128
HOLE_SIDES = (0.2, 0.4)
HIDDEN = 0.6  # a figure of which more is hidden could be another one
HOLE_DRAWS = 12
REFERENCE = 64  # size at which holes are judged, so that they do not depend on the pair's size
MAX_DOTS = 5
DOT_RADIUS = 0.06

PHRASINGS: dict[str, Phrasings] = {
    "superres": Phrasings(
        train=(
            "increase the resolution of this picture",
            "make the picture four times finer",
            "show this image in high resolution",
            "restore the fine detail of the picture",
        ),
        heldout=("upscale this image", "give the photo its full resolution"),
    ),
    "contour": Phrasings(
        train=(
            "draw the contours of the objects",
            "make a contour drawing of this picture",
            "trace the contour of everything in the image",
            "show only the contours",
        ),
        heldout=("what are the contours of this picture?", "extract the contours"),
    ),
    "inpaint": Phrasings(
        train=(
            "fill in the grey rectangle",
            "show what the grey rectangle hides",
            "complete the picture where it is covered",
            "paint the missing part of the image",
        ),
        heldout=("restore the hidden part", "take the grey patch away and complete the scene"),
    ),
    "count": Phrasings(
        train=(
            "count the objects as dots",
            "draw one dot for each object",
            "show with dots how many objects there are",
            "make a row of dots, one per object",
        ),
        heldout=("how many objects are there, in dots?", "give me the number of things as dots"),
    ),
    "add_detect": Phrasings(
        train=(
            "add a {new} {place} and draw a {mark} box around it",
            "put a {new} {place} and mark it with a {mark} rectangle",
            "insert a {new} {place}, inside a {mark} box",
            "place a {new} {place} and frame it in {mark}",
        ),
        heldout=(
            "draw a {new} {place} with a {mark} rectangle around it",
            "there should be a {new} {place}, boxed in {mark}",
        ),
    ),
}


def superres(studio: Studio) -> Edited:
    """Give back what was lost: each pixel of a quarter of the side was a mean of sixteen."""
    target, caption = _picture(studio)
    return _edited(
        studio,
        "superres",
        (coarse(target), target),
        _everywhere(studio),
        captions=(f"a coarse picture of {caption}", caption),
    )


def contour(studio: Studio) -> Edited:
    """Draw one thick black line around each group of figures that touch, on white."""
    scene, _ = studio.scene(Rules(person=0.25))
    return _edited(
        studio,
        "contour",
        (studio.render(scene), contours(scene, studio.size)),
        _everywhere(studio),
        captions=(scene.caption, f"the contours of {scene.subjects}"),
    )


def inpaint(studio: Studio) -> Edited:
    """Show what a grey rectangle hides; enough of every figure is seen to tell what it is."""
    scene = _photograph(studio) or _scene_in_colour(studio)
    x0, y0, x1, y1 = hole = _hole(studio, scene)
    target = studio.render(scene)
    mask = np.zeros(target.shape[:2], dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    source = target.copy()
    source[mask] = HOLE_GREY
    return _edited(
        studio,
        "inpaint",
        (source, target),
        mask,
        captions=(f"{_caption(scene)}, partly covered", _caption(scene)),
        extra={"hole": list(hole)},
    )


def count(studio: Studio) -> Edited:
    """Draw as many equal dots, in a row from the left on white, as there are figures."""
    scene, _ = studio.scene(Rules(things=tuple(range(1, MAX_DOTS + 1)), person=0.0))
    number = len(scene.figures)
    return _edited(
        studio,
        "count",
        (studio.render(scene), dots(number, studio.size)),
        _everywhere(studio),
        captions=(scene.caption, f"{number} dots"),
        extra={"count": number},
    )


def add_detect(studio: Studio) -> Edited:
    """Insert a thing at a stated place and draw a rectangle in a stated colour around it."""
    scene, new, place = addition(studio)
    after = scene.with_figure(new)
    mark = pick(studio.generator, tuple(MARKS))
    box = bounding_box(new, studio.size)
    frame = frame_of(box, studio.size)
    target = studio.render(after)
    target[frame] = MARKS[mark]
    words = {"new": new.full_name, "place": place, "mark": mark}
    return _edited(
        studio,
        "add_detect",
        (studio.render(scene), target),
        frame | seen(after, new, studio.size),
        captions=(scene.caption, f"{after.caption}, with a {mark} box around the {new.name}"),
        words=words,
        extra={"mark_rgb": list(MARKS[mark]), "box": list(box)},
    )


NEW_TASKS: dict[str, Callable[[Studio], Edited]] = {
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
    """Return the pair of an index, a pure function of the arguments.

    Args:
        seed: of the pairs; two seeds share none.
        index: at least 0.
        task: one of `NEW_TASKS`.
        size: side of the pictures in pixels, at least 16.
        split: which phrasings and which colour/shape pairs, see `make_pair`.
        photos: photographs; backgrounds of contour, count and add_detect, and all there is to see
            in the pictures of superres and inpaint.

    Raises:
        InputError: if the task or split is unknown, the index negative, or the size too small.
    """
    if task not in NEW_TASKS:
        raise InputError(
            f"unknown new task {task!r}; give one of {', '.join(NEW_TASKS)}."
            f"{closest(task, list(NEW_TASKS))}"
        )
    if index < 0 or size < MIN_SIZE:
        raise InputError(f"index={index} must be at least 0 and size={size} at least {MIN_SIZE}")
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r} of a new task; give one of {', '.join(SPLITS)}")
    figures, sentences = SPLITS[split]
    generator = keyed_generator(seed, f"world new {task} {split}", index)
    studio = Studio(generator, figures, size, photos, sentences)
    key = f"{task}-{split}-{seed}-{index:08d}"
    return WorldPair.of(key, task, NEW_TASKS[task](studio))


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


def _edited(
    studio: Studio,
    task: str,
    pictures: tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]],
    mask: Bool[np.ndarray, "h w"],
    *,
    captions: tuple[str, str],
    words: dict[str, str] | None = None,
    extra: dict[str, object] | None = None,
) -> Edited:
    sentences = studio.split if studio.sentences is None else studio.sentences
    templates = PHRASINGS[task]
    choices = templates.heldout if sentences == "heldout" else templates.train
    words = {} if words is None else words
    return Edited(
        source=pictures[0],
        target=pictures[1],
        mask=mask,
        instruction=phrase(studio.generator, choices, words),
        source_caption=captions[0],
        target_caption=captions[1],
        extra={"kind": task, **words, **({} if extra is None else extra)},
    )


def _everywhere(studio: Studio) -> Bool[np.ndarray, "size size"]:
    return np.ones((studio.size, studio.size), dtype=np.bool_)


def _picture(studio: Studio) -> tuple[UInt8[np.ndarray, "size size 3"], str]:
    """Return a picture and what it shows: a photograph where there are some, else a scene."""
    scene = _photograph(studio) or studio.scene(Rules(word=0.2))[0]
    return studio.render(scene), _caption(scene)


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
