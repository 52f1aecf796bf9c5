"""The scene of a picture: a background, figures in depth order, sometimes a word.

Lengths and positions are fractions of the picture's side, x to the right and y downwards, so a
scene has no resolution. The world has a floor: what stands lower in the picture is nearer, and
nearer figures hide farther ones. Scenes are immutable values; an edit makes another scene.
"""

from dataclasses import dataclass, replace
from typing import Literal

from datamodules.world.instructions import background_words, with_article

Texture = Literal["plain", "striped", "dotted", "checkered"]


@dataclass(frozen=True)
class Thing:
    """A flat figure: one of the shapes inside a circle of `radius` around (x, y).

    In clips it may be turned by `angle`, clockwise in radians, and its pattern be `grain` times as
    coarse as that of a thing which has not come nearer.
    """

    shape: str
    colour: str
    texture: Texture
    x: float
    y: float
    radius: float
    angle: float = 0.0
    grain: float = 1.0

    @property
    def base(self) -> float:
        """Where it stands on the floor: its lowest point."""
        return self.y + self.radius

    @property
    def name(self) -> str:
        """Colour and shape; names exactly one figure of a scene."""
        return f"{self.colour} {self.shape}"

    @property
    def full_name(self) -> str:
        """The name with the texture before it, when there is one."""
        return self.name if self.texture == "plain" else f"{self.texture} {self.name}"


@dataclass(frozen=True)
class Pose:
    """Angles of the limbs (left, right in the picture): radians from straight down, outwards."""

    upper_arms: tuple[float, float]
    forearms: tuple[float, float]
    thighs: tuple[float, float]
    shins: tuple[float, float]


@dataclass(frozen=True)
class Person:
    """A stick figure of one colour, `height` tall on straight legs, its middle at (x, y)."""

    colour: str
    x: float
    y: float
    height: float
    pose: Pose
    shape: Literal["person"] = "person"
    texture: Literal["plain"] = "plain"

    @property
    def base(self) -> float:
        """Where the person stands on the floor."""
        return self.y + self.height / 2

    @property
    def name(self) -> str:
        """Colour and "person"; names exactly one figure of a scene."""
        return f"{self.colour} person"

    @property
    def full_name(self) -> str:
        """The same as `name`: people have no texture."""
        return self.name


Figure = Thing | Person


@dataclass(frozen=True)
class Crop:
    """A square part of a photograph: which picture, and where, in fractions of its shorter side."""

    picture: int
    left: float
    top: float
    side: float


@dataclass(frozen=True)
class View:
    """The square of the world that a camera shows, in fractions of what it shows at rest."""

    left: float = 0.0
    top: float = 0.0
    side: float = 1.0


AT_REST = View()


@dataclass(frozen=True)
class Background:
    """One of the named backgrounds, or a crop of a photograph (then the name is "photograph").

    A named one has no end; which part of it is seen is the `view`.
    """

    name: str
    crop: Crop | None = None
    view: View = AT_REST


@dataclass(frozen=True)
class Word:
    """A short word in capitals, over everything else, centred in the top or the bottom band."""

    text: str
    ink: str
    band: str


@dataclass(frozen=True)
class Scene:
    """One picture. `figures` are sorted from far to near; use `of` to make one."""

    background: Background
    figures: tuple[Figure, ...]
    word: Word | None = None

    @staticmethod
    def of(
        background: Background, figures: tuple[Figure, ...], word: Word | None = None
    ) -> "Scene":
        """Return a scene with its figures in depth order: the lowest base is nearest, and last."""
        return Scene(background, tuple(sorted(figures, key=lambda f: (f.base, f.name))), word)

    def named(self, name: str) -> Figure:
        """Return the figure of a name."""
        return next(figure for figure in self.figures if figure.name == name)

    def without(self, figure: Figure) -> "Scene":
        """Return the scene with one figure less."""
        return replace(self, figures=tuple(f for f in self.figures if f is not figure))

    def with_figure(self, figure: Figure) -> "Scene":
        """Return the scene with one figure more, at its place in the depth order."""
        return Scene.of(self.background, (*self.figures, figure), self.word)

    def swapped(self, old: Figure, new: Figure) -> "Scene":
        """Return the scene with one figure in place of another."""
        return self.without(old).with_figure(new)

    @property
    def caption(self) -> str:
        """What the picture shows, e.g. "a red circle and a blue star on a beach"."""
        shown = f"{self.subjects} on {background_words(self.background.name)}"
        if self.word is None:
            return shown
        return f"{shown}, with the {self.word.ink} word {self.word.text} at the {self.word.band}"

    @property
    def subjects(self) -> str:
        """The figures, far to near: "a red circle and a dotted blue star"; or "nothing"."""
        names = [with_article(figure.full_name) for figure in self.figures]
        if not names:
            return "nothing"
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
