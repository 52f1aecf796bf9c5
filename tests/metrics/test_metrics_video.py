"""Warp error, flicker, PSNR outside masks, colour drift: against videos whose numbers are known."""

import math

import pytest
import torch

from emu_edit.metrics.video import MOST_PSNR, colour_drift, flicker, outside_psnr, warp_error


@pytest.fixture
def panned() -> torch.Tensor:
    """Six frames in which everything moves three pixels to the right and one down."""
    picture = torch.randint(
        0, 256, (3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return torch.stack([torch.roll(picture, (t, 3 * t), (1, 2)) for t in range(6)])


def motion(x: float, y: float) -> tuple[torch.Tensor, torch.Tensor]:
    flow = torch.tensor([float(x), float(y)]).view(1, 2, 1, 1).expand(5, 2, 24, 32)
    occluded = torch.zeros(5, 24, 32, dtype=torch.bool)
    occluded[:, -1:], occluded[:, :, -3:] = True, True  # what has left the picture
    return flow, occluded


def test_a_video_that_follows_its_flow_has_no_warp_error(panned: torch.Tensor):
    assert warp_error(panned, *motion(3, 1)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("wrong", [(-3, -1), (1, 3), (0, 0), (3, 2)])
def test_another_flow_has_one(panned: torch.Tensor, wrong: tuple[float, float]):
    assert warp_error(panned, *motion(*wrong)) > 50


def test_what_is_occluded_does_not_count(panned: torch.Tensor):
    spoilt = panned.clone()
    spoilt[1:, :, :1], spoilt[1:, :, :, :3] = 0, 0  # only seen from frame 1 on
    flow, occluded = motion(3, 1)
    occluded = occluded | True
    occluded[:, 4:10, 6:12] = False
    assert warp_error(spoilt, flow, occluded) == pytest.approx(0, abs=1e-3)
    assert math.isnan(warp_error(spoilt, flow, occluded | True))


def test_flicker_is_the_mean_change_and_zero_for_a_still():
    frames = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    assert flicker(frames) == 0
    frames[1::2] = 12
    assert flicker(frames) == 12
    assert flicker(frames[:1]) == 0


def test_psnr_outside_counts_only_what_the_mask_leaves():
    source = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    result = source.clone()
    result[:, :, :4] = 0
    assert outside_psnr(result, source, mask) == MOST_PSNR
    result[:, :, 4:] = 110
    assert outside_psnr(result, source, mask) == pytest.approx(20 * math.log10(25.5))
    assert math.isnan(outside_psnr(result, source, mask | True))


def test_a_drift_of_two_levels_a_frame_is_found_in_its_channel():
    source = torch.full((10, 3, 8, 8), 100, dtype=torch.uint8)
    result = source.clone()
    result[:, 0] += 2 * torch.arange(10, dtype=torch.uint8)[:, None, None]
    assert torch.allclose(colour_drift(result, source), torch.tensor([2.0, 0.0, 0.0]))
    assert torch.equal(colour_drift(result[:1], source[:1]), torch.zeros(3))
