"""Scores of an edited video by networks: each video is read once, in constant memory.

What is kept of a video does not depend on captions, so that one reading serves all edits of it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.metrics.backbones import ClipBackbone
from emu_edit.metrics.preprocess import resample
from emu_edit.metrics.similarity import clip_dir, cosine
from emu_edit.metrics.viclip import ViclipBackbone
from emu_edit.metrics.video_clip import FrameSums
from emu_edit.metrics.video_protocols import CLIP, NETWORK_OF, PICKSCORE, VICLIP, VideoProtocol
from emu_edit.terminal import plural


@dataclass(frozen=True)
class CountedFrames:
    """A video whose length is known before it is read.

    Attributes:
        frames: read once, from the first on; may be a generator.
        count: how many there are, at least 1.
    """

    frames: Iterable[UInt8[Tensor, "3 _ _"]]
    count: int


@dataclass(frozen=True)
class VideoNetworks:
    """The networks of a protocol, those that are there.

    Attributes:
        protocol: what they are used by.
        metrics: of the protocol, those that are computed.
        clip: None where it is not there or not needed; so the others.
        pickscore: the network of PickScore.
        viclip: ViCLIP.
        missing: names on the hub of those that are needed and not there.
    """

    protocol: VideoProtocol
    metrics: tuple[str, ...]
    clip: ClipBackbone | None = None
    pickscore: ClipBackbone | None = None
    viclip: ViclipBackbone | None = None
    missing: tuple[str, ...] = ()

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each network's weight file."""
        return {name: network.sha256 for name, network in self._named().items()}

    def count_cut(self, captions: Sequence[str]) -> dict[str, int]:
        """Count for each network the captions that are longer than it reads."""
        return {name: network.count_cut(captions) for name, network in self._named().items()}

    def _named(self) -> dict[str, ClipBackbone | ViclipBackbone]:
        named = {CLIP: self.clip, PICKSCORE: self.pickscore, VICLIP: self.viclip}
        return {name: network for name, network in named.items() if network is not None}


def load_video_backbones(
    folder: Path,
    protocol: VideoProtocol,
    metrics: Sequence[str] | None = None,
    *,
    allow_missing: bool = False,
    device: str | torch.device = "cpu",
) -> VideoNetworks:
    """Load the networks that metrics need from `folder`/owner--name.

    Args:
        folder: where they were downloaded to; nothing is fetched.
        protocol: which they are.
        metrics: of the protocol; None means all.
        allow_missing: whether to go on without those whose folder is not there, and without their
            metrics. Without CLIP, whose tokenizer all of them read with, there are none.
        device: where to compute.

    Raises:
        InputError: if one is missing, saying how to get all that are, or cannot be loaded.
    """
    wanted = protocol.metrics if metrics is None else tuple(metrics)
    needed = dict.fromkeys([CLIP, *(NETWORK_OF[name] for name in wanted)])
    places = {name: folder / protocol.download(name).name.replace("/", "--") for name in needed}
    missing = [protocol.download(name) for name in needed if not places[name].is_dir()]
    if missing and not allow_missing:
        commands = " && ".join(
            f"hf download {one.name} {' '.join(one.files)} "
            f"--local-dir {folder / one.name.replace('/', '--')}"
            for one in missing
        )
        raise InputError(
            f"{folder} lacks {plural(len(missing), 'network')} of the protocol {protocol.name}; "
            f"get {'it' if len(missing) == 1 else 'them'} with: {commands}"
        )
    words, cut, dtype = places[CLIP], protocol.clip_preprocess, getattr(torch, protocol.dtype)
    there = {name for name in needed if places[name].is_dir() and words.is_dir()}
    computed = tuple(name for name in wanted if NETWORK_OF[name] in there)
    networks = VideoNetworks(protocol, computed, missing=tuple(one.name for one in missing))
    used = {NETWORK_OF[name] for name in computed}
    if CLIP in used:
        clip = ClipBackbone.load(words, cut, dtype=dtype, device=device)
        networks = replace(networks, clip=clip)
    if PICKSCORE in used:
        pickscore = ClipBackbone.load(
            places[PICKSCORE], cut, dtype=dtype, device=device, tokenizer=words
        )
        networks = replace(networks, pickscore=pickscore)
    if VICLIP in used:
        viclip = ViclipBackbone.load(
            places[VICLIP], protocol.viclip_input, tokenizer=words, dtype=dtype, device=device
        )
        networks = replace(networks, viclip=viclip)
    return networks


@dataclass(frozen=True)
class VideoFeatures:
    """What is kept of a video; None where the network is not there.

    Attributes:
        clip: sums of CLIP's features of its frames.
        pickscore: the same of PickScore's.
        viclip: ViCLIP's feature of its chosen frames.
    """

    clip: FrameSums | None
    pickscore: FrameSums | None
    viclip: Float[Tensor, " d"] | None


def video_features(video: CountedFrames, networks: VideoNetworks) -> VideoFeatures:
    """Read a video once, from its first frame to its last.

    Raises:
        InputError: if it has another number of frames than said, or none, or a network returns NaN.
    """
    if video.count < 1:
        raise InputError("a video without frames cannot be scored; it needs at least one")
    protocol, viclip = networks.protocol, networks.viclip
    chosen = () if viclip is None else viclip.indices(video.count)
    sums = [(FrameSums(), network) for network in (networks.clip, networks.pickscore)]
    prepared: list[Tensor] = []
    count = 0
    for index, frame in enumerate(video.frames):
        count += 1
        if viclip is not None and index in chosen:
            prepared += [viclip.prepared(frame)] * chosen.count(index)
        if networks.clip is not None or networks.pickscore is not None:
            seen = resample(frame, protocol.frame_size, protocol.frame_filter)
            for total, network in sums:
                if network is not None:
                    total.add(network.images([seen])[0])
    if count != video.count:
        raise InputError(
            f"a video said to have {plural(video.count, 'frame')} has {count}; its file may be "
            "damaged: copy it again, or mend it with ffmpeg"
        )
    clip, pickscore = (total if network is not None else None for total, network in sums)
    return VideoFeatures(clip, pickscore, None if viclip is None else viclip.video(prepared))


def score_features(
    source: VideoFeatures,
    result: VideoFeatures,
    source_caption: str,
    target_caption: str,
    networks: VideoNetworks,
) -> dict[str, float | None]:
    """Compute the metrics of an edit from what was kept of both videos.

    Returns:
        each of `networks.metrics`; None where it is not defined: both CLIPFrames of a single frame,
        all that compare with an empty caption, ViCLIPdir of two captions that do not differ.
    """
    values: dict[str, float] = {}
    if result.clip is not None:
        values["clip_frame_all"] = result.clip.all_pairs()
        values["clip_frame_next"] = result.clip.consecutive()
    if target_caption.strip():
        for name, sums, network in (
            ("clip_text", result.clip, networks.clip),
            ("pickscore", result.pickscore, networks.pickscore),
        ):
            if sums is not None and network is not None:
                text = network.texts([target_caption])[0]
                values[name] = network.logit_scale * sums.mean_cosine(text)
        if result.viclip is not None and source.viclip is not None and networks.viclip is not None:
            before, after = source.viclip[None], result.viclip[None]
            texts = networks.viclip.texts([source_caption, target_caption])
            values["viclip_out"] = cosine(after, texts[1:]).item()
            if source_caption.strip():
                values["viclip_dir"] = clip_dir(before, after, texts[:1], texts[1:]).item()
    return {name: _defined(values.get(name, math.nan)) for name in networks.metrics}


def score_video(
    source: CountedFrames,
    result: CountedFrames,
    source_caption: str,
    target_caption: str,
    networks: VideoNetworks,
) -> dict[str, float | None]:
    """Score an edited video beside its source, see `score_features`; both are read once.

    Of the source only ViCLIP's frames are looked at.
    """
    only_viclip = replace(networks, clip=None, pickscore=None)
    return score_features(
        video_features(source, only_viclip),
        video_features(result, networks),
        source_caption,
        target_caption,
        networks,
    )


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
