"""What a student is told by frozen teachers: K-bin times, score distillation, hinge losses.

Pure functions of tensors. A student draws in a few steps, gradients flow through all of them, and
what it drew is noised and shown to a teacher, which says where it would have gone.
Source: factorised diffusion distillation, Emu Video Edit, Singer et al. 2024, arXiv:2403.09334,
section 3.2; adversarial diffusion distillation, Sauer et al. 2023, arXiv:2311.17042, section 3.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from emu_edit.errors import InputError


def k_bin_times(u: Sequence[float], num_steps: int) -> list[int]:
    """Return the times of a generation in k steps, one of each of k equal bins, noisiest first.

        t_1 = T - 1,   t_i = floor(b_j + u_i (b_(j+1) - b_j)),  b_j = floor(j T / k),  j = k - i

    So a student is tied to no times, and may be asked for many steps later.
    Source: Emu Video Edit, arXiv:2403.09334, section 3.2 ("K-Bin"); that the first step is at T - 1
    whatever was drawn, so that a generation begins with noise alone, is ours.

    Args:
        u: k numbers in [0, 1); the first counts for nothing.
        num_steps: T, of the schedule.

    Raises:
        InputError: for no number, or more than T.
    """
    k = len(u)
    if not 1 <= k <= num_steps:
        raise InputError(f"a generation has 1 to {num_steps} steps, got {k}")
    edges = [j * num_steps // k for j in range(k + 1)]
    drawn = [edges[j] + int(u[k - 1 - j] * (edges[j + 1] - edges[j])) for j in reversed(range(k))]
    return [num_steps - 1, *drawn[1:]]


def score_distillation(
    drawn: Float[Tensor, "b c h w"], says: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """Return the error whose gradient pulls what a student drew to where a teacher would go.

        |x' - sg(z_0_hat)|² / 2,   gradient x' - z_0_hat = (sigma / alpha)^-1 (eps_hat - eps)

    The mean over all numbers of a sample. This is the paper's c(t) (eps_hat - eps) with c(t) =
    sigma / alpha, the one that stays bounded where x_t is noise alone; it is 0 where the teacher
    returns the noise. c(t) is not stated in the paper.
    Source: Emu Video Edit, arXiv:2403.09334, eqs. 2 and 3; Poole et al. 2022, arXiv:2209.14988, eq.
    3; in z_0, Sauer et al. 2023, arXiv:2311.17042, eq. 4.

    Args:
        drawn: x', with its gradient.
        says: the teacher's z_0_hat of the noised x'.
    """
    return (drawn - says.detach()).square().flatten(1).mean(dim=1) / 2


def judged_real(real: Float[Tensor, " n"], drawn: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """Return what a judge makes small: max(0, 1 - D(real)) + max(0, 1 + D(drawn)), each a mean.

    Source: Emu Video Edit, arXiv:2403.09334, eq. 4.
    """
    return functional.relu(1 - real).mean() + functional.relu(1 + drawn).mean()


def judged_drawn(drawn: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """Return what a student makes small: -D(x'), a mean.

    The paper prints -max(0, 1 + D(x')), whose gradient is 0 as soon as the judge is sure, which is
    when it is needed; this is the usual one. Source: Lim and Ye 2017, arXiv:1705.02894; Sauer et
    al. 2023, arXiv:2311.17042, eq. 3.
    """
    return -drawn.mean()
