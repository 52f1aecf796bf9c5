"""Single files of the weights' authors, whose config a model directory tells."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.models.chat_text import ChatText
from emu_edit.models.codec import KLCodec, PackedCodec
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.unet import PretrainedUNetDenoiser
from emu_edit.training.module import EditModule, Prediction
from tests.models.single_files import write_flux2, write_stable_diffusion
from tests.models.tiny_published import LAYERS, write_klein


@pytest.fixture
def klein(tmp_path: Path) -> Path:
    folder = tmp_path / "klein"
    write_klein(folder)
    return folder


@pytest.fixture
def bare(klein: Path) -> Path:
    """A directory with klein's configs and no weights of its transformer."""
    folder = klein.parent / "bare"
    shutil.copytree(klein, folder)
    for file in (folder / "transformer").glob("*.safetensors"):
        file.unlink()
    return folder


def is_equal(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    pairs = ours.state_dict(), theirs.state_dict()
    return pairs[0].keys() == pairs[1].keys() and all(
        torch.equal(value, pairs[1][name]) for name, value in pairs[0].items()
    )


def test_u_net_and_autoencoder_come_out_of_one_checkpoint(stable_diffusion, tmp_path):
    pytest.importorskip("accelerate", reason="single files need the extra `lora`")
    file, config = tmp_path / "sd.safetensors", str(stable_diffusion)
    unet = UNet2DConditionModel.from_pretrained(stable_diffusion / "unet")
    vae = AutoencoderKL.from_pretrained(stable_diffusion / "vae")
    write_stable_diffusion(file, unet, vae)
    whole = PretrainedUNetDenoiser(config, task_dim=6)
    single = PretrainedUNetDenoiser(str(file), task_dim=6, config=config)
    assert is_equal(single, whole)
    assert single.trained_as == whole.trained_as
    codec = KLCodec(str(file), config=config)
    assert is_equal(codec, KLCodec(config))
    half = PretrainedUNetDenoiser(str(file), task_dim=6, config=f"{config}/unet")
    assert is_equal(half, whole)


def test_a_transformer_in_its_authors_names_is_the_one_in_diffusers(klein, bare):
    pytest.importorskip("accelerate", reason="single files need the extra `lora`")
    file = bare.parent / "klein.safetensors"
    write_flux2(file, Flux2Transformer2DModel.from_pretrained(klein / "transformer"))
    whole, single = DiTDenoiser(str(klein), 6), DiTDenoiser(str(file), 6, config=str(bare))
    assert is_equal(single, whole)
    assert single.trained_as is not None
    assert single.trained_as.config == whole.trained_as.config  # type: ignore[union-attr]
    lacking = bare.parent / "lacking.safetensors"
    net = Flux2Transformer2DModel.from_pretrained(klein / "transformer")
    write_flux2(lacking, net, without=["img_in.weight"])
    with pytest.raises(InputError, match=r"lacking.safetensors lacks weights that .*bare has"):
        DiTDenoiser(str(lacking), 6, config=str(bare))


def test_adapters_find_the_single_file_they_were_trained_on(klein, bare):
    pytest.importorskip("peft", reason="LoRA needs the extra `lora`")
    file = bare.parent / "klein.safetensors"
    write_flux2(file, Flux2Transformer2DModel.from_pretrained(klein / "transformer"))
    module = EditModule(
        DiTDenoiser(str(file), 8, lora_rank=2, config=str(bare)),
        ChatText(str(klein), list(LAYERS)),
        PackedCodec(str(klein)),
        tasks=["local"],
        prediction=Prediction.flow,
    ).eval()
    module.save_model(bare.parent / "model")
    editor = Editor.from_pretrained(bare.parent / "model", "cpu")
    pixels = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    settings = editor.settings
    assert str(editor.networks.denoiser.source) == str(file)  # type: ignore[union-attr]
    first, second = (
        one.edit_batch(pixels, ["red"], ["local"], [3], settings=settings)
        for one in (editor, module.make_editor())
    )
    assert (first.int() - second.int()).abs().max() <= 1  # the module's is channels-last


def test_what_is_no_such_file_is_refused_in_one_line(klein, bare, tmp_path):
    pytest.importorskip("accelerate", reason="single files need the extra `lora`")
    file = tmp_path / "klein.safetensors"
    write_flux2(file, Flux2Transformer2DModel.from_pretrained(klein / "transformer"))
    with pytest.raises(InputError, match=r"single file, and does not say how its transformer is"):
        DiTDenoiser(str(file))
    with pytest.raises(InputError, match=r"config='.*' is for a single file, and .* is none"):
        DiTDenoiser(str(klein), config=str(bare))
    with pytest.raises(InputError, match=r"has no config.json, needs that of the transformer of"):
        DiTDenoiser(str(file), config=str(tmp_path / "nowhere"))
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match=r"old.ckpt is a file, .*single file in safetensors"):
        PretrainedUNetDenoiser(str(tmp_path / "old.ckpt"), config=str(bare))
    with pytest.raises(InputError, match=r"klein.safetensors is a file, needs a model directory"):
        ChatText(str(file), list(LAYERS))
    with pytest.raises(InputError, match=r"cannot load AutoencoderKLFlux2 from .*klein.safetens"):
        PackedCodec(str(file), config=str(bare))
