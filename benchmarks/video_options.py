"""What ties a video's frames together, measured on clips of the moving world with exact truth.

    python -m benchmarks.video_options [--model released] [--clips 8] [--frames 16] [-o docs]

Each row edits the same clips by the same instructions with other options. Columns: error (mean
difference from the true target, as a share of what copying the source has), warp error and flicker
(grey levels; the last row is the true target's own), PSNR outside the edited region, and time
beside the first row's. Strips of three clips (source, truth, then each row) go into -o.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.world.clips.clip import ClipPair, make_clip
from emu_edit.editing.editor import Editor
from emu_edit.images import resize, save_png
from emu_edit.metrics.video import flicker, outside_psnr, warp_error
from emu_edit.terminal import markdown_table, step_bar
from emu_edit.video.attention import Look
from emu_edit.video.editor import VideoEditor, VideoSettings, VideoTurn
from emu_edit.video.noise import NoiseMode
from emu_edit.video.windows import Shot

TASKS = ("local", "remove", "add", "background", "texture", "global", "style", "color")
ROWS = {
    "independent noise": VideoSettings(noise=NoiseMode.independent, threshold=None),
    "shared noise": VideoSettings(threshold=None),
    "mixed noise": VideoSettings(noise=NoiseMode.mixed, threshold=None),
    "progressive noise": VideoSettings(noise=NoiseMode.progressive, threshold=None),
    "shared, look anchor": VideoSettings(look=Look.anchor, threshold=None),
    "shared, look previous": VideoSettings(look=Look.previous, threshold=None),
    "shared, look both": VideoSettings(look=Look.both, threshold=None),
    "shared, look coarse": VideoSettings(look=Look.coarse, overlap=2, threshold=None),
    "shared, hold colour": VideoSettings(hold_colour=True, threshold=None),
    "shared, threshold 0.03": VideoSettings(threshold=0.03),
    "shared, threshold by task (default)": VideoSettings(),
    "shared, threshold by task, hold colour": VideoSettings(hold_colour=True),
}
SEED = 17
STRIPS = 3
COLUMNS = 8


@dataclass(frozen=True)
class Score:
    """Of one clip edited one way; see the file's text."""

    error: float
    warp: float
    flicker: float
    psnr: float
    seconds: float


def main() -> int:
    """Measure, print the table, write the strips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="released")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("-o", "--output", type=Path, help="folder of the strips")
    options = parser.parse_args()
    editor = Editor.from_pretrained(options.model)
    size = editor.settings.image_size
    clips = [
        make_clip(SEED, "heldout", i, task=TASKS[i % len(TASKS)], size=size, frames=options.frames)
        for i in range(options.clips)
    ]
    rows: dict[str, list[Score]] = {}
    pictures = [[torch.from_numpy(clip.source), torch.from_numpy(clip.target)] for clip in clips]
    with step_bar("editing", "clips") as on_step:
        for number, (name, settings) in enumerate(ROWS.items()):
            for i, clip in enumerate(clips):
                score, result = edited(editor, clip, settings)
                rows.setdefault(name, []).append(score)
                pictures[i].append(result)
                on_step(number * len(clips) + i + 1, len(ROWS) * len(clips))
    rows["the true target"] = [true_score(clip) for clip in clips]
    sys.stdout.write(table(rows))
    if options.output is not None:
        for i in range(min(STRIPS, len(clips))):
            save_png(options.output / f"video-{clips[i].task}.png", strip(pictures[i]))
            sys.stdout.write(f"video-{clips[i].task}.png: {clips[i].instruction}\n")
    return 0


def edited(
    editor: Editor, clip: ClipPair, settings: VideoSettings
) -> tuple[Score, UInt8[Tensor, "f 3 h w"]]:
    """Edit a clip and score it against its truth."""
    source, target = torch.from_numpy(clip.source), torch.from_numpy(clip.target)
    shots = [Shot(frame, i, i == 0 or i in clip.cuts) for i, frame in enumerate(source)]
    began = time.perf_counter()
    video = VideoEditor(editor, [VideoTurn(clip.instruction, clip.task)], settings)
    result = torch.stack([shot.pixels for shot in video.edit(shots)])
    seconds = time.perf_counter() - began
    flow, occluded = torch.from_numpy(clip.flow), torch.from_numpy(clip.occluded)
    mask = torch.from_numpy(clip.mask)
    return Score(
        error=_difference(result, target) / _difference(source, target),
        warp=warp_error(result, flow, occluded),
        flicker=flicker(result),
        psnr=outside_psnr(result, source, mask),
        seconds=seconds,
    ), result


def true_score(clip: ClipPair) -> Score:
    """Score the true target itself."""
    source, target = torch.from_numpy(clip.source), torch.from_numpy(clip.target)
    warp = warp_error(target, torch.from_numpy(clip.flow), torch.from_numpy(clip.occluded))
    psnr = outside_psnr(target, source, torch.from_numpy(clip.mask))
    return Score(error=0.0, warp=warp, flicker=flicker(target), psnr=psnr, seconds=0.0)


def _difference(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


def table(rows: dict[str, list[Score]]) -> str:
    """Return the rows as a table in Markdown."""
    usual = sum(score.seconds for score in next(iter(rows.values())))
    lines = []
    for name, scores in rows.items():
        known = [score.psnr for score in scores if score.psnr < float("inf")]  # NaN is not
        lines.append([
            name,
            f"{mean(score.error for score in scores):.3f}",
            f"{mean(score.warp for score in scores):.2f}",
            f"{mean(score.flicker for score in scores):.2f}",
            f"{mean(known):.1f} dB" if known else "equal",
            f"{sum(score.seconds for score in scores) / usual:.2f}",
        ])
    header = ["options", "error/copy", "warp error", "flicker", "PSNR outside", "time"]
    return markdown_table(header, lines) + "\n"


def strip(rows: list[UInt8[Tensor, "f 3 h w"]]) -> UInt8[Tensor, "3 h w"]:
    """Lay eight frames of each row out, rows below each other."""
    step = max(1, len(rows[0]) // COLUMNS)
    lines = [torch.cat(list(resize(row[::step][:COLUMNS], (96, 96))), dim=2) for row in rows]
    return torch.cat(lines, dim=1)


if __name__ == "__main__":
    sys.exit(main())
