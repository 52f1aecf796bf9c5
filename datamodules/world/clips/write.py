"""Write clips of the world: as shards to train on, or as plain mp4s with their captions.

Shards are those of pictures (`datamodules.shards`): a folder of tars, one task each, with a
manifest and a sheet to look at. Flow, occlusion and scenes are not written: they come, exactly,
from `make_clip` with what key and manifest say (seed, split, index, size, frames).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from datamodules.shards.clips import MOTION, ClipRecord, check_crf, encode_mp4
from datamodules.shards.manifest import CONTACT_SHEET, MANIFEST, NEW_TASK, Manifest, write_manifest
from datamodules.shards.writer import PairRecord, ShardWriter
from datamodules.world.clips import clip as clips
from datamodules.world.clips.clip import ClipPair, as_captioned, make_clip, make_flat_clip
from datamodules.world.clips.sheet import clip_sheet
from datamodules.world.pair import VERSION as WORLD_VERSION
from emu_edit.errors import InputError
from emu_edit.files import atomic_file, write_text
from emu_edit.tasks import CAPTION, SIXTEEN
from emu_edit.video.motion import score_of

PROGRAM = "emu_edit shards world --clips"
SHOWN = 6  # clips in the contact sheet
CLIPS_PER_SHARD = 250
EDITS_LIST = "instructions.jsonl"  # as of folders of pictures, see `datamodules.convert.folder`


@dataclass(frozen=True)
class ClipWorld:
    """Everything that the clips of a folder are a function of.

    Attributes:
        clips: how many; clip i is of task i modulo sixteen.
        seed: of the world.
        size: side of the frames in pixels.
        frames: of each clip.
        split: as of `make_clip`.
        rate: frames a second.
        movie: write mp4s in place of film strips.
        crf: quality of the mp4s, 1 (best) to 51; None loses nothing.
        captions: no edits, but what is there before one with its caption, in one shot; clip i is
            then the i-th without a cut.
        flat: with `captions`: one or two plain things on a plain backdrop that stand still or move
            along an axis, the camera still.
    """

    clips: int
    seed: int = 0
    size: int = 64
    frames: int = 16
    split: str = "train"
    rate: int = 8
    movie: bool = False
    crf: int | None = None
    captions: bool = False
    flat: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no clips."""
        if self.clips < 1:
            raise InputError(f"clips={self.clips} must be at least 1")
        if self.rate < 1:
            raise InputError(f"rate={self.rate} frames a second must be at least 1")
        if self.crf is not None and not self.movie:
            raise InputError(f"crf={self.crf} is of mp4s; write those, or leave it out")
        if self.flat and not self.captions:
            raise InputError("flat clips are not edited and need --captions; give that, too")
        check_crf(self.crf)

    def __iter__(self) -> Iterator[ClipPair]:
        if self.flat:
            make = partial(make_flat_clip, self.seed, self.split, size=self.size)
            yield from (make(index, frames=self.frames) for index in range(self.clips))
            return
        if self.captions:
            yield from islice(self._captioned(), self.clips)
            return
        for index in range(self.clips):
            yield make_clip(self.seed, self.split, index, size=self.size, frames=self.frames)

    def _captioned(self) -> Iterator[ClipPair]:
        """Yield clips that nobody edited: of a task whose sources are scenes and no maps."""
        for index in count():
            clip = make_clip(
                self.seed, self.split, index, task="local", size=self.size, frames=self.frames
            )
            if not clip.cuts:
                yield as_captioned(clip)

    def made_by(self) -> dict[str, object]:
        """Return what a manifest says: enough to write the clips again or tell them apart."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        versions = {"world_version": WORLD_VERSION, "clips_version": clips.VERSION}
        task = {NEW_TASK: CAPTION} if self.captions else {}
        return {"program": PROGRAM, **versions, **values, **task}


def record_of(
    clip: ClipPair, rate: int, *, movie: bool = False, crf: int | None = None
) -> ClipRecord:
    """Return a clip as it goes into a shard."""
    mask = clip.mask.reshape(-1, clip.mask.shape[-1])
    moved = np.hypot(clip.flow[:, 0], clip.flow[:, 1]).mean(axis=(1, 2)) / clip.mask.shape[-1]
    moved[[cut - 1 for cut in clip.cuts]] = np.nan  # nothing goes from shot to shot
    return ClipRecord(
        key=clip.key,
        source=_strip(clip.source),
        target=_strip(clip.target),
        instruction=clip.instruction,
        task=clip.task,
        mask=None if clip.task == CAPTION else mask,
        source_caption=clip.caption,
        target_caption=clip.output_caption,
        extra={**clip.extra, MOTION: round(score_of(moved), 4)},
        frames=len(clip.source),
        rate=rate,
        movie=movie,
        crf=crf,
        cuts=clip.cuts,
    )


def write_clips(
    folder: Path,
    world: ClipWorld,
    *,
    guard: Callable[[PairRecord], str | None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the clips of a world as shards into a folder, with manifest and contact sheet.

    Args:
        folder: made if missing; must have no manifest yet.
        world: which clips, and how.
        guard: as of `ShardWriter`.
        progress: called with (clips written, clips in all) after each.

    Raises:
        InputError: if the world cannot be made, or the folder holds shards already.
    """
    _refuse_full(folder, MANIFEST)
    shown: list[ClipPair] = []
    with ShardWriter(folder, pairs_per_shard=CLIPS_PER_SHARD, by_shape=True, guard=guard) as writer:
        for done, clip in enumerate(world, 1):
            writer.add(record_of(clip, world.rate, movie=world.movie, crf=world.crf))
            if len(shown) < SHOWN:
                shown.append(clip)
            if progress is not None:
                progress(done, world.clips)
    clip_sheet(shown).save(folder / CONTACT_SHEET)
    # tasks in the order of the table, as in folders of pictures
    order = [*SIXTEEN.names, CAPTION]
    entries = sorted(writer.entries, key=lambda e: (order.index(e.task), e.file))
    return write_manifest(folder, entries, made_by=world.made_by())


def write_movies(
    folder: Path, world: ClipWorld, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write `source/KEY.mp4` and `target/KEY.mp4`, their captions beside them, and a list of edits.

    A caption is `KEY.txt`; `instructions.jsonl` has file, task, instruction, captions and cuts of
    each clip, and is written last. `shards convert clips` reads such a folder.

    Raises:
        InputError: if the world cannot be made, or the folder holds such a list already.
    """
    _refuse_full(folder, EDITS_LIST)
    rows = []
    for done, clip in enumerate(world, 1):
        for role, frames, caption in (
            ("source", clip.source, clip.caption),
            ("target", clip.target, clip.output_caption),
        ):
            (folder / role).mkdir(parents=True, exist_ok=True)
            pixels = np.ascontiguousarray(frames.transpose(0, 2, 3, 1))
            with atomic_file(folder / role / f"{clip.key}.mp4") as stream:
                stream.write(encode_mp4(pixels, world.rate, world.crf))
            write_text(folder / role / f"{clip.key}.txt", caption)
        row = {
            "file": f"{clip.key}.mp4",
            "task": clip.task,
            "instruction": clip.instruction,
            "source_caption": clip.caption,
            "target_caption": clip.output_caption,
            "cuts": clip.cuts,
        }
        rows.append(json.dumps(row, ensure_ascii=False))
        if progress is not None:
            progress(done, world.clips)
    write_text(folder / EDITS_LIST, "\n".join(rows))


def _strip(frames: UInt8[np.ndarray, "f 3 h w"]) -> UInt8[np.ndarray, "rows w 3"]:
    """Return frames below each other."""
    return np.ascontiguousarray(frames.transpose(0, 2, 3, 1)).reshape(-1, frames.shape[-1], 3)


def _refuse_full(folder: Path, name: str) -> None:
    if (folder / name).exists():
        raise InputError(f"{folder} has {name} already; give another folder or delete this one")
