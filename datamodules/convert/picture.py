"""A picture of a data set before it is read: where it is, and how to get its bytes.

Listings and benchmarks hold thousands of these and no pixels. Bytes come from a file, a parquet
cell or a tar, and are all decoded by the one safe decoder of `emu_edit.images`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from datamodules.listing import find_file
from emu_edit.errors import BadImageError
from emu_edit.images import decode_rgb
from emu_edit.pictures import read_image_bytes


class MissingPictureError(BadImageError):
    """No picture where one should be: no such file, or an empty cell."""


@dataclass(frozen=True)
class Picture:
    """A picture, wherever its bytes are.

    Attributes:
        where: its place, for people.
        fetch: returns its bytes; raises InputError when it cannot, MissingPictureError when there
            is none.
    """

    where: str
    fetch: Callable[[], bytes]

    @staticmethod
    def at(path: Path) -> "Picture":
        """Return the picture in a file."""
        return Picture.named(path.parent, path.name)

    @staticmethod
    def named(folder: Path, name: str) -> "Picture":
        """Return the picture that a text calls `name`, in any spelling (`listing.find_file`)."""
        return Picture(str(folder / name), partial(_read_file, folder, name))

    @staticmethod
    def of(data: bytes, where: str) -> "Picture":
        """Return a picture of bytes in memory."""
        return Picture(where, lambda: data)

    def decode(self) -> UInt8[Tensor, "3 h w"]:
        """Read and decode it; a BadImageError says why it cannot be."""
        return decode_rgb(self.fetch(), where=self.where)

    def sha256(self) -> str:
        """Return the hash of its bytes."""
        return hashlib.sha256(self.fetch()).hexdigest()


def _read_file(folder: Path, name: str) -> bytes:
    path = folder / name
    if "\0" in str(path):
        return read_image_bytes(path)  # which says so
    found = find_file(folder, name)
    if found is None:
        raise MissingPictureError(f"{path}: no such file")
    return read_image_bytes(found)
