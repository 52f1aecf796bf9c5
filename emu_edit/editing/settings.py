"""How a model is sampled: picture size, guidance, steps, sampler; JSON in its directory."""

from dataclasses import dataclass, field, replace

from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.samplers import Sampler
from emu_edit.errors import InputError, closest

LARGEST = 2**31  # that a setting of a model may be

WORLD = "world"  # as `trained_on`: drawn scenes of the built-in world, and nothing else
PHOTOGRAPHS_TOO = (
    "world and photographs"  # these, before photographs as well, and photographs whole
)


@dataclass(frozen=True)
class EditorSettings:
    """How a model is sampled unless a call says otherwise.

    Attributes:
        image_size: side in pixels of the training pictures; other sizes are edited as they are, not
            resized.
        guidance: strength of text and of source picture. Time grows with the branches that run:
            three in general, two where a scale leaves one of them without weight (image 1, text 0,
            or both the same), one at (1, 1), which is the plain conditional model.
        num_steps: sampler steps, at least 1.
        sampler: `euler_ancestral` adds fresh noise on the way, the others are deterministic given
            the first noise.
    """

    image_size: int = 64
    guidance: Guidance = field(default_factory=Guidance)
    num_steps: int = 20
    sampler: Sampler = Sampler.ddim

    def __post_init__(self) -> None:
        """Refuse sizes and step counts below 1."""
        for name, value in (("image_size", self.image_size), ("num_steps", self.num_steps)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")

    def to_dict(self) -> dict[str, object]:
        """Give the settings as JSON-ready primitives."""
        return {
            "image_size": self.image_size,
            "guidance_text": self.guidance.text,
            "guidance_image": self.guidance.image,
            "num_steps": self.num_steps,
            "sampler": self.sampler.name,
        }

    @staticmethod
    def from_dict(values: dict[str, object], *, where: str) -> "EditorSettings":
        """Rebuild settings from `to_dict`; `where` names the file in messages.

        Raises:
            InputError: if an entry is missing or not of the kind `to_dict` writes.
        """
        sampler = Sampler[choice(values, "sampler", [s.name for s in Sampler], where)]
        guidance = Guidance(
            text=number(values, "guidance_text", where),
            image=number(values, "guidance_image", where),
        )
        size, steps = (int(number(values, name, where)) for name in ("image_size", "num_steps"))
        try:
            return EditorSettings(size, guidance, steps, sampler)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


@dataclass(frozen=True)
class Sampling:
    """How one call wants the model sampled; None keeps what the model's settings say.

    Attributes:
        num_steps: sampler steps.
        guidance_text: strength of the instruction.
        guidance_image: strength of the source picture.
        sampler: how to step.
    """

    num_steps: int | None = None
    guidance_text: float | None = None
    guidance_image: float | None = None
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that no model takes, before one is loaded."""
        self.applied(EditorSettings())

    def applied(self, usual: EditorSettings) -> EditorSettings:
        """Override a model's settings."""
        return replace(
            usual,
            guidance=Guidance(
                text=usual.guidance.text if self.guidance_text is None else self.guidance_text,
                image=usual.guidance.image if self.guidance_image is None else self.guidance_image,
            ),
            num_steps=usual.num_steps if self.num_steps is None else self.num_steps,
            sampler=usual.sampler if self.sampler is None else self.sampler,
        )


def sampler_named(name: str) -> Sampler:
    """Find a sampler by its name; an unknown one is refused with the nearest."""
    names = [sampler.name for sampler in Sampler]
    if name not in names:
        raise InputError(
            f"unknown sampler {name!r}; known samplers: {', '.join(names)}.{closest(name, names)}"
        )
    return Sampler[name]


def number(values: dict[str, object], name: str, where: str) -> float:
    """Read a number from a JSON object, which must have it."""
    value = values.get(name)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not -LARGEST <= value <= LARGEST
    ):
        raise InputError(f"{where}: {name} must be a number, got {value!r}; export the model again")
    return float(value)


def choice(values: dict[str, object], name: str, known: list[str], where: str) -> str:
    """Read an entry of a JSON object that must be one of `known`."""
    value = values.get(name)
    if value not in known:
        hint = closest(str(value), known)
        raise InputError(f"{where}: {name} must be one of {', '.join(known)}, got {value!r}.{hint}")
    return str(value)


def check_counts(counts: tuple[int, int, int, int], negatives: int) -> None:
    """Refuse a batch of edits whose parts are not as many as its pictures.

    Args:
        counts: of images, instructions, tasks and seeds.
        negatives: negative texts, one for all images or one for each.

    Raises:
        ValueError: with the numbers.
    """
    if len(set(counts)) != 1:
        raise ValueError(
            f"an edit needs as many instructions, tasks and seeds as images, got {counts}"
        )
    if negatives not in {1, counts[0]}:
        raise ValueError(f"got {negatives} negative texts for {counts[0]} images")
