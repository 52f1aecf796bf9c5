"""Where one figure of a known colour is in a picture, when the rest of the scene is known.

Coarse: for each pixel, how much better the figure's colour (or the dark one of its textures)
explains it than the scene so far does; the sum of that over a shape, at every pixel and for a
ladder of sizes, is one Fourier correlation. Fine: damped Gauss-Newton steps on the world's own
renderer, hidden parts and neighbours included. Source: the
correlation theorem and Levenberg-Marquardt are textbook.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Float32, Float64

from datamodules.world.palette import SHAPES
from datamodules.world.render import DARK
from datamodules.world.scene import Figure, Person, Pose, Texture, Thing
from datamodules.world.sheet import Map, Sheet, around, mismatch, rgb_of
from datamodules.world.sprites import (
    FOREARM,
    HEAD_RADIUS,
    HIP,
    LIMB_RADIUS,
    NECK,
    SHIN,
    THIGH,
    UPPER_ARM,
    thing_distance,
)

COARSE_SCALE = 64.0  # of the coarse search, which does not blur what it looks for
FIT_SCALE = 80.0  # while fitting; wide enough that an edge a pixel off still pulls
RADII = tuple(0.08 * 1.13**k for k in range(11))  # 5 to 17 pixels at 64
HEIGHTS = (0.5, 0.58, 0.66, 0.74, 0.83)  # of persons
TEXTURES: tuple[Texture, ...] = ("plain", "striped", "dotted", "checkered")
SHAPES_TRIED = 3  # of a colour, after the coarse search
MIN_GAIN = 25.0  # pixels at 64 that a figure must explain; the smallest star has about 40
MIN_SEED = 12  # pixels at 64 of a colour, below which no thing is looked for at all angles
MIN_TRUNK = 0.5  # share of head and trunk that a person's colour must explain
MIN_PERSON = 130  # pixels at 64 of a colour, below which no person is looked for
STEPS, PERSON_STEPS = 6, 12


@dataclass(frozen=True)
class Candidate:
    """A figure and what it adds: how many pixels more are explained with it than without."""

    figure: Figure
    gain: float


def candidates(sheet: Sheet, colour: str, errors: Map, coarse_errors: Map) -> list[Candidate]:
    """Return figures of one colour where they explain most, not yet fitted; best first.

    The errors are those of the sheet as it is, and the same at the scale of the coarse search.
    """
    gain = coarse_errors - colour_errors(sheet.picture, colour)
    pixels = int((gain > 0.5).sum()) * (64 / sheet.size) ** 2
    if pixels < MIN_GAIN:
        return []
    # a blurred rim against the dark is a mixture too: plain things are found by the colour alone
    plain = coarse_errors - mismatch(sheet.picture - rgb_of(colour), COARSE_SCALE)
    figures: list[Figure] = [*_coarse_things(plain, colour)]
    for thing in _coarse_things(gain, colour):
        figures += [replace(thing, texture=texture) for texture in TEXTURES]
    if pixels > MIN_PERSON:
        persons = _coarse_persons(gain, colour)
        figures += sorted(persons, key=lambda p: -sheet.gain(p, errors))[:1]
    found = [Candidate(figure, sheet.gain(figure, errors)) for figure in figures]
    return sorted(found, key=lambda c: -c.gain)


def seeds(sheet: Sheet, colour: str, coarse_errors: Map) -> list[Thing]:
    """Return where a thing of a colour may be, whatever its pattern is."""
    gain = coarse_errors - colour_errors(sheet.picture, colour)
    if int((gain > 0.5).sum()) * (64 / sheet.size) ** 2 < MIN_SEED:
        return []
    return _coarse_things(gain, colour)[:1]


def colour_errors(picture: Float32[np.ndarray, "h w 3"], colour: str) -> Map:
    """Return how badly a figure's colour explains each pixel, or the dark one, or a mixture."""
    light = light_share(picture, colour)
    return mismatch(picture - light[..., None] * rgb_of(colour), COARSE_SCALE)


def light_share(picture: Float32[np.ndarray, "h w 3"], colour: str) -> Map:
    """Return how bright each pixel is, 1 where it is a figure's colour, DARK or more."""
    rgb = rgb_of(colour)
    return np.clip(picture @ rgb / (rgb @ rgb), np.float32(DARK), 1)


def fitted(sheet: Sheet, figure: Figure) -> Candidate:
    """Return the figure moved, sized and posed so that the picture fits it best nearby."""
    window = around(figure, sheet.size)
    values = _values(figure)
    steps = np.array([0.3 / sheet.size] * 3 + [0.06] * (len(values) - 3))  # pixels, then radians
    drawn = sheet.drawn(window, figure)
    cost = float(mismatch(sheet.picture[window] - drawn, FIT_SCALE).sum())
    damping = 1e-2
    for _ in range(STEPS if isinstance(figure, Thing) else PERSON_STEPS):
        slopes = np.stack([
            (sheet.drawn(window, _with_values(figure, values + step)) - drawn)
            for step in np.diag(steps)
        ])
        move = damped_step(sheet.picture[window] - drawn, slopes, damping)
        trial = values + move * steps
        new_drawn = sheet.drawn(window, _with_values(figure, trial))
        new_cost = float(mismatch(sheet.picture[window] - new_drawn, FIT_SCALE).sum())
        if new_cost >= cost:
            if damping > 1:
                break
            damping *= 100
            continue
        small = cost - new_cost < 1e-3 * (1 + cost)
        values, drawn, cost = trial, new_drawn, new_cost
        if small:
            break
    figure = _with_values(figure, values)
    return Candidate(figure, sheet.gain(figure))


def damped_step(
    difference: Float32[np.ndarray, "h w 3"], slopes: Float32[np.ndarray, "n h w 3"], damping: float
) -> Float64[np.ndarray, " n"]:
    """Return the damped Gauss-Newton step, in units of the slopes' steps, at most four of them."""
    weight = 1 - mismatch(difference, FIT_SCALE)
    weighted = (slopes * weight[..., None]).reshape(len(slopes), -1).astype(np.float64)
    normal = weighted @ slopes.reshape(len(slopes), -1).T.astype(np.float64)
    normal += np.diag(damping * np.diag(normal) + 1.0)
    return np.clip(np.linalg.solve(normal, weighted @ difference.reshape(-1)), -4, 4)


def _values(figure: Figure) -> Float64[np.ndarray, " n"]:
    """Return what is fitted of a figure as numbers."""
    if isinstance(figure, Thing):
        straight = (figure.x, figure.y, figure.radius)
        if figure.angle == 0 and figure.grain == 1:
            return np.array(straight)
        more = () if figure.texture == "plain" else (figure.grain,)
        return np.array((*straight, figure.angle, *more))
    pose = figure.pose
    angles = (*pose.upper_arms, *pose.forearms, *pose.thighs, *pose.shins)
    return np.array((figure.x, figure.y, figure.height, *angles))


def _with_values(figure: Figure, values: Float64[np.ndarray, " n"]) -> Figure:
    """Return the figure with other numbers, kept in reach of the picture."""
    x, y = np.clip(values[:2], -0.1, 1.1).tolist()
    if isinstance(figure, Thing):
        radius = float(np.clip(values[2], 0.06, 0.35))
        turned = replace(figure, x=x, y=y, radius=radius)
        if len(values) > 3:
            turned = replace(turned, angle=float(values[3]))
        if len(values) > 4:
            turned = replace(turned, grain=float(np.clip(values[4], radius / 0.26, radius / 0.085)))
        return turned
    a = values[3:].tolist()
    pose = Pose((a[0], a[1]), (a[2], a[3]), (a[4], a[5]), (a[6], a[7]))
    return replace(figure, x=x, y=y, height=float(np.clip(values[2], 0.4, 1.0)), pose=pose)


def _coarse_things(gain: Map, colour: str) -> list[Thing]:
    """Return the best place and radius of each of the most promising shapes."""
    size = len(gain)
    spectra, areas = _thing_spectra(size)
    # a thing much larger than what its colour explains has no chance; half of it may be hidden
    ladder = np.flatnonzero(areas < 2.5 * np.count_nonzero(gain > 0.5))
    if len(ladder) == 0:
        return []
    scores = _correlated(gain, spectra[ladder])
    best: dict[str, tuple[float, Thing]] = {}
    for number, of_mask in zip(ladder.tolist(), scores, strict=True):
        shape, radius = SHAPES[number // len(RADII)], RADII[number % len(RADII)]
        y, x = divmod(int(of_mask.argmax()), size)
        score = float(of_mask[y, x])
        if shape not in best or score > best[shape][0]:
            place = (x + 0.5) / size, (y + 0.5) / size
            best[shape] = score, Thing(shape, colour, "plain", *place, radius)
    return [thing for _, thing in sorted(best.values(), key=lambda p: -p[0])[:SHAPES_TRIED]]


def _correlated(gain: Map, spectra: np.ndarray) -> Float32[np.ndarray, "n h w"]:
    """Return the sum of the gain over each mask, centred at each pixel."""
    size, side = len(gain), spectra.shape[1]
    spectrum = np.fft.rfft2(gain, (side, side))
    return np.fft.irfft2(spectrum * spectra, (side, side))[:, :size, :size]


@cache
def _thing_spectra(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return spectra and areas in pixels of every shape at every radius, radii running faster."""
    masks = []
    for shape in SHAPES:
        for radius in RADII:
            at = offsets(radius * 1.1, size)
            thing = Thing(shape, "red", "plain", 0.0, 0.0, radius)
            distance = thing_distance(thing, at[None, :], at[:, None])
            masks.append(np.clip(0.5 - distance * size, 0, 1))
    return _spectra(masks, size), np.array([mask.sum() for mask in masks])


@cache
def _person_spectra(size: int) -> np.ndarray:
    """Return the spectra of head and trunk, the same in every pose; centred at the neck."""
    masks = []
    for height in HEIGHTS:
        at = offsets(HIP * height, size)
        y = at[:, None] / height
        head = np.hypot(at[None, :] / height, y + NECK - HEAD_RADIUS) - HEAD_RADIUS
        along = np.clip(y, 0, HIP - NECK)
        trunk = np.hypot(at[None, :] / height, y - along) - LIMB_RADIUS
        masks.append(np.clip(0.5 - np.minimum(head, trunk) * height * size, 0, 1))
    return _spectra(masks, size)


def offsets(reach: float, size: int) -> Float32[np.ndarray, " n"]:
    """Return the places of pixels around one, as far as a reach, in fractions of the side."""
    pixels = int(np.ceil(reach * size)) + 1
    return np.arange(-pixels, pixels + 1, dtype=np.float32) / np.float32(size)


def _spectra(masks: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Return the conjugate spectra of odd masks whose centres go to the origin."""
    side = size + max(len(mask) for mask in masks) // 2 + 1
    side += -side % 6  # a length the transform is fast at
    spectra = []
    for mask in masks:
        centred = np.zeros((side, side), dtype=np.float32)
        centred[: len(mask), : len(mask)] = mask
        reach = len(mask) // 2
        spectra.append(np.conj(np.fft.rfft2(np.roll(centred, (-reach, -reach), (0, 1)))))
    return np.array(spectra)


def _coarse_persons(gain: Map, colour: str) -> list[Person]:
    """Return persons in the most promising places, each limb where most of the gain is."""
    size = len(gain)
    scores = _correlated(gain, _person_spectra(size))
    trunk = HEAD_RADIUS**2 * np.pi + 2 * LIMB_RADIUS * (HIP - NECK)  # area at a height of one
    smooth = _smoothed(gain)
    found = []
    for k, height in enumerate(HEIGHTS):
        y, x = np.unravel_index(int(scores[k].argmax()), scores[k].shape)
        if scores[k, y, x] > MIN_TRUNK * trunk * (height * size) ** 2:
            # the trunk is long and even, so where the neck is remains open to a few pixels
            for shift in (-0.04, 0, 0.04):
                neck = np.array(((x + 0.5) / size, (y + 0.5) / size + shift))
                found.append(_posed(smooth, colour, neck, height))
    return found


def _smoothed(gain: Map) -> Map:
    padded = np.pad(gain, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9


def _posed(gain: Map, colour: str, neck: Float64[np.ndarray, " 2"], height: float) -> Person:
    """Return a person with the four limbs along which the gain is greatest."""
    hip = neck + np.array((0, (HIP - NECK) * height))
    arms = np.linspace(0.0, 3.0, 21), np.linspace(-0.1, 3.1, 22)
    legs = np.linspace(-0.2, 1.0, 13), np.linspace(-0.6, 1.0, 17)
    angles = []
    gain = _without_trunk(gain, neck, height)
    for start, lengths, grids in (
        (neck, (UPPER_ARM * height, FOREARM * height), arms),
        (hip, (THIGH * height, SHIN * height), legs),
    ):
        for side in (-1, 1):
            angles.append(_limb(gain, start, lengths, grids, side))
    (a, b), (c, d), (e, f), (g, h) = angles
    pose = Pose((a, c), (b, d), (e, g), (f, h))
    x, y = neck[0], neck[1] + (0.5 - NECK) * height
    return Person(colour, float(x), float(y), height, pose)


def _without_trunk(gain: Map, neck: Float64[np.ndarray, " 2"], height: float) -> Map:
    """Return the gain without that of head and trunk, which no limb may count once more."""
    at = (np.arange(len(gain)) + 0.5) / len(gain)
    x, y = (at - neck[0])[None, :] / height, (at - neck[1])[:, None] / height
    head = np.hypot(x, y + NECK - HEAD_RADIUS) < HEAD_RADIUS * 1.15
    trunk = np.hypot(x, y - np.clip(y, 0, HIP - NECK)) < LIMB_RADIUS * 1.3
    return np.where(head | trunk, 0, gain)


def _limb(
    gain: Map,
    start: Float64[np.ndarray, " 2"],
    lengths: tuple[float, float],
    grids: tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " m"]],
    side: int,
) -> tuple[float, float]:
    """Return the two angles of the limb along which the gain is greatest."""
    size = len(gain)
    first, second = (np.stack([side * np.sin(g), np.cos(g)], axis=-1) for g in grids)
    along = np.linspace(0.2, 1, 5)[:, None, None]
    upper_points = start + along * lengths[0] * first
    elbows = start + lengths[0] * first
    lower_points = elbows[None, :, None] + along[..., None] * lengths[1] * second
    upper = _sampled(gain, upper_points).mean(axis=0) * lengths[0] * size
    lower = _sampled(gain, lower_points).mean(axis=0) * lengths[1] * size
    scores = upper[:, None] + lower
    i, j = np.unravel_index(int(scores.argmax()), scores.shape)
    return float(grids[0][i]), float(grids[1][j])


def _sampled(gain: Map, points: Float64[np.ndarray, "*any 2"]) -> np.ndarray:
    """Return the gain at points; those outside the picture have none."""
    size = len(gain)
    pixel = np.floor(points * size).astype(int)
    inside = ((pixel >= 0) & (pixel < size)).all(axis=-1)
    x, y = np.moveaxis(np.clip(pixel, 0, size - 1), -1, 0)
    return np.where(inside, gain[y, x], 0)
