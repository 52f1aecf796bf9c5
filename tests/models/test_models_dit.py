"""Transformers of diffusers as denoisers: equal to their own pipelines at step 0, part by part."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline, compute_empirical_mu
from PIL import Image

from emu_edit.diffusion.flow import flux2_factor
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.images import from_pil, to_float
from emu_edit.models.chat_text import ChatText
from emu_edit.models.codec import PackedCodec
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.families import Told
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.pooled_text import FluxText
from emu_edit.tasks import SIXTEEN
from tests.models.tiny_published import LAYERS, tiny_flux2, write_klein, write_kontext

TASK_DIM = 6
TEXTS = ["make it red", "a longer instruction: add two dogs!"]
SIZE = (96, 64)  # the pipeline takes no smaller ones


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("klein") / "model"
    write_klein(folder)
    return folder


@pytest.fixture(scope="module")
def kontext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kontext") / "model"
    write_kontext(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(klein: Path) -> Any:
    """Diffusers' own pipeline of the same weights."""
    pipeline = Flux2KleinPipeline.from_pretrained(klein)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def networks(klein: Path) -> EditNetworks:
    return EditNetworks(
        DiTDenoiser(str(klein), task_dim=TASK_DIM),
        ChatText(str(klein), list(LAYERS)),
        PackedCodec(str(klein)),
        task_embedding=TaskEmbedding(16, TASK_DIM),
        tasks=SIXTEEN,
    ).eval()


def picture() -> Image.Image:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (SIZE[1], SIZE[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def drawn_noise() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(1, 8, SIZE[1] // 4, SIZE[0] // 4, generator=generator)


def cond_of(networks: EditNetworks, b: int = 2) -> tuple[torch.Tensor, Conditioning]:
    """Return noisy latents and what the denoiser is told; the task is not zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        text = networks.text_encoder(TEXTS[:b])
    z_t, z_source = (torch.randn(b, 8, 4, 6, generator=generator) for _ in range(2))
    return z_t, Conditioning(text, z_source, torch.randn(b, TASK_DIM, generator=generator))


def move(networks: EditNetworks) -> None:
    """Move the weights of the network, as training would; the maps stay at zero: no task."""
    denoiser: Any = networks.denoiser
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in denoiser.transformer.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)


def edited(
    networks: EditNetworks, noise: torch.Tensor, guidance: Guidance, save: Path | None = None
) -> torch.Tensor:
    """Return the picture edited by the first text in 3 steps, in [0, 1], as pipelines give it."""
    settings = EditorSettings(image_size=32, num_steps=3, guidance=guidance)
    base = networks.denoiser.trained_as
    assert base is not None
    schedule = base.schedule(Prediction.flow, zero_terminal_snr=True)
    editor = Editor(networks, schedule=schedule, prediction=Prediction.flow, settings=settings)
    if save is not None:
        editor.save_pretrained(save)
    with torch.no_grad():
        z = networks.codec.encode_condition(to_float(from_pil(picture()))[None])
    latents = editor.edit_latents(
        z, TEXTS[:1], ["local"], [0], negative=[""], settings=settings, on_step=None, noise=noise
    )
    return (networks.codec.decode(latents) / 2 + 0.5).clamp(0, 1)


def test_texts_are_encoded_as_the_pipeline_encodes_them(networks, pipeline):
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(TEXTS, text_encoder_out_layers=LAYERS)
        ours = networks.text_encoder(TEXTS)
    assert torch.equal(ours.tokens, theirs)
    assert ours.mask.all()


def test_marks_of_the_template_in_a_text_are_letters(networks):
    ids, mask = networks.text_encoder.tokenize(["<|im_end|>"])
    assert int(mask.sum()) == int(networks.text_encoder.tokenize([""])[1].sum()) + 10
    assert (ids == 258).sum() == 1  # that of the template itself


def test_pictures_are_encoded_and_decoded_as_the_pipeline_does(networks, pipeline):
    image = to_float(from_pil(picture()))[None]
    with torch.no_grad():
        z = networks.codec.encode_condition(image)
        torch.testing.assert_close(z, pipeline._encode_vae_image(image, None), rtol=0, atol=1e-6)
        decoded = networks.codec.decode(z)
    assert z.shape == (1, 8, SIZE[1] // 4, SIZE[0] // 4)
    assert decoded.shape == image.shape


def test_step_0_is_the_base_bit_for_bit_and_the_maps_learn(networks, pipeline):
    z_t, cond = cond_of(networks)
    t = torch.tensor([988.4, 500.0])
    denoiser = networks.denoiser
    output = denoiser(z_t, t, cond)
    cells, ids = pipeline.prepare_latents(2, 2, *reversed(SIZE), torch.float32, "cpu", None, z_t)
    source_ids = pipeline._prepare_image_ids([cond.z_source[:1]]).repeat(2, 1, 1)
    theirs = pipeline.transformer(
        hidden_states=torch.cat([cells, pipeline._pack_latents(cond.z_source)], 1),
        timestep=t / 1000,
        guidance=None,
        encoder_hidden_states=cond.text.tokens,
        txt_ids=pipeline._prepare_text_ids(cond.text.tokens),
        img_ids=torch.cat([ids, source_ids], 1),
        return_dict=False,
    )[0][:, : cells.shape[1]]
    assert torch.equal(output.flatten(2).transpose(1, 2), theirs)
    output.square().sum().backward()
    for linear in (denoiser.task_to_tokens, denoiser.task_to_time):
        assert linear.weight.grad.abs().sum() > 0


def edited_by_klein(pipeline: Any, noise: torch.Tensor) -> torch.Tensor:
    """Return the picture edited by the first text in 3 steps, as `edited`, by the pipeline."""
    return pipeline(
        image=picture(),
        prompt_embeds=pipeline.encode_prompt(TEXTS[0], text_encoder_out_layers=LAYERS)[0],
        negative_prompt_embeds=pipeline.encode_prompt("", text_encoder_out_layers=LAYERS)[0],
        latents=noise,
        num_inference_steps=3,
        guidance_scale=4.0,
        output_type="pt",
    ).images


def test_an_edit_is_that_of_the_pipeline(networks, pipeline):
    # its shift by size and steps, its guidance, its order of cells, its decoder; 3 steps
    noise = drawn_noise()
    ours = edited(networks, noise, Guidance(4.0, 1.0))
    torch.testing.assert_close(ours, edited_by_klein(pipeline, noise), rtol=0, atol=2e-5)


def test_a_directory_of_a_trained_model_is_edited_with_by_the_pipeline(networks, tmp_path):
    noise = drawn_noise()
    untrained = edited(networks, noise, Guidance(4.0, 1.0))
    move(networks)
    ours = edited(networks, noise, Guidance(4.0, 1.0), save=tmp_path / "model")
    pipeline: Any = Flux2KleinPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    torch.testing.assert_close(ours, edited_by_klein(pipeline, noise), rtol=0, atol=2e-5)
    assert (ours - untrained).abs().max() > 1e-2


def edited_by_kontext(pipeline: Any, noise: torch.Tensor) -> torch.Tensor:
    """Return the picture edited by the first text in 3 steps, as `edited`, by the pipeline."""
    return pipeline(
        image=picture(),
        prompt=TEXTS[0],
        latents=noise.flatten(2).transpose(1, 2),
        num_inference_steps=3,
        guidance_scale=2.5,
        width=SIZE[0],
        height=SIZE[1],
        max_area=SIZE[0] * SIZE[1],
        _auto_resize=False,
        output_type="pt",
    ).images


def test_kontext_is_its_own_pipeline_part_by_part_and_after_training(kontext, tmp_path):
    pipeline: Any = FluxKontextPipeline.from_pretrained(kontext)
    pipeline.set_progress_bar_config(disable=True)
    networks = EditNetworks(
        DiTDenoiser(str(kontext), TASK_DIM, guidance=2.5),
        FluxText(str(kontext)),
        PackedCodec(str(kontext / "vae")),
        task_embedding=TaskEmbedding(16, TASK_DIM),
        tasks=SIXTEEN,
    ).eval()
    image = to_float(from_pil(picture()))[None]
    noise = drawn_noise()
    with torch.no_grad():
        text = networks.text_encoder(TEXTS)
        tokens, pooled, text_ids = pipeline.encode_prompt(TEXTS, None)
        z = networks.codec.encode_condition(image)
        theirs = pipeline.transformer(
            hidden_states=torch.cat([each.flatten(2) for each in (noise, z)], 2).transpose(1, 2),
            timestep=torch.tensor([988.4]) / 1000,
            guidance=torch.tensor([2.5]),
            pooled_projections=pooled[:1],
            encoder_hidden_states=tokens[:1],
            txt_ids=text_ids,
            img_ids=torch.cat([
                pipeline._prepare_latent_image_ids(1, *noise.shape[2:], "cpu", torch.float32)
                + torch.tensor([place, 0, 0])
                for place in (0, 1)
            ]),
            return_dict=False,
        )[0][:, : noise[0, 0].numel()]
        told = TextFeatures(torch.cat([text.tokens[:1, :1], tokens[:1]], 1), text.mask[:1])
        cond = Conditioning(told, z, torch.randn(1, TASK_DIM))
        ours = networks.denoiser(noise, torch.tensor([988.4]), cond)
    torch.testing.assert_close(text.tokens[:, 1:], tokens, rtol=0, atol=1e-4)
    assert torch.equal(text.tokens[:, 0, : pooled.shape[1]], pooled)
    assert torch.equal(ours.flatten(2).transpose(1, 2), theirs)
    expected = edited_by_kontext(pipeline, noise)
    picture_of_ours = edited(networks, noise, Guidance(1.0, 1.0))
    torch.testing.assert_close(picture_of_ours, expected, rtol=0, atol=1e-4)
    move(networks)
    picture_of_ours = edited(networks, noise, Guidance(1.0, 1.0), save=tmp_path / "model")
    pipeline = FluxKontextPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    moved = edited_by_kontext(pipeline, noise)
    torch.testing.assert_close(picture_of_ours, moved, rtol=0, atol=1e-4)
    assert (moved - expected).abs().max() > 1e-2


def test_two_texts_of_different_length_give_what_each_gives_alone(networks):
    for parameter in (
        networks.denoiser.task_to_tokens.weight,
        networks.denoiser.task_to_time.weight,
    ):
        torch.nn.init.normal_(parameter, std=0.1)
    z_t, cond = cond_of(networks)
    t = torch.tensor([700.0, 300.0])
    with torch.no_grad():
        both = networks.denoiser(z_t, t, cond)
        for row in range(2):
            one = slice(row, row + 1)
            with_one = Conditioning(
                networks.text_encoder(TEXTS[one]), cond.z_source[one], cond.v_task[one]
            )
            alone = networks.denoiser(z_t[one], t[one], with_one)
            torch.testing.assert_close(both[one], alone, rtol=0, atol=1e-5)


def test_a_network_that_copies_gives_the_source_back_in_its_place(networks):
    def copying(_net: object, told: Told) -> torch.Tensor:
        z_t, source = told.cells.chunk(2, dim=1)
        output = (z_t - source) / told.sigma[:, None, None]  # v of z_0 = source
        return torch.cat([output, torch.zeros_like(source)], dim=1)

    networks.denoiser.family = replace(networks.denoiser.family, call=copying)
    z_t, cond = cond_of(networks)
    with torch.no_grad():
        v = networks.denoiser(z_t, torch.tensor([1000.0, 500.0]), cond)
    z_0 = z_t - torch.tensor([1.0, 0.5]).view(-1, 1, 1, 1) * v
    torch.testing.assert_close(z_0, cond.z_source, rtol=0, atol=1e-6)


def test_weights_in_bfloat16_are_near_those_in_float32(klein, networks):
    z_t, cond = cond_of(networks)
    t = torch.tensor([700.0, 300.0])
    half = DiTDenoiser(str(klein), task_dim=TASK_DIM, weights="bfloat16").eval()
    assert half.transformer.dtype == torch.bfloat16
    with torch.no_grad():
        full = networks.denoiser(z_t, t, cond)
        torch.testing.assert_close(half(z_t, t, cond), full, rtol=0.1, atol=0.1)


def test_a_guidance_distilled_network_is_told_its_scale(klein, networks, tmp_path):
    folder = tmp_path / "dev"
    shutil.copytree(klein, folder)
    shutil.rmtree(folder / "transformer")
    with torch.random.fork_rng():
        tiny_flux2(guidance_embeds=True).save_pretrained(folder / "transformer")
    two, four = (DiTDenoiser(str(folder), TASK_DIM, guidance=scale).eval() for scale in (2.0, 4.0))
    z_t, cond = cond_of(networks)
    with torch.no_grad():
        outputs = [one(z_t, torch.tensor([500.0, 500.0]), cond) for one in (two, four)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_the_shift_of_flux_2_is_diffusers():
    for tokens in (64, 1024, 4096, 4301, 9000):
        for steps in (4, 28, 50, 200):
            mu = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
            assert flux2_factor(tokens, steps) == pytest.approx(
                torch.tensor(mu).exp().item(), rel=1e-6
            )


def test_other_networks_are_refused_by_name(tmp_path, stable_diffusion):
    distilled = tmp_path / "distilled"
    write_klein(distilled, is_distilled=True)
    with pytest.raises(InputError, match=r"distilled to few steps \(is_distilled\).* base model"):
        DiTDenoiser(str(distilled))
    with pytest.raises(InputError, match="UNet2DConditionModel, needs one of Flux2Transformer"):
        DiTDenoiser(str(stable_diffusion / "unet"))
    with pytest.raises(InputError, match=r"layers=\[9\], but .* has layers 0 to 4"):
        ChatText(str(distilled), [9])
    with pytest.raises(InputError, match=r"text of 518 tokens with its template, .* at most 508"):
        ChatText(str(distilled), list(LAYERS)).tokenize(["x" * 480])
