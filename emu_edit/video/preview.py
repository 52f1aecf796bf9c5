"""A small copy of a video that every browser plays, for pages."""

from pathlib import Path
from tempfile import TemporaryDirectory

from jaxtyping import UInt8
from torch import Tensor

from emu_edit.images import resize
from emu_edit.video.clip import Video
from emu_edit.video.coding import Coding
from emu_edit.video.cuts import GivenCuts
from emu_edit.video.job import Job, run
from emu_edit.video.windows import Shot

PLAYED = Coding("libx264", pixel_format="yuv420p")  # no browser plays 4:4:4


def preview(video: Video, side: int, crf: int = 26) -> tuple[bytes, tuple[int, int]]:
    """Return an H.264 mp4 whose longer side is at most `side` pixels, and (height, width).

    Sound comes along where it fits. Sides are even, as 4:2:0 asks.
    """
    height, width = video.info.size
    scale = min(1.0, side / max(height, width))
    size = (_even(height * scale), _even(width * scale))

    def resized(pixels: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 _ _"]:
        return resize(pixels, size)

    coding = Coding(PLAYED.codec, crf, pixel_format=PLAYED.pixel_format)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "preview.mp4"
        one_scene = GivenCuts.of([0], video.info.frames)
        run(Job(video, path, coding=coding, cuts=one_scene), Unedited(), resized=resized)
        return path.read_bytes(), size


class Unedited:
    """Gives every frame back as it came."""

    def push(self, shot: Shot) -> list[Shot]:
        """Return the frame."""
        return [shot]

    def flush(self) -> list[Shot]:
        """Hold nothing back."""
        return []

    def state(self) -> bytes:
        """Remember nothing."""
        return b""

    def restore(self, state: bytes) -> None:
        """Remember nothing."""


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))
