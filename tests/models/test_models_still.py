"""Layers beyond the paper's: a video that begins as a still one, and a second look at the text."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from emu_edit.errors import InputError
from emu_edit.models.inflate import given_frames, given_picture, inflate
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.temporal import TemporalSpec, TextAttention, nearest_given
from emu_edit.models.unet import UNetDenoiser
from tests.models.conftest import TASK_DIM
from tests.models.tiny_bases import FORMATS, SPEC, Picture, ours


@pytest.fixture
def z(cpu_generator: torch.Generator) -> Tensor:
    """Two videos of three frames, a row each."""
    return torch.randn(6, 4, 8, 8, generator=cpu_generator)


@torch.no_grad()
@pytest.mark.parametrize("make", FORMATS)
def test_new_still_layers_repeat_the_nearest_given_frame_and_draw_where_none_is(
    make: Callable[[], Picture], z: Tensor
):
    picture = make()
    before = picture.draw(z)
    adapter = inflate(picture.base, replace(SPEC, still=True))
    is_given = torch.tensor([[True, False, True], [False, False, False]])
    with adapter.video(3, given_frames(z.unflatten(0, (2, 3)), is_given)):
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


def test_stillness_without_a_given_picture_is_refused():
    with pytest.raises(InputError, match=r"temporal\.still begins with a given picture"):
        TemporalSpec(still=True, picture_condition=False)
