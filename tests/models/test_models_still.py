"""Layers beyond the paper's: a video that begins still, what moves in it, and the text again."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from emu_edit.errors import InputError
from emu_edit.models.inflate import given_frames, given_picture, inflate
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.motion import MotionReader, Nearest, Whitening, nearest_given
from emu_edit.models.temporal import TemporalSpec, TextAttention
from emu_edit.models.unet import UNetDenoiser
from tests.models.conftest import TASK_DIM, TEXT_DIM
from tests.models.tiny_bases import FORMATS, SPEC, Picture, ours, trained


@pytest.fixture
def z(cpu_generator: torch.Generator) -> Tensor:
    """Two videos of three frames, a row each."""
    return torch.randn(6, 4, 8, 8, generator=cpu_generator)


@torch.no_grad()
@pytest.mark.parametrize("motion", [0, 8])
@pytest.mark.parametrize("make", FORMATS)
def test_new_still_layers_repeat_the_nearest_given_frame_and_draw_where_none_is(
    make: Callable[[], Picture], motion: int, z: Tensor
):
    picture = make()
    before = picture.draw(z)
    adapter = inflate(picture.base, replace(SPEC, still=True, motion=motion))
    is_given = torch.tensor([[True, False, True], [False, False, False]])
    text = TextFeatures(torch.randn(2, 4, TEXT_DIM), torch.ones(2, 4).bool())
    with adapter.video(3, given_frames(z.unflatten(0, (2, 3)), is_given), text):
        drawn = picture.draw(z)
    assert_close(drawn[:3], z[[0, 0, 2]])  # of two as near, the earlier one
    assert_close(drawn[3:], before[3:], atol=1e-6, rtol=0)
    with adapter.video(3):
        assert_close(picture.draw(z), before, atol=1e-6, rtol=0)
    assert torch.equal(picture.draw(z), before)


@torch.no_grad()
def test_a_change_is_added_to_what_is_given_and_comes_from_its_own_weights(z: Tensor):
    picture = ours()
    before = picture.draw(z)
    adapter = inflate(picture.base, replace(SPEC, still=True))
    assert adapter.change_out is not None
    assert adapter.change_out.bias is not None
    adapter.change_out.bias[:-1] = 0.25
    start = z[::3].repeat_interleave(3, 0)
    for gate, expected in ((0.5, start), (0.0, start), (-0.75, 0.25 * start + 0.75 * before)):
        adapter.change_out.bias[-1] = gate
        with adapter.video(3, given_picture(z[::3], 3)):
            assert_close(picture.draw(z), expected + 0.25)
        with adapter.video(3):
            assert_close(picture.draw(z), before + 0.25, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("make", FORMATS)
def test_text_reaches_the_layers_with_weights_of_their_own(make: Callable[[], Picture], z: Tensor):
    picture = make()
    before = picture.draw(z)
    adapter = inflate(picture.base, replace(SPEC, text=True))
    assert len(adapter.texts) == len(adapter.attentions) > 0
    with adapter.video(3):
        assert_close(picture.draw(z), before, atol=1e-6, rtol=0)
    layers = [layer for layer in adapter.texts.modules() if isinstance(layer, TextAttention)]
    for layer in layers:
        layer.to_out.weight.fill_(0.1)
    with adapter.video(3):
        told = picture.draw(z)
    assert not torch.allclose(told, before, atol=1e-3)
    assert torch.equal(picture.draw(z), before)
    for layer in layers:
        layer.to_kv.weight.zero_()  # nothing of the text is left
    with adapter.video(3):
        assert_close(picture.draw(z), before, atol=1e-6, rtol=0)


def test_words_that_are_masked_say_nothing_and_checkpointing_changes_nothing(z: Tensor):
    picture = ours()
    adapter = inflate(picture.base, replace(SPEC, text=True))
    generator = torch.Generator().manual_seed(3)
    for parameter in adapter.texts.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    mask = torch.tensor([[True, True, False, False]]).expand(6, -1)
    base = picture.base
    assert isinstance(base, UNetDenoiser)
    tokens = torch.randn(6, 4, base.text_dim, generator=generator)
    told = Conditioning(TextFeatures(tokens, mask), torch.zeros_like(z), torch.zeros(6, TASK_DIM))
    other = replace(told, text=TextFeatures(tokens + ~mask[..., None], mask))
    t = torch.full((6,), 5)
    with torch.no_grad(), adapter.video(3):
        assert_close(base(z, t, told), base(z, t, other))
    plain, checkpointed = [], []
    for gradients, is_on in ((plain, False), (checkpointed, True)):
        if is_on:
            base.unet.train().enable_gradient_checkpointing()
            adapter.spec = replace(adapter.spec, gradient_checkpointing=True)
        with adapter.video(3):
            output = base(z, t, told)
        found = torch.autograd.grad(output.square().mean(), [*adapter.texts.parameters()])
        gradients.extend(found)
    for a, b in zip(plain, checkpointed, strict=True):
        assert_close(a, b)


@torch.no_grad()
def test_the_nearest_given_frame():
    is_given = torch.tensor([[0, 1, 0, 0, 0, 1, 0], [0] * 7, [1, 0, 0, 0, 0, 0, 0]]).bool()
    nearest, any_given = nearest_given(is_given)
    assert nearest.tolist() == [[1, 1, 1, 1, 5, 5, 5], [0] * 7, [0] * 7]
    assert any_given.tolist() == [True, False, True]


@torch.no_grad()
def test_how_far_the_given_frames_are(z: Tensor):
    is_given = torch.tensor([[False, True, False], [False, False, False]])
    given = given_frames(z.unflatten(0, (2, 3)), is_given).unflatten(0, (2, 3))
    nearest = Nearest.of(given)
    assert nearest.distance.tolist() == [-1, 0, 1, 0, 1, 2]
    assert nearest.is_told.tolist() == [True] * 3 + [False] * 3
    assert nearest.to_tell().flatten().tolist() == [1, 0, 1, 0, 0, 0]
    assert torch.equal(nearest.start[:3], z[[1, 1, 1]])


@torch.no_grad()
def test_what_motion_reads_depends_on_words_and_leaves_given_frames_alone(z: Tensor):
    picture = ours()
    adapter = trained(picture, replace(SPEC, still=True, motion=8))
    condition = given_picture(z[::3], 3)
    words = torch.randn(2, 4, TEXT_DIM, generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[True, True, False, False]]).expand(2, -1)
    assert adapter.motion is not None
    of = {}
    for name, tokens in (
        ("said", words),
        ("padding", words + ~mask[..., None]),
        ("other", -words),
    ):
        of[name] = adapter.motion(
            Nearest.of(condition.unflatten(0, (2, 3))), TextFeatures(tokens, mask)
        )
    for said, padding, other in zip(of["said"], of["padding"], of["other"], strict=True):
        assert_close(said, padding)
        assert torch.equal(said[::3], torch.zeros_like(said[::3]))
        assert not torch.allclose(said[1::3], other[1::3], atol=1e-3)
        assert not torch.allclose(said[1::3], said[2::3], atol=1e-3)  # another distance


@torch.no_grad()
def test_small_differences_of_texts_become_as_large_as_others():
    generator = torch.Generator().manual_seed(6)
    sizes = torch.tensor([4.0, 2.0, 1.0, 0.5])
    turned = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    texts = torch.randn(256, 8, 4, generator=generator) * sizes @ turned + 5
    white = Whitening(4).eval()
    assert_close(white(texts[0]), functional.normalize(texts[0], dim=1) * 2)  # none read yet
    white.train()
    for batch in texts:
        white(batch)
    known = {name: value.clone() for name, value in white.named_buffers()}
    assert known["count"] == 2048
    assert_close(known["root"], known["root"].T, atol=1e-5, rtol=0)
    exact = torch.cov(texts.flatten(0, 1).T, correction=0)
    assert_close(known["root"] @ exact @ known["root"], torch.eye(4), atol=0.03, rtol=0)
    assert_close(white(texts[0]).norm(dim=1), torch.full((8,), 2.0))
    white(texts[0] + 100)  # after so many they stay
    assert all(torch.equal(value, known[name]) for name, value in white.named_buffers())
    again = Whitening(4).train()
    again.load_state_dict(white.state_dict())
    again(texts[0] + 100)
    assert torch.equal(again.root, white.root)


def test_motion_learns_what_two_words_mean():
    """A dot goes to the side that is named, a cell a frame, on places it was never seen at."""
    generator = torch.Generator().manual_seed(5)
    words = torch.randn(2, 1, 8, generator=generator)
    reader = MotionReader(1, 8, 4, width=16, identity=True)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=4e-3)

    def error(rows: Tensor, columns: Tensor, way: Tensor) -> Tensor:
        clip, index = torch.zeros(len(rows), 3, 1, 8, 8), torch.arange(len(rows))
        for frame in range(3):
            clip[index, frame, 0, rows, columns + frame * (2 * way - 1)] = 1
        condition = given_picture(clip[:, 0], 3).unflatten(0, (-1, 3))
        text = TextFeatures(words[way], torch.ones(len(rows), 1).bool())
        change = reader(Nearest.of(condition), text)[1].unflatten(0, (-1, 3))
        still = (clip - clip[:, :1]).square().sum()
        return (clip[:, :1] + change - clip).square().sum() / still

    places = torch.cartesian_prod(torch.arange(8), torch.arange(2, 6), torch.arange(2))
    seen = places.sum(dim=1) % 3 != 0
    assert error(*places[~seen].T).item() == 1  # a still video
    for _ in range(60):
        optimizer.zero_grad()
        error(*places[seen].T).backward()
        optimizer.step()
    assert error(*places[~seen].T).item() < 0.3


def test_stillness_without_a_given_picture_and_motion_without_stillness_are_refused():
    with pytest.raises(InputError, match=r"temporal\.still begins with a given picture"):
        TemporalSpec(still=True, picture_condition=False)
    with pytest.raises(InputError, match=r"temporal\.motion is 12, needs a multiple of 8"):
        TemporalSpec(motion=12, still=True)
    with pytest.raises(InputError, match=r"temporal\.motion=8 is a part of temporal\.still=true"):
        TemporalSpec(motion=8)
