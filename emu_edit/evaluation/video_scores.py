"""How the results of a benchmark of videos are scored: by exact truth, or by pinned networks."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from datamodules.evaluation_sets.videos import TGVE, WORLD_VIDEO, VideoItem
from datamodules.world.clips.clip import VERSION as CLIPS_VERSION
from datamodules.world.pair import VERSION as WORLD_VERSION
from emu_edit.errors import InputError
from emu_edit.evaluation.clips import ClipTruth
from emu_edit.evaluation.figures import COPY, EDITED_CLIPS, MODEL, ORACLE
from emu_edit.evaluation.score import Values
from emu_edit.metrics.raft import FILE, FOLDER, UPDATES, FlowBackbone
from emu_edit.metrics.video import flicker, slope, warp_errors
from emu_edit.metrics.video_protocols import video_protocol
from emu_edit.metrics.video_score import (
    CountedFrames,
    VideoFeatures,
    VideoNetworks,
    load_video_backbones,
    score_features,
    video_features,
)
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

    def score(self, item: VideoItem, result: Video | None) -> dict[str, Values]:
        """Score a result, None if there is none, and what it is shown beside, by editor."""
        ...

    def count_cut(self, captions: Collection[str]) -> int:
        """Count the captions that are longer than a network reads."""
        ...


class WorldScorer:
    """Scores clips of the moving world by their exact truth, see `ClipTruth`."""

    name = WORLD_VIDEO
    metrics = tuple(EDITED_CLIPS)
    protocol: Mapping[str, object] = {
        "name": "world-video",
        "reference": "ground truth",
        "metrics": list(metrics),
        "world_version": WORLD_VERSION,
        "clips_version": CLIPS_VERSION,
    }
    backbones: Mapping[str, str] = {}

    def score(self, item: VideoItem, result: Video | None) -> dict[str, Values]:
        """Score a result beside the source and the truth; none is as good as the source."""
        assert item.clip is not None  # every item of the world has one
        truth = ClipTruth.of(item.clip())
        return {
            MODEL: truth.values(_frames(item.source() if result is None else result)),
            COPY: truth.values(torch.from_numpy(truth.clip.source)),
            ORACLE: truth.values(torch.from_numpy(truth.clip.target)),
        }

    def count_cut(self, captions: Collection[str]) -> int:
        """Read no captions."""
        del captions
        return 0


class TgveScorer:
    """Scores videos without a truth by the networks of a protocol, beside their own sources.

    With a network for optical flow, also by `warp_error` along the flow of the source.
    """

    name = TGVE

    def __init__(self, networks: VideoNetworks, flow: FlowBackbone | None = None) -> None:
        self._networks = networks
        self._flow = flow
        self.metrics = (*networks.metrics, "flicker", "colour_drift")
        self.protocol: Mapping[str, object] = {**asdict(networks.protocol), "reference": "captions"}
        self.backbones: Mapping[str, str] = networks.hashes
        if flow is not None:
            self.metrics = (*self.metrics, "warp_error")
            self.protocol = {**self.protocol, "flow": f"{FILE}, {UPDATES} updates"}
            self.backbones = {**self.backbones, FOLDER: flow.sha256}
        self.protocol = {**self.protocol, "metrics": list(self.metrics)}
        self._source: tuple[str, _Read] | None = None  # several edits share one

    def score(self, item: VideoItem, result: Video | None) -> dict[str, Values]:
        """Score a result, and its source as if it were one; none is as good as the source."""
        result = item.source() if result is None else result
        if self._source is None or self._source[0] != item.sha256:
            self._source = (item.sha256, self._read(item.source()))
        source, edited = self._source[1], self._read(result)
        captions = (item.source_caption, item.target_caption)
        warped: dict[str, dict[str, float | None]] = {MODEL: {}, COPY: {}}
        if self._flow is not None:
            warped = _warped(item, result if source.frames == edited.frames else None, self._flow)
        return {
            name: {
                **score_features(source.features, read.features, *captions, self._networks),
                "flicker": read.flicker,
                "colour_drift": _drift(source, read),
                **warped[name],
            }
            for name, read in ((MODEL, edited), (COPY, source))
        }

    def count_cut(self, captions: Collection[str]) -> int:
        """Count the captions that are longer than a network reads."""
        return sum(any(self._networks.count_cut([text]).values()) for text in captions)

    def _read(self, video: Video) -> "_Read":
        """Read a video once."""
        changes: list[float] = []
        means: list[Tensor] = []

        def pixels() -> Iterator[UInt8[Tensor, "3 h w"]]:
            last = None
            for frame in video.frames():
                if last is not None:
                    changes.append(flicker(torch.stack([last, frame.pixels])))
                means.append(frame.pixels.double().mean((1, 2)))
                last = frame.pixels
                yield frame.pixels

        features = video_features(CountedFrames(pixels(), video.info.frames), self._networks)
        changed = sum(changes) / len(changes) if changes else 0.0
        return _Read(features, changed, slope(torch.stack(means)), len(means))


@dataclass(frozen=True)
class _Read:
    """What is kept of a video: nothing that grows with its frames."""

    features: VideoFeatures
    flicker: float
    slope: Float64[Tensor, " 3"]
    frames: int


def _drift(source: _Read, result: _Read) -> float | None:
    """Return the worst channel's drift, see `colour_drift`; a slope is linear in the frames."""
    if source.frames != result.frames:
        return None
    return (result.slope - source.slope).abs().max().item()


def _warped(
    item: VideoItem, result: Video | None, flow: FlowBackbone
) -> dict[str, dict[str, float | None]]:
    """Return the warp errors of source and result; of no result, or where nothing is seen, None."""
    videos = [item.source(), *([] if result is None else [result])]
    errors = warp_errors([(frame.pixels for frame in video.frames()) for video in videos], flow)
    named = dict(zip((COPY, MODEL), [*errors, math.nan], strict=False))
    return {
        name: {"warp_error": error if math.isfinite(error) else None}
        for name, error in named.items()
    }


def scorer_of(benchmark: str, protocol: str | None, backbones: Path | None, device: str) -> Scorer:
    """Make the benchmark's scorer.

    Raises:
        InputError: if there is no such protocol, or a network is missing.
    """
    if benchmark == WORLD_VIDEO:
        return WorldScorer()
    pinned = video_protocol(protocol)
    if backbones is None:
        raise InputError(
            f"--benchmark {TGVE} needs --backbones DIR, the folder with the networks of the "
            f"protocol {pinned.name}; which are missing is said then"
        )
    networks, flow = load_video_backbones(backbones, pinned, device=device), None
    if (backbones / FOLDER).is_dir():
        dtype = getattr(torch, pinned.dtype)
        flow = FlowBackbone.load(backbones / FOLDER, dtype=dtype, device=device)
    return TgveScorer(networks, flow)


def _frames(video: Video) -> UInt8[Tensor, "f 3 h w"]:
    return torch.stack([frame.pixels for frame in video.frames()])
