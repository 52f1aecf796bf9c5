"""Text through the timestep embedding: heard, blind to padding, saved and loaded with the model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.unet import PretrainedUNetDenoiser, UNetDenoiser
from tests.models.conftest import TASK_DIM, small_denoiser

T = torch.tensor([0, 500, 999])


@pytest.fixture
def modulated() -> UNetDenoiser:
    """A U-Net without any cross-attention: text can reach it through the timestep only."""
    return small_denoiser((False, False), modulate_by_text=True).eval()


def deaf(denoiser: UNetDenoiser) -> UNetDenoiser:
    """The same network with the cross-attention of the middle block silenced."""
    for name, parameter in denoiser.unet.named_parameters():
        if ".attn2.to_out.0." in name:
            torch.nn.init.zeros_(parameter)
    return denoiser


@torch.no_grad()
def test_text_is_heard_through_the_timestep(
    modulated: UNetDenoiser, z_t: Tensor, cond: Conditioning
):
    network = deaf(modulated)
    other = replace(cond, text=replace(cond.text, tokens=cond.text.tokens + 1))
    before = network(z_t, T, cond)
    assert not torch.allclose(network(z_t, T, other), before)
    assert network.text_to_time is not None
    network.text_to_time.weight.zero_()
    assert_close(network(z_t, T, other), network(z_t, T, cond), rtol=0, atol=0)


@torch.no_grad()
def test_masked_tokens_are_not_heard(modulated: UNetDenoiser, z_t: Tensor, cond: Conditioning):
    noise = torch.where(cond.text.mask[..., None], cond.text.tokens, 7.0)
    assert not torch.equal(noise, cond.text.tokens)
    other = replace(cond, text=replace(cond.text, tokens=noise))
    assert_close(modulated(z_t, T, other), modulated(z_t, T, cond))


def test_the_mean_token_is_the_mean_of_the_kept_ones():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 7.0]] * 3])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = torch.tensor([[2.0, 4.0], [5.0, 7.0]])
    assert torch.equal(TextFeatures(tokens, mask).mean(), expected)


def test_a_saved_unet_brings_its_text_map(
    tmp_path: Path, modulated: UNetDenoiser, z_t: Tensor, cond: Conditioning
):
    torch.nn.init.normal_(modulated.task_to_time.weight)
    modulated.unet.save_pretrained(tmp_path / "unet")
    (tmp_path / "tasks").mkdir()
    file = tmp_path / "tasks" / "tasks.safetensors"
    save_file(modulated.maps(), file)
    assert set(load_file(file)) == {
        f"{name}.{part}"
        for name in ("task_to_tokens", "task_to_time", "text_to_time")
        for part in ("weight", "bias")
    }
    again = PretrainedUNetDenoiser(str(tmp_path), TASK_DIM).eval()
    with torch.no_grad():
        assert torch.equal(again(z_t, T, cond), modulated(z_t, T, cond))
