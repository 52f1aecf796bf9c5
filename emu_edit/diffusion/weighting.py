"""The training error of a sample, and how much each noise level, pair and part of a picture counts.

The error comes without the weight of its noise level, so that the plain one can be logged. A weight
is stated for the error of z_0 and divided by the factor by which the error grows in the network's
own space: |v - v_hat|² = (SNR + 1) |z_0 - z_0_hat|², |eps - eps_hat|² = SNR |z_0 - z_0_hat|², and
on the linear path |flow - flow_hat|² = |z_0 - z_0_hat|² / sigma².
"""

from enum import Enum

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor
from torch.nn import functional

from emu_edit.diffusion.prediction import Predict, Prediction, add_noise, target
from emu_edit.diffusion.schedule import Schedule
from emu_edit.errors import InputError


class Weighting(Enum):
    """uniform: 1 in the network's own space; min_snr: Min-SNR-gamma; one_plus_min_snr: ours."""

    uniform = "uniform"
    min_snr = "min_snr"
    one_plus_min_snr = "one_plus_min_snr"


def check_weighting(weighting: Weighting, prediction: Prediction, schedule: Schedule) -> None:
    """Refuse a weighting that is unbounded, or that never trains the step sampling starts from.

    Raises:
        InputError: for one_plus_min_snr with eps; for min_snr at zero terminal SNR.
    """
    _refuse_unbounded(weighting, prediction)
    if weighting is Weighting.min_snr and schedule.has_zero_terminal_snr:
        raise InputError(
            "model.weighting='min_snr' gives weight 0 to the last step of a zero-terminal-SNR "
            "schedule, where sampling starts; set model.weighting: one_plus_min_snr or uniform"
        )


def loss_weight(
    weighting: Weighting,
    t: Real[Tensor, " b"],
    schedule: Schedule,
    prediction: Prediction,
    gamma: float = 5.0,  # Hang et al., section 4
) -> Float[Tensor, " b"]:
    """Return the factor of each sample's error; finite at SNR = 0.

    uniform: 1
    min_snr: min(SNR, gamma) for z0 and change, divided by SNR + 1 for v, by SNR for eps, and times
        sigma² for flow; at SNR = 0 it is 1 for eps and 0 for the others, so that they never learn
        the noisiest step
    one_plus_min_snr: 1 + min(SNR, gamma) for z0 and change, divided by SNR + 1 for v, and times
        sigma² for flow

    Raises:
        InputError: for one_plus_min_snr with eps, whose weight is unbounded at low SNR.

    Source: Hang et al. 2023, arXiv:2303.09556, section 3.4; one_plus_min_snr: ours.
    """
    if weighting is Weighting.uniform:
        return torch.ones(t.shape, device=t.device)
    coefficients = schedule.at(t)
    snr = (coefficients.alpha / coefficients.sigma).square().flatten()
    floor = 1.0 if weighting is Weighting.one_plus_min_snr else 0.0
    match prediction:
        case Prediction.z0 | Prediction.change:
            return floor + snr.clamp(max=gamma)
        case Prediction.v:
            return (floor + snr.clamp(max=gamma)) / (snr + 1)
        case Prediction.flow:
            return (floor + snr.clamp(max=gamma)) * coefficients.sigma.square().flatten()
        case Prediction.eps:
            _refuse_unbounded(weighting, prediction)
            return gamma / snr.clamp(min=gamma)  # min(SNR, gamma) / SNR without 0 / 0


def change_balance(
    z_0: Float[Tensor, "b c h w"],
    z_source: Float[Tensor, "b c h w"],
    power: float,
    floor: float = 0.05,  # in units of the latents' variance; bounds the factor of tiny changes
) -> Float[Tensor, " b"]:
    """Return a factor that lets pairs that change little count beside pairs that change everything.

    w = (mean (z_0 - z_source)^2 + floor)^(-power)

    A sketch moves every pixel, a recoloured object one in forty: with `change` prediction their
    errors differ fifty-fold at the start, and the small edits are learnt last. power 0 leaves that
    alone, 1 measures each error relative to the change. `z_source` is what the network is told:
    zeros where the source is dropped. Source: ours.
    """
    return ((z_0 - z_source).square().mean(dim=(1, 2, 3)) + floor).pow(-power)


def region_weights(
    mask: Bool[Tensor, "b mh mw"],
    has_mask: Bool[Tensor, " b"],
    size: tuple[int, int],
    inside: float,
) -> Float[Tensor, "b 1 h w"]:
    """Return weights of latent cells that let errors inside the mask count `inside` times.

    r = 1 + (inside - 1) m

    with m the share of a cell's pixels that lie in the mask, 0 in rows without one. The loss takes
    the mean with these weights, so their own mean over the picture does not matter: it counts as 1,
    and a pair whose mask is everywhere, or nowhere, or that has none, weighs as without them.

    Args:
        mask: True where the edit may change pixels.
        has_mask: rows of `mask` that mean something.
        size: height and width of the latent.
        inside: above 0.

    Source: ours; Lin et al. 2025, arXiv:2506.03147, weigh the edited area too, by the logarithm of
    its share.
    """
    m = functional.adaptive_avg_pool2d(mask[:, None].float(), size)
    return 1 + (inside - 1) * m * has_mask[:, None, None, None]


def _refuse_unbounded(weighting: Weighting, prediction: Prediction) -> None:
    if weighting is Weighting.one_plus_min_snr and prediction is Prediction.eps:
        raise InputError(
            "model.weighting='one_plus_min_snr' cannot be used with model.prediction='eps' "
            "(it is unbounded at low SNR); set model.weighting: min_snr, or model.prediction: v"
        )


def denoising_error(
    predict: Predict,
    z_0: Float[Tensor, "b c h w"],
    eps: Float[Tensor, "b c h w"],
    t: Real[Tensor, " b"],
    *,
    schedule: Schedule,
    prediction: Prediction,
    region: Float[Tensor, "b 1 h w"] | None = None,
    huber_c: float | None = None,
) -> Float[Tensor, " b"]:
    """Return the mean error of each sample in the space the network predicts.

    error = mean_{c,h,w} d², or with `huber_c` mean_{c,h,w} 2c (sqrt(d² + c²) - c),
    d = predict(alpha z_0 + sigma eps, t) - target

    The second, pseudo-Huber, is the first where |d| is far below c, and 2c |d| far above: the right
    answer is then the median and not the mean of what may be, so what should stay stays exactly.

    A network that predicts the change comes wrapped in `with_source`; its error is that of z_0.

    `region` weights latent cells (>= 0): the mean becomes a weighted mean, 0 where nothing has
    weight.
    Source: Ho et al. 2020, arXiv:2006.11239, eq. 14; Emu Edit, arXiv:2311.10089, eq. 2, with the
    task bound in `predict`. Pseudo-Huber as in Song & Dhariwal 2023, arXiv:2310.14189, section 3.3,
    for each element; the factor 2c as in Khrapov et al. 2024, arXiv:2403.16728.
    """
    coefficients = schedule.at(t)
    output = predict(add_noise(z_0, eps, coefficients), t)
    squared = (output - target(z_0, eps, coefficients, prediction)).square()
    if huber_c is not None:
        # in float32: under bf16 the difference of two near numbers would be lost
        squared = 2 * huber_c * ((squared.float() + huber_c**2).sqrt() - huber_c)
    if region is None:
        return squared.flatten(1).mean(1)
    weight = region.flatten(1).sum(1) * squared.shape[1]
    tiny = 1e-12  # keeps an empty region at 0 instead of 0 / 0
    return (squared * region).flatten(1).sum(1) / weight.clamp(min=tiny)
