"""A small network that knows the moving world, and the distance of two sets of clips by it.

It was trained to tell of a clip which shapes are in it, in which colour, which way each one moves,
and the background; what it makes of a clip before it answers is the clip's feature. It comes with
the package, so that sets of generated clips of the world can be compared where no published
network can be had; `python -m benchmarks.world_video_network` made it, and the JSON beside the
weights says how. Its distances are not FVD: another network, another scale.
"""

import json
from collections.abc import Iterable
from functools import cache
from itertools import islice, pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Float32, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from emu_edit.errors import InputError
from emu_edit.images import to_float
from emu_edit.metrics.frechet import Moments, frechet_distance
from emu_edit.models.surgery import freeze

WEIGHTS = Path(__file__).with_name("world_video.safetensors")
RECORD = WEIGHTS.with_suffix(".json")  # how they were made
SIDE, FRAMES = 32, 8  # what a clip is brought to
WIDTHS = (16, 32, 64)
FEATURE = 64  # the width of a clip's feature
AT_ONCE = 32  # clips

Clip = UInt8[Tensor, "f 3 h w"]


class WorldVideoNet(nn.Module):
    """Convolutions in the picture and in time by turns, on frames and how they differ.

    Beside each frame the network sees its difference to the one before. The last stage is averaged
    over places and time, and brought to mean 0 and variance 1 over true clips: that is the feature.
    The heads that it was trained with stay, so that what it knows can be tested.

    Source: (2+1)D convolutions, Tran et al. 2018, arXiv:1711.11248; this size is ours.

    Args:
        answers: how many answers each head chooses from, by the head's name.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, answers: dict[str, int]) -> None:
        super().__init__()
        widths = (6, *WIDTHS, FEATURE)
        strides = ((1, 2), (1, 2), (2, 2), (1, 1))  # in time and in the picture
        self.trunk = nn.Sequential(*[
            _stage(before, after, *stride)
            for (before, after), stride in zip(pairwise(widths), strides, strict=True)
        ])
        self.register_buffer("centre", torch.zeros(FEATURE))
        self.register_buffer("spread", torch.ones(FEATURE))
        self.heads = nn.ModuleDict({
            name: nn.Linear(FEATURE, count) for name, count in answers.items()
        })

    def forward(self, clips: Float[Tensor, "b f 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the features of clips in [-1, 1] of `FRAMES` frames of `SIDE` pixels."""
        return (self.pooled(clips) - self.centre) / self.spread

    def answers(self, clips: Float[Tensor, "b f 3 h w"]) -> dict[str, Float[Tensor, "b _"]]:
        """Return what each head says, before the softmax."""
        pooled = self.pooled(clips)
        return {name: head(pooled) for name, head in self.heads.items()}

    def pooled(self, clips: Float[Tensor, "b f 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the features as the heads read them."""
        changes = clips.diff(dim=1, prepend=clips[:, :1])
        maps = self.trunk(torch.cat([clips, changes], dim=2).transpose(1, 2))
        return maps.mean((2, 3, 4))


def _stage(before: int, after: int, in_time: int, in_picture: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(before, after, (1, 3, 3), (1, in_picture, in_picture), (0, 1, 1), bias=False),
        nn.BatchNorm3d(after),
        nn.ReLU(),
        nn.Conv3d(after, after, (3, 1, 1), (in_time, 1, 1), (1, 0, 0), bias=False),
        nn.BatchNorm3d(after),
        nn.ReLU(),
    )


def prepared(clip: Clip) -> Float32[Tensor, "8 3 32 32"]:
    """Bring a clip to `FRAMES` frames, evenly from its first to its last, and to `SIDE` pixels.

    Of a shorter clip some frames come twice; other sides are squeezed to a square, smoothed.

    Raises:
        InputError: if the clip has no frame.
    """
    if len(clip) == 0:
        raise InputError("a clip without frames has no feature; it needs at least one")
    chosen = torch.linspace(0, len(clip) - 1, FRAMES).round().long()
    frames = to_float(clip[chosen])
    if frames.shape[-2:] == (SIDE, SIDE):
        return frames
    return F.interpolate(frames, (SIDE, SIDE), mode="bilinear", antialias=True)


@cache
def load_world_video() -> WorldVideoNet:
    """Load the network that comes with the package."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    network = WorldVideoNet({name: len(answers) for name, answers in record["answers"].items()})
    network.load_state_dict(load_file(WEIGHTS))
    return freeze(network)


@torch.no_grad()
def world_features(clips: Iterable[Clip]) -> Float32[Tensor, "n 64"]:
    """Compute the feature of each clip, with the network that comes with the package.

    Raises:
        InputError: if a clip has no frame.
    """
    network, rest = load_world_video(), iter(clips)
    rows = [torch.empty(0, FEATURE)]
    while some := [prepared(clip) for clip in islice(rest, AT_ONCE)]:
        rows.append(network(torch.stack(some)))
    return torch.cat(rows)


def frechet_of(true: Iterable[Clip], drawn: Iterable[Clip]) -> float:
    """Compute the Fréchet distance of two sets of clips by the features of `WorldVideoNet`.

    Compare only distances of equally many clips, at best of more than 64 each, see
    `emu_edit.metrics.frechet.few_samples`.

    Raises:
        InputError: if a set has fewer than two clips, or a clip no frame.
    """
    return frechet_distance(Moments.of(world_features(true)), Moments.of(world_features(drawn)))
