"""Windows keep every frame, noise is a function of the frame's number, cuts end a scene."""

import math
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from emu_edit.errors import InputError
from emu_edit.video.cuts import CutDetector, GivenCuts, scene_starts
from emu_edit.video.noise import LAGS, NoiseMode, frame_noise
from emu_edit.video.windows import Shot, Window, Windowed, blend, check_window

SIZES = [(1, 0), (2, 0), (2, 1), (5, 2), (7, 6), (8, 4), (16, 3)]  # windows and their overlaps
SHAPE = (4, 8, 8)  # of a frame's noise
Pixels = UInt8[Tensor, "3 h w"]
Results = UInt8[Tensor, "f 3 h w"]


def shots(length: int, starts: Iterable[int] = (0,)) -> list[Shot]:
    """Return frames that each carry their own number in their pixels."""
    known = set(starts)
    levels = torch.arange(length)[:, None, None, None].expand(-1, 3, 1, 2)
    pixels = torch.cat([levels % 256, levels // 256], dim=3).to(torch.uint8)
    return [Shot(pixels[number], number, number in known) for number in range(length)]


def identity(window: Window) -> Results:
    return torch.stack([shot.pixels for shot in window.shots])


def through(windows: Windowed, given: Sequence[Shot]) -> list[Shot]:
    done = [result for shot in given for result in windows.push(shot)]
    return [*done, *windows.flush()]


def level(value: int) -> Callable[[Window], Results]:
    """Return an editor whose first window is black and whose later ones are `value`."""
    calls = []

    def edit(window: Window) -> Results:
        calls.append(window)
        now = 0 if len(calls) == 1 else value
        return torch.full((len(window.shots), 3, 1, 1), now, dtype=torch.uint8)

    return edit


def assert_all_come_out(windows: Windowed, given: list[Shot]) -> None:
    done = through(windows, given)
    assert [(shot.number, shot.starts) for shot in done] == [
        (shot.number, shot.starts) for shot in given
    ]
    assert torch.equal(identity(Window(done)), identity(Window(given)))


@pytest.mark.parametrize(
    ("size", "overlap", "longest"),
    [(1, 0, 20), (2, 1, 20), (7, 6, 20), (3, 0, 100), (8, 4, 100), (120, 30, 100)],
)
def test_every_frame_of_scenes_of_every_length_comes_out_once_in_order_and_bit_equal(
    size: int, overlap: int, longest: int
) -> None:
    starts = [length * (length - 1) // 2 for length in range(1, longest + 1)]
    assert_all_come_out(Windowed(identity, size, overlap), shots(starts[-1] + longest, starts))


@pytest.mark.parametrize(("size", "overlap"), SIZES)
@pytest.mark.parametrize("length", [1, 2, 7, 17])
def test_a_cut_at_the_first_a_middle_or_the_last_frame_loses_nothing(
    size: int, overlap: int, length: int
) -> None:
    for cut in (0, 1, length // 2, length - 1):
        assert_all_come_out(Windowed(identity, size, overlap), shots(length, {0, cut}))


@pytest.mark.parametrize(("size", "overlap"), SIZES)
def test_no_window_crosses_a_cut_and_none_is_larger_than_asked(size: int, overlap: int) -> None:
    starts = [0, 1, 4, 23, 24, 40]
    seen: list[list[int]] = []

    def edit(window: Window) -> Results:
        seen.append([shot.number for shot in window.shots])
        return identity(window)

    through(Windowed(edit, size, overlap), shots(41, starts))
    for numbers in seen:
        assert len(numbers) <= size
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert not set(numbers[1:]) & set(starts)
    # a window is short only where its whole scene is
    scenes = dict(zip(starts, [1, 3, 19, 1, 16, 1], strict=True))
    for numbers in seen:
        scene = max(start for start in starts if start <= numbers[0])
        assert len(numbers) == min(size, scenes[scene])


@pytest.mark.parametrize(("size", "overlap"), [(5, 2), (7, 6), (8, 4), (16, 3)])
def test_shared_frames_rise_linearly_from_the_older_window_to_the_newer(
    size: int, overlap: int
) -> None:
    done = through(Windowed(level(255), size, overlap), shots(2 * size - overlap))
    levels = [int(shot.pixels[0, 0, 0]) for shot in done]
    between = [255 * (index + 1) / (overlap + 1) for index in range(overlap)]
    expected = [0.0] * (size - overlap) + between + [255.0] * (size - overlap)
    # two windows only where the second is no third's elder
    assert levels == pytest.approx(expected[: len(levels)], abs=0.5)


@pytest.mark.parametrize(("size", "overlap"), [(5, 2), (7, 6), (8, 4), (16, 3)])
@pytest.mark.parametrize("value", [0, 255])
def test_weights_sum_to_one_so_that_a_constant_stays_what_it_is(
    size: int, overlap: int, value: int
) -> None:
    def edit(window: Window) -> Results:
        return torch.full((len(window.shots), 3, 1, 1), value, dtype=torch.uint8)

    for length in range(size + 1, 2 * size + 4):
        done = through(Windowed(edit, size, overlap), shots(length))
        assert {int(shot.pixels.min()) for shot in done} == {value}
        assert {int(shot.pixels.max()) for shot in done} == {value}


def test_frames_of_the_last_window_that_are_finished_already_are_not_changed_by_it() -> None:
    windows: list[Window] = []

    def edit(window: Window) -> Results:
        windows.append(window)
        now = 0 if len(windows) == 1 else 255
        return torch.full((len(window.shots), 3, 1, 1), now, dtype=torch.uint8)

    done = through(Windowed(edit, 6, 2), shots(7))
    assert [int(shot.pixels[0, 0, 0]) for shot in done] == [0, 0, 0, 0, 85, 170, 255]
    assert (windows[1].context, windows[1].old) == (3, 2)


def test_memory_is_bounded_by_one_window() -> None:
    windows = Windowed(identity, 5, 2)
    for shot in shots(100):
        list(windows.push(shot))
        assert len(windows.waiting) <= 2 * windows.size - windows.overlap
        assert len(windows.held) <= windows.overlap


def test_equal_pictures_blend_to_themselves_at_every_weight() -> None:
    picture = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    for weight in torch.linspace(0, 1, 23).tolist():
        assert torch.equal(blend(picture, picture, weight), picture)


@pytest.mark.parametrize(
    ("size", "overlap", "said"),
    [
        (0, 0, "a window needs at least 1 frame, got 0"),
        (4, 4, "windows of 4 frames overlap by 0 to 3 of them, got 4"),
        (4, -1, "got -1"),
    ],
)
def test_windows_that_never_move_on_are_refused(size: int, overlap: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_window(size, overlap)


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@pytest.mark.parametrize(
    ("mode", "neighbours"),
    [
        (NoiseMode.shared, 1.0),
        (NoiseMode.independent, 0.0),
        (NoiseMode.mixed, 0.5),
        (NoiseMode.progressive, math.sqrt(0.5)),
    ],
)
def test_noise_has_unit_variance_and_neighbours_correlate_as_said(
    mode: NoiseMode, neighbours: float
) -> None:
    shape = (4, 64, 64)
    noise = frame_noise(mode, 3, [0, 1, 500], shape)
    bound = 4 / math.sqrt(math.prod(shape))  # four standard errors
    for each in noise:
        assert abs(each.mean().item()) < bound
        assert each.var().item() == pytest.approx(1, abs=math.sqrt(2) * bound)
    assert correlation(noise[0], noise[1]) == pytest.approx(neighbours, abs=bound)
    far = {NoiseMode.progressive: 0.0}.get(mode, neighbours)
    assert correlation(noise[0], noise[2]) == pytest.approx(far, abs=bound)


@pytest.mark.parametrize("mode", NoiseMode)
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_noise_of_a_frame_does_not_depend_on_which_others_are_asked(
    mode: NoiseMode, alpha: float
) -> None:
    numbers = [7, 0, 8, 1 + LAGS, 7]
    together = frame_noise(mode, 5, numbers, SHAPE, alpha)
    for index, number in enumerate(numbers):
        alone = frame_noise(mode, 5, [number], SHAPE, alpha)[0]
        assert torch.equal(together[index], alone)
    assert not torch.equal(frame_noise(mode, 6, numbers, SHAPE, alpha), together)


def test_progressive_noise_forgets_as_a_power_of_its_rate() -> None:
    noise = frame_noise(NoiseMode.progressive, 1, [40, 42, 44], (4, 64, 64))
    assert correlation(noise[0], noise[1]) == pytest.approx(0.5, abs=0.04)
    assert correlation(noise[0], noise[2]) == pytest.approx(0.25, abs=0.04)


def scene(seed: int) -> Pixels:
    """Draw a smooth picture with colours of its own."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(1, 3, 1, 1, generator=generator)
    coarse = 0.6 * base + 0.4 * torch.rand(1, 3, 5, 6, generator=generator)
    smooth = functional.interpolate(coarse, (48, 64), mode="bilinear")
    return (255 * smooth[0]).to(torch.uint8)


def found(frames: Iterable[Pixels]) -> list[int]:
    detector = CutDetector()
    return [index for index, pixels in enumerate(frames) if detector.is_cut(pixels)]


def moving(picture: Pixels, step: int, length: int) -> list[Pixels]:
    return [picture.roll(step * index, 2) for index in range(length)]


@pytest.mark.parametrize("step", [0, 1, 2])
def test_hard_cuts_between_different_scenes_are_found_and_no_others(step: int) -> None:
    lengths = [5, 1, 9, 14, 3]
    frames: list[Pixels] = []
    starts: list[int] = []
    for seed, length in enumerate(lengths):
        starts.append(len(frames))
        frames += moving(scene(seed), step, length)
    assert found(frames) == starts


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_a_panning_camera_is_one_scene(step: int, seed: int) -> None:
    assert found(moving(scene(seed), step, 40)) == [0]


def test_fine_texture_that_pans_is_one_scene() -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=generator)
    assert found(moving(noisy, 2, 20)) == [0]


def test_a_slow_fade_is_one_scene() -> None:
    for seed in range(4):
        dark, light = torch.zeros(3, 48, 64, dtype=torch.uint8), scene(seed)
        fade = [blend(dark, light, index / 40) for index in range(41)]
        dissolve = [blend(light, scene(seed + 50), index / 40) for index in range(41)]
        assert found(fade) == [0]
        assert found(dissolve) == [0]


def test_given_cuts_replace_the_detector_and_the_first_frame_always_begins_a_scene() -> None:
    frames = [scene(seed) for seed in range(5)]
    begins = [is_start for _, is_start in scene_starts(iter(frames), GivenCuts.of([3], 5))]
    assert begins == [True, False, False, True, False]
    begins = [is_start for _, is_start in scene_starts(iter(frames), GivenCuts.of([], 5))]
    assert begins == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ([5], "a cut at frame 5: the video has the frames 0 to 4"),
        ([-1], "a cut at frame -1"),
        ([3, 1], "cuts have to rise, got 3, 1"),
        ([2, 2], "cuts have to rise, got 2, 2"),
    ],
)
def test_cuts_that_are_not_of_the_video_are_refused(starts: list[int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        GivenCuts.of(starts, 5)
