"""The noise schedule: signal (alpha) and noise (sigma) at each time, and which times are visited.

What every schedule answers is `Schedule`. Two do: the variance-preserving table here, alpha² +
sigma² = 1, whose times are its steps, step 0 the cleanest; and the linear path (`flow.py`). Tables
are float64 and no `nn.Module` owns them: casting a model to bf16 would collapse a thousand alphas
to about five hundred values. Times are drawn in training (evenly, around a middle, or shifted to
noise) and spaced in sampling; a schedule does not know what the network predicts.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64, Real
from torch import Tensor

from emu_edit.errors import InputError

MOST_STEPS = 100_000  # a config from elsewhere may ask for any number

Time = int | float
"""A time as one number: a whole one where the schedule is a table."""


@dataclass(frozen=True)
class Coefficients:
    """Signal and noise level of each sample, ready to broadcast: z_t = alpha z_0 + sigma eps."""

    alpha: Float[Tensor, "b 1 1 1"]
    sigma: Float[Tensor, "b 1 1 1"]


@dataclass(frozen=True)
class Level:
    """A noise level as float64 numbers, the end point (alpha 1, sigma 0) included."""

    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """Half the log signal-to-noise ratio, lambda; -inf for pure noise, inf for none."""
        if self.alpha == 0:
            return -math.inf
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)


@runtime_checkable
class Schedule(Protocol):
    """How much noise there is at time t: z_t = alpha z_0 + sigma eps.

    A time is what the network is told, 0 the cleanest: a whole number where the schedule is a
    table, any number on a path. `tokens` are the latent cells that the network sees at once; a
    schedule may put more noise where there are more of them.
    """

    @property
    def num_steps(self) -> int:
        """T, which no time exceeds."""
        ...

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether sampling starts from noise alone, alpha = 0."""
        ...

    def at(self, t: Real[Tensor, " b"]) -> Coefficients:
        """Return float32 coefficients on the device of `t`, without waiting for that device."""
        ...

    def level(self, t: Time) -> Level:
        """Return the same for one time, in float64."""
        ...

    def draw(self, u: Float[Tensor, " b"], tokens: int) -> Real[Tensor, " b"]:
        """Turn numbers in [0, 1] into times of training, larger ones into noisier times."""
        ...

    def times(self, num_steps: int, tokens: int) -> list[Time]:
        """Return the times a sampler visits, noisiest first; after the last comes z_0 itself.

        Raises:
            InputError: if `num_steps` is not in 1..T.
        """
        ...

    def to_config(self) -> dict[str, str | int | float | bool | None]:
        """Describe the schedule in the names of a scheduler of diffusers."""
        ...

    def content(self) -> bytes:
        """Return what decides its numbers, for fingerprints of models."""
        ...


def tokens_of(z: Float[Tensor, "b c h w"]) -> int:
    """Return the number of cells of a latent."""
    return z.shape[-2] * z.shape[-1]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Signal level alpha and noise level sigma of the T training steps, on the CPU.

    `beta_range` remembers the first and last beta of the scaled-linear ramp the tables were made
    from, so that the schedule can be written as a diffusers config; tables made by hand have None
    and cannot be written.
    """

    alpha: Float64[Tensor, " T"]
    sigma: Float64[Tensor, " T"]
    beta_range: tuple[float, float] | None = None
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse tables that are not variance preserving."""
        worst = (self.alpha**2 + self.sigma**2 - 1).abs().max().item()
        if not worst < 1e-9:
            raise ValueError(f"alpha² + sigma² must be 1 at every step, it is off by {worst:.3g}")

    @staticmethod
    def scaled_linear(
        num_steps: int = 1000,
        beta_start: float = 8.5e-4,  # Stable Diffusion, as are the steps and the last beta
        beta_end: float = 1.2e-2,
        zero_terminal_snr: bool = True,
    ) -> "NoiseSchedule":
        """Build the schedule of latent diffusion, by default with pure noise at the last step.

        beta_t = (sqrt(beta_start) + t/(T-1) (sqrt(beta_end) - sqrt(beta_start)))²
        alpha_t² = prod_{s<=t} (1 - beta_s)

        Raises:
            InputError: if there are fewer than 2 or more than 100,000 steps, or not
                0 < beta_start <= beta_end < 1.

        Source: Rombach et al. 2022, arXiv:2112.10752 ("scaled_linear" in diffusers).
        """
        if not 2 <= num_steps <= MOST_STEPS:
            raise InputError(
                f"a noise schedule needs 2 to {MOST_STEPS} training steps, got {num_steps}"
            )
        if not 0 < beta_start <= beta_end < 1:
            raise InputError(
                "betas must satisfy 0 < beta_start <= beta_end < 1, "
                f"got {beta_start!r} and {beta_end!r}"
            )
        root = torch.linspace(
            math.sqrt(beta_start), math.sqrt(beta_end), num_steps, dtype=torch.float64
        )
        alpha_bar = torch.cumprod(1 - root**2, dim=0)
        schedule = NoiseSchedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), (beta_start, beta_end))
        return schedule.with_zero_terminal_snr() if zero_terminal_snr else schedule

    @staticmethod
    def from_config(config: dict) -> "NoiseSchedule":
        """Build the schedule that a diffusers `scheduler_config.json` describes.

        Raises:
            InputError: if a key is missing or no number, or the betas are not a scaled-linear ramp.
                Keys that say how to sample are not read: we always use trailing spacing.
        """
        needed = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
        if missing := [key for key in needed if key not in config]:
            raise InputError(
                f"the scheduler config lacks {', '.join(missing)}; is it a diffusers scheduler?"
            )
        for key in needed[:3]:
            if type(config[key]) not in {int, float}:
                raise InputError(f"the scheduler config has {key} {config[key]!r}, needs a number")
        ramp = "trained_betas" if config.get("trained_betas") else config["beta_schedule"]
        if ramp != "scaled_linear":
            raise InputError(
                f"the scheduler config has betas {ramp!r}; only 'scaled_linear' can be read "
                "(Stable Diffusion 1.x, 2.x, SDXL have it)"
            )
        try:
            steps = int(config["num_train_timesteps"])
            first, last = float(config["beta_start"]), float(config["beta_end"])
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the scheduler config holds no number: {error}") from error
        is_rescaled = bool(config.get("rescale_betas_zero_snr", False))
        return NoiseSchedule.scaled_linear(steps, first, last, zero_terminal_snr=is_rescaled)

    def to_config(self) -> dict[str, str | int | float | bool | None]:
        """Describe the schedule, and how we sample, in the names of diffusers' `DDIMScheduler`.

        The caller adds `prediction_type`, which is not a property of the schedule.

        Raises:
            ValueError: if the tables were made by hand.
        """
        if self.beta_range is None:
            raise ValueError(
                "a schedule made from tables has no config; build it with scaled_linear"
            )
        return {
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": self.num_steps,
            "beta_start": self.beta_range[0],
            "beta_end": self.beta_range[1],
            "beta_schedule": "scaled_linear",
            "rescale_betas_zero_snr": self.has_zero_terminal_snr,
            "timestep_spacing": "trailing",
            "set_alpha_to_one": True,
            "clip_sample": False,
        }

    @property
    def num_steps(self) -> int:
        """The number of training steps T."""
        return len(self.alpha)

    @property
    def snr(self) -> Float64[Tensor, " T"]:
        """The signal-to-noise ratio (alpha / sigma)²; 0 is pure noise."""
        return (self.alpha / self.sigma) ** 2

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether the last step is pure noise, alpha[T-1] = 0."""
        return self._ends_in_noise

    @cached_property  # read from the table once: a step of training reads nothing
    def _ends_in_noise(self) -> bool:
        return self.alpha[-1].item() == 0

    def with_zero_terminal_snr(self) -> "NoiseSchedule":
        """Shift and scale alpha so that the last step is pure noise.

        alpha' = (alpha - alpha[T-1]) * alpha[0] / (alpha[0] - alpha[T-1])

        Keeps alpha[0]; needs a prediction that survives alpha = 0, i.e. v, z0 or change, not eps.
        Source: Lin et al. 2023, arXiv:2305.08891, Algorithm 1.
        """
        first, last = self.alpha[0], self.alpha[-1]
        alpha = (self.alpha - last) * first / (first - last)
        return NoiseSchedule(alpha, (1 - alpha**2).sqrt(), self.beta_range)

    def at(self, t: Real[Tensor, " b"]) -> Coefficients:
        """Look up float32 coefficients on the device of `t`, without waiting for that device.

        That `t` is in 0..T-1 is not checked: on an accelerator the check would stall training.
        """
        alpha, sigma = self._table(t.device)[:, t.long()].view(2, -1, 1, 1, 1).unbind(0)
        return Coefficients(alpha, sigma)

    def level(self, t: Time) -> Level:
        """Look up one step."""
        return Level(self.alpha[int(t)].item(), self.sigma[int(t)].item())

    def draw(self, u: Float[Tensor, " b"], tokens: int) -> Int64[Tensor, " b"]:  # noqa: ARG002
        """Turn numbers in [0, 1] into steps, of each the same share; sizes are all one to it."""
        return uniform_timesteps(u, self.num_steps)

    def times(self, num_steps: int, tokens: int) -> list[Time]:  # noqa: ARG002
        """Return trailing steps, see `trailing_timesteps`; sizes are all one to it."""
        return trailing_timesteps(self.num_steps, num_steps).tolist()

    def content(self) -> bytes:
        """Return the tables."""
        return torch.stack([self.alpha, self.sigma]).numpy().tobytes()

    def _table(self, device: torch.device) -> Float[Tensor, "2 T"]:
        """Return (alpha, sigma) in float32 on `device`; copied there once."""
        if device not in self._tables:
            # validation often comes first, in inference mode, whose tensors training cannot use
            with torch.inference_mode(False):
                self._tables[device] = torch.stack([self.alpha, self.sigma]).float().to(device)
        return self._tables[device]


def uniform_timesteps(u: Float[Tensor, " b"], num_train_steps: int) -> Int64[Tensor, " b"]:
    """Turn uniform numbers in [0, 1) into training steps 0..T-1, each equally likely.

    t = floor(u T)
    """
    # in float32 a u just below 1 times T can round up to T, and some draws end at 1 itself
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
    return shifted(u, shift)


Number = TypeVar("Number", float, Tensor)


def shifted(u: Number, shift: float) -> Number:
    """Return u' = s u / (1 + (s - 1) u), which keeps 0 and 1; shifts s and then s' are one of s s'.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 23.
    """
    return shift * u / (1 + (shift - 1) * u)


@dataclass(frozen=True)
class LogitNormal:
    """How often each noise level is trained: most around a middle, hardly at the two ends.

    u' = 1 / (1 + exp(-(mean + std Phi^-1(u))))

    for u uniform, whose logit is then normal; so that a sample's one number decides its level.

    Attributes:
        mean: of the logit; above 0 the middle is noisier than half way.
        std: of the logit, above 0.

    Raises:
        InputError: if a number is out of its range.

    Source: Esser et al. 2024, arXiv:2403.03206, section 3.1 (rf/lognorm(0, 1) was best there).
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no distribution."""
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise InputError(
                "model.logit_normal needs a finite mean and a std above 0, got "
                f"mean={self.mean!r}, std={self.std!r}"
            )

    def of(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Turn uniform numbers in [0, 1) into numbers in [0, 1]; larger stay larger."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


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
