"""The denoiser: unchanged at step 0, told by text, source and task afterwards."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from emu_edit.errors import InputError
from emu_edit.models.codec import KLCodec
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.networks import TaskEmbedding
from emu_edit.models.sources import find_part, load_diffusers
from emu_edit.models.text import TransformersText
from emu_edit.models.unet import PretrainedUNetDenoiser, UNetDenoiser
from tests.models.conftest import TASK_DIM, TEXT_DIM, small_denoiser, tiny_unet

T = torch.tensor([0, 500, 999])


def base_output(folder: Path, x: Tensor, cond: Conditioning) -> Tensor:
    """What diffusers alone makes of the same text, without any task."""
    base = load_diffusers(UNet2DConditionModel, find_part(folder, "unet")).eval()
    text = cond.text
    return base(x, T, text.tokens, encoder_attention_mask=text.mask, return_dict=False)[0]


def save_unet(folder: Path, **settings) -> UNet2DConditionModel:
    unet = tiny_unet(**settings)
    unet.save_pretrained(folder / "unet")
    return unet


@torch.no_grad()
def test_a_pretrained_unet_is_unchanged_at_step_0(
    stable_diffusion: Path, z_t: Tensor, cond: Conditioning
):
    denoiser = PretrainedUNetDenoiser(str(stable_diffusion), TASK_DIM).eval()
    expected = base_output(stable_diffusion, z_t, cond)
    assert denoiser.unet.conv_in.in_channels == 8
    # the same, plus an exact zero; only the wider first convolution may sum in another order
    assert_close(denoiser(z_t, T, cond), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_untrained_task_adds_exactly_nothing(
    scratch: UNetDenoiser, z_t: Tensor, cond: Conditioning
):
    with_task = scratch(z_t, T, cond)
    assert torch.equal(with_task, scratch(z_t, T, replace(cond, v_task=cond.v_task * 100)))
    plain = UNet2DConditionModel.from_config(scratch.unet.config)
    assert isinstance(plain, UNet2DConditionModel)
    plain.eval().load_state_dict(scratch.unet.state_dict())
    expected = plain(
        torch.cat([z_t, cond.z_source], 1),
        T,
        cond.text.tokens,
        encoder_attention_mask=cond.text.mask,
        class_labels=torch.zeros(3, 32),
        return_dict=False,
    )[0]
    assert torch.equal(with_task, expected)


@torch.no_grad()
def test_an_editing_checkpoint_keeps_all_its_channels(
    tmp_path: Path, z_t: Tensor, cond: Conditioning
):
    unet = save_unet(tmp_path, in_channels=8)
    denoiser = PretrainedUNetDenoiser(str(tmp_path), TASK_DIM).eval()
    assert torch.equal(denoiser.unet.conv_in.weight, unet.conv_in.weight)
    expected = base_output(tmp_path, torch.cat([z_t, cond.z_source], 1), cond)
    assert torch.equal(denoiser(z_t, T, cond), expected)


@torch.no_grad()
def test_a_widened_input_learns_to_see_the_source(
    stable_diffusion: Path, z_t: Tensor, cond: Conditioning
):
    denoiser = PretrainedUNetDenoiser(str(stable_diffusion), TASK_DIM).eval()
    blind = replace(cond, z_source=torch.zeros_like(cond.z_source))
    assert torch.equal(denoiser(z_t, T, cond), denoiser(z_t, T, blind))
    denoiser.unet.conv_in.weight[:, 4:] += 0.1
    assert not torch.equal(denoiser(z_t, T, cond), denoiser(z_t, T, blind))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_one_step_opens_both_task_maps_and_the_next_reaches_the_table(
    z_t: Tensor, cond: Conditioning, gradient_checkpointing: bool
):
    denoiser = small_denoiser(gradient_checkpointing=gradient_checkpointing)
    embedding = TaskEmbedding(3, TASK_DIM)
    told = replace(cond, v_task=embedding(torch.tensor([0, 1, 2])))
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.1)

    before = denoiser(z_t, T, told)
    before.square().mean().backward()
    for linear in (denoiser.task_to_tokens, denoiser.task_to_time):
        assert linear.weight.grad is not None
        assert (linear.weight.grad != 0).any()
    optimizer.step()

    optimizer.zero_grad()
    told = replace(cond, v_task=embedding(torch.tensor([0, 1, 2])))
    embedding.table.grad = None
    denoiser(z_t, T, told).square().mean().backward()
    assert embedding.table.grad is not None
    assert (embedding.table.grad.abs().sum(1) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["task_to_tokens", "task_to_time"])
def test_each_task_map_alone_changes_the_output(
    scratch: UNetDenoiser, z_t: Tensor, cond: Conditioning, name: str
):
    before = scratch(z_t, T, cond)
    getattr(scratch, name).weight.fill_(0.1)
    assert not torch.allclose(scratch(z_t, T, cond), before)


@torch.no_grad()
def test_masked_text_tokens_do_not_matter(scratch: UNetDenoiser, z_t: Tensor, cond: Conditioning):
    scratch.task_to_tokens.weight.fill_(0.1)
    noise = torch.where(cond.text.mask[..., None], cond.text.tokens, 7.0)
    other = replace(cond, text=replace(cond.text, tokens=noise))
    assert_close(scratch(z_t, T, other), scratch(z_t, T, cond))
    seen = replace(cond, text=replace(cond.text, tokens=cond.text.tokens + 1))
    assert not torch.allclose(scratch(z_t, T, seen), scratch(z_t, T, cond))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 8), (16, 20)])
def test_three_levels_work_on_small_maps(height: int, width: int, cond: Conditioning):
    denoiser = UNetDenoiser(
        4,
        [8, 8, 16],
        attention=[False, True, True],
        text_dim=TEXT_DIM,
        task_dim=TASK_DIM,
        head_dim=8,
        norm_groups=2,
    )
    z = torch.zeros(3, 4, height, width)
    assert denoiser(z, T, replace(cond, z_source=z)).shape == z.shape
    attn = denoiser.unet.get_submodule("down_blocks.2.attentions.0.transformer_blocks.0.attn2")
    assert isinstance(attn, Attention)
    assert attn.heads == 2


def test_a_saved_unet_brings_its_task_maps(
    tmp_path: Path, scratch: UNetDenoiser, z_t: Tensor, cond: Conditioning
):
    torch.nn.init.normal_(scratch.task_to_tokens.weight)
    scratch.unet.save_pretrained(tmp_path / "unet")
    maps = {n: v for n, v in scratch.state_dict().items() if n.startswith("task_to_")}
    (tmp_path / "tasks").mkdir()
    save_file(maps, tmp_path / "tasks" / "tasks.safetensors")
    again = PretrainedUNetDenoiser(str(tmp_path), TASK_DIM).eval()
    with torch.no_grad():
        assert torch.equal(again(z_t, T, cond), scratch(z_t, T, cond))
    with pytest.raises(InputError, match=r"task_to_tokens\.weight is \(128, 6\), needs \(128, 7\)"):
        PretrainedUNetDenoiser(str(tmp_path), TASK_DIM + 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 9}, "takes 9 input channels, needs 4 .* or 8"),
        (
            {"addition_embed_type": "text", "encoder_hid_dim": 8},
            "addition_embed_type='text', needs none, or SDXL's",
        ),
        ({"only_cross_attention": True}, "only_cross_attention=True, needs False"),
        ({"num_class_embeds": 3}, "conditioned on classes"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type='UNetMidBlock2D'"),
    ],
)
def test_other_kinds_of_unets_are_refused(tmp_path: Path, settings: dict, message: str):
    save_unet(tmp_path, **settings)
    with pytest.raises(InputError, match=message):
        PretrainedUNetDenoiser(str(tmp_path), TASK_DIM)


def test_blocks_of_other_kinds_are_refused(tmp_path: Path):
    unet = UNet2DConditionModel(
        block_out_channels=(8,),
        down_block_types=("SimpleCrossAttnDownBlock2D",),
        up_block_types=("SimpleCrossAttnUpBlock2D",),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
        layers_per_block=1,
    )
    unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(InputError, match=r"blocks of kind .*SimpleCrossAttnDownBlock2D"):
        PretrainedUNetDenoiser(str(tmp_path), TASK_DIM)


def test_impossible_widths_are_refused():
    with pytest.raises(InputError, match=r"channels has 2 levels and denoiser.attention 1"):
        UNetDenoiser(4, [8, 16], attention=[True])
    with pytest.raises(InputError, match=r"24 is not divisible by denoiser.head_dim=16"):
        UNetDenoiser(4, [16, 24], attention=[True, True], head_dim=16, norm_groups=8)
    with pytest.raises(InputError, match=r"24 is not divisible by denoiser.norm_groups=16"):
        UNetDenoiser(4, [16, 24], attention=[True, True], head_dim=8)


def test_pickled_weights_are_refused_unopened(tmp_path: Path, stable_diffusion: Path):
    (tmp_path / "unet").mkdir()
    shutil.copy(stable_diffusion / "unet" / "config.json", tmp_path / "unet")
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"holds pickled weights .*convert them to safetensors"):
        PretrainedUNetDenoiser(str(tmp_path), TASK_DIM)


def test_a_broken_weight_file_is_an_input_error(tmp_path: Path, stable_diffusion: Path):
    shutil.copytree(stable_diffusion / "unet", tmp_path / "unet")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot load UNet2DConditionModel from"):
        PretrainedUNetDenoiser(str(tmp_path), TASK_DIM)


def test_missing_weights_are_not_filled_with_random_ones(tmp_path: Path, stable_diffusion: Path):
    shutil.copytree(stable_diffusion, tmp_path / "sd")
    for part, load in (
        ("unet", PretrainedUNetDenoiser),
        ("vae", KLCodec),
        ("text_encoder", TransformersText),
    ):
        file = next((tmp_path / "sd" / part).glob("*.safetensors"))
        tensors = load_file(file)
        name = sorted(tensors)[0]
        save_file({k: v for k, v in tensors.items() if k != name}, file, {"format": "pt"})
        with pytest.raises(InputError, match=rf"{part} lacks 1 weights, e.g. {name}; its config"):
            load(str(tmp_path / "sd"))


@pytest.mark.parametrize("path", ["nowhere", "./nowhere/else", "a/b/c/d", "/no/such"])
def test_a_path_that_is_nothing_is_refused(path: str):
    with pytest.raises(InputError, match=r"no directory .*no hub name"):
        PretrainedUNetDenoiser(path, TASK_DIM)


def test_a_file_and_an_empty_directory_are_refused(tmp_path: Path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(InputError, match="is a file, needs a model directory"):
        PretrainedUNetDenoiser(str(tmp_path / "model.ckpt"), TASK_DIM)
    (tmp_path / "model.ckpt").unlink()
    with pytest.raises(InputError, match=r"has no config.json"):
        PretrainedUNetDenoiser(str(tmp_path), TASK_DIM)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no \*.safetensors"):
        PretrainedUNetDenoiser(str(tmp_path), TASK_DIM)


@torch.no_grad()
def test_an_untrained_network_with_zero_output_changes_nothing(
    scratch: UNetDenoiser, z_t: Tensor, cond: Conditioning
):
    assert scratch(z_t, T, cond).abs().max() > 0
    zero = small_denoiser(zero_output=True).eval()
    assert torch.equal(zero(z_t, T, cond), torch.zeros_like(z_t))
