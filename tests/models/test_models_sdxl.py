"""Stable Diffusion XL, told as its own pipeline of InstructPix2Pix tells it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_instruct_pix2pix import (
    StableDiffusionXLInstructPix2PixPipeline,
)

from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.models.codec import KLCodec
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.pooled_text import SDXLText
from emu_edit.models.text import TransformersText
from emu_edit.models.unet import PretrainedUNetDenoiser
from emu_edit.tasks import SIXTEEN
from tests.models.tiny_published import write_sdxl

TEXTS = ["make it red", "add two dogs"]


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl") / "model"
    write_sdxl(folder)
    return folder


@pytest.fixture
def networks(sdxl: Path) -> EditNetworks:
    return EditNetworks(
        PretrainedUNetDenoiser(str(sdxl), task_dim=6),
        SDXLText(str(sdxl)),
        KLCodec(str(sdxl)),
        task_embedding=TaskEmbedding(16, 6),
        tasks=SIXTEEN,
    ).eval()


def test_step_0_is_what_the_pipeline_computes(sdxl, networks):
    pipeline: Any = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(sdxl)
    z_t, z_source = torch.randn(2, 2, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([700, 30])
    with torch.no_grad():
        text = networks.text_encoder(TEXTS)
        tokens, _, pooled, _ = pipeline.encode_prompt(TEXTS, do_classifier_free_guidance=False)
        ids = pipeline._get_add_time_ids((32, 48), (0, 0), (32, 48), tokens.dtype, 32)
        theirs = pipeline.unet(
            torch.cat([z_t, z_source], 1),
            t,
            encoder_hidden_states=tokens,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids.repeat(2, 1)},
            return_dict=False,
        )[0]
        ours = networks.denoiser(z_t, t, Conditioning(text, z_source, torch.randn(2, 6)))
    assert torch.equal(text.tokens[:, 1:], tokens)
    assert torch.equal(text.tokens[:, 0, : pooled.shape[1]], pooled)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_model_directory_edits_as_before_and_is_read_by_the_pipeline(networks, tmp_path):
    base = networks.denoiser.trained_as
    assert base is not None
    editor = Editor(
        networks,
        schedule=base.schedule(Prediction.v, zero_terminal_snr=True),
        prediction=Prediction.v,
        settings=EditorSettings(image_size=16, num_steps=2, guidance=Guidance(3.0, 1.5)),
    )
    editor.save_pretrained(tmp_path / "model")
    again = Editor.from_pretrained(tmp_path / "model", "cpu")
    pixels = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    both = [one.edit_batch(pixels, ["make it red"], ["add"], [3]) for one in (editor, again)]
    assert torch.equal(*both)
    StableDiffusionXLInstructPix2PixPipeline.from_pretrained(tmp_path / "model")


def test_a_text_encoder_without_the_vector_is_refused(sdxl):
    with pytest.raises(InputError, match=r"is told is 32, but the one that the text .* is 0"):
        EditNetworks(
            PretrainedUNetDenoiser(str(sdxl), task_dim=6),
            _as_wide(TransformersText(str(sdxl))),
            KLCodec(str(sdxl)),
            task_embedding=TaskEmbedding(16, 6),
            tasks=SIXTEEN,
        )


def _as_wide(text: TransformersText) -> TransformersText:
    text.dim = 64
    return text
