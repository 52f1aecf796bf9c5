"""What a benchmark of videos is: items whose frames are read when they are needed."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.evaluation_sets.items import Item
from datamodules.listing import list_files
from datamodules.world.clips.clip import ClipPair, make_clip
from emu_edit.files import sha256_of
from emu_edit.video.clip import Frame, Video, VideoInfo

WORLD_VIDEO, WORLD_CLIPS, TGVE = "world-video", "world-clips", "tgve"
RATE = 8  # frames a second of the world's clips


@dataclass(frozen=True, kw_only=True)
class VideoItem(Item):
    """One edit of a video.

    Attributes:
        source: opens what is edited.
        sha256: of the source, and of the truth where there is one.
        place: where results that others made may lie besides KEY, without an ending.
        target: opens the ground truth, None where there is none.
        clip: makes all that is known of a clip of the world, None for others.
    """

    source: Callable[[], Video]
    sha256: str
    place: str = ""
    target: Callable[[], Video] | None = None
    clip: Callable[[], ClipPair] | None = None


@dataclass(frozen=True)
class VideoBenchmark:
    """Edits of videos.

    Attributes:
        name: "world-video", "world-clips" or "tgve".
        folder: name of the folder it was read from, "" if it is made.
        split: of the world; "TGVE" or "TGVE+".
        items: in the benchmark's order.
        possible: how many there are without a limit.
    """

    name: str
    folder: str
    split: str
    items: tuple[VideoItem, ...]
    possible: int

    def limited(self, most: int | None) -> "VideoBenchmark":
        """Keep the first so many items."""
        return self if most is None else replace(self, items=self.items[:most])

    @property
    def sha256(self) -> str:
        """Hash of everything that edits are made from and scored by."""
        digest = hashlib.sha256()
        for item in self.items:
            texts = [item.key, item.sha256, item.instruction, item.source_caption]
            digest.update("\0".join([*texts, item.target_caption]).encode() + b"\n")
        return digest.hexdigest()


class DrawnVideo:
    """Frames in memory as a video."""

    def __init__(self, name: str, frames: UInt8[Tensor, "f 3 h w"], rate: int = RATE) -> None:
        height, width = frames.shape[-2:]
        unit = Fraction(1, rate)
        self.info = VideoInfo(Path(name), (height, width), unit, range(len(frames)), Fraction(rate))
        self._frames = frames

    def frames(self, first: int = 0) -> Iterator[Frame]:
        """Yield every frame from one on."""
        for time in range(first, len(self._frames)):
            yield Frame(self._frames[time], time, 1)


_last_clip = lru_cache(maxsize=1)(make_clip)  # an item opens its source, target and truth in a row


def world_video_item(
    seed: int, split: str, index: int, *, task: str, size: int, frames: int
) -> VideoItem:
    """Make the item of a clip of the moving world.

    Raises:
        InputError: as `make_clip`.
    """
    make = partial(_last_clip, seed, split, index, task=task, size=size, frames=frames)
    clip = make()
    digest = hashlib.sha256()
    for part in (clip.source, clip.target, clip.mask):
        digest.update(part.tobytes())
    key = clip.key  # the frames themselves are not kept
    return VideoItem(
        key=key,
        task=task,
        session=key,
        instruction=clip.instruction,
        source_caption=clip.caption,
        target_caption=clip.output_caption,
        source=lambda: DrawnVideo(key, torch.from_numpy(make().source)),
        target=lambda: DrawnVideo(key, torch.from_numpy(make().target)),
        sha256=digest.hexdigest(),
        clip=make,
    )


def video_sha256(path: Path) -> str:
    """Hash a video file, or names and contents of a folder of pictures."""
    if path.is_file():
        return sha256_of(path)
    digest = hashlib.sha256()
    for each in list_files(path):
        digest.update(f"{each.name} {sha256_of(each)}\n".encode())
    return digest.hexdigest()
