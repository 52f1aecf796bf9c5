"""One edit against its exact ground truth: the numbers of the world benchmark.

The three rows that are always printed (model, copy-input, oracle) come from the one function
`score`, called with the edited picture, the source, and the target. Sets are summed up in `table`.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.metrics.detection import (
    Box,
    NormalErrors,
    Overlap,
    Rgb,
    box_iou,
    depth_rmse,
    drawn_box,
    marked,
    normal_errors,
    region_iou,
)

UNTOUCHED = (
    0.03  # ours: a mean change that is hard to see; Emu Edit's alpha for "unchanged" is 0.03
)
MARGIN = (
    2  # ours: pixels around the mask that may soften, about one anti-aliased fringe on each side
)


@dataclass(frozen=True)
class Truth:
    """One pair with its ground truth.

    Attributes:
        key: names the pair in messages.
        task: name of the task.
        source: the picture before.
        target: the only right picture after.
        mask: True where the edit may change pixels.
        direction: "to_map" or "from_map" for the five map tasks, else None.
        box: where `detect` must draw its rectangle.
        mark_rgb: the stated colour of `detect` and `segment`.
        kind: what kind of thing is to be segmented, "" where nobody says.
    """

    key: str
    task: str
    source: UInt8[Tensor, "3 h w"]
    target: UInt8[Tensor, "3 h w"]
    mask: Bool[Tensor, "h w"]
    direction: str | None = None
    box: Box | None = None
    mark_rgb: Rgb | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        """Refuse pairs that no edit could be judged by.

        Raises:
            InputError: if nothing changes inside the mask, or a detect or segment pair lacks its
                box or colour; the message names the pair.
        """
        if torch.equal(self.source[:, self.mask], self.target[:, self.mask]):
            raise InputError(
                f"{self.key}: source and target are equal inside the mask; nothing to score"
            )
        if self.task in {"detect", "segment"} and self.mark_rgb is None:
            raise InputError(f"{self.key}: a {self.task} pair needs mark_rgb, its stated colour")
        if self.task == "detect" and self.box is None:
            raise InputError(f"{self.key}: a detect pair needs box, where its rectangle belongs")

    @staticmethod
    def from_arrays(
        key: str,
        task: str,
        *,
        source: UInt8[np.ndarray, "h w 3"],
        target: UInt8[np.ndarray, "h w 3"],
        mask: Bool[np.ndarray, "h w"],
        extra: dict[str, object],
    ) -> "Truth":
        """Take a pair as the world makes it.

        Of `extra`, direction, box, mark_rgb and thing are read; the kind of a thing is the last
        word of its name ("red circle").
        """
        direction = extra.get("direction")
        return Truth(
            key,
            task,
            source=torch.from_numpy(source).permute(2, 0, 1).contiguous(),
            target=torch.from_numpy(target).permute(2, 0, 1).contiguous(),
            mask=torch.from_numpy(mask),
            direction=None if direction is None else str(direction),
            box=_integers(key, "box", extra, 4),
            mark_rgb=_integers(key, "mark_rgb", extra, 3),
            kind=str(extra.get("thing", "")).rpartition(" ")[2],
        )


@dataclass(frozen=True)
class EditScore:
    """The numbers of one edit; errors are mean absolute differences of values in [0, 1].

    Attributes:
        key: of the pair.
        task: of the pair.
        l1: |edited - target| over the whole picture.
        inside_l1: |edited - target| inside the mask.
        copy_l1: |source - target| inside the mask, what not editing would score.
        outside_l1: |edited - source| outside the mask and its margin; None if nothing is outside.
        is_closer: inside the mask the edited picture is nearer to the target than to the source.
        detection_iou: of the drawn rectangle with the right one; `detect` only.
        has_box: whether there is a rectangle at all; `detect` only.
        segmentation_iou: of the painted region with the right one; `segment` only.
        overlap: the same in pixels; `segment` only.
        depth_rmse: `depth`, picture to map only.
        normals: angular errors; `normal`, picture to map only.
    """

    key: str
    task: str
    l1: float
    inside_l1: float
    copy_l1: float
    outside_l1: float | None
    is_closer: bool
    detection_iou: float | None = None
    has_box: bool | None = None
    segmentation_iou: float | None = None
    overlap: Overlap | None = None
    depth_rmse: float | None = None
    normals: NormalErrors | None = None

    @property
    def normal_degrees(self) -> float | None:
        """The mean angular error of `normals`."""
        return None if self.normals is None else self.normals.mean

    @property
    def relative_error(self) -> float:
        """The error inside relative to not editing: 0 is the target, 1 as far off as the source."""
        return self.inside_l1 / self.copy_l1

    @property
    def is_untouched(self) -> bool:
        """Whether the outside was left alone; true when nothing is outside."""
        return self.outside_l1 is None or self.outside_l1 < UNTOUCHED

    @property
    def success(self) -> bool:
        """Whether the edit was made and nothing else was."""
        return self.is_closer and self.is_untouched


def score(edited: UInt8[Tensor, "3 h w"], truth: Truth) -> EditScore:
    """Score one edited picture (on the CPU, of the pair's size); numbers in float64.

    Source: ours; the definitions are in `EditScore`.
    """
    source, target, mask = truth.source, truth.target, truth.mask
    to_map = truth.direction == "to_map"
    outside = ~dilated(mask, MARGIN)
    inside_l1 = _l1(edited, target, mask)
    box = _drawn_box(edited, truth) if truth.task == "detect" else None
    regions = _regions(edited, truth) if truth.task == "segment" else None
    return EditScore(
        key=truth.key,
        task=truth.task,
        l1=_l1(edited, target, torch.ones_like(mask)),
        inside_l1=inside_l1,
        copy_l1=_l1(source, target, mask),
        outside_l1=_l1(edited, source, outside) if outside.any() else None,
        is_closer=inside_l1 < _l1(edited, source, mask),
        detection_iou=_detection_iou(box, truth) if truth.task == "detect" else None,
        has_box=box is not None if truth.task == "detect" else None,
        segmentation_iou=None if regions is None else region_iou(*regions),
        overlap=None if regions is None else Overlap.of(truth.kind, *regions),
        depth_rmse=depth_rmse(edited, target) if truth.task == "depth" and to_map else None,
        normals=normal_errors(edited, target) if truth.task == "normal" and to_map else None,
    )


def dilated(mask: Bool[Tensor, "h w"], radius: int) -> Bool[Tensor, "h w"]:
    """Return the pixels at most `radius` rows and columns away from the mask."""
    grown = F.max_pool2d(mask[None].float(), 2 * radius + 1, stride=1, padding=radius)
    return grown[0] > 0


def _l1(a: Tensor, b: Tensor, where: Tensor) -> float:
    """Return the mean absolute difference over pixels and channels, in [0, 1]."""
    return (a[:, where].double() - b[:, where].double()).abs().mean().item() / 255


def _drawn_box(edited: Tensor, truth: Truth) -> Box | None:
    """Return the rectangle one can see."""
    assert truth.mark_rgb is not None  # checked by Truth
    return drawn_box(marked(edited, truth.source, truth.mark_rgb))


def _detection_iou(box: Box | None, truth: Truth) -> float:
    """Compare the rectangle one can see with the right one."""
    assert truth.box is not None  # checked by Truth
    return box_iou(box, truth.box)


def _regions(edited: Tensor, truth: Truth) -> tuple[Bool[Tensor, "h w"], Bool[Tensor, "h w"]]:
    """Return the painted region and the one the target paints, by the same rule."""
    assert truth.mark_rgb is not None  # checked by Truth
    return (
        marked(edited, truth.source, truth.mark_rgb),
        marked(truth.target, truth.source, truth.mark_rgb),
    )


def _integers(key: str, name: str, extra: dict[str, object], number: int):
    """Return a list of whole numbers from a pair's extra as a tuple, None when it is not there."""
    values = extra.get(name)
    if values is None:
        return None
    match values:
        case list() | tuple() if len(values) == number and all(isinstance(v, int) for v in values):
            return tuple(values)
    raise InputError(f"{key}: {name} must be {number} whole numbers, got {values!r}")
