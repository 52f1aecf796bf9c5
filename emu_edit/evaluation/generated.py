"""`evaluate --benchmark world-clips`: videos drawn from captions of the moving world.

    OUT/videos/KEY.png     a model's clips, animated, without loss
    OUT/pictures/KEY.png   what each of them began with, where the model drew that, too
    OUT/scores.jsonl, run.json, results.json, items.jsonl, table.md, index.html

A model draws a picture of each caption and the video that begins with it, as `generate` does; or it
is given the first frame of the true clip, which leaves its temporal layers alone to be judged.
Videos of others lie in a folder. As with edits of videos (`emu_edit.evaluation.videos`), the same
command goes on where it stopped.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.evaluation_sets.videos import (
    WORLD_CLIPS,
    DrawnVideo,
    VideoBenchmark,
    VideoItem,
)
from datamodules.world.clips.clip import ClipPair
from datamodules.world.clips.write import ClipWorld
from emu_edit.editing.animate import Animator, animate, load_animator
from emu_edit.editing.find import choose_device
from emu_edit.editing.generate import draw_pictures, load_generator
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.evaluation.candidate import Candidate, Outcome
from emu_edit.evaluation.edits import seed_of
from emu_edit.evaluation.figures import MODEL, ORACLE, STILL
from emu_edit.evaluation.generated_scores import GeneratedScorer, Picture
from emu_edit.evaluation.outputs import ItemVideos
from emu_edit.evaluation.page import write_page
from emu_edit.evaluation.photographs import folder_sha256
from emu_edit.evaluation.results import table_of, write_evaluation
from emu_edit.evaluation.sets import world_distances
from emu_edit.evaluation.video_outputs import VIDEOS, FolderVideos, Videos
from emu_edit.evaluation.videos import MOST_SHOWN, scored
from emu_edit.evaluation.world import SIZE, Scenes
from emu_edit.evaluation.world_inputs import INPUTS, input_line, refuse_full
from emu_edit.files import write_text
from emu_edit.images import read_image, save_png
from emu_edit.metrics.backbones import ClipBackbone, find_backbone
from emu_edit.metrics.preprocess import CLIP_PREPROCESS
from emu_edit.metrics.protocols import CLIP_B32
from emu_edit.terminal import plural
from emu_edit.video.clip import Video
from emu_edit.video.io import open_video
from emu_edit.video.write import write_clip

PICTURES = "pictures"
FRAMES = 8  # of clips that are made for no model
FirstFrame = Enum("FirstFrame", ("drawn", "given"))


@dataclass(frozen=True)
class MovingScenes:
    """Which clips of the moving world are asked for.

    Attributes:
        scenes: of the world.
        clips: how many.
        frames: of each clip; None means as trained.
        flat: whether their scenes are flat.
    """

    scenes: Scenes = field(default_factory=Scenes)
    clips: int = 100
    frames: int | None = None
    flat: bool = True

    def __post_init__(self) -> None:
        """Refuse photographs."""
        if self.scenes.photos is not None:
            raise InputError("--photos: the moving world has no photographs; leave it out")

    def benchmark(self, size: int, frames: int) -> VideoBenchmark:
        """Make the items, of that many frames of that size if none are asked for."""
        side = self.scenes.side(size)
        frames = frames if self.frames is None else self.frames
        items = tuple(_item(clip) for clip in self._clips(side, frames, self.clips))
        return VideoBenchmark(WORLD_CLIPS, "", self.scenes.split, items, len(items))

    def others(self, side: int, frames: int) -> Iterator[UInt8[Tensor, "f 3 h w"]]:
        """Make as many true clips as there are items, of the captions that come next."""
        clips = self._clips(side, frames, 2 * self.clips)
        yield from (torch.from_numpy(clip.source) for clip in islice(clips, self.clips, None))

    def _clips(self, side: int, frames: int, count: int) -> Iterator[ClipPair]:
        scenes = self.scenes
        yield from ClipWorld(
            count, scenes.seed, side, frames, scenes.split, captions=True, flat=self.flat
        )


@dataclass(frozen=True)
class GeneratedOptions:
    """What `evaluate --benchmark world-clips` scores, and how.

    Attributes:
        candidate: a model, or a folder of videos.
        moving: the clips.
        first_frame: whether a model draws it, or is given that of the true clip; of videos of
            others, which of it was.
        backbones: folder with CLIP ViT-B/32, for FC, IC and TC; None leaves them out.
    """

    candidate: Candidate
    moving: MovingScenes = field(default_factory=MovingScenes)
    first_frame: FirstFrame = FirstFrame.drawn
    backbones: Path | None = None


@dataclass(frozen=True)
class DrawnClips:
    """A model's videos, see `Videos`.

    Attributes:
        animator: the model.
        settings: how videos are sampled.
        folder: OUT.
        first_frame: whether it draws the first frame, too.
    """

    animator: Animator
    settings: EditorSettings
    folder: Path
    first_frame: FirstFrame

    def path(self, item: VideoItem) -> Path | None:
        """Return the video of an item, None if it is not there."""
        path = self._place(VIDEOS, item)
        return path if path.exists() else None

    def make(self, item: VideoItem) -> str | None:
        """Draw the video of an item; return why that failed, having left nothing."""
        path = self._place(VIDEOS, item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of an earlier try, or changed since
        info = item.source().info
        try:
            if self.first_frame is FirstFrame.drawn:
                (picture,) = draw_pictures(
                    self.animator.drawer, [item.instruction], [self.seed(item)], size=info.size
                )
                (self.folder / PICTURES).mkdir(exist_ok=True)
                save_png(self._place(PICTURES, item), picture)
            video = animate(
                self.animator,
                self.begun_with(item),
                item.instruction,
                seed=self.seed(item),
                frames=info.frames,
                settings=self.settings,
            )
        # InputError and NaN are ValueErrors, torch's complaints (memory!) are RuntimeErrors
        except (ValueError, RuntimeError) as error:
            return str(error) or type(error).__name__
        write_clip(path, video, Fraction(self.animator.rate))
        return None

    def seed(self, item: VideoItem) -> int:
        """Return the seed that the item's key decides."""
        return seed_of(item.key)

    def begun_with(self, item: VideoItem) -> Picture:
        """Return the picture that the video of an item begins with."""
        if self.first_frame is FirstFrame.drawn:
            return read_image(self._place(PICTURES, item))
        return first_of(item)

    def _place(self, part: str, item: VideoItem) -> Path:
        return self.folder / part / f"{item.key}.png"


def run_generated(options: GeneratedOptions) -> Outcome:
    """Draw and score every video, then write the means and a page to look at.

    Raises:
        InputError: if model, videos or output folder cannot be used.
    """
    start = time.monotonic()
    candidate, first_frame = options.candidate, options.first_frame
    name = f"{WORLD_CLIPS}-{options.moving.scenes.split}-{first_frame.name}"
    folder = candidate.results_folder(name)
    clip = None if options.backbones is None else load_clip(options.backbones, candidate.device)
    begun_with: Callable[[VideoItem], Picture | None]
    if candidate.are_pictures:
        about: dict[str, object] = {"model": candidate.name, "kind": "videos"}
        benchmark = options.moving.benchmark(SIZE, FRAMES)
        source: Videos = FolderVideos.of(
            candidate.path, benchmark, allow_missing=candidate.allow_missing
        )
        begun_with = first_of if first_frame is FirstFrame.given else lambda _: None
    else:
        source, benchmark, about = _model(options, folder)
        begun_with = source.begun_with
    scorer = GeneratedScorer(
        begun_with, {"flat": options.moving.flat, "first_frame": first_frame.name}, clip
    )
    results, items = scored(benchmark, source, scorer, folder, about)
    results |= {
        "noun": "video",
        "failed_as": "all wrong",
        "distances": _distances(
            options.moving, benchmark, source, {one["key"] for one in results["failed"]}
        ),
        "seconds": round(time.monotonic() - start, 1),
    }
    table = table_of(results)
    write_evaluation(folder, results, items, table)
    by_key = {item.key: item for item in benchmark.items}
    write_page(folder, results, items, lambda key: _shown(by_key[key], source), most=MOST_SHOWN)
    return Outcome(table, folder, len(results["failed"]))


def load_clip(backbones: Path, device: str | None) -> ClipBackbone:
    """Load the CLIP that Emu Video's table of image animation is by.

    Raises:
        InputError: if the folder lacks it, or it cannot be loaded.
    """
    place = find_backbone(CLIP_B32, backbones)
    return ClipBackbone.load(place, CLIP_PREPROCESS, device=choose_device(device))


def _distances(
    moving: MovingScenes, benchmark: VideoBenchmark, source: Videos, failed: Collection[str]
) -> list[dict[str, object]]:
    """Compare what was drawn, stills and the true clips with other true clips, each as a set."""
    info = benchmark.items[0].source().info
    paths = [source.path(item) for item in benchmark.items if item.key not in failed]
    sets: dict[str, Iterator[Video]] = {
        MODEL: (open_video(path) for path in paths if path is not None),
        STILL: (item.source() for item in benchmark.items),
        ORACLE: (item.target() for item in benchmark.items if item.target is not None),
    }
    return world_distances(
        moving.others(info.size[0], info.frames),
        {name: map(_pixels, videos) for name, videos in sets.items()},
    )


def _pixels(video: Video) -> UInt8[Tensor, "f 3 h w"]:
    return torch.stack([frame.pixels for frame in video.frames()])


def _model(
    options: GeneratedOptions, folder: Path
) -> tuple[DrawnClips, VideoBenchmark, dict[str, object]]:
    """Load what draws, make what it is to draw, and say what results depend on."""
    candidate = options.candidate
    with candidate.drawing_directory() as directory:
        drawer = load_generator(directory, candidate.device)
        animator, sha256 = load_animator(drawer, directory), folder_sha256(directory)
    benchmark = options.moving.benchmark(drawer.settings.image_size, animator.frames)
    animator.windows(benchmark.items[0].source().info.frames)  # refuses before anything is drawn
    settings = candidate.sampling.applied(animator.video.settings)
    about = {
        "model": candidate.name,
        "kind": "model",
        "sha256": sha256,
        "settings": settings.to_dict(),
    }
    return DrawnClips(animator, settings, folder, options.first_frame), benchmark, about


def first_of(item: VideoItem) -> Picture:
    """Return the first frame of the true clip."""
    assert item.clip is not None  # every item of the world has one
    return torch.from_numpy(item.clip().source[0])


def _item(clip: ClipPair) -> VideoItem:
    """Make the item of a clip; what it begins with is a still of its first frame."""
    still = torch.from_numpy(clip.source[:1]).expand(clip.source.shape)
    count = len(clip.scenes[0].figures)
    return VideoItem(
        key=clip.key,
        task=plural(count, "figure"),
        session=clip.key,
        instruction=clip.caption,
        source_caption="",
        target_caption=clip.caption,
        source=lambda: DrawnVideo(clip.key, still),
        target=lambda: DrawnVideo(clip.key, torch.from_numpy(clip.source)),
        sha256=hashlib.sha256(clip.source.tobytes()).hexdigest(),
        clip=lambda: clip,
    )


def _shown(item: VideoItem, source: Videos) -> ItemVideos:
    """Return a video beside the true one; without it, a still."""
    path = source.path(item)
    target = None if item.target is None else item.target()
    return ItemVideos(None, item.source() if path is None else open_video(path), target)


def write_captions(folder: Path, moving: MovingScenes) -> str:
    """Write captions and first frames, for any model; return what to tell the user.

    Raises:
        InputError: if the folder is not empty, or the clips cannot be made.
    """
    refuse_full(folder)
    benchmark = moving.benchmark(SIZE, FRAMES)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for item in benchmark.items:
        name = f"{item.key}.png"
        save_png(folder / name, first_of(item))
        lines.append(json.dumps(input_line(item, name), ensure_ascii=False))
    write_text(folder / INPUTS, "\n".join(lines))
    info = benchmark.items[0].source().info
    return (
        f"wrote {plural(len(lines), 'first frame')} and {INPUTS} to {folder}\n"
        f"draw a video of {plural(info.frames, 'frame')} of {info.size[1]}x{info.size[0]} of each "
        "caption (its instruction), KEY.mp4 or the like, with or without its first frame, then\n"
        f"  emu-edit evaluate VIDEOS --benchmark {WORLD_CLIPS} (with the same --pairs, --frames, "
        "--seed, --split and --size; --first-frame given if they begin with those)\n"
    )
