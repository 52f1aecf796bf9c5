"""One edit against its exact ground truth: the numbers of the world benchmark.

The three rows that are always printed (model, copy-input, oracle) come from the one function
`score`, called with the edited picture, the source, and the target. Sets are summed up in `table`.
"""

from dataclasses import dataclass, replace

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
)

# ours: a mean change that is hard to see; Emu Edit's alpha for "unchanged" is 0.03
UNTOUCHED = 0.03
# ours: what a person calls done, where three quarters of the way are made and nothing else is seen
CLEAN_ERROR, CLEAN_OUTSIDE = 0.25, 0.01
# ours: from when on a mark or a map is the one asked for: intersection over union of boxes and
# regions, root mean square of depths in [0, 1], mean angle of normals
READ_IOU, READ_DEPTH, READ_DEGREES = 0.5, 0.05, 11.25
# ours: pixels around the mask that may soften, about one anti-aliased fringe on each side
MARGIN = 2


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

        From `extra` come direction, box, mark_rgb and thing, whose last word is its kind ("red
        circle").
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
        overlap: of the painted region with the right one; `segment` only.
        depth_rmse: `depth`, picture to map only.
        normals: angular errors; `normal`, picture to map only.
        is_shown: whether a reader of scenes finds exactly the target's in the edited picture; None
            where that says nothing.
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
    overlap: Overlap | None = None
    depth_rmse: float | None = None
    normals: NormalErrors | None = None
    is_shown: bool | None = None

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
        """Whether the edit was made more than halfway, and nothing else was; lenient."""
        return self.is_closer and self.is_untouched

    @property
    def clean(self) -> bool:
        """Whether the edit looks done: at most a quarter is left of it, nothing else changed."""
        is_kept = self.outside_l1 is None or self.outside_l1 < CLEAN_OUTSIDE
        return self.relative_error <= CLEAN_ERROR and is_kept

    @property
    def read(self) -> bool:
        """Whether what was asked for can be read off the picture.

        The scene where there is one to read; else the rectangle, the region, the depth or the
        normals, each from a threshold on; other maps and filters if little error is left.
        """
        if self.is_shown is not None:
            return self.is_shown
        if self.has_box is not None:
            return (self.detection_iou or 0) >= READ_IOU
        if self.overlap is not None:
            return self.overlap.iou >= READ_IOU
        if self.depth_rmse is not None:
            return self.depth_rmse <= READ_DEPTH
        if self.normals is not None:
            return self.normals.mean <= READ_DEGREES
        return self.relative_error <= CLEAN_ERROR


def score(edited: UInt8[Tensor, "3 h w"], truth: Truth) -> EditScore:
    """Score one edited picture (on the CPU, of the pair's size); numbers in float64.

    Source: ours; the definitions are in `EditScore`.
    """
    source, target = truth.source, truth.target
    scored = errors(edited, source, target, truth.mask, key=truth.key, task=truth.task)
    match truth.task:
        case "detect":
            assert truth.mark_rgb is not None  # checked by Truth
            assert truth.box is not None  # by Truth, too
            box = drawn_box(marked(edited, source, truth.mark_rgb))
            iou = box_iou(box, truth.box)
            return replace(scored, detection_iou=iou, has_box=box is not None)
        case "segment":
            assert truth.mark_rgb is not None  # checked by Truth
            # the right region is the one that the target paints, by the same rule
            regions = (marked(picture, source, truth.mark_rgb) for picture in (edited, target))
            return replace(scored, overlap=Overlap.of(truth.kind, *regions))
        case "depth" if truth.direction == "to_map":
            return replace(scored, depth_rmse=depth_rmse(edited, target))
        case "normal" if truth.direction == "to_map":
            return replace(scored, normals=normal_errors(edited, target))
    return scored


def errors(
    edited: UInt8[Tensor, "3 h w"],
    source: UInt8[Tensor, "3 h w"],
    target: UInt8[Tensor, "3 h w"],
    mask: Bool[Tensor, "h w"],
    *,
    key: str,
    task: str,
) -> EditScore:
    """Compare an edited picture with source and target; the mask must have a pixel."""
    outside = ~dilated(mask, MARGIN)
    inside_l1 = _l1(edited, target, mask)
    return EditScore(
        key=key,
        task=task,
        l1=_l1(edited, target, torch.ones_like(mask)),
        inside_l1=inside_l1,
        copy_l1=_l1(source, target, mask),
        outside_l1=_l1(edited, source, outside) if outside.any() else None,
        is_closer=inside_l1 < _l1(edited, source, mask),
    )


def dilated(mask: Bool[Tensor, "h w"], radius: int) -> Bool[Tensor, "h w"]:
    """Grow a mask by the pixels at most `radius` rows and columns away from it."""
    grown = F.max_pool2d(mask[None].float(), 2 * radius + 1, stride=1, padding=radius)
    return grown[0] > 0


def _l1(a: Tensor, b: Tensor, where: Tensor) -> float:
    """Average the absolute difference over pixels and channels, in [0, 1]."""
    return (a[:, where].double() - b[:, where].double()).abs().mean().item() / 255


def _integers(key: str, name: str, extra: dict[str, object], number: int):
    """Read whole numbers of a pair's extra as a tuple; None when they are not there."""
    values = extra.get(name)
    if values is None:
        return None
    match values:
        case list() | tuple() if len(values) == number and all(isinstance(v, int) for v in values):
            return tuple(values)
    raise InputError(f"{key}: {name} must be {number} whole numbers, got {values!r}")
