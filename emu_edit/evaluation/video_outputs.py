"""The results of a benchmark of videos: made by a model when asked for, or lying in a folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from datamodules.evaluation_sets.items import some
from datamodules.evaluation_sets.videos import VideoBenchmark, VideoItem
from emu_edit.errors import InputError
from emu_edit.evaluation.edits import seed_of
from emu_edit.evaluation.outputs import ItemVideos
from emu_edit.images import resize, with_shorter_side
from emu_edit.text_rules import with_caption
from emu_edit.video.clip import Video
from emu_edit.video.cuts import GivenCuts
from emu_edit.video.editor import VideoTurn
from emu_edit.video.io import open_video
from emu_edit.video.job import Job, run
from emu_edit.video.stacked import VideoModel, editor_of, video_editor

VIDEOS = "videos"
ENDINGS = ("", ".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif", ".png", ".webp")


@runtime_checkable
class Videos(Protocol):
    """Where results come from."""

    def path(self, item: VideoItem) -> Path | None:
        """Return the result of an item as it lies there now, None if there is none."""
        ...

    def make(self, item: VideoItem) -> str | None:
        """Make it where it has to be made; return why it could not be."""
        ...

    def seed(self, item: VideoItem) -> int | None:
        """Return the seed of its noise, None where we did not draw it."""
        ...


@dataclass(frozen=True)
class ModelVideos:
    """A model's results.

    Of the world they are animated PNGs, which lose nothing; of others mp4s.

    Attributes:
        editor: the model; one that was made for videos is told the caption of the result, too.
        folder: OUT.
        size: what the shorter side of a video becomes before it is edited.
    """

    editor: VideoModel
    folder: Path
    size: int

    def path(self, item: VideoItem) -> Path | None:
        """Return the result of an item, None if it is not there."""
        path = self._place(item)
        return path if path.exists() else None

    def make(self, item: VideoItem) -> str | None:
        """Edit an item; return why it failed, having left nothing."""
        path = self._place(item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of an earlier try, or changed since
        task = None if item.clip is None else item.task  # those of TGVE are not ours
        try:
            video = item.source()
            cuts = None
            if item.clip is not None:
                cuts = GivenCuts.of([0, *item.clip().cuts], video.info.frames)
            turn = VideoTurn(self._text(item), task, seed=seed_of(item.key))
            job = Job(video, path, {"item": item.key, "size": self.size}, cuts=cuts, resume=True)
            run(job, video_editor(self.editor, [turn]), resized=self._resized)
        # InputError and NaN are ValueErrors, torch's complaints (memory!) are RuntimeErrors
        except (ValueError, RuntimeError) as error:
            return str(error) or type(error).__name__
        return None

    def seed(self, item: VideoItem) -> int:
        """Return the seed that the item's key decides."""
        return seed_of(item.key)

    def _text(self, item: VideoItem) -> str:
        text_encoder = editor_of(self.editor).networks.text_encoder
        if not text_encoder.takes_captions:
            return item.instruction
        limit = text_encoder.limit
        return with_caption(item.instruction, limit.cut(item.target_caption))

    def _place(self, item: VideoItem) -> Path:
        return self.folder / VIDEOS / f"{item.key}{'.mp4' if item.clip is None else '.png'}"

    def _resized(self, pixels: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 _ _"]:
        height, width = pixels.shape[-2:]
        return resize(pixels, with_shorter_side(self.size, height=height, width=width))


@dataclass(frozen=True)
class FolderVideos:
    """Results that somebody made: KEY.mp4 and the like, KEY/ with pictures, or as TGVE wants it."""

    found: Mapping[str, Path]

    @staticmethod
    def of(folder: Path, benchmark: VideoBenchmark, *, allow_missing: bool) -> "FolderVideos":
        """Find the results and look at each.

        Raises:
            InputError: if some are missing, cannot be opened, or (the world) are not of the frames
                that were to be edited.
        """
        found: dict[str, Path] = {}
        for item in benchmark.items:
            names = [name for name in (item.key, item.place) if name]
            places = [folder / f"{name}{ending}" for name in names for ending in ENDINGS]
            paths = [place for place in places if place.exists()]
            if len(paths) > 1:
                raise InputError(
                    f"{folder} has two videos of {item.key} ({paths[0].name}, {paths[1].name}); "
                    "keep one"
                )
            if paths:
                _check(item, open_video(paths[0]))
                found[item.key] = paths[0]
        missing = [item.key for item in benchmark.items if item.key not in found]
        if not found or (missing and not allow_missing):
            raise InputError(
                f"{folder} lacks {len(missing)} of {len(benchmark.items)} videos ({some(missing)});"
                " add them (KEY.mp4, or KEY/ with a picture per frame), or let them count as "
                "failed with --allow-missing"
            )
        return FolderVideos(found)

    def path(self, item: VideoItem) -> Path | None:
        """Return the result of an item, None if it is missing."""
        return self.found.get(item.key)

    def make(self, item: VideoItem) -> str | None:
        """Make nothing."""
        del item

    def seed(self, item: VideoItem) -> None:
        """Know no seed."""
        del item


def _check(item: VideoItem, result: Video) -> None:
    """Refuse a result that cannot be compared with the truth frame by frame."""
    if item.clip is None:
        return
    wanted, came = item.source().info, result.info
    if (came.frames, came.size) != (wanted.frames, wanted.size):
        raise InputError(
            f"{came.path}: has {came.frames} frames of {came.size[1]}x{came.size[0]}, {item.key} "
            f"has {wanted.frames} of {wanted.size[1]}x{wanted.size[0]}; keep number and size"
        )


def shown(item: VideoItem, path: Path | None) -> ItemVideos:
    """Return the videos of an item; without a result, its source once more."""
    output = item.source() if path is None else open_video(path)
    return ItemVideos(item.source(), output, None if item.target is None else item.target())
