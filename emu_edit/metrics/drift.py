"""What several turns of editing do to a picture: errors outside the edits, success inside.

A session's truth is known turn by turn. Outside is what no mask has touched so far, compared with
the first picture: there every difference is damage, whoever made it. Inside is judged turn by turn
against the exact pictures before and after, although the editor started from its own last result:
an earlier failure may cost later turns theirs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.metrics.world import MARGIN, dilated


@dataclass(frozen=True)
class TurnTruth:
    """One turn with its exact pictures; all of one size.

    Attributes:
        before: the right picture before the turn.
        target: the right picture after it.
        mask: True where the turn may change pixels; empty for a request that asks for nothing.
    """

    before: UInt8[Tensor, "3 h w"]
    target: UInt8[Tensor, "3 h w"]
    mask: Bool[Tensor, "h w"]

    @property
    def is_noop(self) -> bool:
        """Whether nothing may change."""
        return not bool(self.mask.any())


@dataclass(frozen=True)
class TurnScore:
    """The numbers of one turn of one session; values of pixels are taken in [0, 1].

    Attributes:
        outside_l1: mean |picture - original| where no mask, margin included, has been so far.
        outside_mse: mean squared difference there.
        kept: share of the pixels there that are bit-identical to the original, 0 to 1.
        is_success: inside the turn's mask the picture is nearer to the target than to what was
            before; None for a turn that asks for nothing.
    """

    outside_l1: float
    outside_mse: float
    kept: float
    is_success: bool | None


@dataclass(frozen=True)
class DriftPoint:
    """The mean over sessions after one turn.

    Attributes:
        turn: its number, from 1.
        outside_l1: mean of the sessions' L1 outside.
        outside_psnr: in dB, of the mean squared error over sessions; None if it is zero.
        kept: mean share of outside pixels that are bit-identical to the original.
        success: share of sessions whose edit succeeded; None at a turn that asks for nothing.
    """

    turn: int
    outside_l1: float
    outside_psnr: float | None
    kept: float
    success: float | None


def score_session(
    images: Sequence[UInt8[Tensor, "3 h w"]], truths: Sequence[TurnTruth]
) -> list[TurnScore]:
    """Score a session turn by turn; numbers in float64.

    Args:
        images: the original, then the result of each turn, on the CPU.
        truths: one for each turn.

    Raises:
        InputError: if there are so many turns that no pixel is left outside their masks.
        ValueError: if there is not one result for each turn.
    """
    if len(images) != len(truths) + 1:
        raise ValueError(f"{len(truths)} turns need as many results, got {len(images) - 1}")
    touched = torch.zeros_like(truths[0].mask)
    scores = []
    for turn, (image, truth) in enumerate(zip(images[1:], truths, strict=True), start=1):
        touched |= dilated(truth.mask, MARGIN)
        if touched.all():
            raise InputError(
                f"after turn {turn} the edits have covered the whole picture, nothing is left to "
                "measure drift on; use fewer turns (--turns)"
            )
        scores.append(_score_turn(image, images[0], truth, ~touched))
    return scores


def _score_turn(image: Tensor, original: Tensor, truth: TurnTruth, outside: Tensor) -> TurnScore:
    difference = (image[:, outside].double() - original[:, outside].double()) / 255
    is_success = None
    if not truth.is_noop:
        to_target, to_before = (
            (image[:, truth.mask].double() - picture[:, truth.mask].double()).abs().mean().item()
            for picture in (truth.target, truth.before)
        )
        is_success = to_target < to_before
    return TurnScore(
        outside_l1=difference.abs().mean().item(),
        outside_mse=difference.square().mean().item(),
        kept=(difference == 0).all(dim=0).double().mean().item(),
        is_success=is_success,
    )


def drift_curve(sessions: Sequence[Sequence[TurnScore]]) -> list[DriftPoint]:
    """Average sessions of equal length turn by turn.

    Raises:
        ValueError: if there are no sessions, or their lengths differ.
    """
    if not sessions:
        raise ValueError("a drift curve needs at least one session, got none")
    return [_average(turn, scores) for turn, scores in enumerate(zip(*sessions, strict=True), 1)]


def _average(turn: int, scores: Sequence[TurnScore]) -> DriftPoint:
    return DriftPoint(
        turn=turn,
        outside_l1=_mean([score.outside_l1 for score in scores]),
        outside_psnr=psnr(_mean([score.outside_mse for score in scores])),
        kept=_mean([score.kept for score in scores]),
        success=_share(scores),
    )


def success_share(sessions: Sequence[Sequence[TurnScore]]) -> float | None:
    """Average over all edits of all sessions which share succeeded; None if there were none."""
    return _share([score for scores in sessions for score in scores])


def _share(scores: Sequence[TurnScore]) -> float | None:
    edits = [float(score.is_success) for score in scores if score.is_success is not None]
    return _mean(edits) if edits else None


def psnr(mse: float) -> float | None:
    """Convert a mean squared error to dB, 10 log10(1 / mse); None without any error."""
    return None if mse == 0 else -10 * math.log10(mse)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
