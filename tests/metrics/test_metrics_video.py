"""Warp error, occlusion, flicker, PSNR outside masks, colour drift: against known videos."""

import math

import pytest
import torch

from datamodules.world.clips.clip import make_clip
from datamodules.world.clips.flow import optical_flow
from emu_edit.images import resize
from emu_edit.metrics.video import (
    MOST_PSNR,
    colour_drift,
    flicker,
    occlusion,
    outside_psnr,
    warp_error,
    warp_errors,
)


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


@pytest.mark.parametrize("index", range(4))
def test_occlusion_by_going_there_and_back_is_nearly_the_exact_one(index: int):
    scenes = make_clip(0, "train", index, task="color", size=64, frames=3).scenes
    forward, exact = map(torch.from_numpy, optical_flow(scenes[0], scenes[1], 64))
    backward, _ = map(torch.from_numpy, optical_flow(scenes[1], scenes[0], 64))
    found = occlusion(forward, backward)
    assert exact.float().mean() > 0.01
    assert (found & exact).sum() > 0.85 * exact.sum()
    assert (found & ~exact).float().mean() < 0.025  # beside what is, mostly


def test_occlusion_has_the_tolerance_of_its_formula_and_ends_at_the_border():
    forward = torch.tensor([10.0, 0.0]).view(2, 1, 1).expand(2, 8, 40)
    assert torch.equal(occlusion(forward, -forward), (torch.arange(40) > 29).expand(8, 40))
    for wrong, is_occluded in ((1.5, False), (1.7, True)):  # 2.25 and 2.89 against about 2.52
        back = torch.stack([-forward[0], torch.full((8, 40), wrong)])
        assert (occlusion(forward, back)[:, :29] == is_occluded).all()


def test_frames_that_come_one_by_one_have_the_warp_error_along_the_flow_of_the_first_video(
    panned: torch.Tensor, cpu_generator: torch.Generator
):
    noise = torch.randint(0, 256, panned.shape, dtype=torch.uint8, generator=cpu_generator)
    steps = iter([3, -3, 1, -1, 9, -9, 0, 0, 40, -40])  # to the right, there and back

    def flow(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        assert any(torch.equal(before, frame) for frame in panned)
        assert any(torch.equal(after, frame) for frame in panned)
        return torch.stack([torch.full((24, 32), float(next(steps))), torch.zeros(24, 32)])

    found = warp_errors([iter(panned), iter(noise), iter(resize(noise, (48, 64)))], flow)
    moves = torch.stack([motion(step, 0)[0][0] for step in (3, 1, 9, 0, 40)])
    occluded = torch.arange(32) + moves[:, 0] > 31
    assert found[:2] == pytest.approx([warp_error(v, moves, occluded) for v in (panned, noise)])
    assert len({round(value) for value in found}) == 3
    with pytest.raises(ValueError, match="shorter"):
        warp_errors([panned, noise[:1]], lambda *_: torch.zeros(2, 24, 32))
    assert math.isnan(warp_errors([panned[:1]], flow)[0])


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
