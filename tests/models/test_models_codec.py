"""The codecs: patches are exact, an AutoencoderKL is scaled as its config says."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from emu_edit.errors import InputError
from emu_edit.images import to_float, to_uint8
from emu_edit.models.codec import KLCodec, PatchCodec
from emu_edit.models.sources import find_part, load_diffusers


@pytest.mark.parametrize(
    "codec", [PatchCodec(), PatchCodec(patch=8, shift=0.13, scale=1.7), PatchCodec(patch=1)]
)
def test_every_level_survives_the_patch_codec(codec: PatchCodec):
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    assert torch.equal(to_uint8(codec.decode(codec.encode(to_float(levels)))), levels)


def test_the_default_patch_codec_is_exact_in_floating_point(cpu_generator: torch.Generator):
    images = torch.rand(2, 3, 16, 24, generator=cpu_generator) * 2 - 1
    codec = PatchCodec()
    z = codec.encode(images)
    assert z.shape == (2, codec.latent_channels, 4, 6)
    assert torch.equal(codec.decode(z), images)
    assert torch.equal(codec.encode_condition(images), z)
    assert (codec.posterior(images)[1] == 0).all()
    assert 0.8 < z.std() < 1.3  # uniform pixels have deviation 0.58


def test_a_patch_of_the_latent_is_a_patch_of_the_picture():
    images = torch.zeros(1, 3, 8, 8)
    images[:, :, 4:, :4] = 1
    occupied = PatchCodec(patch=4).encode(images).abs().sum(1)[0] > 0
    assert occupied.tolist() == [[False, False], [True, False]]


def test_sides_that_do_not_fit_are_refused(stable_diffusion: Path):
    with pytest.raises(
        InputError, match="picture of 10x8 pixels: both sides must be multiples of 4"
    ):
        PatchCodec().encode(torch.zeros(1, 3, 8, 10))
    with pytest.raises(
        InputError, match="picture of 8x9 pixels: both sides must be multiples of 2"
    ):
        KLCodec(str(stable_diffusion)).encode(torch.zeros(1, 3, 9, 8))
    with pytest.raises(InputError, match="picture of 8x9 pixels"):
        KLCodec(str(stable_diffusion)).encode_condition(torch.zeros(1, 3, 9, 8))


def test_impossible_patches_are_refused():
    with pytest.raises(InputError, match=r"codec.patch=0 must be at least 1"):
        PatchCodec(patch=0)
    with pytest.raises(InputError, match=r"codec.scale=0 above 0"):
        PatchCodec(scale=0.0)


@torch.no_grad()
def test_an_autoencoder_is_shifted_and_scaled_as_its_config_says(
    stable_diffusion: Path, cpu_generator: torch.Generator
):
    images = torch.rand(2, 3, 8, 8, generator=cpu_generator) * 2 - 1
    codec = KLCodec(str(stable_diffusion))
    vae = load_diffusers(AutoencoderKL, find_part(stable_diffusion, "vae")).eval()
    (posterior,) = vae.encode(images, return_dict=False)
    mode = posterior.mode()
    (decoded,) = vae.decode(mode, return_dict=False)  # pyright: ignore[reportArgumentType]
    assert (codec.latent_channels, codec.factor) == (4, 2)
    assert_close(codec.encode(images), (mode - 0.25) * 0.5)
    assert_close(codec.decode((mode - 0.25) * 0.5), decoded)
    assert_close(codec.encode_condition(images), mode)
    scaled = KLCodec(str(stable_diffusion / "vae"), scale_condition=True)
    assert_close(scaled.encode_condition(images), codec.encode(images))


@torch.no_grad()
def test_targets_are_sampled_from_the_posterior(stable_diffusion: Path):
    codec = KLCodec(str(stable_diffusion))
    images = torch.zeros(512, 3, 2, 2)
    first = codec.encode(images, torch.Generator().manual_seed(1))
    assert torch.equal(first, codec.encode(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, codec.encode(images, torch.Generator().manual_seed(2)))
    mean, std = codec.posterior(images)
    standardised = (first - mean) / std
    assert standardised.mean().abs() < 0.15  # 2048 draws: 0.022 is one deviation
    assert (standardised.std() - 1).abs() < 0.1


def test_an_autoencoder_is_frozen(stable_diffusion: Path):
    codec = KLCodec(str(stable_diffusion))
    assert not any(p.requires_grad for p in codec.parameters())
    assert not codec.vae.training


def test_pickled_autoencoders_are_refused(tmp_path: Path, stable_diffusion: Path):
    shutil.copy(stable_diffusion / "vae" / "config.json", tmp_path)
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    with pytest.raises(InputError, match="holds pickled weights"):
        KLCodec(str(tmp_path))


def test_a_broken_autoencoder_is_an_input_error(tmp_path: Path, stable_diffusion: Path):
    shutil.copytree(stable_diffusion / "vae", tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"vae.*which is no safetensors file"):
        KLCodec(str(tmp_path))


@torch.no_grad()
def test_the_old_attention_names_of_stable_diffusion_are_understood(
    tmp_path: Path, stable_diffusion: Path
):
    shutil.copytree(stable_diffusion / "vae", tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_name(key: str) -> str:
        for new, old in names.items():
            if f"attentions.0.{new}." in key:
                return key.replace(f".{new}.", f".{old}.")
        return key

    old = {old_name(key): value for key, value in load_file(file).items()}
    assert any("proj_attn" in key for key in old)
    save_file(old, file, {"format": "pt"})
    images = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
    expected = KLCodec(str(stable_diffusion)).encode(images)
    assert_close(KLCodec(str(tmp_path)).encode(images), expected)
