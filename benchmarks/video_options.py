"""What ties a video's frames together, measured on clips of the moving world with exact truth.

    python -m benchmarks.video_options [--model released] [--clips 8] [--frames 16] [-o docs]

Each row edits the same clips by the same instructions with other options. The columns are those of
`evaluate --benchmark world-video`, and the time beside the first row's. Strips of three clips
(source, truth, the first row and the default) go into -o.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import mean

import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.world.clips.clip import ClipPair, make_clip
from emu_edit.editing.editor import Editor
from emu_edit.evaluation.clips import ClipTruth
from emu_edit.evaluation.figures import EDITED_CLIPS
from emu_edit.evaluation.score import Values
from emu_edit.images import resize, save_png
from emu_edit.models.frame_attention import Look
from emu_edit.terminal import markdown_table, step_bar
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
SHOWN = ("independent noise", "shared, threshold by task (default)")  # in the strips
SEED = 17
STRIPS = 3
COLUMNS = 8


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
    truths = [ClipTruth.of(clip) for clip in clips]
    rows: dict[str, list[Values]] = {}
    seconds = dict.fromkeys(ROWS, 0.0)
    pictures = [[torch.from_numpy(clip.source), torch.from_numpy(clip.target)] for clip in clips]
    with step_bar("editing", "clips") as on_step:
        for number, (name, settings) in enumerate(ROWS.items()):
            for i, clip in enumerate(clips):
                began = time.perf_counter()
                result = edited(editor, clip, settings)
                seconds[name] += time.perf_counter() - began
                rows.setdefault(name, []).append(truths[i].values(result))
                if name in SHOWN:
                    pictures[i].append(result)
                on_step(number * len(clips) + i + 1, len(ROWS) * len(clips))
    for name, role in (("the source", 0), ("the true target", 1)):
        rows[name] = [
            truth.values(shown[role]) for truth, shown in zip(truths, pictures, strict=True)
        ]
    sys.stdout.write(table(rows, seconds))
    if options.output is not None:
        for i in range(min(STRIPS, len(clips))):
            save_png(options.output / f"video-{clips[i].task}.png", strip(pictures[i]))
            sys.stdout.write(f"video-{clips[i].task}.png: {clips[i].instruction}\n")
    return 0


def edited(editor: Editor, clip: ClipPair, settings: VideoSettings) -> UInt8[Tensor, "f 3 h w"]:
    """Edit a clip in memory."""
    frames = torch.from_numpy(clip.source)
    shots = [Shot(frame, i, i == 0 or i in clip.cuts) for i, frame in enumerate(frames)]
    video = VideoEditor(editor, [VideoTurn(clip.instruction, clip.task)], settings)
    return torch.stack([shot.pixels for shot in video.edit(shots)])


def table(rows: dict[str, list[Values]], seconds: dict[str, float]) -> str:
    """Return the rows as a table in Markdown, each metric over the clips that have it."""
    usual = next(iter(seconds.values()))
    lines = []
    for name, scores in rows.items():
        means = [
            mean(s[metric] for s in scores if s[metric] is not None) for metric in EDITED_CLIPS
        ]
        took = f"{seconds[name] / usual:.2f}" if name in seconds else "-"
        lines.append([name, *(f"{number:.3f}" for number in means), took])
    labels = [str(metric) for metric in EDITED_CLIPS.values()]
    return markdown_table(["options", *labels, "time"], lines) + "\n"


def strip(rows: list[UInt8[Tensor, "f 3 h w"]]) -> UInt8[Tensor, "3 h w"]:
    """Lay eight frames of each row out, rows below each other."""
    step = max(1, len(rows[0]) // COLUMNS)
    lines = [torch.cat(list(resize(row[::step][:COLUMNS], (96, 96))), dim=2) for row in rows]
    return torch.cat(lines, dim=1)


if __name__ == "__main__":
    sys.exit(main())
