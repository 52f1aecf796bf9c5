"""Backgrounds: plain colours, five scenes, or a crop of the user's photographs.

A named background has one look and no randomness, so "replace the background with a beach" has one
right answer; a camera may look beyond its edges, where it goes on. Which photograph and which
square of it a scene shows is drawn by the scene's generator, so the world stays a pure function of
seed and index as long as the folder stays as it is. A file that is no picture gives its place to
the next one by name, and is named and counted.
"""

import hashlib
import logging
from collections.abc import Mapping
from copy import copy
from functools import lru_cache, partial
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from datamodules.listing import list_entries
from datamodules.world.palette import PLAIN_BACKGROUNDS, SCENIC_BACKGROUNDS
from datamodules.world.scene import AT_REST, Crop, View
from emu_edit.errors import BadDataError, BadImageError, InputError
from emu_edit.images import read_image
from emu_edit.pictures import EXTENSIONS
from emu_edit.randomness import keyed_generator

logger = logging.getLogger(__name__)


def pixel_centres(size: int) -> Float32[np.ndarray, " size"]:
    """Return the centres of the pixels of one row, in fractions of the side."""
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)


@lru_cache(32)
def named_background(
    name: str, size: int, view: View = AT_REST
) -> Float32[np.ndarray, "size size 3"]:
    """Return what a camera sees of a background, in [0, 255]; read-only, shared by all callers."""
    picture = np.empty((size, size, 3), dtype=np.float32)
    if name in PLAIN_BACKGROUNDS:
        picture[:] = PLAIN_BACKGROUNDS[name]
    else:
        parts = [np.array(rgb, dtype=np.float32) for rgb in SCENIC_BACKGROUNDS[name]]
        at = pixel_centres(size) * np.float32(view.side)
        x, y = at + np.float32(view.left), at + np.float32(view.top)
        _SCENIC[name](picture, parts, x, y, size / view.side)
    picture.flags.writeable = False
    return picture


# a painter gets the colours, the places of columns and rows, and how many pixels a side of the
# world at rest has
_Axis = Float32[np.ndarray, " n"]


def _banded(
    picture: np.ndarray,
    parts: list[np.ndarray],
    x: _Axis,  # noqa: ARG001  bands have no end
    y: _Axis,
    scale: float,
    *,
    edges: tuple[float, ...],
) -> None:
    """Paint horizontal bands of colour with anti-aliased edges."""
    column = np.broadcast_to(parts[0], (len(y), 3)).astype(np.float32)
    for edge, colour in zip(edges, parts[1:], strict=True):
        share = np.clip(0.5 + (y - np.float32(edge)) * scale, 0, 1)[:, None]
        column += share * (colour - column)
    picture[:] = column[:, None, :]


def _sunset(
    picture: np.ndarray,
    parts: list[np.ndarray],
    x: _Axis,  # noqa: ARG001
    y: _Axis,
    scale: float,  # noqa: ARG001
) -> None:
    stops = np.linspace(0, 1, len(parts))
    for channel in range(3):
        column = np.interp(y, stops, [part[channel] for part in parts])
        picture[:, :, channel] = column[:, None]


def _night_sky(
    picture: np.ndarray, parts: list[np.ndarray], x: _Axis, y: _Axis, scale: float
) -> None:
    picture[:] = parts[0] + np.clip(y, 0, 1)[:, None, None] * (parts[1] - parts[0])
    # one fixed sky: the same stars in every picture, and again beyond its edges
    for at_x, at_y, brightness in keyed_generator(0, "world stars", 0).random(
        (24, 3), dtype=np.float32
    ):
        far = np.maximum(_away(x, at_x)[None, :], _away(y, at_y)[:, None])
        star = np.clip(0.5 - (far - np.float32(0.008)) * scale, 0, 1)[..., None] * (
            0.4 + 0.6 * brightness
        )
        picture += star * (np.float32(255) - picture)


def _away(at: _Axis, star: np.float32) -> _Axis:
    """Return the distance to a star along one axis, or to the nearest of its copies beyond."""
    away = np.abs(at - star)
    outside = (at < 0) | (at > 1)
    return np.where(outside, np.abs(away - np.round(away)), away)


def _brick_wall(
    picture: np.ndarray, parts: list[np.ndarray], x: _Axis, y: _Axis, scale: float
) -> None:
    brick, mortar = parts
    course = np.floor(y * 8)
    row_edge = np.abs(y * 8 - np.round(y * 8)) / 8
    shifted = x[None, :] * 4 + 0.5 * (course[:, None] % 2)
    column_edge = np.abs(shifted - np.round(shifted)) / 4
    joint = np.minimum(row_edge[:, None], column_edge)
    share = np.clip(0.5 - (joint - 0.008) * scale, 0, 1)[..., None]
    picture[:] = brick + share * (mortar - brick)


_SCENIC = {
    "meadow": partial(_banded, edges=(0.45,)),
    "beach": partial(_banded, edges=(0.35, 0.62)),
    "sunset": _sunset,
    "night sky": _night_sky,
    "brick wall": _brick_wall,
}


MAX_BAD_IN_A_ROW = 8
MAX_CACHED = 64  # photographs kept in memory, each about 0.8 MB at the default side


class Photos:
    """The pictures of a folder and its sub-folders, by path; each is read when first needed.

    Args:
        folder: where to look for pictures.
        short_side: photographs are kept at most this large; also the sharpest a background can be.

    Attributes:
        bad: the files that were met and are no pictures that can be read, and why.
    """

    def __init__(self, folder: str | Path, short_side: int = 512) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(
                f"photos={str(folder)!r} is not a folder; give a folder with photographs"
            )
        entries = list(list_entries(self.folder))
        if left := [entry for entry in entries if entry.why]:
            what = f"photos={str(folder)!r}: {len(left)} of its entries are not followed"
            logging.getLogger(__name__).warning("%s, first %s: %s", what, left[0].path, left[0].why)
        files = [entry.path for entry in entries if entry.is_file]
        self.paths = sorted(path for path in files if path.suffix.lower() in EXTENSIONS)
        if not self.paths:
            raise InputError(
                f"photos={str(folder)!r} has no pictures; give a folder with "
                f"{', '.join(EXTENSIONS)} files"
            )
        self.short_side = short_side
        self.bad: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def description(self) -> dict[str, object]:
        """What a manifest says about the photographs: folder, number, and a hash of their names."""
        names = "\n".join(path.relative_to(self.folder).as_posix() for path in self.paths)
        digest = hashlib.sha256(names.encode()).hexdigest()[:16]
        return {"folder": self.folder.name, "pictures": len(self.paths), "names": digest}

    def split(self) -> tuple["Photos", "Photos"]:
        """Return two parts that share no photograph: two thirds to learn from, one to test on.

        Raises:
            InputError: if there is but one photograph.
        """
        if len(self) < 2:
            raise InputError(
                f"photos={str(self.folder)!r} has one picture; to learn from some and test on "
                "others, give at least two"
            )
        test = self.paths[2::3] or self.paths[1:]
        return self._part([path for path in self.paths if path not in test]), self._part(test)

    def _part(self, paths: list[Path]) -> "Photos":
        part = copy(self)
        part.paths, part.bad = paths, {}
        return part

    def add_bad(self, bad: Mapping[Path, str]) -> None:
        """Take note of files that cannot be used; each is named once, by the first process."""
        for path, reason in bad.items():
            if path not in self.bad and parent_process() is None:
                logger.warning("the next photograph takes the place of one: %s", reason)
            self.bad.setdefault(path, reason)

    def draw(self, generator: np.random.Generator) -> Crop:
        """Return a square of some photograph: 60 to 100 % of its shorter side, anywhere in it."""
        number = int(generator.integers(len(self.paths)))
        side, left, top = generator.random(3).tolist()
        return Crop(number, left, top, 0.6 + 0.4 * side)

    def picture(self, crop: Crop, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """Return a crop as a square picture; of the next photograph if its own cannot be read.

        Raises:
            BadDataError: if several in a row cannot be read as pictures.
        """
        photo = self._readable(crop.picture)
        side = crop.side * min(photo.size)
        left, top = crop.left * (photo.width - side), crop.top * (photo.height - side)
        box = (left, top, left + side, top + side)
        return np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC, box=box))

    def _readable(self, number: int) -> Image.Image:
        tried = [
            self.paths[(number + k) % len(self)] for k in range(min(MAX_BAD_IN_A_ROW, len(self)))
        ]
        for path in tried:
            if path in self.bad:
                continue
            try:
                return _photo(path, self.short_side)
            except BadImageError as error:
                if isinstance(error.__cause__, MemoryError):
                    raise  # of this machine at this moment: what is read must not depend on it
                self.add_bad({path: str(error)})
        raise BadDataError(
            f"photos={str(self.folder)!r}: {len(tried)} files in a row cannot be read as pictures, "
            f"the last: {self.bad[tried[-1]]}; mend or remove them"
        )


@lru_cache(MAX_CACHED)
def _photo(path: Path, short_side: int) -> Image.Image:
    photo = Image.fromarray(read_image(path).permute(1, 2, 0).contiguous().numpy())
    scale = short_side / min(photo.size)
    if scale < 1:
        smaller = (round(photo.width * scale), round(photo.height * scale))
        photo = photo.resize(smaller, Image.Resampling.LANCZOS)
    return photo
