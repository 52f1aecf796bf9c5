"""A clip that was drawn from a caption, scored by what the scene reader sees in some of its frames.

A caption says which figures there are, before what, and what each of them does; where they are is
free. What the true clip shows is told by the same rules from its scenes, so that the oracle's row
is the reader's own ceiling, and the row of its first frame all the time what stillness is worth.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.evaluation_sets.videos import WORLD_CLIPS, VideoItem
from datamodules.world.clips.clip import VERSION as CLIPS_VERSION
from datamodules.world.clips.track import MOVES, Track, track
from datamodules.world.find import box_of
from datamodules.world.pair import VERSION as WORLD_VERSION
from datamodules.world.read import ReadFigure, Reading, read_scene
from datamodules.world.scene import Figure, Scene
from datamodules.world.view import shown_view
from emu_edit.evaluation.captions import found_shares
from emu_edit.evaluation.figures import GENERATED_CLIPS, MODEL, ORACLE, STILL
from emu_edit.evaluation.score import Values
from emu_edit.metrics.backbones import ClipBackbone
from emu_edit.metrics.protocols import CLIP_B32
from emu_edit.metrics.similarity import l1
from emu_edit.metrics.video_clip import consistency
from emu_edit.video.clip import Video

READ = 4  # frames of a clip, the first and the last among them; one takes a tenth of a second
CONSISTENCY = ("clip_fc", "clip_ic", "clip_tc")  # with CLIP
Picture = UInt8[Tensor, "3 h w"]


@dataclass(frozen=True)
class Shown:
    """What some frames show.

    Attributes:
        figures: those that are there in at least half of the frames, each as what it is in most.
        tracks: what each of them does.
        backgrounds: of each frame.
    """

    figures: tuple[Figure, ...]
    tracks: tuple[Track, ...]
    backgrounds: tuple[str | None, ...]

    @staticmethod
    def of(readings: Sequence[Reading]) -> "Shown":
        """Follow the figures of some readings, see `track`."""
        named = {read.figure.full_name: read.figure for one in readings for read in one.figures}
        tracks = [one for one in track(readings) if 2 * one.names.count(None) <= len(readings)]
        return Shown(
            tuple(named[one.name] for one in tracks),
            tuple(tracks),
            tuple(reading.background for reading in readings),
        )

    @property
    def way(self) -> float | None:
        """How far its figures go on average, in fractions of the side; None without any."""
        return _mean([one.way for one in self.tracks])


def read_at(frames: int) -> list[int]:
    """Return the numbers of the frames that are read, nearly even."""
    return sorted({round(number * (frames - 1) / (READ - 1)) for number in range(READ)})


def truth_of(scenes: Sequence[Scene]) -> Shown:
    """Return what the scenes of the frames that are read show, of the camera what can be seen."""
    return Shown.of([
        Reading(
            tuple(ReadFigure(figure, box_of(figure), 0.0) for figure in scene.figures),
            scene.background.name,
            scene.word,
            0.0,
            shown_view(scene.background),
        )
        for scene in scenes
    ])


def values(asked: Shown, shown: Shown | None, first_frame: float | None) -> Values:
    """Compare what a caption asks for with what is shown; None, a failure, is wrong in all.

    Of the figures see `found_shares`; background: the share of frames that have it; moves: of the
    figures that should go somewhere, the share that go into that direction; stays: of the others,
    those that stay where they are; kept: the figures that are the same in all frames. What should
    do something is the figure asked for, or else one of its colour or of its shape, so that a wrong
    colour is no wrong direction. `right` is 1 if all of that is. The way is reported, not judged.

    Args:
        asked: by the caption.
        shown: by the video.
        first_frame: how far its first frame is from the one that was given; None if none was.
    """
    found = Shown((), (), (None,)) if shown is None else shown
    played = _players(asked.figures, found)
    ways = list(zip([one.direction for one in asked.tracks], played, strict=True))
    judged = {
        **found_shares(asked.figures, found.figures),
        "background": _mean([float(name == asked.backgrounds[0]) for name in found.backgrounds]),
        "moves": _mean([_goes(one, way) for way, one in ways if way is not None]),
        "stays": _mean([_goes(one, way) for way, one in ways if way is None]),
        "kept": _mean([float(one is not None and one.is_kept) for one in played]),
    }
    right = float(all(value in {1.0, None} for value in judged.values()))
    return {"right": right, **judged, "first_frame": first_frame, "way": found.way}


def _goes(one: Track | None, way: str | None) -> float:
    """Return whether what plays a figure goes that way, or stays for None."""
    return float(one is not None and one.direction == way)


def _players(asked: Sequence[Figure], shown: Shown) -> list[Track | None]:
    """Return what plays each: what is called so, else what has its colour, else its shape."""
    left = list(zip(shown.figures, shown.tracks, strict=True))
    played: dict[str, Track] = {}
    likenesses: tuple[Callable[[Figure], str], ...] = (
        lambda f: f.full_name,
        lambda f: f.name,
        lambda f: f.colour,
        lambda f: f.shape,
    )
    for of in likenesses:
        for figure in asked:
            like = [one for one in left if of(one[0]) == of(figure)]
            if like and figure.name not in played:
                left.remove(like[0])
                played[figure.name] = like[0][1]
    return [played.get(figure.name) for figure in asked]


class GeneratedScorer:
    """Scores clips drawn from captions of the moving world, see `values`."""

    name = WORLD_CLIPS

    def __init__(
        self,
        begun_with: Callable[[VideoItem], Picture | None],
        about: Mapping[str, object],
        clip: ClipBackbone | None = None,
    ) -> None:
        """Begin.

        Args:
            begun_with: returns the picture that the video of an item began with, if it is known.
            about: what else the numbers depend on, as JSON values.
            clip: CLIP ViT-B/32, for how consistent frames are; without it that is left out.
        """
        self._begun_with, self._clip = begun_with, clip
        self.metrics = (*GENERATED_CLIPS, *(CONSISTENCY if clip else ()))
        self.backbones: Mapping[str, str] = {} if clip is None else {CLIP_B32: clip.sha256}
        self.protocol: Mapping[str, object] = {
            "name": "scene reader",
            "reference": "caption",
            "metrics": list(self.metrics),
            "world_version": WORLD_VERSION,
            "clips_version": CLIPS_VERSION,
            "frames_read": READ,
            "moves_from": MOVES,
            **about,
        }

    def score(self, item: VideoItem, result: Video | None) -> dict[str, Values]:
        """Score a result beside the first frame all the time and the true clip."""
        assert item.clip is not None  # every item of the world has one
        clip = item.clip()
        numbers = read_at(len(clip.source))
        asked = truth_of([clip.scenes[number] for number in numbers])
        true = [read_scene(clip.source[number]).readable for number in numbers]
        true_frames, said = torch.from_numpy(clip.source), item.target_caption
        first = true_frames[0]
        scores = {
            STILL: {
                **values(asked, Shown.of([true[0]] * len(true)), 0.0),
                **self._consistent(first.expand(true_frames.shape), first, said),
            },
            ORACLE: {
                **values(asked, Shown.of(true), 0.0),
                **self._consistent(true_frames, first, said),
            },
        }
        if result is None:
            unknown = dict.fromkeys(self.metrics[len(GENERATED_CLIPS) :])
            return {MODEL: {**values(asked, None, None), **unknown}, **scores}
        frames = torch.stack([frame.pixels for frame in result.frames()])
        shown = Shown.of([read_scene(frames[number].numpy()).readable for number in numbers])
        begun_with = self._begun_with(item)
        error = None if begun_with is None else 255 * l1(frames[0], begun_with)
        consistent = self._consistent(frames, begun_with, said)
        return {MODEL: {**values(asked, shown, error), **consistent}, **scores}

    def _consistent(
        self, frames: UInt8[Tensor, "f 3 h w"], picture: Picture | None, caption: str
    ) -> Values:
        """Ask CLIP, if it is there; what a video began with may not be known."""
        if self._clip is None:
            return {}
        found = consistency(frames, frames[0] if picture is None else picture, caption, self._clip)
        alike = None if math.isnan(found.frames) else found.frames
        with_picture = None if picture is None else found.picture
        return dict(zip(CONSISTENCY, (alike, with_picture, found.text), strict=True))

    def count_cut(self, captions: Collection[str]) -> int:
        """Count the captions that are longer than CLIP reads, if it does."""
        return 0 if self._clip is None else self._clip.count_cut(list(captions))


def _mean(numbers: Sequence[float]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None
