"""How the results of a benchmark of videos are scored: by exact truth, or by pinned networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.evaluation_sets.videos import WORLD_VIDEO, VideoItem
from datamodules.world.clips.clip import VERSION as CLIPS_VERSION
from datamodules.world.pair import VERSION as WORLD_VERSION
from emu_edit.evaluation.clips import ClipTruth
from emu_edit.evaluation.figures import COPY, MODEL, ORACLE, WORLD_CLIPS
from emu_edit.evaluation.score import Values
from emu_edit.video.clip import Video


@runtime_checkable
class Scorer(Protocol):
    """What scores the results of a benchmark, one by one.

    Attributes:
        name: ending of a folder of results.
        metrics: in the order of the table.
        protocol: what pins the numbers, as JSON values.
        backbones: hash of each network's weights by name.
    """

    name: str
    metrics: tuple[str, ...]
    protocol: Mapping[str, object]
    backbones: Mapping[str, str]

    def score(self, item: VideoItem, result: Video) -> dict[str, Values]:
        """Score a result and what it is shown beside, by editor."""
        ...

    def count_cut(self) -> int:
        """Count the captions that were longer than a network reads."""
        ...


class WorldScorer:
    """Scores clips of the moving world by their exact truth, see `ClipTruth`."""

    name = WORLD_VIDEO
    metrics = tuple(WORLD_CLIPS)
    protocol: Mapping[str, object] = {
        "name": "world-video",
        "reference": "ground truth",
        "metrics": list(metrics),
        "world_version": WORLD_VERSION,
        "clips_version": CLIPS_VERSION,
    }
    backbones: Mapping[str, str] = {}

    def score(self, item: VideoItem, result: Video) -> dict[str, Values]:
        """Score a result beside the source and the truth."""
        assert item.clip is not None  # every item of the world has one
        truth = ClipTruth.of(item.clip())
        return {
            MODEL: truth.values(_frames(result)),
            COPY: truth.values(torch.from_numpy(truth.clip.source)),
            ORACLE: truth.values(torch.from_numpy(truth.clip.target)),
        }

    def count_cut(self) -> int:
        """Read no captions."""
        return 0


def scorer_of(benchmark: str, backbones: Path | None, device: str) -> Scorer:
    """Make the benchmark's scorer.

    Raises:
        InputError: if a network is missing.
    """
    if benchmark == WORLD_VIDEO:
        return WorldScorer()
    raise NotImplementedError(backbones, device)


def _frames(video: Video) -> UInt8[Tensor, "f 3 h w"]:
    return torch.stack([frame.pixels for frame in video.frames()])
