"""What an identity round trip does to colours, beside the ffmpeg program at the same quality.

    python -m benchmarks.video_colour [FILE]

Passes RGB frames (a drawn clip, or the first 50 of a file) through a job without an edit, and the
same frames through the `ffmpeg` program. Columns: mean difference of a pixel in grey levels, the
largest mean shift of a channel, and the same of the program.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from benchmarks.video_stream import draw
from emu_edit.images import write_image
from emu_edit.terminal import markdown_table
from emu_edit.video.clip import Video
from emu_edit.video.coding import Coding
from emu_edit.video.colour import Colour
from emu_edit.video.io import open_video
from emu_edit.video.job import Job, run
from emu_edit.video.preview import Unedited

FRAMES = 50
MATRIX = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
SCALE = "scale=out_color_matrix=bt709:out_range={}:flags=bicubic+accurate_rnd+full_chroma_int"
ROWS = {
    "PNG": ("png", Coding(), "tv"),
    "libx264rgb, CRF 0": ("mkv", Coding("libx264rgb", 0, pixel_format="rgb24"), "tv"),
    "ffv1, 4:4:4": ("mkv", Coding("ffv1", pixel_format="yuv444p"), "tv"),
    "ffv1, 4:2:0": ("mkv", Coding("ffv1", pixel_format="yuv420p"), "tv"),
    "ffv1, 4:4:4, full range": ("mkv", Coding("ffv1", pixel_format="yuv444p"), "pc"),
    "libx264, CRF 18, 4:2:0": ("mp4", Coding("libx264", 18, "medium", "yuv420p"), "tv"),
    "libx264, CRF 18, 4:2:0, full range": ("mp4", Coding("libx264", 18, "medium", "yuv420p"), "pc"),
}


def main() -> int:
    """Pass the frames through, print the table; exit status 1 if a job loses more than ffmpeg."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        drawn = folder / "drawn.mp4"
        if options.file is None:
            draw(drawn, FRAMES)
        (folder / "source").mkdir()
        for number, frame in enumerate(islice(open_video(options.file or drawn).frames(), FRAMES)):
            write_image(folder / "source" / f"{number:04d}.png", frame.pixels)
        rows, is_good = [], True
        for name, (suffix, coding, levels) in ROWS.items():
            ours, theirs = job(folder, suffix, coding, levels), None
            if coding.codec not in {None, "libx264rgb"}:
                theirs = program(folder, suffix, coding, levels)
                is_good &= ours[0] <= 1.02 * theirs[0] + 0.01
            row = [f"{value:.2f}" for value in (*ours, *(theirs or ()))]
            rows.append([name, *row, *["same by nature"] * (4 - len(row))])
    head = ["result", "difference", "shift", "ffmpeg's difference", "shift"]
    sys.stdout.write(markdown_table(head, rows) + "\n")
    return 0 if is_good else 1


def job(folder: Path, suffix: str, coding: Coding, levels: str) -> tuple[float, float]:
    """Pass the frames through a job and compare."""
    source, output = open_video(folder / "source"), folder / f"ours.{suffix}"
    source.info = replace(source.info, colour=Colour(1, 1, 1, levels == "pc"))
    run(Job(source, output, coding=coding), Unedited())
    return compared(source, open_video(output))


def program(folder: Path, suffix: str, coding: Coding, levels: str) -> tuple[float, float]:
    """Pass the frames through the ffmpeg program and compare."""
    output = folder / f"theirs.{suffix}"
    command = ["ffmpeg", "-y", "-loglevel", "error", "-framerate", "25", "-i", "source/%04d.png"]
    command += ["-vf", SCALE.format(levels), "-pix_fmt", coding.pixel_format or ""]
    command += ["-c:v", coding.codec or "", *MATRIX, "-color_range", levels]
    for name, value in (("-crf", coding.crf), ("-preset", coding.preset)):
        command += [] if value is None else [name, str(value)]
    subprocess.run([*command, output.name], check=True, cwd=folder)
    return compared(open_video(folder / "source"), open_video(output))


def compared(source: Video, result: Video) -> tuple[float, float]:
    """Return the mean difference of a pixel, and the largest mean shift of a channel."""
    size, shift = 0.0, torch.zeros(3)
    for before, after in zip(source.frames(), result.frames(), strict=True):
        apart = after.pixels.float() - before.pixels.float()
        size += apart.abs().mean().item() / source.info.frames
        shift += apart.mean((1, 2)) / source.info.frames
    return size, shift.abs().max().item()


if __name__ == "__main__":
    sys.exit(main())
