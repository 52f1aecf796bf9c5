"""One prediction out of many overlapping windows, so that any size is sampled with bounded memory.

The network sees one window of the noisy latent at a time, and what it says of a place is averaged
over the windows that hold it, at every step of the sampler: neighbours agree before the next step
begins, and no seam is left. Windows may be tiles of a picture or stretches of a video: a window is
a cut along any dimensions of the latent.

Every step of every sampler here is linear in the network's output, so averaging outputs, with z_t
shared, is averaging the latents that each window would have led to.
Source: MultiDiffusion, Bar-Tal et al. 2023, arXiv:2302.08113, eq. 5; the smooth weights are ours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product

import torch
from jaxtyping import Float, Real
from torch import Tensor

from emu_edit.diffusion.prediction import Predict, Prediction, estimates, target
from emu_edit.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Window:
    """A part of a latent.

    Attributes:
        index: a slice for each dimension of the latent; `slice(None)` for those that are not cut.
        weight: how much it counts in each place, above 0; broadcasts over the part.
    """

    index: tuple[slice, ...]
    weight: Float[Tensor, "..."]


def windows(shape: Sequence[int], over: Mapping[int, tuple[int, int]]) -> list[Window]:
    """Cover a latent with overlapping windows.

    Weights are sin^2 along each dimension that is cut: largest in the middle, near 0 at the edge,
    and with an overlap of half a window their sum is even.

    Args:
        shape: of the latent.
        over: for each dimension to cut, the size of a window and the overlap of two neighbours at
            least; where the latent is no longer than a window, it is not cut.

    Raises:
        ValueError: if an overlap is not smaller than its window.
    """
    cuts = [
        spans(length, *over[dim]) if dim in over else [slice(None)]
        for dim, length in enumerate(shape)
    ]
    return [Window(index, _weight(index, over)) for index in product(*cuts)]


def tiles(shape: Sequence[int], side: int) -> list[Window]:
    """Cover the last two dimensions with squares that overlap by half."""
    height, width = len(shape) - 2, len(shape) - 1
    return windows(shape, {height: (side, side // 2), width: (side, side // 2)})


def spans(length: int, size: int, overlap: int) -> list[slice]:
    """Cut 0 … length into stretches of `size`, evenly spaced, that overlap by `overlap` or more."""
    if not 0 <= overlap < size:
        raise ValueError(f"windows of {size} overlap by 0 to {size - 1}, got {overlap}")
    if length <= size:
        return [slice(0, length)]
    gaps = -(-(length - size) // (size - overlap))
    starts = [round(i * (length - size) / gaps) for i in range(gaps + 1)]
    return [slice(start, start + size) for start in starts]


def windowed(predict_at: Callable[[Window], Predict], windows: Sequence[Window]) -> Predict:
    """Predict the whole by averaging what is predicted for each window.

    output[p] = sum over windows w around p of weight_w[p] output_w[p], over the sum of the weights

    The mean is kept running, mean += (output_w - mean) weight_w / (weights so far): windows that
    agree give their value bit for bit, and nothing is stored but the mean and the weights.

    Args:
        predict_at: gives the network for one window, its conditions cut to the window.
        windows: must cover what will be predicted.
    """

    def predict(z_t: Float[Tensor, "b ..."], t: Real[Tensor, " b"]) -> Float[Tensor, "b ..."]:
        mean = torch.zeros_like(z_t)
        total = torch.zeros_like(z_t)
        for window in windows:
            index, weight = window.index, window.weight.to(z_t)
            output = predict_at(window)(z_t[index], t[index[0]]).to(z_t.dtype)
            total[index] += weight
            mean[index] += (output - mean[index]) * (weight / total[index])
        return mean

    return predict


def _weight(index: tuple[slice, ...], over: Mapping[int, tuple[int, int]]) -> Float[Tensor, "..."]:
    weight = torch.ones([1] * len(index))
    for dim in over:
        length = index[dim].stop - index[dim].start
        ramp = torch.sin(math.pi * (torch.arange(length) + 0.5) / length).square()
        weight = weight * ramp.reshape([-1 if i == dim else 1 for i in range(len(index))])
    return weight


def towards(
    predict: Predict,
    known: Float[Tensor, "b r c h w"],
    *,
    schedule: Schedule,
    prediction: Prediction,
    steps: int,
) -> Predict:
    """Lead a video to frames whose result is known, and its other frames by as much in the mean.

        delta = z_known - z_0_hat[:r],   z_0' = [z_0_hat[:r] + delta, z_0_hat[r:] + mean(delta)]

    for the first calls; rows are videos "(f c)", of which the first r frames are known. In noise,
    eps = (z_t - alpha z_0) / sigma, this is the residual that the paper adds, and it also means
    something where z_t is noise alone.
    Source: InsV2V, Cheng et al. 2023, arXiv:2311.00213, section 3.4 (long video sampling).

    Args:
        predict: the network with guidance.
        known: latents of the frames.
        schedule: of the network.
        prediction: what it outputs.
        steps: so many of the first calls are corrected.
    """
    calls = count()

    def led(z_t: Float[Tensor, "b fc h w"], t: Real[Tensor, " b"]) -> Float[Tensor, "b fc h w"]:
        output = predict(z_t, t)
        if next(calls) >= steps:
            return output
        coefficients = schedule.at(t)
        z_0, _ = estimates(output, z_t, coefficients, prediction)
        video, r = z_0.unflatten(1, (-1, known.shape[2])), known.shape[1]
        delta = known - video[:, :r]
        others = video[:, r:] + delta.mean(dim=1, keepdim=True)
        z_0 = torch.cat([video[:, :r] + delta, others], dim=1).flatten(1, 2)
        eps = (z_t - coefficients.alpha * z_0) / coefficients.sigma
        return target(z_0, eps, coefficients, prediction)

    return led
