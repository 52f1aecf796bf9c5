"""Which frames of a clip a video model is told: its first, its past, or some between others.

The frames that are told lie at their places, zeros are at all others, and the model's mask says
which is which; so that to begin with a picture, to go on from a video and to draw frames between
others is one network's input, and what differs is where the given frames are.
Source: Emu Video, Girdhar et al. 2023, arXiv:2311.10709, sections 3 (first frame) and 3.4: the next
frames from as many past ones; interpolation from 8 frames to 37, told with noise.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from emu_edit.errors import InputError, closest

LARGEST_FACTOR = 64  # beyond it a file is damaged


class Given(Enum):
    """first: frame 0; past: the first half; interleaved: every k-th, with k frames at each end."""

    first = "first"
    past = "past"
    interleaved = "interleaved"


@dataclass(frozen=True)
class GivenFrames:
    """Which frames of a clip are given, and with how much noise.

    Attributes:
        kind: where they are.
        factor: k of `interleaved`: k - 1 frames are between two that are given.
        train_noise: in training they are noised as step t of the model's schedule does, t uniform
            in 0 to this; 0 gives them clean. The model is not told t.
        noise: the step t whose noise they get when a video is drawn; 0 gives them clean.

    Raises:
        InputError: if a number is out of its range.
    """

    kind: Given = Given.first
    factor: int = 4  # of the paper, from 4 to 16 frames a second
    train_noise: int = 0
    noise: int = 0

    def __post_init__(self) -> None:
        """Refuse factors and noise that cannot be."""
        if not 2 <= self.factor <= LARGEST_FACTOR:
            raise InputError(f"given.factor is {self.factor}, needs 2 to {LARGEST_FACTOR}")
        if not 0 <= self.noise <= self.train_noise:
            raise InputError(
                f"given.noise={self.noise} must be 0 to given.train_noise={self.train_noise}, the "
                "most that the model has seen"
            )

    def check(self, frames: int, schedule_steps: int) -> None:
        """Refuse (InputError) clips of which nothing, or all, would be given, and too much noise.

        Args:
            frames: of a clip.
            schedule_steps: T of the model's noise schedule.
        """
        if self.train_noise >= schedule_steps:
            raise InputError(
                f"given.train_noise={self.train_noise} must be below {schedule_steps}, the steps "
                "of the model's noise schedule"
            )
        match self.kind:
            case Given.past if frames < 2:
                raise InputError(f"frames={frames}: given.kind past needs clips of at least 2")
            case Given.interleaved if frames < self.count(2) or (frames - 1) % self.factor:
                raise InputError(
                    f"frames={frames}: given.kind interleaved with factor {self.factor} needs "
                    f"{self.count(2)}, {self.count(3)}, ... {self.factor} (n + 1) + 1 for n frames"
                )
            case _:
                pass

    def count(self, n: int) -> int:
        """Return how many frames n interleaved ones become: k (n + 1) + 1, 8 -> 37 for k = 4."""
        return self.factor * (n + 1) + 1

    def places(self, frames: int) -> range:
        """Return which frames of a clip are given."""
        match self.kind:
            case Given.first:
                return range(1)
            case Given.past:
                return range(frames // 2)
            case Given.interleaved:
                return range(self.factor, frames - 1, self.factor)

    def placed(self, z: Float[Tensor, "b n c h w"], frames: int) -> Float[Tensor, "b fc h w"]:
        """Put the latents of given frames at their places in a clip, zeros elsewhere."""
        b, _, c, h, w = z.shape
        clip = z.new_zeros(b, frames, c, h, w)
        clip[:, list(self.places(frames))] = z
        return rearrange(clip, "b f c h w -> b (f c) h w")

    def to_dict(self) -> dict[str, object]:
        """Give them as JSON-ready primitives."""
        return {**asdict(self), "kind": self.kind.name}

    @staticmethod
    def from_dict(values: object, *, where: str) -> "GivenFrames":
        """Rebuild them from `to_dict`; `where` names the file in messages.

        Raises:
            InputError: if an entry is missing, unknown or not of the kind `to_dict` writes.
        """
        names = [field.name for field in fields(GivenFrames)]
        if not isinstance(values, Mapping) or {*values} != {*names}:
            raise InputError(f"{where}: given needs exactly {', '.join(names)}, got {values!r}")
        kind, *numbers = (values[name] for name in names)
        known = [each.name for each in Given]
        if kind not in known:
            hint = closest(str(kind), known)
            raise InputError(f"{where}: given.kind {kind!r} is none of {', '.join(known)}.{hint}")
        if not all(type(number) is int for number in numbers):
            raise InputError(f"{where}: given.{', given.'.join(names[1:])} must be whole numbers")
        try:
            return GivenFrames(Given[str(kind)], *numbers)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
