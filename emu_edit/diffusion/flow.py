"""The linear path between data and noise, as flow-matching models have it.

z_t = (1 - sigma) z_0 + sigma eps, and a network that predicts `flow` says v = eps - z_0, the
direction of that line. A time is t = 1000 sigma, any number in (0, 1000]: nothing is a table, so
nothing is rounded. How much noise a picture takes grows with its size, so the levels of training
and sampling may be shifted towards noise, by one factor or by one that depends on the size.
Source: Lipman et al. 2023, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206. What is
stored has the names and formulas of diffusers' `FlowMatchEulerDiscreteScheduler`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Real
from torch import Tensor

from emu_edit.diffusion.schedule import (
    Coefficients,
    Level,
    NoiseSchedule,
    Schedule,
    Time,
    shifted,
)
from emu_edit.errors import InputError

CLASS = "FlowMatchEulerDiscreteScheduler"
FLUX2 = "_flux2"  # ours in its config, where diffusers has the shift in the pipeline
T = 1000  # a time is T sigma, in all published models
MOST_SHIFT = 1000.0  # published ones reach 7
MOST_LOG_SHIFT = 20.0  # beyond it all steps are noise alone
USUAL_STEPS = (
    50  # of FLUX.2's sampler, whose shift depends on them; training has the shift of these
)
LARGEST = 2**31  # that a number of a config may be
# of diffusers' scheduler, which would change the levels or the step
UNREAD = (
    *("invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
    "stochastic_sampling",
)


@dataclass(frozen=True)
class DynamicShift:
    """A shift s = exp(mu) that grows with the latent cells the network sees at once.

    mu = base_shift + (max_shift - base_shift) (tokens - base_tokens) / (max_tokens - base_tokens)

    The defaults are FLUX.1's. Raises InputError if a number is out of its range.

    Attributes:
        base_shift: mu of `base_tokens`, at least 0.
        max_shift: mu of `max_tokens`, from `base_shift` to 20; larger latents go on along the line.
        base_tokens: cells of a small latent, at least 1.
        max_tokens: cells of a large one, more than `base_tokens`.

    Source: `calculate_shift` of diffusers' Flux pipelines.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        """Refuse lines that fall, or have no slope."""
        if not 0 <= self.base_shift <= self.max_shift <= MOST_LOG_SHIFT:
            raise InputError(
                f"model.flow.dynamic needs 0 <= base_shift <= max_shift <= {MOST_LOG_SHIFT:g}, got "
                f"{self.base_shift!r} and {self.max_shift!r}"
            )
        if not 1 <= self.base_tokens < self.max_tokens:
            raise InputError(
                "model.flow.dynamic needs 1 <= base_tokens < max_tokens, got "
                f"{self.base_tokens!r} and {self.max_tokens!r}"
            )

    def factor(self, tokens: int) -> float:
        """Return the shift for a latent of so many cells.

        Raises:
            InputError: if it is so far from the two sizes that nothing would be left between.
        """
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        mu = self.base_shift + slope * (tokens - self.base_tokens)
        if abs(mu) > MOST_LOG_SHIFT:
            raise InputError(
                f"the model's dynamic shift of {tokens} latent cells is exp({mu:.0f}), sizes of "
                f"{self.base_tokens} to {self.max_tokens} are meant; take a picture nearer to them"
            )
        return math.exp(mu)


def flux2_factor(tokens: int, num_steps: int) -> float:
    """Return FLUX.2's shift s = exp(mu) for a latent of so many cells and a sampler's steps.

    mu lies on the line through mu_10 = 8.738e-5 tokens + 1.898 of 10 steps and
    mu_200 = 1.693e-4 tokens + 0.4567 of 200 steps; above 4300 cells it is mu_200.

    Raises:
        InputError: if the latent is so large that nothing would be left between.

    Source: `compute_empirical_mu` of diffusers' Flux2 pipelines.
    """
    of_10, of_200 = (8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666)
    slope = (of_200 - of_10) / 190
    mu = of_200 if tokens > 4300 else of_200 + slope * (num_steps - 200)
    if mu > MOST_LOG_SHIFT:
        raise InputError(
            f"FLUX.2's shift of {tokens} latent cells is exp({mu:.0f}); take a smaller picture"
        )
    return math.exp(mu)


@dataclass(frozen=True)
class FlowSchedule:
    """The linear path: alpha = 1 - sigma, sigma = t / 1000.

    Attributes:
        shift: above 0; sigma' = s sigma / (1 + (s - 1) sigma) in training and sampling: above 1
            more of both happens at high noise.
        dynamic: a shift by size in its place; none means `shift` for all.
        shift_terminal: 0 to 1, both excluded; a sampler's levels are stretched so that its last is
            this one; none leaves them. Training is not stretched.
        flux2: FLUX.2's own shift by size and number of steps in place of both, see `flux2_factor`;
            training has that of 50 steps.

    Raises:
        InputError: if a number is out of its range, or several shifts are asked for.
    """

    shift: float = 1.0
    dynamic: DynamicShift | None = None
    shift_terminal: float | None = None
    flux2: bool = False

    def __post_init__(self) -> None:
        """Refuse shifts that cannot be."""
        if self.flux2 and (self.dynamic is not None or self.shift != 1):
            raise InputError(
                "model.flow.flux2 takes the place of model.flow.shift and model.flow.dynamic; "
                "leave them out"
            )
        if not 0 < self.shift <= MOST_SHIFT:
            raise InputError(
                f"model.flow.shift must be above 0 and at most {MOST_SHIFT:g}, got {self.shift!r}"
            )
        if self.dynamic is not None and self.shift != 1:
            raise InputError(
                f"model.flow.shift={self.shift:g} and model.flow.dynamic exclude each other; leave "
                "one of them out"
            )
        if self.shift_terminal is not None and not 0 < self.shift_terminal < 1:
            raise InputError(
                "model.flow.shift_terminal must be between 0 and 1, both excluded, got "
                f"{self.shift_terminal!r}; null leaves the last level where it is"
            )

    @staticmethod
    def from_config(config: Mapping[str, object]) -> "FlowSchedule":
        """Build the schedule that diffusers' `FlowMatchEulerDiscreteScheduler` stores.

        Keys that are not there have that scheduler's defaults.

        Raises:
            InputError: if a number is none, or the config asks for what is not read here.
        """
        if odd := [name for name in UNREAD if config.get(name)]:
            raise InputError(f"the scheduler config has {odd[0]}, which cannot be read here")
        if (steps := config.get("num_train_timesteps", T)) != T:
            raise InputError(f"the scheduler config has num_train_timesteps {steps!r}, needs {T}")
        terminal = config.get("shift_terminal") or None  # 0 is none in diffusers, too
        terminal = None if terminal is None else _number(config, "shift_terminal", 0.0)
        if config.get(FLUX2):
            return FlowSchedule(shift_terminal=terminal, flux2=True)
        if not config.get("use_dynamic_shifting", False):
            return FlowSchedule(_number(config, "shift", 1.0), shift_terminal=terminal)
        if (kind := config.get("time_shift_type", "exponential")) != "exponential":
            raise InputError(
                f"the scheduler config has time_shift_type {kind!r}, needs 'exponential'"
            )
        dynamic = DynamicShift(
            _number(config, "base_shift", 0.5),
            _number(config, "max_shift", 1.15),
            int(_number(config, "base_image_seq_len", 256.0)),
            int(_number(config, "max_image_seq_len", 4096.0)),
        )
        return FlowSchedule(dynamic=dynamic, shift_terminal=terminal)

    def to_config(self) -> dict[str, str | int | float | bool | None]:
        """Describe the schedule in the names of diffusers' `FlowMatchEulerDiscreteScheduler`."""
        config: dict[str, str | int | float | bool | None] = {
            "_class_name": CLASS,
            "num_train_timesteps": T,
            "shift": self.shift,
            "use_dynamic_shifting": self.flux2 or self.dynamic is not None,
            "shift_terminal": self.shift_terminal,
            **({FLUX2: True} if self.flux2 else {}),
        }
        if self.dynamic is not None:
            config |= {
                "base_shift": self.dynamic.base_shift,
                "max_shift": self.dynamic.max_shift,
                "base_image_seq_len": self.dynamic.base_tokens,
                "max_image_seq_len": self.dynamic.max_tokens,
                "time_shift_type": "exponential",
            }
        return config

    @property
    def num_steps(self) -> int:
        """The time of noise alone, T = 1000."""
        return T

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Always: the path begins at noise alone."""
        return True

    def at(self, t: Real[Tensor, " b"]) -> Coefficients:
        """Return float32 coefficients on the device of `t`."""
        sigma = (t / T).float().view(-1, 1, 1, 1)
        return Coefficients(1 - sigma, sigma)

    def level(self, t: Time) -> Level:
        """Return the level of one time."""
        return Level(1 - t / T, t / T)

    def draw(self, u: Float[Tensor, " b"], tokens: int) -> Float[Tensor, " b"]:
        """Turn numbers in [0, 1] into times, shifted; none is below 1.

        At sigma = 0 there is no noise to see, and what an error of z_0 means in v is unbounded.
        """
        return (T * shifted(u, self._factor(tokens, USUAL_STEPS))).clamp(min=1)

    def times(self, num_steps: int, tokens: int) -> list[Time]:
        """Return the times of evenly spaced levels, shifted, then stretched to the terminal one.

        sigma_i = 1 - i / s,   i = 0..s-1; then the shift; then with a terminal level sigma*
        1 - sigma_i' = (1 - sigma_i) (1 - sigma*) / (1 - sigma_{s-1})

        A single step is taken from noise alone, whatever the terminal level.

        Raises:
            InputError: if `num_steps` is not in 1..1000, or the size is far beyond the dynamic
                shift's.

        Source: `set_timesteps` of diffusers' scheduler, given sigmas as its Flux pipelines do.
        """
        if not 1 <= num_steps <= T:
            raise InputError(f"num_steps must be 1 to {T} (the training steps), got {num_steps}")
        factor = self._factor(tokens, num_steps)
        signal = [1 - shifted(1 - i / num_steps, factor) for i in range(num_steps)]
        if self.shift_terminal is not None and num_steps > 1:
            stretch = (1 - self.shift_terminal) / signal[-1]
            signal = [stretch * alpha for alpha in signal]
        return [T * (1 - alpha) for alpha in signal]

    def content(self) -> bytes:
        """Return the stored form."""
        return json.dumps(self.to_config(), sort_keys=True).encode()

    def _factor(self, tokens: int, num_steps: int) -> float:
        if self.flux2:
            return flux2_factor(tokens, num_steps)
        return self.shift if self.dynamic is None else self.dynamic.factor(tokens)


def is_flow(config: Mapping[str, object]) -> bool:
    """Tell whether a scheduler config of diffusers is of the linear path."""
    return config.get("_class_name") == CLASS


def read_schedule(config: dict) -> Schedule:
    """Build the schedule that a diffusers `scheduler_config.json` describes.

    Raises:
        InputError: as `from_config` of the two schedules.
    """
    return (
        FlowSchedule.from_config(config) if is_flow(config) else NoiseSchedule.from_config(config)
    )


def _number(config: Mapping[str, object], name: str, usual: float) -> float:
    value = config.get(name, usual)
    if type(value) not in {int, float} or not -LARGEST <= value <= LARGEST:  # pyright: ignore[reportOperatorIssue]
        raise InputError(f"the scheduler config has {name} {value!r}, needs a number")
    return float(value)  # pyright: ignore[reportArgumentType]
