"""A video told from its given frames: which is nearest, what changes since, and what moves where.

For models of z0. Stillness is where a video begins, so what is learnt is the change; and what a
caption does to a picture can be read off the two, before there is any noise. All of it is ours,
for picture models that are too small to carry a picture through layers made for noise.
"""

from dataclasses import dataclass

import torch
import torch.distributed as distributed
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from emu_edit.models.interfaces import TextFeatures

WIDTH = 128  # of what is said to each block
TEXTS = 2048  # after so many the text's statistics are fixed
LEAST_VARIANCE = 1e-3  # of a direction of text features, in the mean's units, that is made larger
PERIODS = (4, 8, 16, 32, 64, 128)  # of the waves that say how far a frame is, in frames
DILATIONS = (1, 2, 1, 2, 1)  # of the blocks: 14 cells far


@dataclass(frozen=True)
class Nearest:
    """The given frame that is nearest to each frame, a row "(b f)" for each.

    Attributes:
        start: its latents.
        distance: how many frames the row comes after it; negative before it, 0 for itself.
        is_told: whether anything is given in the row's video.
    """

    start: Float[Tensor, "rows c h w"]
    distance: Int64[Tensor, " rows"]
    is_told: Bool[Tensor, " rows"]

    @staticmethod
    def of(given: Float[Tensor, "b f c1 h w"]) -> "Nearest":
        """Find them in conditions of `given_frames`, c1 = c + 1."""
        b, f = given.shape[:2]
        nearest, any_given = nearest_given(given[:, :, -1].amax(dim=(2, 3)) > 0)
        videos = torch.arange(b, device=given.device)[:, None]
        distance = torch.arange(f, device=given.device) - nearest
        start = given[videos, nearest, :-1].flatten(0, 1)
        return Nearest(start, distance.flatten(), any_given.repeat_interleave(f))

    def error(self, z_0: Float[Tensor, "b f c h w"]) -> Float[Tensor, ""]:
        """Return how wrong `start` is for the frames of clips: the mean square.

        Frames that are given, and videos in which none is, count as 0.
        """
        return ((self.start - z_0.flatten(0, 1)) * self.to_tell()).square().mean()

    def to_tell(self) -> Float[Tensor, "rows 1 1 1"]:
        """Return 1 for the rows that are told a frame other than themselves, else 0."""
        is_other = self.is_told & (self.distance != 0)
        return is_other[:, None, None, None].to(self.start.dtype)


@dataclass(frozen=True)
class VideoCall:
    """What temporal layers are told of a batch, for all its noise levels: rows are "(b f)"."""

    frames: int
    condition: Tensor | None
    nearest: Nearest | None = None  # of `spec.still`; moved to where motion expects it
    read: Tensor | None = None  # of `spec.motion`, for the first features
    size: tuple[int, int] | None = None  # of the latents, for `spec.coarse`


def nearest_given(
    is_given: Bool[Tensor, "b f"],
) -> tuple[Int64[Tensor, "b f"], Bool[Tensor, " b"]]:
    """Return the number of the given frame that is nearest to each, and whether there is any.

    Of two that are as near it is the earlier one; without any it is frame 0.
    """
    at = torch.arange(is_given.shape[1], device=is_given.device)
    distance = (at[:, None] - at[None]).abs().expand(len(is_given), -1, -1)
    far = distance.masked_fill(~is_given[:, None], is_given.shape[1])
    return far.argmin(dim=2), is_given.any(dim=1)


class ChangeOut(nn.Module):
    """A second last convolution: gives each frame by how it changes from the nearest given one.

        z0 = g z_given + (1 - g) z0' + c,  g = clamp(1 + g', 0, 1)

    g', one number a place, and c are read off where the picture model's z0' is, and start at zero,
    so that a video begins as a still one; what does not move is copied, what comes into sight is
    drawn. Where nothing is given g is 0. The change is that of edits.

    Args:
        conv_out: the picture model's, for the shapes.
    """

    def __init__(self, conv_out: nn.Conv2d) -> None:
        super().__init__()
        size, self.padding = conv_out.kernel_size, conv_out.padding
        like = nn.Conv2d(conv_out.in_channels, conv_out.out_channels + 1, (size[0], size[1]))
        assert like.bias is not None
        self.weight, self.bias = like.weight, like.bias
        for parameter in (self.weight, self.bias):
            nn.init.zeros_(parameter)

    def forward(
        self,
        features: Float[Tensor, "rows k h w"],
        output: Float[Tensor, "rows c h w"],
        nearest: Nearest | None,
    ) -> Float[Tensor, "rows c h w"]:
        """Return z0 of the rows "(b f)".

        Args:
            features: what `conv_out` saw.
            output: what it made of them, z0'.
            nearest: the given frames; None gives nothing.
        """
        features = features.to(self.weight.dtype)
        read = functional.conv2d(features, self.weight, self.bias, padding=self.padding)
        read = read.to(output.dtype)
        change, gate = read[:, :-1], (1 + read[:, -1:]).clamp(0, 1)
        if nearest is None:
            return output + change
        is_told = nearest.is_told[:, None, None, None].to(output.dtype)
        return output + gate * is_told * (nearest.start.to(output.dtype) - output) + change


class MotionReader(nn.Module):
    """A small network that reads off a given frame and the text what moves where.

        m = silu(W_3 silu(W_1 white(y) + W_2 p(d)))
        h' = h + V silu((1 + s(m)) * U silu(norm(h)) + b(m))

    y is the mean of the text's tokens, p(d) waves of the distance to the given frame in frames, U
    and V convolutions, U with holes now and then. From the last h two convolutions that start at
    zero: one is added to the picture model's first features, the other to the given frame, which is
    then what is expected of the frame. It sees no noise and no step, so that the words for a
    direction need not be found through noise.

    Source: scale and shift by a condition, Perez et al. 2018 (FiLM), arXiv:1709.07871, section 2;
    that a caption's motion is to be read off the clean picture by a network of its own is ours.

    Args:
        latent_channels: c of a frame.
        text_dim: of a token.
        first_width: of the picture model's first features.
        width: of h, a multiple of 8.
        identity: start as if it were not there.
    """

    def __init__(
        self, latent_channels: int, text_dim: int, first_width: int, *, width: int, identity: bool
    ) -> None:
        super().__init__()
        self.white = Whitening(text_dim)
        self.of_text = nn.Linear(text_dim, WIDTH)
        self.of_distance = nn.Linear(2 * len(PERIODS), WIDTH, bias=False)
        self.together = nn.Linear(WIDTH, WIDTH)
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList([_Block(width, dilation) for dilation in DILATIONS])
        self.to_features = nn.Conv2d(width, first_width, 3, padding=1)
        self.to_change = nn.Conv2d(width, latent_channels, 3, padding=1)
        if identity:
            for layer in (self.to_features, self.to_change):
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)

    def forward(
        self, nearest: Nearest, text: TextFeatures
    ) -> tuple[Float[Tensor, "rows k h w"], Float[Tensor, "rows c h w"]]:
        """Return what to add to the first features and to the frame; zeros where nothing is told.

        Args:
            nearest: the given frames, rows "(b f)".
            text: of each of the b videos.
        """
        kind = self.conv_in.weight.dtype
        y = self.of_text(self.white(text.mean()).to(kind))
        y = y.repeat_interleave(len(nearest.distance) // len(y), dim=0)
        waves = self.of_distance(distance_waves(nearest.distance).to(kind))
        m = functional.silu(self.together(functional.silu(y + waves)))
        h = self.conv_in(nearest.start.to(kind))
        for block in self.blocks:
            h = block(h, m)
        h, is_told = functional.silu(h), nearest.to_tell()
        return self.to_features(h) * is_told, self.to_change(h) * is_told


class Whitening(nn.Module):
    """Make all that texts differ in equally large: a frozen encoder's words of motion may be tiny.

        white(y) = C^(-1/2) (y - mean),  then of length sqrt(d)

    In training mode mean and covariance C are those of the texts so far, of all processes, until
    there are 2048. Of variances below a thousandth of their mean only so much is made up.
    Source: the whitening of sentence features, Su et al. 2021, arXiv:2103.15316, section 3; the
    symmetric root, which turns nothing, Kessy et al. 2018, arXiv:1512.00809, section 3.

    Args:
        dim: d of the features.
    """

    count: Tensor
    total: Tensor
    squares: Tensor
    root: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        for name, start in (
            ("count", torch.zeros(())),
            ("total", torch.zeros(dim)),
            ("squares", torch.zeros(dim, dim)),
            ("root", torch.eye(dim)),
        ):
            self.register_buffer(name, start)
        self._is_fixed = False  # so that a GPU is not asked at every step

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, y: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Whiten, in single precision; the first texts of a training are learnt from."""
        y = y.float()
        if self.training and not self._is_fixed:
            self._is_fixed = self.count.item() >= TEXTS
            if not self._is_fixed:
                self._learn(y)
        white = (y - self.total / self.count.clamp(min=1)) @ self.root
        return functional.normalize(white, dim=1) * y.shape[1] ** 0.5

    def _learn(self, y: Float[Tensor, "b d"]) -> None:
        news = (torch.ones_like(y[:, 0]).sum(), y.sum(dim=0), y.T @ y)
        for known, new in zip((self.count, self.total, self.squares), news, strict=True):
            if distributed.is_initialized():
                distributed.all_reduce(new)
            known.add_(new)
        mean = self.total / self.count
        variances, ways = torch.linalg.eigh(self.squares / self.count - mean.outer(mean))
        least = (LEAST_VARIANCE * variances.mean()).clamp(min=torch.finfo(y.dtype).tiny)
        self.root.copy_(ways * (variances.clamp(min=0) + least).rsqrt() @ ways.T)


class _Block(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.scale_shift = nn.Linear(WIDTH, 2 * width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(
        self, h: Float[Tensor, "rows k h w"], m: Float[Tensor, "rows d"]
    ) -> Float[Tensor, "rows k h w"]:
        scale, shift = self.scale_shift(m)[:, :, None, None].chunk(2, dim=1)
        inner = self.first(functional.silu(self.norm(h))) * (1 + scale) + shift
        return h + self.second(functional.silu(inner))


def distance_waves(distance: Int64[Tensor, " rows"]) -> Float[Tensor, "rows p"]:
    """Return the sines and cosines of 2 pi d / P for every period P: 0 differs from all others."""
    periods = torch.tensor(PERIODS, device=distance.device, dtype=torch.float32)
    angles = 2 * torch.pi * distance[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=1)
