"""A folder of the user's photographs as backgrounds of the world.

Which photograph and which square of it a scene shows is drawn by the scene's generator, so the
world stays a pure function of seed and index as long as the folder's files and their names stay the
same.
"""

import hashlib
from collections import OrderedDict
from copy import copy
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from datamodules.world.scene import Crop
from emu_edit.errors import InputError
from emu_edit.images import read_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_CACHED = 64  # photographs kept in memory, each about 0.8 MB at the default side


class Photos:
    """The pictures of a folder and its sub-folders, by path; each is read when first needed.

    Args:
        folder: where to look for .jpg, .jpeg, .png and .webp files.
        short_side: photographs are kept at most this large; also the sharpest a background can be.
    """

    def __init__(self, folder: str | Path, short_side: int = 512) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(
                f"photos={str(folder)!r} is not a folder; give a folder with photographs"
            )
        self.paths = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.paths:
            raise InputError(
                f"photos={str(folder)!r} has no pictures; give a folder with "
                f"{', '.join(SUFFIXES)} files"
            )
        self.short_side = short_side
        self._cache: OrderedDict[int, Image.Image] = OrderedDict()

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
        part.paths, part._cache = paths, OrderedDict()
        return part

    def draw(self, generator: np.random.Generator) -> Crop:
        """Return a square of some photograph: 60 to 100 % of its shorter side, anywhere in it."""
        number = int(generator.integers(len(self.paths)))
        side, left, top = generator.random(3).tolist()
        return Crop(number, left, top, 0.6 + 0.4 * side)

    def picture(self, crop: Crop, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """Return a crop as a square picture.

        Raises:
            BadImageError: if the file cannot be read as a picture.
        """
        photo = self._photo(crop.picture)
        side = crop.side * min(photo.size)
        left, top = crop.left * (photo.width - side), crop.top * (photo.height - side)
        box = (left, top, left + side, top + side)
        return np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC, box=box))

    def _photo(self, number: int) -> Image.Image:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        pixels = read_image(self.paths[number]).permute(1, 2, 0).contiguous().numpy()
        photo = Image.fromarray(pixels)
        scale = self.short_side / min(photo.size)
        if scale < 1:
            smaller = (round(photo.width * scale), round(photo.height * scale))
            photo = photo.resize(smaller, Image.Resampling.LANCZOS)
        self._cache[number] = photo
        if len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        return photo
