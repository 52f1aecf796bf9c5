"""A picture model with temporal layers: itself without them, itself with new ones, then a video."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.testing import assert_close

from emu_edit.errors import InputError
from emu_edit.models.inflate import (
    TemporalAdapter,
    given_frames,
    given_picture,
    inflate,
    unet_of,
)
from emu_edit.models.interfaces import Conditioning
from tests.models.conftest import tiny_unet
from tests.models.tiny_bases import FORMATS, SPEC, Picture, draw_video, ours, sd15, sdxl, trained


@pytest.fixture
def z(cpu_generator: torch.Generator) -> Tensor:
    """Two videos of three frames, a row each."""
    return torch.randn(6, 4, 8, 8, generator=cpu_generator)


@pytest.fixture
def picture_of_z(z: Tensor) -> Tensor:
    return given_picture(z[::3], 3)


@torch.no_grad()
@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize("frames", [1, 3])
def test_new_layers_change_nothing_and_no_call_changes_not_a_bit(
    make: Callable[[], Picture], frames: int, z: Tensor
):
    picture = make()
    before = picture.draw(z)
    adapter = inflate(picture.base, SPEC)
    assert torch.equal(picture.draw(z), before)
    with adapter.video(frames, given_picture(z[::frames], frames)):
        assert_close(picture.draw(z), before, atol=1e-6, rtol=0)
    assert torch.equal(picture.draw(z), before)


@torch.no_grad()
@pytest.mark.parametrize("make", FORMATS)
def test_trained_layers_act_in_a_video_alone(make: Callable[[], Picture], z: Tensor):
    picture = make()
    before = picture.draw(z)
    adapter = trained(picture)
    assert not torch.allclose(draw_video(picture, adapter, z), before, atol=1e-2)
    assert torch.equal(picture.draw(z), before)


@pytest.mark.parametrize("make", FORMATS)
def test_class_and_weights_of_the_base_stay(make: Callable[[], Picture]):
    base = make().base
    kind, before = type(base), {name: w.clone() for name, w in base.state_dict().items()}
    config = dict(unet_of(base).config)
    inflate(base, SPEC)
    assert type(base) is kind
    assert dict(unet_of(base).config) == config
    after = base.state_dict()
    assert [*after] == [*before]
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_every_convolution_and_every_attention_has_its_layer():
    base = unet_of(sdxl().base)
    adapter = inflate(base, SPEC)
    # 3 levels of a block down and two up, and two in the middle, two convolutions each; two changes
    # of resolution each way; first and last
    assert len(adapter.convolutions) == 2 * (3 * 3 + 2) + 4 + 2
    # transformers of 1, 2 and 3 blocks by level: one down, two up, one in the middle
    assert len(adapter.attentions) == 3 * (2 + 3) + 3
    names = {name.replace("/", ".") for name in (*adapter.convolutions, *adapter.attentions)}
    assert names <= {name for name, _ in base.named_modules()}


@pytest.mark.parametrize(
    ("levels", "blocks"),
    [
        ((0,), {"conv_in", "conv_out", "down_blocks/0", "up_blocks/2"}),
        ((1,), {"down_blocks/1", "up_blocks/1"}),
        ((2,), {"down_blocks/2", "mid_block", "up_blocks/0"}),
        ((), set()),
    ],
)
def test_levels_say_where_layers_go(levels: tuple[int, ...], blocks: set[str]):
    spec = replace(SPEC, convolution_levels=levels, attention_levels=levels)
    adapter = inflate(sd15().base, spec)

    def places(names: list[str]) -> set[str]:
        return {"/".join(n.split("/")[: 1 if n.startswith(("mid", "conv")) else 2]) for n in names}

    assert places([*adapter.convolutions]) == blocks
    attended = blocks - {"conv_in", "conv_out", "down_blocks/2", "up_blocks/0"}
    assert places([*adapter.attentions]) == attended


@torch.no_grad()
@pytest.mark.parametrize("make", [sd15, ours])
def test_frames_reach_the_whole_video_and_no_other(make: Callable[[], Picture], z: Tensor):
    picture = make()
    adapter = trained(picture)
    before = draw_video(picture, adapter, z)
    changed = z.clone()
    changed[5] += 1
    after = draw_video(picture, adapter, changed)
    assert torch.equal(after[:3], before[:3])
    assert all((after[row] - before[row]).abs().max() > 1e-4 for row in (3, 4, 5))


@torch.no_grad()
def test_the_order_of_videos_in_a_batch_does_not_matter(z: Tensor):
    picture = sd15()
    adapter = trained(picture)
    text = torch.zeros(6, 5, 32)

    def draw(rows: Tensor) -> Tensor:
        with adapter.video(3):
            return unet_of(picture.base)(rows, 7, text, return_dict=False)[0]

    order = torch.tensor([3, 4, 5, 0, 1, 2])
    assert_close(draw(z[order]), draw(z)[order], atol=1e-5, rtol=0)
    assert not torch.allclose(draw(z[[1, 0, 2, 3, 4, 5]])[[1, 0, 2, 3, 4, 5]], draw(z), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_give_what_all_at_once_gives(chunk: int, z: Tensor):
    picture = sd15()
    adapter = trained(picture)
    whole = draw_video(picture, adapter, z)
    widths = []
    for layer in (*adapter.convolutions.values(), *adapter.attentions.values()):
        layer.register_forward_pre_hook(lambda _, inputs: widths.append(places(inputs[0])))

    def places(x: Tensor) -> int:  # "b c f n" of a convolution, "p f c" of attention
        return len(x) * x.shape[3] if x.ndim == 4 else len(x)

    adapter.spec = replace(adapter.spec, chunk=chunk)
    assert_close(draw_video(picture, adapter, z), whole, atol=1e-5, rtol=0)
    assert max(widths) <= max(chunk, 2)  # a cell of each of the two videos is the least


@torch.no_grad()
def test_an_error_in_a_video_leaves_the_picture_model(z: Tensor):
    picture = sd15()
    adapter = trained(picture)
    before = picture.draw(z)
    for error in (RuntimeError("somewhere"), KeyboardInterrupt()):
        with pytest.raises(type(error)), adapter.video(3):
            raise error
    with pytest.raises(InputError, match="6 rows are no whole number of videos of 4 frames"):
        draw_video(picture, adapter, z, frames=4)
    assert torch.equal(picture.draw(z), before)


@torch.no_grad()
def test_another_thread_sees_the_picture_model(z: Tensor):
    picture, found = sd15(), []
    adapter = trained(picture)
    before = picture.draw(z)
    with adapter.video(3):
        thread = Thread(target=torch.no_grad()(lambda: found.append(picture.draw(z))))
        thread.start()
        thread.join()
    assert torch.equal(found[0], before)


@torch.no_grad()
def test_base_and_adapter_are_copied_together(z: Tensor):
    unet, text = tiny_unet().eval(), torch.zeros(6, 5, 32)
    adapter = trained(Picture(unet, lambda z, *_: z))
    other, its = deepcopy((unet, adapter))

    def draw(network: UNet2DConditionModel, layers: TemporalAdapter) -> Tensor:
        with layers.video(3):
            return network(z, 7, text, return_dict=False)[0]

    before = draw(unet, adapter)
    assert torch.equal(draw(other, its), before)
    for parameter in its.parameters():
        parameter.zero_()
    assert not torch.allclose(draw(other, its), before, atol=1e-3)
    assert torch.equal(draw(unet, adapter), before)


@torch.no_grad()
def test_of_two_adapters_on_one_base_the_one_called_acts(z: Tensor):
    picture = sd15()
    first = trained(picture)
    alone = draw_video(picture, first, z)
    second = trained(picture, replace(SPEC, kernel_size=1))
    assert torch.equal(draw_video(picture, first, z), alone)
    assert not torch.allclose(draw_video(picture, second, z), alone, atol=1e-3)
    with first.video(3), second.video(3):
        assert not torch.allclose(picture.draw(z), alone, atol=1e-3)


@torch.no_grad()
def test_inner_calls_count_and_outer_ones_come_back(z: Tensor):
    picture = sd15()
    adapter = trained(picture)
    alone = draw_video(picture, adapter, z)
    with adapter.video(3):
        assert not torch.allclose(draw_video(picture, adapter, z, frames=2), alone, atol=1e-3)
        assert torch.equal(picture.draw(z), alone)


@torch.no_grad()
def test_the_condition_shows_the_given_frames_and_which_they_are(cpu_generator: torch.Generator):
    z = torch.randn(2, 3, 4, 5, 6, generator=cpu_generator)
    is_given = torch.tensor([[True, False, True], [False, False, False]])
    condition = given_frames(z, is_given).unflatten(0, (2, 3))
    assert condition.shape == (2, 3, 5, 5, 6)
    assert torch.equal(condition[0, [0, 2], :4], z[0, [0, 2]])
    assert torch.equal(condition[:, :, 4], is_given[:, :, None, None].expand(-1, -1, 5, 6).float())
    assert condition[0, 1].abs().max() == condition[1].abs().max() == 0
    only_first = torch.tensor([[True, False, False]]).expand(2, -1)
    assert torch.equal(given_picture(z[:, 0], 3), given_frames(z, only_first))


@torch.no_grad()
@pytest.mark.parametrize("make", FORMATS)
def test_a_trained_input_sees_the_picture(make: Callable[[], Picture], z: Tensor):
    picture = make()
    adapter = trained(picture)
    nothing = draw_video(picture, adapter, z)
    with adapter.video(3, torch.zeros(6, 5, 8, 8)):
        assert torch.equal(picture.draw(z), nothing)
    with adapter.video(3, given_picture(z[::3], 3)):
        assert not torch.allclose(picture.draw(z), nothing, atol=1e-3)


@torch.no_grad()
def test_the_widened_input_is_the_convolution_of_more_channels(z: Tensor, picture_of_z: Tensor):
    """As the paper has it: one first convolution over [noisy | picture | mask]."""
    unet = tiny_unet()
    adapter = inflate(unet, replace(SPEC, convolution_levels=()))
    assert adapter.condition_in is not None
    adapter.condition_in.weight.normal_(generator=torch.Generator().manual_seed(0))
    weight = torch.cat([unet.conv_in.weight, adapter.condition_in.weight], dim=1)
    together = torch.cat([z, picture_of_z], dim=1)
    expected = torch.nn.functional.conv2d(together, weight, unet.conv_in.bias, padding=1)
    with adapter.video(3, picture_of_z):
        assert_close(unet.conv_in(z), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_base_of_half_the_bits_takes_a_full_adapter(z: Tensor):
    unet = tiny_unet().eval().bfloat16()
    text, rows = torch.zeros(6, 5, 32, dtype=torch.bfloat16), z.to(torch.bfloat16)
    before = unet(rows, 7, text, return_dict=False)[0]
    adapter = inflate(unet, SPEC)
    with adapter.video(3, given_picture(rows[::3], 3)):
        assert torch.equal(unet(rows, 7, text, return_dict=False)[0], before)


@torch.no_grad()
def test_under_autocast_new_layers_change_not_a_bit(z: Tensor):
    picture = sd15()
    adapter = inflate(picture.base, SPEC)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(draw_video(picture, adapter, z), picture.draw(z))


@torch.no_grad()
def test_a_channels_last_base_gives_the_same_video(z: Tensor):
    picture = sd15()
    adapter = trained(picture)
    expected = draw_video(picture, adapter, z)
    picture.base.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    last = draw_video(picture, adapter, z.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert_close(last, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_identity_new_layers_disturb_the_picture_model(z: Tensor):
    picture = sd15()
    before = picture.draw(z)
    adapter = inflate(picture.base, replace(SPEC, identity=False))
    assert not torch.allclose(draw_video(picture, adapter, z), before, atol=0.05)


@torch.no_grad()
def test_one_condition_is_told_to_every_frame(cond: Conditioning):
    video = cond.for_frames(4)
    assert_close(video.v_task.unflatten(0, (3, 4))[:, 3], cond.v_task)
    assert_close(video.z_source.unflatten(0, (3, 4))[:, 1], cond.z_source)
    assert_close(video.text.tokens.unflatten(0, (3, 4))[:, 2], cond.text.tokens)
    assert torch.equal(video.text.mask[::4], cond.text.mask)


def test_what_does_not_fit_is_refused(z: Tensor, picture_of_z: Tensor):
    picture = sd15()
    adapter = inflate(picture.base, SPEC)
    with pytest.raises(InputError, match="at least 1 frame, got frames=0"), adapter.video(0):
        pass
    with (
        pytest.raises(InputError, match="the condition has 4 channels, the temporal layers take 5"),
        adapter.video(3, z),
    ):
        pass
    for condition in (picture_of_z[:3], picture_of_z[..., :4]):
        with pytest.raises(InputError, match=r"of this call"), adapter.video(3, condition):
            picture.draw(z)
    for levels in ({"attention_levels": (3,)}, {"convolution_levels": (0, 3)}):
        with pytest.raises(InputError, match="the U-Net has 0 to 2"):
            inflate(picture.base, replace(SPEC, **levels))
    without = inflate(picture.base, replace(SPEC, picture_condition=False))
    assert without.condition_in is None
    with pytest.raises(InputError, match="take 0"), without.video(3, picture_of_z):
        pass


def test_a_saved_picture_model_is_the_same_file(tmp_path: Path):
    unet = tiny_unet()
    unet.save_pretrained(tmp_path / "before")
    trained(Picture(unet, lambda z, *_: z))
    unet.save_pretrained(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes()
