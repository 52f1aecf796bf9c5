"""The sixteen tasks of Emu Edit, their order and their definitions; and the table a model carries.

The order is the index of the embedding and never changes; new tasks (task inversion) are appended.
Source: Sheynin et al. 2023, arXiv:2311.10089, Table 1. The paper does not publish its index list;
counting the five image-to-image modalities apart gives the sixteen used here.
"""

from dataclasses import dataclass
from enum import Enum

from emu_edit.errors import InputError, closest

CAPTION = "caption"  # the one task of models that draw, in no table of editors


class Family(Enum):
    """The three groups of the paper's Table 1."""

    region = "region"
    free_form = "free_form"
    vision = "vision"


@dataclass(frozen=True)
class Task:
    """One task: its name, its family, and what it does in one sentence."""

    name: str
    family: Family
    definition: str


TASKS: tuple[Task, ...] = (
    Task("local", Family.region, "swap one object for another, or change an attribute of it"),
    Task("remove", Family.region, "erase an object"),
    Task("add", Family.region, "insert a new object"),
    Task("texture", Family.region, "change how an object's surface looks while its shape stays"),
    Task("background", Family.region, "change the scene behind the objects"),
    Task(
        "global",
        Family.free_form,
        "an edit that touches the whole image: weather, season, time of day",
    ),
    Task("style", Family.free_form, "change the artistic style"),
    Task("text", Family.free_form, "add, remove or replace written text, or change its colour"),
    Task("detect", Family.vision, "mark a named object with a rectangle"),
    Task("segment", Family.vision, "paint a named object in a named colour"),
    Task("color", Family.vision, "sharpen, blur, or adjust colour, contrast and brightness"),
    Task("sketch", Family.vision, "image to sketch, and sketch to image"),
    Task("depth", Family.vision, "image to depth map, and depth map to image"),
    Task("normal", Family.vision, "image to normal map, and normal map to image"),
    Task("pose", Family.vision, "image to pose skeleton, and pose skeleton to image"),
    Task("segmap", Family.vision, "image to segmentation map, and segmentation map to image"),
)


@dataclass(frozen=True)
class TaskTable:
    """The names of the tasks a model knows, in the order of its embedding."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse an empty table and doubled names."""
        if not self.names:
            raise InputError("a task table needs at least one task, got none")
        if len(set(self.names)) != len(self.names):
            raise InputError(f"task names must be unique, got {list(self.names)}")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Return the embedding index of `name`; an unknown one is refused with the nearest known.

        Raises:
            InputError: if the table has no such task.
        """
        if name not in self.names:
            hint = closest(name, list(self.names))
            raise InputError(f"unknown task {name!r}; known tasks: {', '.join(self.names)}.{hint}")
        return self.names.index(name)


SIXTEEN = TaskTable(tuple(task.name for task in TASKS))
