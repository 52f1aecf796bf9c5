"""Which background a picture has, and which part of it the camera shows.

The view that explains most pixels: of backgrounds of rows from a table of what each row costs at
each height of the world, of the others by correlation, then by damped Gauss-Newton steps on the
renderer. A plain colour shows no camera, rows none that goes sideways, and one horizon hardly a
zoom; what does not show is taken to be at rest.
"""

from functools import cache

import numpy as np
from jaxtyping import Float32, Float64

from datamodules.world.backgrounds import named_background
from datamodules.world.fit import FIT_SCALE, damped_step
from datamodules.world.palette import BACKGROUNDS, PLAIN_BACKGROUNDS
from datamodules.world.scene import AT_REST, Background, View
from datamodules.world.sheet import mismatch

Pixels = Float32[np.ndarray, "h w 3"]
SIDES = tuple(0.6 * 1.045**k for k in range(24))  # of views, 0.6 to 1.65
REACH = 0.25  # how far a view's middle may be from the world's
LOW, HIGH, LEVELS = -0.7, 1.7, 160  # heights of the world at which rows are looked up
FLAT = ("meadow", "beach", "sunset")  # the same in all columns
NEARBY = 0.07
TRIED, FITTED, STEPS = 8, 3, 8
PRICE = 0.006  # share of the pixels that a view far from rest must explain besides
LEAST = 2e-4  # share of the pixels, so much more of which any camera must explain
IN_PLACE = 0.5  # share of the stars that agree when the camera is near rest


def read_background(pixels: Pixels) -> tuple[str, View, float]:
    """Return the named background that explains most pixels, the view of it, and their share."""
    costs = {name: _cost(pixels, name, AT_REST) for name in BACKGROUNDS}
    best = min(costs, key=lambda name: costs[name])
    if best in PLAIN_BACKGROUNDS:
        return best, AT_REST, 1 - costs[best]
    starts = [AT_REST]
    if best in FLAT:
        starts += _rows(pixels, best)
    elif best != "night sky" or not _in_place(pixels):
        starts += _shifts(pixels, best)
    starts.sort(key=lambda view: _cost(pixels, best, view) + _price(view) / 8)
    views = [_fitted(pixels, best, start) for start in starts[:FITTED]]
    view = min(views, key=lambda view: _cost(pixels, best, view) + _price(view) / 8)
    if costs[best] < _cost(pixels, best, view) + _price(view) / 8 + LEAST:
        view = AT_REST
    return best, view, 1 - _cost(pixels, best, view)


def shown_view(background: Background) -> View:
    """Return as much of the view of a named background as `read_background` can see in it."""
    view = background.view
    if background.name in PLAIN_BACKGROUNDS:
        return AT_REST
    return View((1 - view.side) / 2, view.top, view.side) if background.name in FLAT else view


def _cost(pixels: Pixels, name: str, view: View) -> float:
    return float(mismatch(pixels - named_background(name, len(pixels), view)).mean())


def _price(view: View) -> float:
    """Return how much more a view must explain than one at rest, as a share of the pixels."""
    x, y = view.left + view.side / 2 - 0.5, view.top + view.side / 2 - 0.5
    return PRICE * (abs(np.log(view.side)) / 0.3 + np.hypot(x, y) / 0.2)


def _around_middle(x: float, y: float, side: float) -> View:
    return View(0.5 + x - side / 2, 0.5 + y - side / 2, side)


def _rows(pixels: Pixels, name: str) -> list[View]:
    """Return the most promising views of a background that is the same in all columns."""
    size = len(pixels)
    column = named_background(name, LEVELS, View(LOW, LOW, HIGH - LOW))[:, 0]
    colours, which = np.unique(column, axis=0, return_inverse=True)
    costs = mismatch(pixels[:, ::4, None] - colours).mean(axis=1)[:, which.reshape(-1)]
    ways = np.arange(-REACH, REACH, 0.5 / size)
    at = (np.arange(size) + 0.5) / size
    views = []
    for side in SIDES:
        height = 0.5 - side / 2 + ways[:, None] + side * at
        level = ((height - LOW) / (HIGH - LOW) * LEVELS).astype(int).clip(0, LEVELS - 1)
        total = costs[np.arange(size), level].mean(axis=1)
        candidates = [_around_middle(0.0, float(way), side) for way in ways]
        priced = total + np.array([_price(view) for view in candidates])
        best = int(priced.argmin())
        views.append((float(priced[best]), candidates[best]))
    return [view for _, view in sorted(views, key=lambda v: v[0])[:TRIED]]


def _shifts(pixels: Pixels, name: str) -> list[View]:
    """Return the most promising views of a background that has joints or stars."""
    size = len(pixels)
    strange = 2 * _marks(pixels, name) - 1
    views = []
    for side in SIDES:
        room = int(np.ceil(REACH / side * size))
        spectrum = _spectrum(name, side, size, room)
        shape = (size + 2 * room,) * 2
        scores = np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(strange, shape)), shape)
        scores = scores[: 2 * room + 1, : 2 * room + 1] / size**2
        away = (np.arange(2 * room + 1) - room) / size * side
        scores = scores - PRICE * np.hypot(away[:, None], away) / 0.2
        # bricks a period on look the same: the best nearby comes along
        near = np.where(np.maximum(np.abs(away[:, None]), np.abs(away)) < NEARBY, scores, -1)
        for scored in (scores, near):
            y, x = divmod(int(scored.argmax()), len(away))
            view = _around_middle(float(away[x]), float(away[y]), side)
            views.append((float(scored[y, x]), view))
    return [view for _, view in sorted(views, key=lambda v: -v[0])[:TRIED]]


@cache
def _spectrum(name: str, side: float, size: int, room: int) -> np.ndarray:
    """Return the spectrum of the marks of a background at a zoom, with room around it."""
    wide = side * (size + 2 * room) / size
    return np.fft.rfft2(
        _marks(named_background(name, size + 2 * room, _around_middle(0.0, 0.0, wide)), name)
    )


def _marks(pixels: Pixels, name: str) -> Float32[np.ndarray, "h w"]:
    """Return how far each pixel is from the colours that most of a background has."""
    first, last = (np.array(rgb, dtype=np.float32) for rgb in BACKGROUNDS[name])
    shares = (0.0,) if name == "brick wall" else (0.0, 0.5, 1.0)  # the sky goes from one to other
    off = [mismatch(pixels - (first + np.float32(share) * (last - first))) for share in shares]
    return np.minimum.reduce(off)


def _in_place(pixels: Pixels) -> bool:
    """Tell whether the stars of a night sky are where they are for a camera at rest."""
    here = named_background("night sky", len(pixels))
    stars = _marks(here, "night sky") > 0.5
    return 1 - float(mismatch(pixels - here)[stars].mean()) > IN_PLACE


def _fitted(pixels: Pixels, name: str, view: View) -> View:
    """Return the view nearby that explains most."""
    size = len(pixels)
    step = 0.3 / size
    drawn = named_background(name, size, view)
    cost = float(mismatch(pixels - drawn, FIT_SCALE).sum())
    damping = 1e-2
    for _ in range(STEPS):
        slopes = np.stack([
            named_background(name, size, _moved(view, change)) - drawn
            for change in np.eye(3) * step
        ])
        trial = _moved(view, damped_step(pixels - drawn, slopes, damping) * step)
        new_drawn = named_background(name, size, trial)
        new_cost = float(mismatch(pixels - new_drawn, FIT_SCALE).sum())
        if new_cost >= cost:
            if damping > 1:
                break
            damping *= 100
            continue
        small = cost - new_cost < 1e-3 * (1 + cost)
        view, drawn, cost = trial, new_drawn, new_cost
        if small:
            break
    return view


def _moved(view: View, change: Float64[np.ndarray, " 3"]) -> View:
    """Return a view whose middle goes and whose side grows by a little."""
    x, y, grown = change.tolist()
    side = min(max(view.side + grown, 0.5), 2.0)
    half = (side - view.side) / 2
    return View(view.left + x - half, view.top + y - half, side)
