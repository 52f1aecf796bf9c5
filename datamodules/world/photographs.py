"""Photographs: where they are, whose they are, which are learnt from, and squares of them.

They lie in folders of the user, or come with packages that `photographs.yaml` names with each
file's licence and author; none is part of this program. Which are kept for tests is decided by the
bytes of each file, so a photograph that was learnt from never becomes one to test on, whatever else
is installed later. Which photograph and which square of it a scene shows is drawn by the scene's
generator, so the world stays a pure function of seed and index as long as the photographs stay as
they are. A file that is no picture gives its place to the next one, and is named and counted.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import UInt8
from PIL import Image

from datamodules.listing import list_entries
from datamodules.world.scene import Crop
from emu_edit.errors import BadDataError, BadImageError, InputError
from emu_edit.files import sha256_of
from emu_edit.images import read_image
from emu_edit.pictures import EXTENSIONS

logger = logging.getLogger(__name__)

INSTALLED = "installed"  # in place of a folder: the photographs of the packages below
VERSION = 1  # raised whenever the same pictures, seed and index give another pair
TEST_ONE_IN = 5  # photographs
MAX_BAD_IN_A_ROW = 8
MAX_CACHED = 128  # photographs kept in memory, each about 0.8 MB at the default side


@dataclass(frozen=True)
class Photograph:
    """A file and whose it is; package, licence and author are "" where nobody says.

    `has_sky` where a person saw that its sky is found.
    """

    path: Path
    name: str
    package: str = ""
    licence: str = ""
    author: str = ""
    has_sky: bool = False


class Photos:
    """Photographs of folders, their sub-folders, and packages; each is read when first needed.

    Args:
        places: folders, or `installed` for those of packages, see `photographs.yaml`.
        share: of the scenes before a photograph; the others have a background of the world.
        short_side: photographs are kept at most this large; also the sharpest a background can be.

    Attributes:
        bad: the files that were met and are no pictures that can be read, and why.
    """

    def __init__(
        self,
        places: str | Path | Sequence[str | Path],
        share: float = 1.0,
        short_side: int = 512,
    ) -> None:
        if not 0 < share <= 1:
            raise InputError(f"photo_share={share} must be above 0 and at most 1")
        given = [places] if isinstance(places, str | Path) else places
        self.places = [str(place) for place in given]
        self.photographs = [photo for place in self.places for photo in _found(place)]
        self.share, self.short_side = share, short_side
        self.part = "all"
        self.bad: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.photographs)

    @property
    def paths(self) -> list[Path]:
        """The files, in their order."""
        return [photo.path for photo in self.photographs]

    @property
    def where(self) -> str:
        """The places, for messages."""
        return f"photos={', '.join(map(repr, self.places))}"

    @property
    def description(self) -> dict[str, object]:
        """What a manifest says: places, part, number, licences, and a hash of the files' names."""
        names = "\n".join(photo.name for photo in self.photographs)
        licences = Counter(
            f"{photo.package}: {photo.licence}" for photo in self.photographs if photo.package
        )
        return {
            "version": VERSION,
            "folder": ", ".join(Path(place).name for place in self.places),
            "part": self.part,
            "share": self.share,
            "pictures": len(self),
            "names": hashlib.sha256(names.encode()).hexdigest()[:16],
            **({"licences": dict(sorted(licences.items()))} if licences else {}),
        }

    def table(self) -> list[dict[str, str]]:
        """Return a row for each photograph: name, package, licence, author, SHA-256."""
        named = ("name", "package", "licence", "author")
        return [
            {**{name: getattr(photo, name) for name in named}, "sha256": _sha256(photo.path)}
            for photo in self.photographs
        ]

    def split(self) -> tuple["Photos", "Photos"]:
        """Return those to learn from, about four fifths, and those to test on.

        By the hash of each file: the same photograph always falls to the same side, and of two
        files that are equal only the first counts. Where one side would have none, it gets the
        photograph of the smallest hash.

        Raises:
            InputError: if there is but one photograph.
        """
        hashes: dict[str, Photograph] = {}
        for photo in self.photographs:
            hashes.setdefault(_sha256(photo.path), photo)
        if len(hashes) < 2:
            raise InputError(
                f"{self.where} has one picture; to learn from some and test on others, give at "
                "least two"
            )
        tested = {sha256 for sha256 in hashes if int(sha256[:8], 16) % TEST_ONE_IN == 0}
        if not tested or len(tested) == len(hashes):
            tested ^= {min(hashes)}
        parts = ([p for s, p in hashes.items() if (s in tested) == side] for side in (False, True))
        learn, test = parts
        return self._part(learn, "train"), self._part(test, "heldout")

    def of_split(self, split: str) -> "Photos":
        """Return the photographs for a split of the world: training, or any of those to test on.

        A single photograph is one to test on.
        """
        if len(self) == 1 and split != "train":
            return self
        learn, test = self.split()
        return learn if split == "train" else test

    def _part(self, photographs: list[Photograph], name: str) -> "Photos":
        part = copy(self)
        part.photographs, part.part, part.bad = photographs, name, {}
        return part

    def add_bad(self, bad: Mapping[Path, str]) -> None:
        """Take note of files that cannot be used; each is named once, by the first process."""
        for path, reason in bad.items():
            if path not in self.bad and parent_process() is None:
                logger.warning("the next photograph takes the place of one: %s", reason)
            self.bad.setdefault(path, reason)

    @property
    def always(self) -> "Photos":
        """The same photographs, as the background of every scene."""
        always = copy(self)
        always.share = 1.0
        return always

    def draw(self, generator: np.random.Generator) -> Crop:
        """Return a square of some photograph: 60 to 100 % of its shorter side, anywhere in it."""
        number = int(generator.integers(len(self)))
        side, left, top = generator.random(3).tolist()
        return Crop(number, left, top, 0.6 + 0.4 * side)

    def picture(self, crop: Crop, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """Return a crop as a square picture; of the next photograph if its own cannot be read.

        Raises:
            BadDataError: if several in a row cannot be read as pictures.
        """
        photo = self._readable(crop.picture)[1]
        side = crop.side * min(photo.size)
        left, top = crop.left * (photo.width - side), crop.top * (photo.height - side)
        box = (left, top, left + side, top + side)
        return np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC, box=box))

    def of(self, crop: Crop) -> Photograph:
        """Return the photograph that a crop shows."""
        return self._readable(crop.picture)[0]

    def _readable(self, number: int) -> tuple[Photograph, Image.Image]:
        tried = [
            self.photographs[(number + k) % len(self)]
            for k in range(min(MAX_BAD_IN_A_ROW, len(self)))
        ]
        for photo in tried:
            if photo.path in self.bad:
                continue
            try:
                return photo, _photo(photo.path, self.short_side)
            except BadImageError as error:
                if isinstance(error.__cause__, MemoryError):
                    raise  # of this machine at this moment: what is read must not depend on it
                self.add_bad({photo.path: str(error)})
        raise BadDataError(
            f"{self.where}: {len(tried)} files in a row cannot be read as pictures, "
            f"the last: {self.bad[tried[-1].path]}; mend or remove them"
        )


def _found(place: str) -> list[Photograph]:
    """Return the photographs of a place.

    Raises:
        InputError: if there are none.
    """
    return installed() if place == INSTALLED else _of_folder(Path(place))


def _of_folder(folder: Path) -> list[Photograph]:
    """Return the pictures of a folder and its sub-folders, by path."""
    where = f"photos={str(folder)!r}"
    if not folder.is_dir():
        raise InputError(
            f"{where} is not a folder; give a folder with photographs, or {INSTALLED!r} for those "
            "of packages"
        )
    entries = list(list_entries(folder))
    if left := [entry for entry in entries if entry.why]:
        what = f"{where}: {len(left)} of its entries are not followed"
        logger.warning("%s, first %s: %s", what, left[0].path, left[0].why)
    files = (entry.path for entry in entries if entry.is_file)
    paths = sorted(path for path in files if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise InputError(
            f"{where} has no pictures; give a folder with {', '.join(EXTENSIONS)} files"
        )
    return [Photograph(path, path.relative_to(folder).as_posix()) for path in paths]


def installed() -> list[Photograph]:
    """Return the photographs of the packages that are installed, in the order of the list.

    Raises:
        InputError: if there are none; it says how to get some.
    """
    found = []
    for package, about in _packages().items():
        folder = _folder_of(about)
        for name, credit in about["files"].items():
            if folder is not None and (folder / name).is_file():
                licence, _, author = credit.partition(", ")
                has_sky = name in about.get("skies", ())
                found.append(Photograph(folder / name, name, package, licence, author, has_sky))
    if not found:
        by = {
            tool: " ".join(p for p, about in _packages().items() if about["with"] == tool)
            for tool in ("apt", "pip")
        }
        raise InputError(
            f"photos={INSTALLED!r}: no package with photographs is installed; get some with "
            f"`apt-get install {by['apt']}` or `pip install {by['pip']}`, or give a folder"
        )
    return found


@cache
def _packages() -> dict[str, dict]:
    return yaml.safe_load(Path(__file__).with_name("photographs.yaml").read_text("utf-8"))


def _folder_of(about: dict) -> Path | None:
    """Return where the files of a package are; a Python package is not imported for it."""
    if about["with"] == "apt":
        return Path(about["folder"])
    spec = find_spec(about["module"])
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / about["folder"]


@cache
def _sha256(path: Path) -> str:
    return sha256_of(path)


@lru_cache(MAX_CACHED)
def _photo(path: Path, short_side: int) -> Image.Image:
    photo = Image.fromarray(read_image(path).permute(1, 2, 0).contiguous().numpy())
    scale = short_side / min(photo.size)
    if scale < 1:
        smaller = (round(photo.width * scale), round(photo.height * scale))
        photo = photo.resize(smaller, Image.Resampling.LANCZOS)
    return photo
