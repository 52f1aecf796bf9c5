"""Which steps are visited: drawn in training (evenly, or shifted to noise), spaced in sampling."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emu_edit.errors import InputError


def uniform_timesteps(u: Float[Tensor, " b"], num_train_steps: int) -> Int64[Tensor, " b"]:
    """Turn uniform numbers in [0, 1) into training steps 0..T-1, each equally likely.

    t = floor(u T)
    """
    # in float32 a u just below 1 times T can round up to T
    return (u * num_train_steps).long().clamp(max=num_train_steps - 1)


def shift_to_noise(u: Float[Tensor, " b"], shift: float) -> Float[Tensor, " b"]:
    """Move uniform numbers in [0, 1) towards 1, so that more of training happens at high noise.

    u' = s u / (1 + (s - 1) u),   s >= 1; s = 1 changes nothing

    Neighbouring pixels say the same thing, so the larger the picture, the more noise it takes to
    hide what an edit has to decide; at little noise z_t already shows the answer.

    Raises:
        InputError: if `shift` is below 1.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 23 (there for the resolution of flow matching).
    """
    if shift < 1:
        raise InputError(f"timestep_shift must be at least 1 (1 = uniform), got {shift}")
    return shift * u / (1 + (shift - 1) * u)


def trailing_timesteps(num_train_steps: int, num_steps: int) -> Int64[Tensor, " s"]:
    """Space sampling steps evenly, noisiest first, always starting at T-1.

    t_i = round(T - i T / s) - 1,   i = 0..s-1

    Starting anywhere but at T-1 wastes a zero-terminal-SNR schedule: brightness is decided at the
    first step.

    Raises:
        InputError: if `num_steps` is not in 1..T.

    Source: Lin et al. 2023, arXiv:2305.08891, Table 2 ("trailing" in diffusers).
    """
    if not 1 <= num_steps <= num_train_steps:
        raise InputError(
            f"num_steps must be 1 to {num_train_steps} (the training steps), got {num_steps}"
        )
    i = torch.arange(num_steps, dtype=torch.float64)
    return (num_train_steps - i * num_train_steps / num_steps).round().long() - 1
