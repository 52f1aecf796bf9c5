"""The five maps of a scene, exact because it is known: sketch, depth, normals, pose, segmentation.

Depth is nearness (white is near): the floor rises from far at the top to nearer at the bottom, a
figure stands where its base is and bulges a little. Normals are those of the same bulge, a rim as
round as a quarter circle; x to the right, y up, z to the viewer, coded as (n + 1) / 2. Depth,
normals and labels take the front figure of each pixel, never a mixture, so every pixel's value is
one that exists in the scene.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8

from datamodules.world.backgrounds import pixel_centres
from datamodules.world.render import coverage, draw_figure, quantise
from datamodules.world.scene import Figure, Person, Scene
from datamodules.world.sprites import joints, limb_distances

LINE = 0.012  # half the width of a sketch's line, in fractions of the side
BONE = 0.016  # half the width of a limb in a pose map
RIM = 0.07  # width of the bulge's rim
FAR, FLOOR = 0.05, 0.30  # nearness of the background at the top and at the bottom
BACK, FRONT = 0.35, 0.90  # nearness of a figure standing at the top and at the bottom
RELIEF = 0.1  # how much nearer the middle of a bulge is than its rim

CLASS_RGB: dict[str, tuple[int, int, int]] = {
    "background": (0, 0, 0),
    "circle": (230, 30, 70),
    "square": (60, 180, 75),
    "triangle": (255, 225, 25),
    "star": (0, 130, 200),
    "heart": (245, 130, 48),
    "cross": (145, 30, 180),
    "person": (70, 240, 240),
}
# one colour per limb of sprites.LIMBS: trunk, left arm, right arm, left leg, right leg
LIMB_RGB = np.array(
    [
        (255, 255, 255),
        (255, 255, 255),
        (255, 60, 60),
        (255, 150, 60),
        (60, 200, 60),
        (180, 240, 60),
        (60, 100, 255),
        (60, 200, 255),
        (200, 60, 255),
        (255, 100, 200),
    ],
    dtype=np.float32,
)


def sketch(scene: Scene, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return black outlines on white paper; a nearer figure hides the lines behind it."""
    paper = np.full((size, size), 255, dtype=np.float32)
    for figure in scene.figures:
        layer = draw_figure(figure, size)
        window = paper[layer.rows, layer.columns]
        window += layer.alpha * (255 - window)
        line = np.clip(0.5 + (np.float32(LINE) - np.abs(layer.distance)) * size, 0, 1)
        window -= line * window
    return quantise(np.repeat(paper[:, :, None], 3, axis=2))


def depth(scene: Scene, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return nearness as grey: the floor from FAR to FLOOR, figures by base and bulge."""
    down = pixel_centres(size)[:, None]
    nearness = np.broadcast_to(FAR + (FLOOR - FAR) * down, (size, size)).astype(np.float32)
    for figure, front in zip(scene.figures, _fronts(scene, size), strict=True):
        layer = draw_figure(figure, size)
        window = front[layer.rows, layer.columns]
        values = figure_nearness(figure) + RELIEF * _bulge(layer.distance)
        nearness[layer.rows, layer.columns][window] = values[window]
    return quantise(np.repeat(255 * nearness[:, :, None], 3, axis=2))


def figure_nearness(figure: Figure) -> float:
    """Return the nearness of a figure's rim: BACK + (FRONT - BACK) base, nearer than any floor."""
    return BACK + (FRONT - BACK) * min(max(figure.base, 0.0), 1.0)


def normal(scene: Scene, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return unit normals as colours; the background faces the viewer."""
    normals = np.zeros((size, size, 3), dtype=np.float32)
    normals[:, :, 2] = 1
    for figure, front in zip(scene.figures, _fronts(scene, size), strict=True):
        layer = draw_figure(figure, size)
        window = front[layer.rows, layer.columns]
        normals[layer.rows, layer.columns][window] = _bulge_normals(layer.distance)[window]
    return quantise((normals + 1) * np.float32(127.5))


def pose(scene: Scene, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return the skeletons of all people on black, one colour per limb; nothing hides them."""
    picture = np.zeros((size, size, 3), dtype=np.float32)
    at = pixel_centres(size)
    for person in scene.figures:
        if not isinstance(person, Person):
            continue
        limbs = limb_distances(joints(person), at[None, :], at[:, None])
        for distance, rgb in zip(limbs, LIMB_RGB, strict=True):
            alpha = np.clip(0.5 + (np.float32(BONE) - distance) * size, 0, 1)[:, :, None]
            picture += alpha * (rgb - picture)
    return quantise(picture)


def segmap(scene: Scene, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return the class of each pixel as a colour of CLASS_RGB, never a mixture."""
    picture = np.zeros((size, size, 3), dtype=np.uint8)
    for figure, front in zip(scene.figures, _fronts(scene, size), strict=True):
        picture[front] = CLASS_RGB[figure.shape]
    return picture


MAPS: dict[str, Callable[[Scene, int], UInt8[np.ndarray, "size size 3"]]] = {
    "sketch": sketch,
    "depth": depth,
    "normal": normal,
    "pose": pose,
    "segmap": segmap,
}


def _fronts(scene: Scene, size: int) -> list[np.ndarray]:
    """Return for each figure the pixels of which it has a larger share than anyone else."""
    shares = coverage(scene, size)
    owner = np.argmax(np.stack([shares.background, *shares.figures]), axis=0)
    return [owner == i + 1 for i in range(len(scene.figures))]


def _rim(distance: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Return 1 at the outline falling to 0 where the rim ends inside."""
    return np.clip(1 + distance / np.float32(RIM), 0, 1)


def _bulge(distance: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Return the height of the bulge, in [0, 1]: sqrt(1 - rim²)."""
    return np.sqrt(1 - _rim(distance) ** 2)


def _bulge_normals(distance: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 3"]:
    """Return unit normals (rim g_x, -rim g_y, sqrt(1 - rim²)), g the outward direction."""
    down, across = np.gradient(distance)
    length = np.maximum(np.sqrt(down**2 + across**2), np.float32(1e-9))
    # on a ridge the outward direction is undefined and its differences cancel: there the figure is
    # flat
    rim = np.where(length > 1e-6, _rim(distance), 0)
    x, y = rim * across / length, rim * -down / length
    return np.stack([x, y, np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))], axis=2).astype(np.float32)
