"""Numbers of an edited video by its pixels: flicker, motion followed, still parts kept.

Frames are uint8; results are in grey levels (0 to 255) unless said otherwise.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor
from torch.nn import functional

from emu_edit.metrics.preprocess import resample

Frame = UInt8[Tensor, "3 h w"]
Frames = UInt8[Tensor, "f 3 h w"]
MOST_PSNR = 60.0  # dB: a mean of them must not hang on a few frames that are equal


def warp_error(
    frames: Frames, flow: Float[Tensor, "g 2 h w"], occluded: Bool[Tensor, "g h w"]
) -> float:
    """Average how far a surface changes its colour from one frame to the next.

        mean over what is seen in both of |frame[t](p) - frame[t + 1](p + flow[t](p))|

    `flow` and `occluded` are the source's from frame t to t + 1, (x, y) in pixels to the right and
    down; frame t + 1 is read between pixels (bilinear). NaN where nothing is seen twice.
    Source: Lai et al. 2018, arXiv:1808.00449, section 4, with exact flow and occlusion.
    """
    error = (_read_along(frames[1:].float(), flow) - frames[:-1].float()).abs().mean(1)
    seen = ~occluded
    return (error[seen].mean().item()) if bool(seen.any()) else math.nan


def warp_errors(
    videos: Sequence[Iterable[Frame]], flow: Callable[[Tensor, Tensor], Float[Tensor, "2 h w"]]
) -> list[float]:
    """Compute the `warp_error` of videos along the flow of the first; two frames of each are kept.

    Args:
        videos: of equally many frames; those of another size than the first's are resampled.
        flow: of two frames, from the first to the second.
    """
    sums, count = [0.0] * len(videos), 0
    for now, then in pairwise(zip(*videos, strict=True)):
        forward, backward = flow(now[0], then[0]), flow(then[0], now[0])
        occluded = occlusion(forward, backward)
        seen = int((~occluded).sum())
        if seen == 0:
            continue
        count += seen
        size = (int(forward.shape[1]), int(forward.shape[2]))
        for i, (one, other) in enumerate(zip(now, then, strict=True)):
            pair = torch.stack([resample(frame, size, "bicubic") for frame in (one, other)])
            sums[i] += seen * warp_error(pair, forward[None], occluded[None])
    return [total / count if count else math.nan for total in sums]


def occlusion(
    forward: Float[Tensor, "2 h w"], backward: Float[Tensor, "2 h w"]
) -> Bool[Tensor, "h w"]:
    """Tell which pixels of a frame are not seen in the next: the way there and back is not closed.

        |F(p) + B(p + F(p))|² > 0.01 (|F(p)|² + |B(p + F(p))|²) + 0.5, or p + F(p) is outside

    F is the flow to the next frame and B the one back, both in pixels.
    Source: Sundaram et al. 2010, "Dense point trajectories by GPU-accelerated large displacement
    optical flow", section 3.
    """
    back = _read_along(backward[None], forward[None])[0]
    gap = (forward + back).square().sum(0)
    lengths = forward.square().sum(0) + back.square().sum(0)
    height, width = forward.shape[-2:]
    last = torch.tensor([width, height]).view(2, 1, 1) - 0.5  # a pixel reaches half of one around
    at = _positions(forward[None])[0]
    outside = ((at < -0.5) | (at > last)).any(0)
    return (gap > 0.01 * lengths + 0.5) | outside


def _read_along(
    pictures: Float[Tensor, "g c h w"], flow: Float[Tensor, "g 2 h w"]
) -> Float[Tensor, "g c h w"]:
    """Read pictures at p + flow(p), between pixels; the border goes on outside."""
    height, width = pictures.shape[-2:]
    scale = torch.tensor([width, height]).view(1, 2, 1, 1)
    grid = ((2 * _positions(flow) + 1) / scale - 1).permute(0, 2, 3, 1)
    return functional.grid_sample(
        pictures, grid.to(pictures), padding_mode="border", align_corners=False
    )


def _positions(flow: Float[Tensor, "g 2 h w"]) -> Float[Tensor, "g 2 h w"]:
    """Return where each pixel goes, (x, y)."""
    height, width = flow.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows]) + flow


def flicker(frames: Frames) -> float:
    """Average the change from frame to frame; of a still shot this is all flicker.

    Source: VBench's temporal flickering, Huang et al. 2023, arXiv:2311.17982, there as 1 - x / 255.
    """
    if len(frames) < 2:
        return 0.0
    return (frames[1:].short() - frames[:-1].short()).abs().float().mean().item()


def flicker_error(result: Frames, target: Frames, cuts: Sequence[int] = ()) -> float:
    """Average the change from frame to frame that the truth does not have; 0 at best.

        mean of |(result - target)[t + 1] - (result - target)[t]|, but for cuts

    A difference that stays the same does not flicker. Ours.
    """
    wrong = result.short() - target.short()
    steps = [
        (wrong[t + 1] - wrong[t]).abs().float().mean().item()
        for t in range(len(wrong) - 1)
        if t + 1 not in cuts
    ]
    return sum(steps) / len(steps) if steps else 0.0


def outside_psnr(result: Frames, source: Frames, mask: Bool[Tensor, "f h w"]) -> float:
    """Compare result and source where the mask is False: 10 log10(255² / mean square error), dB.

    At most `MOST_PSNR`, which equal frames have; NaN if the mask covers everything.
    """
    outside = ~mask[:, None].expand_as(result)
    if not bool(outside.any()):
        return math.nan
    square = (result.double() - source.double())[outside].square().mean().item()
    return MOST_PSNR if square == 0 else min(10 * math.log10(255**2 / square), MOST_PSNR)


def colour_drift(result: Frames, source: Frames) -> Float[Tensor, " 3"]:
    """Return by how many levels a frame the colours leave the source's, for R, G and B.

    The slope of a straight line through the mean of result - source, by least squares.
    """
    return slope(result.double().mean((2, 3)) - source.double().mean((2, 3))).float()


def slope(means: Float64[Tensor, "f c"]) -> Float64[Tensor, " c"]:
    """Return the slope per frame of the straight line through each column, by least squares."""
    time = torch.arange(len(means), dtype=torch.float64)
    time = time - time.mean()
    spread = time.square().sum()
    return (time[:, None] * means).sum(0) / spread if spread > 0 else torch.zeros_like(means[0])
