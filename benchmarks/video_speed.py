"""Frames a second of a whole video job, against the bare editor on the same frames.

    python -m benchmarks.video_speed [--model released] [--frames 160] [--repeats 3]

In turn in one process, torch with one thread: the bare editor on batches of eight of the frames in
memory, and a whole job from H.264 to H.264 (decode, find cuts, edit, encode, join), at the model's
own size, or with `--large` from a file of 1280x720 that is resized to it. The ratio is taken within
each turn and may be no less than 0.9. A job without an edit says what all but the editing takes,
one whose editor only waits for so long whether decoding and encoding go on meanwhile.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.video_stream import draw
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import find_model
from emu_edit.images import resize
from emu_edit.terminal import markdown_table, step_bar
from emu_edit.video.editor import BATCH, VideoEditor, VideoSettings, VideoTurn
from emu_edit.video.io import open_video
from emu_edit.video.job import FrameEditor, Job, run
from emu_edit.video.preview import Unedited
from emu_edit.video.windows import Shot

PROMISE = 0.9
INSTRUCTION, TASK = "make it night", "global"


def main() -> int:
    """Measure, print the table; exit status 1 if the median ratio breaks the promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("released"))
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="the file is 1280x720, resized")
    options = parser.parse_args()
    torch.set_num_threads(1)
    editor = Editor.from_pretrained(find_model(options.model))
    side = editor.settings.image_size
    with tempfile.TemporaryDirectory() as temporary, step_bar("timing", "turns") as on_step:
        large, source = Path(temporary) / "large.mp4", Path(temporary) / "source.mp4"
        draw(large, options.frames)
        resized = partial(resize, size=(side, side))
        run(Job(open_video(large), source), Unedited(), resized=resized)
        frames = torch.stack([frame.pixels for frame in open_video(source).frames()])
        file, fit = (large, resized) if options.large else (source, None)
        parts: dict[str, Callable[[], object]] = {
            "bare editor": partial(bare, editor, frames),
            "whole job": lambda: job(file, VideoEditor(editor, [turn()], SETTINGS), fit),
            "job without an edit": lambda: job(file, Unedited(), fit),
        }
        times: dict[str, list[float]] = {name: [] for name in parts}
        for part in parts.values():
            part()  # warm
        began = time.perf_counter()
        bare(editor, frames)
        wait = (time.perf_counter() - began) / options.frames
        parts["job, edited elsewhere"] = lambda: job(file, Waiting(wait), fit)
        times["job, edited elsewhere"] = []
        for repeat in range(options.repeats):
            for name, part in parts.items():
                began = time.perf_counter()
                part()
                times[name].append(time.perf_counter() - began)
            on_step(repeat + 1, options.repeats)
    return report(times, options.frames, options.frames * wait)


SETTINGS = VideoSettings(threshold=None)


def turn() -> VideoTurn:
    """Return what is asked of every frame."""
    return VideoTurn(INSTRUCTION, TASK)


class Waiting(Unedited):
    """Takes as long as an editor, but no processor, as an accelerator would."""

    def __init__(self, seconds: float) -> None:
        """Take so many seconds a frame."""
        self.seconds, self.count = seconds, 0

    def push(self, shot: Shot) -> list[Shot]:
        """Return the frame; wait for a batch at once."""
        self.count += 1
        if self.count % BATCH == 0:
            time.sleep(BATCH * self.seconds)
        return [shot]


def bare(editor: Editor, frames: UInt8[Tensor, "f 3 h w"]) -> None:
    """Edit frames in batches, nothing else."""
    for batch in frames.split(BATCH):
        count = len(batch)
        latents = editor.edit_latents(
            editor.encode(batch),
            [INSTRUCTION] * count,
            [TASK] * count,
            [0] * count,
            negative=[""],
            settings=editor.settings,
            on_step=None,
        )
        editor.decode(latents, batch.shape[-2:])


def job(source: Path, editor: FrameEditor, resized: Callable[[Tensor], Tensor] | None) -> None:
    """Run a whole job."""
    run(Job(open_video(source), source.with_name("out.mp4")), editor, resized=resized)


def report(times: dict[str, list[float]], frames: int, waited: float) -> int:
    """Print frames a second, the ratio, and what is saved by working side by side."""
    rows = [
        [name, *(f"{frames / each:.1f}" for each in (median(some), max(some), min(some)))]
        for name, some in times.items()
    ]
    sys.stdout.write(markdown_table(["what", "frames/s", "least", "most"], rows) + "\n")
    alone, whole, rest, elsewhere = times.values()
    ratios = [a / b for a, b in zip(alone, whole, strict=True)]
    shares = [b / (waited + a) for a, b in zip(rest, elsewhere, strict=True)]
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    sys.stdout.write(
        f"job / bare editor: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})\n"
        f"edited elsewhere for {waited:.2f} s, the rest {median(rest):.2f} s: the job takes "
        f"{median(elsewhere):.2f} s, {median(shares):.3f} of the sum ({min(shares):.3f} to "
        f"{max(shares):.3f})\n"
        f"{os.cpu_count()} cores, torch with one thread, load {load}\n"
    )
    return 0 if median(ratios) >= PROMISE else 1


if __name__ == "__main__":
    sys.exit(main())
