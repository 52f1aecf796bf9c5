"""A result of a clip of the moving world, scored frame by frame against its exact truth.

Besides differences of pixels, the scene reader says whether what should be seen can be recognised:
which of the figures that it reads right in the true frames it also reads right in the result.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from datamodules.world.clips.clip import ClipPair
from datamodules.world.clips.flow import optical_flow
from datamodules.world.find import box_of, overlap
from datamodules.world.read import read_scene
from datamodules.world.scene import Scene
from emu_edit.metrics.video import (
    colour_drift,
    flicker_error,
    outside_psnr,
    warp_error,
)
from emu_edit.metrics.world import EditScore, errors
from emu_edit.tasks import TASKS, Family

Frames = UInt8[Tensor, "f 3 h w"]
READ_EVERY = 4  # frames; reading one takes half a second
SAME_PLACE = 0.5  # intersection over union of boxes


@dataclass(frozen=True)
class ClipTruth:
    """A clip, and what has to be computed of it once for all that are scored.

    Attributes:
        clip: with source, target and masks.
        flow: of the target, see `optical_flow`; 0 at a cut.
        occluded: of the target; everything at a cut.
        readable: by frame that is read, the names of figures that are read right in the target.
    """

    clip: ClipPair
    flow: Float[Tensor, "_ 2 h w"]
    occluded: Bool[Tensor, "_ h w"]
    readable: dict[int, frozenset[str]]

    @staticmethod
    def of(clip: ClipPair) -> "ClipTruth":
        """Compute it."""
        scenes, size = clip.output_scenes, clip.source.shape[-1]
        flow = torch.zeros(len(scenes) - 1, 2, size, size)
        occluded = torch.ones(len(scenes) - 1, size, size, dtype=torch.bool)
        for i in range(len(scenes) - 1):
            if i + 1 not in clip.cuts:
                moved, hidden = optical_flow(scenes[i], scenes[i + 1], size)
                flow[i], occluded[i] = torch.from_numpy(moved), torch.from_numpy(hidden)
        family = {task.name: task.family for task in TASKS}[clip.task]
        # other tasks draw no scene that could be read: a sketch, a map, a frame around something
        numbers = range(0, len(scenes), READ_EVERY) if family is Family.region else ()
        readable = {i: read_right(clip.target[i], scenes[i]) for i in numbers}
        return ClipTruth(clip, flow, occluded, readable)

    def values(self, result: Frames) -> dict[str, float | None]:
        """Score a result; what is not defined is None.

        clean: share of frames that are, see `EditScore`; relative_error: over all frames, inside
        the masks, relative to not editing; warp_error with the flow of the target; identity: share
        of the figures that are read right in the target which are read right in the result.
        """
        clip = self.clip
        source, target = torch.from_numpy(clip.source), torch.from_numpy(clip.target)
        scores = list(self._frames(result, source, target))
        copied = sum(score.copy_l1 for score in scores)
        inside = sum(score.inside_l1 for score in scores)
        values = {
            "clean": _mean([float(score.clean) for score in scores]),
            "relative_error": inside / copied if copied else math.nan,
            "psnr_outside": outside_psnr(result, source, torch.from_numpy(clip.mask)),
            "warp_error": warp_error(result, self.flow, self.occluded),
            "flicker_error": flicker_error(result, target, clip.cuts),
            "colour_drift": colour_drift(result, target).abs().max().item(),
            "identity": self._identity(result),
        }
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def _frames(self, result: Frames, source: Frames, target: Frames) -> Iterator[EditScore]:
        """Yield the score of each frame in which there is something to edit."""
        for i, mask in enumerate(torch.from_numpy(self.clip.mask)):
            if bool(mask.any()):
                key = f"{self.clip.key}, frame {i}"
                yield errors(result[i], source[i], target[i], mask, key=key, task=self.clip.task)

    def _identity(self, result: Frames) -> float:
        known = sum(len(names) for names in self.readable.values())
        if known == 0:
            return math.nan
        right = sum(
            len(names & read_right(result[i].numpy(), self.clip.output_scenes[i]))
            for i, names in self.readable.items()
            if names
        )
        return right / known


def read_right(frame: UInt8[np.ndarray, "3 h w"], scene: Scene) -> frozenset[str]:
    """Return the names of the figures of a scene that are read in a frame, where they should be."""
    found = read_scene(frame).figures
    return frozenset(
        figure.name
        for figure in scene.figures
        if any(
            read.figure.full_name == figure.full_name
            and overlap(read.box, box_of(figure)) >= SAME_PLACE
            for read in found
        )
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
