"""Exact optical flow and occlusion between two frames, from their scenes and not from pixels.

At the centre of each pixel one surface is seen: the word, else the nearest figure around it, else
the background. The point of that surface moves as its figure does: things shift, turn and grow as
a whole, limbs and head of a person each for themselves, the background with the camera, and the
word, written over the picture, not at all. A point is occluded if in the next frame it is outside
the picture or something nearer is in front of it. The limbs of one person do not hide each other:
they are of one colour and one layer.
"""

import numpy as np
from jaxtyping import Bool, Float32

from datamodules.world.backgrounds import pixel_centres
from datamodules.world.render import draw_figure, extent
from datamodules.world.scene import Figure, Person, Scene, Thing, Word
from datamodules.world.sprites import (
    BAND_TOP,
    CELL,
    HEAD_RADIUS,
    LIMB_RADIUS,
    LIMBS,
    bitmap,
    joints,
    limb_distances,
    own_axes,
    person_distance,
    thing_distance,
)

Points = tuple[Float32[np.ndarray, "1 n"], Float32[np.ndarray, "1 n"]]
"""x and y of points, fractions of the side."""


def optical_flow(
    before: Scene, after: Scene, size: int
) -> tuple[Float32[np.ndarray, "2 size size"], Bool[np.ndarray, "size size"]]:
    """Return where what is seen in one frame has gone in the next, and what is then not seen.

    Flow is (x, y) in pixels, to the right and down: the point at the centre of pixel (row, column)
    is at column + flow[0], row + flow[1] of the next frame. It is also given where the point is
    occluded. Figures are found again by their names.
    """
    at = pixel_centres(size)
    x, y = np.meshgrid(at, at)
    owner = seen_at_centres(before, size)
    flow = np.zeros((2, size, size), dtype=np.float32)
    occluded = np.zeros((size, size), dtype=np.bool_)
    for number in np.unique(owner).tolist():
        own = owner == number
        points = (x[own][None], y[own][None])
        if number == len(before.figures) + 1:
            continue  # the word
        if number == 0:
            moved, nearer = _with_camera(before, after, points), after.figures
        else:
            figure = before.figures[number - 1]
            place = next(i for i, f in enumerate(after.figures) if f.name == figure.name)
            moved, nearer = (
                _with_figure(figure, after.figures[place], points),
                after.figures[place + 1 :],
            )
        flow[0][own] = (moved[0] - points[0])[0] * size
        flow[1][own] = (moved[1] - points[1])[0] * size
        occluded[own] = _is_hidden(moved, nearer, after.word)[0]
    return flow, occluded


def seen_at_centres(scene: Scene, size: int) -> np.ndarray:
    """Return what is seen at the centre of each pixel.

    0 is the background, i + 1 figure i of the scene, one more than there are figures the word.
    """
    owner = np.zeros((size, size), dtype=np.int64)
    for i, figure in enumerate(scene.figures):
        layer = draw_figure(figure, size)
        owner[layer.rows, layer.columns][layer.distance < 0] = i + 1
    if scene.word is not None:
        at = pixel_centres(size)
        x, y = np.meshgrid(at, at)
        owner[_in_letters(scene.word, x, y)] = len(scene.figures) + 1
    return owner


def _with_camera(before: Scene, after: Scene, points: Points) -> Points:
    """Return where points of the background have gone."""
    old, new = before.background.view, after.background.view
    scale = np.float32(old.side / new.side)
    x = points[0] * scale + np.float32((old.left - new.left) / new.side)
    return x, points[1] * scale + np.float32((old.top - new.top) / new.side)


def _with_figure(old: Figure, new: Figure, points: Points) -> Points:
    """Return where points of a figure have gone."""
    match old, new:
        case Thing(), Thing():
            return _with_thing(old, new, points)
        case Person(), Person():
            return _with_person(old, new, points)
    raise ValueError(f"{old.name} was a {old.shape} and is a {new.shape}; figures keep their kind")


def _with_thing(old: Thing, new: Thing, points: Points) -> Points:
    x, y = own_axes(old, *points)
    scale = new.radius / old.radius
    c, s = np.float32(np.cos(new.angle) * scale), np.float32(np.sin(new.angle) * scale)
    return c * x - s * y + np.float32(new.x), s * x + c * y + np.float32(new.y)


def _with_person(old: Person, new: Person, points: Points) -> Points:
    """Return where points of a person have gone, each with the limb or head it is nearest to."""
    start, end = joints(old), joints(new)
    head = np.hypot(points[0] - start[0, 0], points[1] - start[0, 1])
    parts = np.concatenate([
        limb_distances(start, *points) - np.float32(LIMB_RADIUS * old.height),
        (head - np.float32(HEAD_RADIUS * old.height))[None],
    ])
    nearest = np.argmin(parts, axis=0)
    x, y = points[0].copy(), points[1].copy()
    scale = np.float32(new.height / old.height)
    own = nearest == len(LIMBS)
    x[own] = end[0, 0] + scale * (points[0][own] - start[0, 0])
    y[own] = end[0, 1] + scale * (points[1][own] - start[0, 1])
    for i, (a, b) in enumerate(LIMBS):
        own = nearest == i
        axis, new_axis = start[b] - start[a], end[b] - end[a]
        from_x, from_y = points[0][own] - start[a, 0], points[1][own] - start[a, 1]
        squared = axis @ axis
        along = (from_x * axis[0] + from_y * axis[1]) / squared
        across = (from_y * axis[0] - from_x * axis[1]) / squared
        x[own] = end[a, 0] + along * new_axis[0] - across * new_axis[1]
        y[own] = end[a, 1] + along * new_axis[1] + across * new_axis[0]
    return x, y


def _is_hidden(
    points: Points, nearer: tuple[Figure, ...], word: Word | None
) -> Bool[np.ndarray, "1 n"]:
    """Tell which points are outside the picture, or behind one of the figures or the word."""
    x, y = points
    hidden = (x < 0) | (x >= 1) | (y < 0) | (y >= 1)
    if word is not None:
        hidden |= _in_letters(word, x, y)
    for figure in nearer:
        x0, y0, x1, y1 = extent(figure)
        near = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        at = (x[near][None], y[near][None])
        is_thing = isinstance(figure, Thing)
        distance = thing_distance(figure, *at) if is_thing else person_distance(figure, *at)
        hidden[near] |= (distance < 0)[0]
    return hidden


def _in_letters(
    word: Word, x: Float32[np.ndarray, "h w"], y: Float32[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Tell which points lie in the letters of a word."""
    cells = bitmap(word.text)
    rows, columns = cells.shape
    row = np.floor((y - BAND_TOP[word.band]) / CELL).astype(int)
    column = np.floor((x - (0.5 - columns * CELL / 2)) / CELL).astype(int)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return inside & (cells[row.clip(0, rows - 1), column.clip(0, columns - 1)] > 0)
