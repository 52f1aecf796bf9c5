"""From given frames: what goes on from a video, and what comes between its frames, by windows."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.testing import assert_close

from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import add_noise
from emu_edit.diffusion.samplers import Sampler
from emu_edit.editing.animate import Animator, Drawing, animate, extend
from emu_edit.editing.interpolate import interpolate, windows_of
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.models.given import Given, GivenFrames
from emu_edit.randomness import normals
from tests.training.test_training_video import difference, moved
from tests.training.video_stage import SIZE, make_clip, module, write_base

ONE_STEP = EditorSettings(SIZE, Guidance(1.0, 1.0), num_steps=1)
DRAWING = Drawing("a square", 3, settings=ONE_STEP)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model of captions."""
    return write_base(tmp_path_factory.mktemp("base") / "model")


def animator(base: Path, given: GivenFrames, frames: int) -> Animator:
    return moved(module(base, given=given, frames=frames)).animator()


def between(base: Path, **more: int) -> Animator:
    """Return a model that draws twice as many frames, from 3 to 9 at a time."""
    return animator(base, GivenFrames(Given.interleaved, factor=2, **more), 9)


def video(frames: int, height: int = SIZE, width: int = SIZE) -> UInt8[Tensor, "f 3 h w"]:
    generator = torch.Generator().manual_seed(9)
    pixels = torch.randint(0, 256, (frames, 3, height, width), generator=generator)
    return pixels.to(torch.uint8)


def told(animator: Animator) -> list[Tensor]:
    """Return what the model will be told in each call: rows are frames, zeros where none is."""
    conditions: list[Tensor] = []
    channels = animator.video.networks.codec.latent_channels

    def look(_module: object, _inputs: tuple, named: dict) -> None:
        conditions.append(named["cond"].z_source[0].unflatten(0, (-1, channels)))

    animator.video.networks.denoiser.register_forward_pre_hook(look, with_kwargs=True)
    return conditions


def joined(pieces: Iterable[Tensor]) -> Tensor:
    return torch.cat(list(pieces))


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("size", [2, 3, 4])
def test_windows_share_a_frame_and_the_last_is_moved_back(count: int, size: int) -> None:
    pictures = list(video(count, 1, 1))
    windows = list(windows_of(iter(pictures), size))
    assert [window.is_last for window in windows] == [False] * (len(windows) - 1) + [True]
    for window in windows:
        assert len(window.frames) == min(size, count)
        here = pictures[window.first : window.first + size]
        assert all(map(torch.equal, window.frames, here))
    firsts = [window.first for window in windows]
    assert firsts[:-1] == [number * (size - 1) for number in range(len(windows) - 1)]
    assert firsts[-1] == max(count - size, 0)
    assert len(firsts) == max(-(-(count - 1) // (size - 1)), 1)


@pytest.mark.parametrize("count", range(2, 8))
def test_interpolation_keeps_the_frames_it_is_given(count: int, base: Path) -> None:
    model, given = between(base), video(count)
    pieces = list(interpolate(model, given, DRAWING))
    drawn = joined(pieces)
    assert len(drawn) == 2 * (count + 1) + 1
    assert torch.equal(drawn[2:-1:2], given)
    new = [drawn[i] for i in (*range(3, 2 * count, 2), 0, 1, -1, -2)]
    assert all(difference(frame, other) > 1 for frame in new for other in given)
    if count > 3:  # the older window's last 3 frames and the newer one's first 2 are dropped
        assert len(pieces[0]) == 9 - 3
        assert len(pieces) == -(-(count - 1) // 2)


def test_eight_frames_become_37_and_two_windows_that_share_one_65(base: Path) -> None:
    model = animator(base, GivenFrames(Given.interleaved), 37)
    assert len(joined(interpolate(model, video(8), DRAWING))) == 37
    pieces = list(interpolate(model, video(15), DRAWING))
    assert [len(piece) for piece in pieces] == [37 - 5, 37 - 4]


def test_a_longer_video_begins_as_a_shorter_one_before_its_last_frame(base: Path) -> None:
    model = between(base)
    short, long = (joined(interpolate(model, video(7)[:n], DRAWING)) for n in (3, 7))
    assert_close(long[:6], short[:6], rtol=0, atol=1)
    assert difference(long[7], short[7]) > 1  # beyond, the shorter one knows less


def test_windows_agree_on_what_they_are_told_of_the_frame_they_share(base: Path) -> None:
    model = between(base, train_noise=250, noise=100)
    conditions, frames = told(model), video(5)
    joined(interpolate(model, frames, DRAWING))
    older, newer = conditions
    assert_close(older[6], newer[2])
    # and it is the frame with the noise of step 100, for every frame its own
    clean = model.video.encode(frames)
    eps = normals(3, "given", torch.tensor([2, 4, 6, 8, 10]), clean.shape[1:])
    expected = add_noise(clean, eps, model.video.schedule.at(torch.tensor([100])))
    assert_close(torch.cat([older[2:7:2], newer[4:7:2]]), expected)
    for one in conditions:
        assert not one[[0, 1, 3, 5, 7, 8]].any()


def test_a_smaller_factor_keeps_some_of_what_is_drawn(base: Path) -> None:
    model = animator(base, GivenFrames(Given.interleaved), 13)  # 2 frames at a time
    whole, half = (joined(interpolate(model, video(4), DRAWING, factor=f)) for f in (4, 2))
    assert len(whole) == 4 * 5 + 1
    assert torch.equal(half, whole[::2])
    with pytest.raises(InputError, match=r"factor 3: this model draws 4 times .* give 2 or 4, or"):
        interpolate(model, video(4), DRAWING, factor=3)


def test_redrawn_are_the_given_frames_alone(base: Path) -> None:
    model, frames = between(base), video(5)
    kept, drawn = (joined(interpolate(model, frames, DRAWING, redraw=r)) for r in (False, True))
    is_given = torch.zeros(len(kept), dtype=torch.bool)
    is_given[2:-1:2] = True
    assert torch.equal(kept[~is_given], drawn[~is_given])
    assert difference(kept[is_given], drawn[is_given]) > 1


def test_without_a_caption_one_branch_less_says_the_same(base: Path) -> None:
    model = between(base)
    settings = replace(ONE_STEP, guidance=Guidance(text=7.5, image=2.0))
    rows: list[int] = []
    model.video.networks.denoiser.register_forward_pre_hook(
        lambda _module, inputs: rows.append(len(inputs[0]))
    )
    two = joined(interpolate(model, video(2), Drawing("", settings=settings)))
    # by hand: all three branches, of which the one with text says what the one without does
    z = model.video.encode(video(2))
    noise = normals(0, "animate", torch.arange(7), z.shape[1:])
    three = model.video.edit_latents(
        model.given.placed(z[None], 7),
        *([""], ["caption"], [0]),
        negative=[""],
        settings=settings,
        on_step=None,
        noise=noise.flatten(0, 1)[None],
    )
    expected = model.video.decode(three[0].unflatten(0, (7, -1)), (SIZE, SIZE))
    assert_close(two[[0, 1, 3, 5, 6]], expected[[0, 1, 3, 5, 6]], rtol=0, atol=1)
    assert rows == [2, 3]


def test_a_window_is_drawn_before_the_next_is_read(base: Path) -> None:
    read: list[int] = []

    def reading() -> Iterator[Tensor]:
        for number, frame in enumerate(video(9)):
            read.append(number)
            yield frame

    pieces = interpolate(between(base), reading(), DRAWING)
    next(pieces)
    assert read == [0, 1, 2, 3]  # a window, and whether more comes
    next(pieces)
    assert read == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("frames", [4, 5])
def test_a_video_goes_on_from_its_last_frames_and_then_from_those_drawn(
    frames: int, base: Path
) -> None:
    model, past = animator(base, GivenFrames(Given.past), frames), video(6)
    conditions, new = told(model), frames - 2
    drawn = joined(extend(model, past, DRAWING, 2 * new + 1))
    assert drawn.shape == (2 * new + 1, 3, SIZE, SIZE)
    for condition in conditions:
        assert not condition[2:].any()
    assert_close(conditions[0][:2], model.video.encode(past[-2:]))
    beginnings = [model.video.decode(c[:2], (SIZE, SIZE)) for c in conditions[1:]]
    assert difference(beginnings[0], drawn[new - 2 : new]) < 0.5
    assert difference(beginnings[1], drawn[2 * new - 2 : 2 * new]) < 0.5
    for fewer in range(1, 2 * new):  # a longer one begins as a shorter one
        assert torch.equal(joined(extend(model, past, DRAWING, fewer)), drawn[:fewer])


def test_a_model_of_first_frames_goes_on_from_the_last_as_from_a_picture(base: Path) -> None:
    model, past = animator(base, GivenFrames(), 3), video(4)
    drawn = joined(extend(model, past, DRAWING, 4))
    animated = animate(model, past[-1], "a square", seed=3, frames=5, settings=ONE_STEP)
    assert torch.equal(drawn, animated[1:])


@pytest.mark.parametrize("size", [(13, SIZE), (SIZE, 9), (15, 17)])
def test_sides_that_the_codec_does_not_divide_are_padded_and_cut_back(
    size: tuple[int, int], base: Path
) -> None:
    small = video(2, *size)
    assert all(side % 4 for side in size if side != SIZE)  # PatchCodec's
    drawn = joined(interpolate(between(base), small, DRAWING))
    assert drawn.shape == (7, 3, *size)
    assert torch.equal(drawn[2:5:2], small)
    later = animator(base, GivenFrames(Given.past), 4)
    assert joined(extend(later, small, DRAWING, 3)).shape == (3, 3, *size)


def test_steps_with_fresh_noise_are_the_same_again(base: Path) -> None:
    model = animator(base, GivenFrames(Given.past), 4)
    fresh = replace(ONE_STEP, num_steps=3, sampler=Sampler.euler_ancestral)
    drawing = Drawing("a square", settings=fresh)
    first, again = (joined(extend(model, video(2), drawing, 4)) for _ in range(2))
    assert torch.equal(first, again)
    other = joined(extend(model, video(2), replace(drawing, seed=1), 4))
    assert difference(first, other) > 1


def test_models_of_other_given_frames_are_refused(base: Path) -> None:
    first = animator(base, GivenFrames(), 3)
    past, mid = animator(base, GivenFrames(Given.past), 4), between(base)
    clip = make_clip(0).target
    with pytest.raises(InputError, match=r"begins with a picture .*--image.*kind interleaved"):
        interpolate(first, clip, DRAWING)
    with pytest.raises(
        InputError, match=r"goes on from a video .*--extend.*train one .*kind first"
    ):
        animate(past, clip[0], "a square")
    with pytest.raises(InputError, match=r"draws frames between .*interpolate.*kind first"):
        extend(mid, clip, DRAWING, 2)
    with pytest.raises(InputError, match="goes on from 2 frames, the video has 1; give a longer"):
        extend(past, clip[:1], DRAWING, 2)
    with pytest.raises(InputError, match="has 1 frame, and frames between need 2"):
        joined(interpolate(mid, clip[:1], DRAWING))
    with pytest.raises(InputError, match="frames=0 of a video must be 1 to 4096"):
        extend(past, clip, DRAWING, 0)
    with pytest.raises(
        InputError, match="frames=2: this model was trained on clips of 1 and takes"
    ):
        extend(animator(base, GivenFrames(), 1), clip, DRAWING, 2)
