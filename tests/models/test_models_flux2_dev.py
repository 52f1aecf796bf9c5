"""FLUX.2 dev, which is told its guidance, and its Mistral: equal to their own pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image
from torch import Tensor

from emu_edit.diffusion.flow import FlowSchedule
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.images import from_pil
from emu_edit.models.chat_text import ChatText
from emu_edit.models.codec import PackedCodec
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.flux_text import MistralText
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.tasks import SIXTEEN
from tests.models.tiny_flux3 import write_dev
from tests.models.tiny_published import LAYERS

TASK_DIM, SCALE = 6, 4.0
TEXTS = ["make it red", "a longer instruction: add two dogs!"]
SIZE = (96, 64)  # the pipeline takes no smaller ones


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dev") / "model"
    write_dev(folder)
    return folder


@pytest.fixture(scope="module")
def networks(base: Path) -> EditNetworks:
    return EditNetworks(
        DiTDenoiser(str(base), task_dim=TASK_DIM, guidance=SCALE),
        MistralText(str(base), list(LAYERS)),
        PackedCodec(str(base)),
        task_embedding=TaskEmbedding(16, TASK_DIM),
        tasks=SIXTEEN,
    ).eval()


@pytest.fixture(scope="module")
def pipeline(base: Path, networks: EditNetworks) -> Any:
    """Diffusers' own pipeline of the same weights; the tokenizer stands for its processor."""
    text: Any = networks.text_encoder
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler")
    net = Flux2Transformer2DModel.from_pretrained(base / "transformer")
    parts: dict[str, Any] = {"scheduler": scheduler, "transformer": net}
    parts |= {"text_encoder": text.model, "tokenizer": text.tokenizer, "vae": networks.codec.vae}
    pipeline = Flux2Pipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def cond_of(networks: EditNetworks) -> tuple[Tensor, Conditioning]:
    """Return noisy latents and what the denoiser is told; the task is not zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        text = networks.text_encoder(TEXTS)
    z_t, z_source = (torch.randn(2, 8, 4, 6, generator=generator) for _ in range(2))
    return z_t, Conditioning(text, z_source, torch.randn(2, TASK_DIM, generator=generator))


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_encoded_as_the_pipeline_encodes_them(networks, pipeline, monkeypatch, side):
    monkeypatch.setattr(networks.text_encoder.tokenizer, "padding_side", side)
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(TEXTS, text_encoder_out_layers=LAYERS)
        ours = networks.text_encoder(TEXTS)
    assert torch.equal(ours.tokens, theirs)
    assert ours.mask.all()
    mask = networks.text_encoder.tokenize(TEXTS)[1]
    assert mask[:, -1 if side == "left" else 0].all()
    assert not mask[:, 0 if side == "left" else -1].any()


def test_step_0_is_the_base_bit_for_bit_told_the_scale_and_the_maps_learn(networks, pipeline):
    z_t, cond = cond_of(networks)
    t, denoiser = torch.tensor([988.4, 500.0]), networks.denoiser
    denoiser.zero_grad()
    output = denoiser(z_t, t, cond)
    ids = pipeline._prepare_latent_ids(z_t[:1])
    source_ids = pipeline._prepare_image_ids([cond.z_source[:1]])
    theirs = pipeline.transformer(
        hidden_states=torch.cat([z_t.flatten(2), cond.z_source.flatten(2)], 2).transpose(1, 2),
        timestep=t / 1000,
        guidance=torch.full((2,), SCALE),
        encoder_hidden_states=cond.text.tokens,
        txt_ids=pipeline._prepare_text_ids(cond.text.tokens[:1]),
        img_ids=torch.cat([ids, source_ids], 1),
        return_dict=False,
    )[0][:, :24]
    assert torch.equal(output.flatten(2).transpose(1, 2), theirs)
    output.square().sum().backward()
    for linear in (denoiser.task_to_tokens, denoiser.task_to_time):
        assert linear.weight.grad.abs().sum() > 0


def test_two_texts_of_different_length_give_what_each_gives_alone(base, networks):
    denoiser = DiTDenoiser(str(base), task_dim=TASK_DIM, guidance=SCALE).eval()
    for linear in (denoiser.task_to_tokens, denoiser.task_to_time):
        torch.nn.init.normal_(linear.weight, std=0.1)
    z_t, cond = cond_of(networks)
    t = torch.tensor([700.0, 300.0])
    with torch.no_grad():
        both = denoiser(z_t, t, cond)
        for row in range(2):
            one = slice(row, row + 1)
            text = networks.text_encoder(TEXTS[one])
            alone = denoiser(
                z_t[one], t[one], Conditioning(text, cond.z_source[one], cond.v_task[one])
            )
            torch.testing.assert_close(both[one], alone, rtol=0, atol=1e-5)


def editor_of(networks: EditNetworks) -> Editor:
    trained_as = networks.denoiser.trained_as
    assert trained_as is not None
    schedule = trained_as.schedule(Prediction.flow, zero_terminal_snr=True)
    assert schedule.to_config() == FlowSchedule(flux2=True).to_config()
    settings = EditorSettings(image_size=32, num_steps=3, guidance=Guidance(1.0, 1.0))
    return Editor(networks, schedule=schedule, prediction=Prediction.flow, settings=settings)


def test_an_edit_is_that_of_the_pipeline(networks, pipeline):
    # one pass a step, told the scale; 3 steps
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (SIZE[1], SIZE[0], 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    noise = torch.randn(1, 8, SIZE[1] // 4, SIZE[0] // 4, generator=generator)
    theirs = pipeline(
        image=image,
        prompt_embeds=pipeline.encode_prompt(TEXTS[0], text_encoder_out_layers=LAYERS)[0],
        latents=noise,
        num_inference_steps=3,
        guidance_scale=SCALE,
        output_type="pt",
    ).images
    editor = editor_of(networks)
    latents = editor.edit_latents(
        editor.encode(from_pil(image)[None]),
        TEXTS[:1],
        ["local"],
        [0],
        negative=[""],
        settings=editor.settings,
        on_step=None,
        noise=noise,
    )
    ours = (networks.codec.decode(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_a_whole_model_is_written_and_read_again_with_its_scale(networks, tmp_path):
    editor = editor_of(networks)
    editor.save_pretrained(tmp_path / "model")
    again = Editor.from_pretrained(tmp_path / "model", "cpu")
    assert type(again.networks.text_encoder) is MistralText
    assert again.networks.denoiser.guidance == SCALE
    pixels = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    both = [one.edit_batch(pixels, TEXTS[:1], ["add"], [3]) for one in (editor, again)]
    assert torch.equal(*both)


def test_kleins_text_encoder_does_not_read_it(base):
    with pytest.raises(InputError, match="cannot load a language model from"):
        ChatText(str(base), list(LAYERS))
