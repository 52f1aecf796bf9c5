"""How much moves in a clip: known motion is measured, and codecs do not matter."""

import numpy as np
import pytest
from PIL import Image

from datamodules.world.clips.clip import make_clip
from emu_edit.video.motion import frame_motion, motion_score, score_of


def moving(speed: int, frames: int = 14, side: int = 64) -> np.ndarray:
    """Return a textured picture that moves by so many pixels a frame."""
    cells = np.random.default_rng(0).integers(0, 256, (12, 60, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(cells).resize((480, 96), Image.Resampling.BICUBIC))
    return np.stack([wide[8 : 8 + side, speed * t : speed * t + side] for t in range(frames)])


@pytest.mark.parametrize("speed", [1, 3, 7])
def test_the_vectors_are_as_long_as_the_motion_from_frame_to_frame(speed: int) -> None:
    np.testing.assert_allclose(frame_motion(moving(speed)) * 64, speed, rtol=0.2)
    assert motion_score(moving(speed)) == pytest.approx(11 * speed / 64, rel=0.15)


def test_motion_is_a_share_of_the_shorter_side() -> None:
    frames = moving(3)
    twice = frames.repeat(2, axis=1).repeat(2, axis=2)
    assert motion_score(twice) == pytest.approx(motion_score(frames), rel=0.15)


def test_what_stands_still_has_no_motion_and_neither_has_one_frame() -> None:
    assert motion_score(moving(0)) == pytest.approx(0, abs=5e-3)
    assert motion_score(moving(3, frames=1)) == 0
    assert motion_score(moving(3, side=8)) == 0  # less than a block


def test_a_cut_is_no_motion() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    other = np.broadcast_to(noise[:1], noise.shape)
    parted = np.concatenate([moving(3, frames=7), other])
    assert np.isnan(frame_motion(parted)[6])


def test_the_score_is_the_least_sum_over_eleven_frames() -> None:
    steps = np.array([0.5] * 4 + [0.1] * 11 + [0.5] * 4)
    assert score_of(steps) == pytest.approx(1.1)
    assert score_of(steps[:15]) == pytest.approx(1.1)
    assert score_of(np.full(7, 0.2)) == pytest.approx(2.2)  # fewer: 11 times the mean
    assert score_of(np.array([0.1, np.nan, 0.3])) == pytest.approx(2.2)
    assert score_of(np.array([np.nan])) == score_of(np.zeros(0)) == 0


def test_clips_of_the_world_come_in_nearly_the_order_of_their_exact_flow() -> None:
    exact, found = [], []
    for index in range(12):
        clip = make_clip(0, "train", index, size=64, frames=8)
        exact.append(score_of(np.hypot(clip.flow[:, 0], clip.flow[:, 1]).mean((1, 2)) / 64))
        found.append(motion_score(np.ascontiguousarray(clip.source.transpose(0, 2, 3, 1))))
    first, second = (np.argsort(np.argsort(values)) for values in (exact, found))
    assert np.corrcoef(first, second)[0, 1] > 0.6
