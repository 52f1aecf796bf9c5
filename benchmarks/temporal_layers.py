"""What temporal layers cost: time and memory of a step and of a call, against the picture net.

    python -m benchmarks.temporal_layers [--videos 4] [--frames 8] [--repeats 5]

The U-Net of `configs/model/tiny.yaml` on 32x32 latents, equal frames in every row. Each row is a
process of its own with one thread; time is the processor's (median), memory the growth of the
process's peak from before its first step.
"""

import argparse
import resource
import subprocess
import sys
import time
from statistics import median

import torch

from emu_edit.models.inflate import given_picture, inflate, train_temporal
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.temporal import TemporalSpec
from emu_edit.models.unet import UNetDenoiser
from emu_edit.terminal import markdown_table, step_bar

ROWS = {
    "picture net, a step": "picture train",
    "with temporal layers, base frozen": "video train",
    "the same, temporal layers recomputed": "video train layers",
    "the same, U-Net and temporal layers recomputed": "video train layers unet",
    "with temporal layers, spatial ones learn too": "video train spatial",
    "with still, text and motion, base frozen": "video train ours",
    "picture net, a call": "picture",
    "with temporal layers, a call": "video",
}
LATENTS, TEXT, TASK, MEBI = (12, 32, 32), 128, 64, 2**20


def main() -> int:
    """Measure each row in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("videos", 4), ("frames", 8), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--row", help=argparse.SUPPRESS)  # what a process is started with
    options = parser.parse_args()
    if options.row is not None:
        seconds, mebibytes = measure(options.row.split(), options)
        sys.stdout.write(f"{seconds} {mebibytes}")
        return 0
    found = []
    with step_bar("measuring", "rows") as on_step:
        for number, row in enumerate(ROWS.values()):
            command = [sys.executable, "-m", "benchmarks.temporal_layers", *sys.argv[1:]]
            done = subprocess.run(
                [*command, "--row", row], check=True, capture_output=True, text=True
            )
            found.append([float(word) for word in done.stdout.split()])
            on_step(number + 1, len(ROWS))
    lines = [
        [name, f"{1000 * found[i][0]:.0f} ms", ratio(found, i, 0), f"{found[i][1]:.0f} MiB"]
        for i, name in enumerate(ROWS)
    ]
    sys.stdout.write(
        markdown_table(["what", "time", "of the picture net's", "memory"], lines) + "\n"
    )
    return 0


def ratio(found: list[list[float]], row: int, column: int) -> str:
    """Return a number over that of the picture net, of a step or of a call."""
    steps = sum(" train" in words for words in ROWS.values())
    return f"{found[row][column] / found[0 if row < steps else steps][column]:.2f}"


def measure(words: list[str], options: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds of the processor and the MiB that a row takes."""
    torch.set_num_threads(1)
    denoiser = UNetDenoiser(
        LATENTS[0],
        [32, 64, 128],
        attention=[False, True, True],
        text_dim=TEXT,
        task_dim=TASK,
        modulate_by_text=True,
    )
    ours = {"still": True, "text": True, "motion": 64} if "ours" in words else {}
    adapter = inflate(denoiser, TemporalSpec(gradient_checkpointing="layers" in words, **ours))
    if "video" in words:
        train_temporal(adapter, spatial="spatial" in words)
    if "unet" in words:
        denoiser.unet.train().enable_gradient_checkpointing()
    videos, frames = options.videos, options.frames
    mask = torch.ones(videos, 12, dtype=torch.bool)
    text = TextFeatures(torch.randn(videos, 12, TEXT), mask)
    cond = Conditioning(text, torch.zeros(videos, *LATENTS), torch.zeros(videos, TASK))
    cond, z = cond.for_frames(frames), torch.randn(videos * frames, *LATENTS)
    t = torch.full((len(z),), 500)
    given = given_picture(z[::frames], frames) if ours else None

    def step() -> None:
        with torch.set_grad_enabled("train" in words):
            if "video" in words:
                with adapter.video(frames, given, text):
                    output = denoiser(z, t, cond)
            else:
                output = denoiser(z, t, cond)
        if "train" in words:
            output.square().mean().backward()

    before, times = peak(), []
    for _ in range(1 + options.repeats):
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    return median(times[1:]), (peak() - before) / MEBI


def peak() -> int:
    """Return the most memory this process had so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
