"""How figures and cameras move: records, where they are at a moment, and what one says of it.

A moment is the share of a shot that has passed, in [0, 1]; speeds are constant, and gestures swing
around the pose of the first moment. At moment 0 every figure is where the still scene has it. A
camera looks at a square of the world; figures are brought to its picture by their numbers alone, so
the renderer of pictures draws the frames of clips, too. Directions are those of the world: what
moves to the left may stay where it is in the picture of a camera that pans with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import pi, sin
from typing import Literal

from datamodules.world.scene import AT_REST, Figure, Person, Pose, Thing, View

Gesture = Literal["none", "walk", "wave left", "wave right"]

STRIDE, WAVE = 0.32, 0.55  # how far thighs and forearms swing: radians, either way
SWINGS = 1.75  # in a shot; were they whole, a shot of three frames would not show them
DIRECTIONS: dict[str, tuple[int, int]] = {
    "to the left": (-1, 0),
    "to the right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up to the left": (-1, -1),
    "up to the right": (1, -1),
    "down to the left": (-1, 1),
    "down to the right": (1, 1),
}


@dataclass(frozen=True)
class Motion:
    """What a figure does during a shot; by default it stands still.

    Attributes:
        dx: its way to the right, in fractions of the world's side.
        dy: its way down.
        turn: by how much a thing turns: radians, clockwise.
        growth: how many times its size it has in the end.
        gesture: of a person; one who walks also goes somewhere.
    """

    dx: float = 0.0
    dy: float = 0.0
    turn: float = 0.0
    growth: float = 1.0
    gesture: Gesture = "none"

    def at(self, figure: Figure, moment: float) -> Figure:
        """Return a figure of the still scene as it is at a moment."""
        x, y = figure.x + self.dx * moment, figure.y + self.dy * moment
        size = self.growth**moment
        if isinstance(figure, Person):
            pose = _swung(figure.pose, self.gesture, sin(2 * pi * SWINGS * moment))
            return replace(figure, x=x, y=y, height=figure.height * size, pose=pose)
        return replace(
            figure,
            x=x,
            y=y,
            radius=figure.radius * size,
            grain=figure.grain * size,
            angle=figure.angle + self.turn * moment,
        )

    @property
    def verbs(self) -> list[str]:
        """What the figure does: ["moves up", "turns clockwise"]; empty if it stands still."""
        verbs = []
        if self.dx or self.dy:
            go = "walks" if self.gesture == "walk" else "moves"
            verbs.append(f"{go} {direction(self.dx, self.dy)}")
        if self.turn:
            verbs.append("turns clockwise" if self.turn > 0 else "turns anticlockwise")
        if self.growth != 1:
            verbs.append("grows" if self.growth > 1 else "shrinks")
        if self.gesture.startswith("wave"):
            verbs.append(f"waves the arm on the {self.gesture.removeprefix('wave ')}")
        return verbs


@dataclass(frozen=True)
class Camera:
    """What the camera of a shot does: it looks at `start`, pans by (dx, dy), sees `zoom` times it.

    A pan is in fractions of the world's side; a zoom below one brings all nearer.
    """

    start: View = AT_REST
    dx: float = 0.0
    dy: float = 0.0
    zoom: float = 1.0

    def at(self, moment: float) -> View:
        """Return what is seen at a moment; zooms keep the middle."""
        side = self.start.side * self.zoom**moment
        grown = (side - self.start.side) / 2
        left = self.start.left + self.dx * moment - grown
        return View(left, self.start.top + self.dy * moment - grown, side)

    @property
    def verbs(self) -> list[str]:
        """What the camera does: ["pans up"], ["zooms in"]; empty if it stands still."""
        verbs = [f"pans {direction(self.dx, self.dy)}"] if self.dx or self.dy else []
        if self.zoom != 1:
            verbs.append("zooms in" if self.zoom < 1 else "zooms out")
        return verbs


def seen_by(figure: Figure, view: View) -> Figure:
    """Return a figure of the world as a view shows it."""
    if view == AT_REST:
        return figure
    x, y = (figure.x - view.left) / view.side, (figure.y - view.top) / view.side
    if isinstance(figure, Person):
        return replace(figure, x=x, y=y, height=figure.height / view.side)
    radius, grain = figure.radius / view.side, figure.grain / view.side
    return replace(figure, x=x, y=y, radius=radius, grain=grain)


def mirrored(figure: Figure) -> Figure:
    """Return a figure on the other side of the middle, left and right changed."""
    if isinstance(figure, Thing):
        return replace(figure, x=1 - figure.x, angle=-figure.angle)
    pose = figure.pose
    limbs = (pose.upper_arms, pose.forearms, pose.thighs, pose.shins)
    return replace(figure, x=1 - figure.x, pose=Pose(*((right, left) for left, right in limbs)))


def direction(dx: float, dy: float) -> str:
    """Return a way in words; ways run along an axis or a diagonal."""
    signs = ((dx > 0) - (dx < 0), (dy > 0) - (dy < 0))
    return next(words for words, step in DIRECTIONS.items() if step == signs)


def motion_words(motions: Sequence[tuple[str, Motion]], camera: Camera) -> str:
    """Return what moves, e.g. "the red star moves up and turns clockwise, the camera pans left".

    Args:
        motions: name and motion of each figure; those that stand still are not mentioned.
        camera: of the shot.
    """
    parts = [(f"the {name}", motion.verbs) for name, motion in motions]
    parts.append(("the camera", camera.verbs))
    said = [f"{who} {_listed(verbs)}" for who, verbs in parts if verbs]
    return ", ".join(said) if said else "nothing moves"


def _listed(verbs: Sequence[str]) -> str:
    return verbs[0] if len(verbs) == 1 else f"{', '.join(verbs[:-1])} and {verbs[-1]}"


def _swung(pose: Pose, gesture: Gesture, swing: float) -> Pose:
    """Return a pose with its limbs swung; `swing` is in [-1, 1], 0 leaves it as it is."""
    match gesture:
        case "walk":
            # angles are outwards: legs that swing the same way in the picture have opposite signs
            way = STRIDE * swing
            thighs = (pose.thighs[0] + way, pose.thighs[1] - way)
            shins = (pose.shins[0] + way / 2, pose.shins[1] - way / 2)
            return replace(pose, thighs=thighs, shins=shins)
        case "wave left":
            return replace(pose, forearms=(pose.forearms[0] + WAVE * swing, pose.forearms[1]))
        case "wave right":
            return replace(pose, forearms=(pose.forearms[0], pose.forearms[1] + WAVE * swing))
        case _:
            return pose
