"""A tiny Stable Diffusion in diffusers layout, random weights, written once per session."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.sources import quiet_transformers
from emu_edit.models.unet import UNetDenoiser
from tests.models.tiny_vae import tiny_vae

TEXT_DIM = 32
TASK_DIM = 6


def tiny_unet(in_channels: int = 4, **settings) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=2,
        norm_num_groups=4,
        **settings,
    )


def write_clip_tokenizer(folder: Path) -> None:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    marks = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = [*letters, *[f"{letter}</w>" for letter in letters], *marks]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


def clip_config(layers: int = 1, **settings) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
        **settings,
    )


def tiny_clip(layers: int = 1) -> CLIPTextModel:
    return CLIPTextModel(clip_config(layers))


def write_stable_diffusion(folder: Path) -> None:
    with torch.random.fork_rng(), quiet_transformers():
        torch.default_generator.manual_seed(0)  # the same weights whatever test came before
        tiny_unet().save_pretrained(folder / "unet")
        tiny_vae().save_pretrained(folder / "vae")
        tiny_clip().save_pretrained(folder / "text_encoder")
    write_clip_tokenizer(folder / "tokenizer")
    write_scheduler(folder)


def write_scheduler(folder: Path, **changes: object) -> None:
    """Write `scheduler/` as Stable Diffusion 1.5 has it, some entries changed."""
    entries = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    ends = {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
    scheduler = PNDMScheduler.from_config({**entries, **ends, **changes})
    assert isinstance(scheduler, PNDMScheduler)
    scheduler.save_pretrained(folder / "scheduler")


def small_denoiser(attention: Sequence[bool] = (True, False), **settings) -> UNetDenoiser:
    """A U-Net of our own of two levels, for the texts, tasks and latents of `cond`."""
    return UNetDenoiser(
        4,
        [8, 16],
        attention=list(attention),
        text_dim=TEXT_DIM,
        task_dim=TASK_DIM,
        head_dim=4,
        norm_groups=4,
        **settings,
    )


@pytest.fixture
def scratch() -> UNetDenoiser:
    return small_denoiser().eval()


@pytest.fixture
def cond(cpu_generator: torch.Generator) -> Conditioning:
    """Three samples of 8x8 latents; the texts have 5, 8 and 1 real tokens."""
    lengths = torch.tensor([5, 8, 1])
    return Conditioning(
        text=TextFeatures(
            tokens=torch.randn(3, 8, TEXT_DIM, generator=cpu_generator),
            mask=torch.arange(8)[None] < lengths[:, None],
        ),
        z_source=torch.randn(3, 4, 8, 8, generator=cpu_generator),
        v_task=torch.randn(3, TASK_DIM, generator=cpu_generator),
    )


@pytest.fixture
def z_t(cpu_generator: torch.Generator) -> torch.Tensor:
    return torch.randn(3, 4, 8, 8, generator=cpu_generator)
