"""Shapes as signed distances: negative inside, positive outside, in fractions of the side.

From a distance follow an anti-aliased coverage, an outline, a relief and its normals, all without
pixels being counted, at any size. Everything but the circle and the person is a polygon; a person
is a union of thick segments. Source: the distance to a segment and to a polygon are textbook
geometry; inside is decided by crossing parity. Letters are a 5x7 bitmap alphabet drawn for this
world: how much of each pixel a word covers is the product of two overlap matrices, one for rows and
one for columns, so letters are crisp at 64 px and smooth at any other size.
"""

from functools import cache

import numpy as np
from jaxtyping import Float32

from datamodules.world.scene import Person, Pose, Thing

LIMB_RADIUS = 0.045  # of a person's limbs, in heights
HEAD_RADIUS = 0.105
NECK, HIP = 0.23, 0.56  # how far below the top of the head, in heights
UPPER_ARM, FOREARM, THIGH, SHIN = 0.18, 0.17, 0.22, 0.22

# joints: 0 head, 1 neck, 2 hip, then left and right: 3/4 elbows, 5/6 hands, 7/8 knees, 9/10 feet
LIMBS = ((0, 1), (1, 2), (1, 3), (3, 5), (1, 4), (4, 6), (2, 7), (7, 9), (2, 8), (8, 10))


@cache
def corners(shape: str) -> Float32[np.ndarray, "n 2"]:
    """Return the corners of a polygonal shape inside the unit circle, (x, y), y downwards."""
    match shape:
        case "square":
            points = [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]
        case "triangle":
            points = [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)]
        case "cross":
            a, b = 0.34, 0.94
            points = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
            points += [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        case "star":
            angles = np.arange(10) * np.pi / 5
            radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
            points = np.stack([radii * np.sin(angles), 0.05 - radii * np.cos(angles)], axis=1)
        case "heart":
            # the classical heart curve x = 16 sin³, y = 13 cos - 5 cos 2 - 2 cos 3 - cos 4, scaled
            # to the circle
            s = np.linspace(0, 2 * np.pi, 20, endpoint=False)
            x = 16 * np.sin(s) ** 3
            y = 13 * np.cos(s) - 5 * np.cos(2 * s) - 2 * np.cos(3 * s) - np.cos(4 * s)
            points = np.stack([x / 16.5, -(y + 2) / 16.5], axis=1)
        case _:
            raise ValueError(f"no polygon for the shape {shape!r}")
    return np.asarray(points, dtype=np.float32)


def thing_distance(
    thing: Thing, x: Float32[np.ndarray, "#h #w"], y: Float32[np.ndarray, "#h #w"]
) -> Float32[np.ndarray, "h w"]:
    """Return the signed distance to a thing at points: a row of x and a column of y, or any."""
    x, y = own_axes(thing, x, y)
    if thing.shape == "circle":
        return np.sqrt(x**2 + y**2) - np.float32(thing.radius * 0.95)
    return _polygon_distance(corners(thing.shape) * np.float32(thing.radius), x, y)


def own_axes(
    thing: Thing, x: Float32[np.ndarray, "#h #w"], y: Float32[np.ndarray, "#h #w"]
) -> tuple[Float32[np.ndarray, "_ _"], Float32[np.ndarray, "_ _"]]:
    """Return points as the thing sees them: from its centre, turned back by its angle."""
    x, y = x - np.float32(thing.x), y - np.float32(thing.y)
    if thing.angle == 0:
        return x, y
    c, s = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    return c * x + s * y, c * y - s * x


def person_distance(
    person: Person, x: Float32[np.ndarray, "#h #w"], y: Float32[np.ndarray, "#h #w"]
) -> Float32[np.ndarray, "h w"]:
    """Return the signed distance to a person: limbs of one thickness and a round head."""
    points = joints(person)
    limbs = limb_distances(points, x, y).min(axis=0) - np.float32(LIMB_RADIUS * person.height)
    head = np.sqrt((x - points[0, 0]) ** 2 + (y - points[0, 1]) ** 2)
    return np.minimum(limbs, head - np.float32(HEAD_RADIUS * person.height))


def joints(person: Person) -> Float32[np.ndarray, "11 2"]:
    """Return a person's joints: head, neck, hip, elbows, hands, knees, feet; left first."""
    return _joints(person.pose) * np.float32(person.height) + np.array(
        (person.x, person.y - person.height / 2), dtype=np.float32
    )


@cache
def _joints(pose: Pose) -> Float32[np.ndarray, "11 2"]:
    """Return the joints for a height of one, the top of the head at the origin."""
    angles = (*pose.upper_arms, *pose.forearms, *pose.thighs, *pose.shins)
    neck, hip = np.array((0.0, NECK)), np.array((0.0, HIP))
    directions = [
        np.array((side * np.sin(a), np.cos(a))) for a, side in zip(angles, (-1, 1) * 4, strict=True)
    ]
    elbows = [neck + UPPER_ARM * d for d in directions[0:2]]
    hands = [elbow + FOREARM * d for elbow, d in zip(elbows, directions[2:4], strict=True)]
    knees = [hip + THIGH * d for d in directions[4:6]]
    feet = [knee + SHIN * d for knee, d in zip(knees, directions[6:8], strict=True)]
    head = np.array((0.0, HEAD_RADIUS))
    return np.array([head, neck, hip, *elbows, *hands, *knees, *feet], dtype=np.float32)


def limb_distances(
    points: Float32[np.ndarray, "11 2"],
    x: Float32[np.ndarray, "#h #w"],
    y: Float32[np.ndarray, "#h #w"],
) -> Float32[np.ndarray, "10 h w"]:
    """Return the distance to the axis of each limb."""
    start, end = np.array(LIMBS).T
    return np.sqrt(_segment_distances_squared(points[start], points[end], x, y))


def _segment_distances_squared(
    start: Float32[np.ndarray, "n 2"],
    end: Float32[np.ndarray, "n 2"],
    x: Float32[np.ndarray, "#h #w"],
    y: Float32[np.ndarray, "#h #w"],
) -> Float32[np.ndarray, "n h w"]:
    """Return squared distances to n segments: |p - a - clamp((p-a)·e / e·e) e|² with e = b - a."""
    edge = end - start
    edge_x, edge_y = edge[:, 0, None, None], edge[:, 1, None, None]
    from_x, from_y = x - start[:, 0, None, None], y - start[:, 1, None, None]
    squared = np.maximum(edge_x**2 + edge_y**2, np.float32(1e-12))
    along = from_x * (edge_x / squared) + from_y * (edge_y / squared)
    np.clip(along, 0, 1, out=along)
    off_x, off_y = from_x - along * edge_x, from_y - along * edge_y
    return off_x * off_x + off_y * off_y


def _polygon_distance(
    points: Float32[np.ndarray, "n 2"],
    x: Float32[np.ndarray, "#h #w"],
    y: Float32[np.ndarray, "#h #w"],
) -> Float32[np.ndarray, "h w"]:
    following = np.roll(points, -1, axis=0)
    distance = np.sqrt(_segment_distances_squared(points, following, x, y).min(axis=0))
    # a ray to the left crosses an edge where the edge spans the row and its crossing lies left of
    # the pixel
    start_x, start_y = points[:, 0, None, None], points[:, 1, None, None]
    end_x, end_y = following[:, 0, None, None], following[:, 1, None, None]
    spans = (start_y > y) != (end_y > y)
    rise = np.where(end_y == start_y, np.float32(1), end_y - start_y)
    crossing = start_x + (y - start_y) * (end_x - start_x) / rise
    inside = np.logical_xor.reduce(spans & (crossing < x), axis=0)
    return np.where(inside, -distance, distance)


ROWS, COLUMNS = 7, 5
CELL = 1 / 32  # side of a bitmap cell in fractions of the picture: two pixels at 64 px
BAND_TOP = {"top": 1.5 * CELL, "bottom": 1 - (ROWS + 1.5) * CELL}

_LETTERS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "G": "01111 10000 10000 10011 10001 10001 01111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "I": "01110 00100 00100 00100 00100 00100 01110",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "N": "10001 11001 11001 10101 10011 10011 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 10001 01010 01010 00100",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
}


def bitmap(text: str) -> Float32[np.ndarray, "7 n"]:
    """Return a word as ones and zeros, one empty column between letters."""
    letters = [
        np.array([[int(bit) for bit in row] for row in _LETTERS[letter].split()], dtype=np.float32)
        for letter in text
    ]
    gap = np.zeros((ROWS, 1), dtype=np.float32)
    columns = [part for letter in letters for part in (gap, letter)]
    return np.concatenate(columns[1:], axis=1)


@cache
def word_coverage(text: str, band: str, size: int) -> Float32[np.ndarray, "size size"]:
    """Return how much of each pixel the word covers, in [0, 1]; centred in its band."""
    cells = bitmap(text)
    rows = _overlap(size, BAND_TOP[band], cells.shape[0])
    columns = _overlap(size, 0.5 - cells.shape[1] * CELL / 2, cells.shape[1])
    coverage = np.clip(rows @ cells @ columns.T, 0, 1)
    coverage.flags.writeable = False
    return coverage


def _overlap(size: int, start: float, cells: int) -> Float32[np.ndarray, "size cells"]:
    """Return which share of each pixel each cell covers along one axis; cells begin at `start`."""
    cell = (start + CELL * np.arange(cells)) * size
    pixel = np.arange(size)[:, None]
    overlap = np.minimum(pixel + 1, cell + CELL * size) - np.maximum(pixel, cell)
    # letters that begin inside a pixel would blur at 64 px; float error below a thousandth is no
    # overlap
    return np.where(overlap < 1e-3, 0, overlap).astype(np.float32)
