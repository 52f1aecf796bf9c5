"""What drawing a video costs: frames a second and memory by its length, against pictures alone.

    python -m benchmarks.video_sampling MODEL [--frames 8 64 512] [--steps 5]

MODEL is a run of `emu-edit fit --config emu_video`. Every row is a process of its own with one
thread that writes an mp4, as `generate` does; memory is the growth of the process's peak over that
of its first window, so what is beyond one window shows.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.temporal_layers import MEBI, peak
from emu_edit.editing.animate import Animator, Drawing, animation, find_drawer, load_animator
from emu_edit.editing.generate import draw_pictures, load_generator
from emu_edit.terminal import markdown_table, step_bar
from emu_edit.video.clip import Frame, VideoInfo
from emu_edit.video.write import write_frames

CAPTION = "a red circle on a plain white backdrop; the red circle moves to the left"


def main() -> int:
    """Measure each length in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)  # what a process is started with
    options = parser.parse_args()
    if options.row is not None:
        sys.stdout.write(" ".join(map(str, measure(options, options.row))))
        return 0
    lines = []
    with step_bar("drawing", "videos") as on_step:
        for number, frames in enumerate([0, *options.frames], 1):
            command = [sys.executable, "-m", "benchmarks.video_sampling", *sys.argv[1:]]
            done = subprocess.run(
                [*command, "--row", str(frames)], check=True, capture_output=True, text=True
            )
            rate, grown = map(float, done.stdout.split())
            what = f"a video of {frames} frames" if frames else "pictures, 8 at a time"
            lines.append([what, f"{rate:.2f}", f"{grown:.1f} MiB" if frames else "-"])
            on_step(number, 1 + len(options.frames))
    sys.stdout.write(markdown_table(["", "frames/s", "memory beyond a window"], lines) + "\n")
    return 0


def measure(options: argparse.Namespace, frames: int) -> tuple[float, float]:
    """Return frames a second of the processor, and by how many MiB memory grows after a window."""
    torch.set_num_threads(1)
    model = find_drawer(options.model)
    animator = load_animator(load_generator(model, "cpu"), model)
    side = animator.drawer.settings.image_size
    settings = replace(animator.video.settings, num_steps=options.steps)
    pictures = draw_pictures(animator.drawer, [CAPTION] * 8, range(8), settings=settings)
    if frames == 0:
        began = time.process_time()
        draw_pictures(animator.drawer, [CAPTION] * 8, range(8), settings=settings)
        return 8 / (time.process_time() - began), 0.0
    drawing = Drawing(CAPTION, settings=settings)
    with TemporaryDirectory() as folder:
        write(animator, pictures[0], drawing, animator.frames, Path(folder, "warm.mp4"))
        before, began = peak(), time.process_time()
        write(animator, pictures[0], drawing, frames, Path(folder, f"{side}.mp4"))
        return frames / (time.process_time() - began), (peak() - before) / MEBI


def write(
    animator: Animator, picture: torch.Tensor, drawing: Drawing, frames: int, path: Path
) -> None:
    """Draw a video into a file, window by window."""
    parts = animation(animator, picture, drawing, frames)
    size, rate = (picture.shape[-2], picture.shape[-1]), Fraction(animator.rate)
    info = VideoInfo(path, size, time_base=1 / rate, times=range(frames), rate=rate)
    pixels = (frame for part in parts for frame in part)
    write_frames(path, (Frame(each, number, 1) for number, each in enumerate(pixels)), info)


if __name__ == "__main__":
    sys.exit(main())
