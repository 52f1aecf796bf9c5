import math
from dataclasses import replace

import pytest
import torch

from emu_edit.errors import InputError
from emu_edit.metrics.drift import (
    DriftPoint,
    TurnScore,
    TurnTruth,
    drift_curve,
    psnr,
    score_session,
    success_share,
)


def flat(level: int) -> torch.Tensor:
    return torch.full((3, 16, 16), level, dtype=torch.uint8)


def box(left: int) -> torch.Tensor:
    """A mask of 4 x 4; grown by the margin of 2 it is 8 x 8."""
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[6:10, left : left + 4] = True
    return mask


def paint(picture: torch.Tensor, where: torch.Tensor, level: int) -> torch.Tensor:
    out = picture.clone()
    out[:, where] = level
    return out


NOTHING = torch.zeros(16, 16, dtype=torch.bool)


def turns() -> list[TurnTruth]:
    """A box on the left turns bright, nothing happens, a box on the right turns dark."""
    first = paint(flat(100), box(2), 200)
    second = paint(first, box(10), 20)
    return [
        TurnTruth(flat(100), first, box(2)),
        TurnTruth(first, first, NOTHING),
        TurnTruth(first, second, box(10)),
    ]


def test_a_perfect_session_has_no_error_and_all_success():
    scores = score_session([flat(100), *(turn.target for turn in turns())], turns())
    assert [s.outside_l1 for s in scores] == [0, 0, 0]
    assert [s.outside_mse for s in scores] == [0, 0, 0]
    assert [s.kept for s in scores] == [1, 1, 1]
    assert [s.is_success for s in scores] == [True, None, True]


def test_an_editor_that_does_nothing_succeeds_nowhere_and_spoils_nothing():
    scores = score_session([flat(100)] * 4, turns())
    assert [s.is_success for s in scores] == [False, None, False]
    assert [s.outside_l1 for s in scores] == [0, 0, 0]


def test_outside_is_what_no_mask_so_far_has_touched_margin_included():
    images = [flat(100)] + [flat(100).clone() for _ in range(3)]
    for image in images[1:]:
        image[:, 4:12, 8:16] = 151  # around the right box: outside until the third turn
        image[:, 4:12, 0:8] = 255  # around the left box: never outside
    scores = score_session(images, turns())
    # 64 of the 192 pixels that are outside of the first mask moved by 51 of 255
    assert scores[0].outside_l1 == pytest.approx(64 / 192 * 0.2, abs=1e-15)
    assert scores[0].outside_mse == pytest.approx(64 / 192 * 0.04, abs=1e-15)
    assert scores[0].kept == pytest.approx(128 / 192, abs=1e-15)
    assert scores[1] == TurnScore(scores[0].outside_l1, scores[0].outside_mse, scores[0].kept, None)
    assert scores[2].outside_l1 == 0
    assert scores[2].kept == 1


def test_errors_count_from_the_first_picture_not_from_the_last():
    images = [flat(100), flat(101), flat(102), flat(103)]
    scores = score_session(images, turns())
    assert [s.outside_l1 * 255 for s in scores] == pytest.approx([1, 2, 3], abs=1e-12)


@pytest.mark.parametrize(("level", "is_success"), [(149, False), (150, False), (151, True)])
def test_success_is_to_be_nearer_to_the_target_than_to_what_was_before(level, is_success):
    (score,) = score_session([flat(100), paint(flat(100), box(2), level)], turns()[:1])
    assert score.is_success is is_success


def test_a_curve_is_the_mean_over_sessions_and_psnr_that_of_the_mean_error():
    sessions = [
        [TurnScore(0.01, 0.0001, 0.5, True), TurnScore(0.02, 0.0, 1.0, None)],
        [TurnScore(0.03, 0.0019, 0.0, False), TurnScore(0.04, 0.0, 1.0, None)],
    ]
    first, second = drift_curve(sessions)
    assert first.outside_psnr == pytest.approx(30.0, abs=1e-12)
    assert replace(first, outside_psnr=None) == DriftPoint(1, 0.02, None, 0.25, 0.5)
    assert second == DriftPoint(2, 0.03, None, 1.0, None)
    assert success_share(sessions) == 0.5
    assert success_share([turn[1:] for turn in sessions]) is None


def test_psnr_is_in_decibels_and_absent_without_error():
    assert psnr(0.01) == pytest.approx(20.0, abs=1e-12)
    assert psnr(1 / 255**2) == pytest.approx(20 * math.log10(255), abs=1e-12)
    assert psnr(0.0) is None


def test_edits_that_cover_the_whole_picture_are_refused():
    everywhere = TurnTruth(flat(0), flat(1), torch.ones(16, 16, dtype=torch.bool))
    with pytest.raises(InputError, match=r"after turn 1 the edits have covered the whole picture"):
        score_session([flat(0), flat(1)], [everywhere])


def test_a_session_with_a_result_too_few_is_refused():
    with pytest.raises(ValueError, match="3 turns need as many results, got 2"):
        score_session([flat(0)] * 3, turns())


def test_a_curve_of_no_sessions_is_refused():
    with pytest.raises(ValueError, match="needs at least one session, got none"):
        drift_curve([])
