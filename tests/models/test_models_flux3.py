"""FLUX.3, whose source has a stream of its own: equal to its own pipeline, part by part."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux3 import Flux3Transformer2DModel
from diffusers.modular_pipelines.flux3 import before_denoise, encoders
from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3AutoBlocks
from PIL import Image
from torch import Tensor

from emu_edit.diffusion.flow import FlowSchedule
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.images import from_pil
from emu_edit.models.codec import PackedCodec
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.families import Told
from emu_edit.models.flux_text import Flux3Text
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.lora import FILE, add_lora, write_lora
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.tasks import SIXTEEN
from tests.models.tiny_flux3 import write_flux3
from tests.models.tiny_published import LAYERS

pytest.importorskip("accelerate", reason="FLUX.3 needs the extra `lora`")
TASK_DIM = 6
TEXTS = ["red", "a longer instruction, of two windows: add two dogs and a cat on the chair!"]
SIZE = (96, 64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux3") / "model"
    write_flux3(folder)
    return folder


@pytest.fixture(scope="module")
def networks(base: Path) -> EditNetworks:
    return EditNetworks(
        DiTDenoiser(str(base), task_dim=TASK_DIM),
        Flux3Text(str(base), list(LAYERS)),
        PackedCodec(str(base)),
        task_embedding=TaskEmbedding(16, TASK_DIM),
        tasks=SIXTEEN,
    ).eval()


class Processor(SimpleNamespace):
    """Qwen3VLProcessor without its half for videos, which needs torchvision."""

    def apply_chat_template(self, messages: list, **options: Any) -> str:
        # the template of the tiny tokenizer is Qwen3's, which thinks unless it is told not to
        return self.tokenizer.apply_chat_template(messages, enable_thinking=False, **options)


@pytest.fixture(scope="module")
def pipeline(base: Path, networks: EditNetworks) -> Any:
    """Diffusers' own modular pipeline of the same weights, without the rewriter of prompts."""
    blocks = Flux3AutoBlocks()
    blocks.sub_blocks.pop("prompt_upsampler")
    pipeline: Any = blocks.init_pipeline()
    text: Any = networks.text_encoder
    pipeline.update_components(
        text_encoder=text.model,
        tokenizer=Processor(tokenizer=text.tokenizer),
        transformer=Flux3Transformer2DModel.from_pretrained(base / "transformer"),
        vae=networks.codec.vae,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture() -> Image.Image:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (SIZE[1], SIZE[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def cond_of(networks: EditNetworks) -> tuple[Tensor, Conditioning]:
    """Return noisy latents and what the denoiser is told; the task is not zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        text = networks.text_encoder(TEXTS)
    z_t, z_source = (torch.randn(2, 8, 4, 6, generator=generator) for _ in range(2))
    return z_t, Conditioning(text, z_source, torch.randn(2, TASK_DIM, generator=generator))


def of_pipeline(net: Any, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Return what the network gives for each row, called as the pipeline calls it."""
    ids = [before_denoise._prepare_image_ids(4, 6, 0.5, place) for place in (0, -1)]
    rows = []
    for row, length in enumerate(cond.text.mask.sum(dim=1).tolist()):
        one, tokens = slice(row, row + 1), cond.text.tokens[row : row + 1, :length]
        rows.append(
            net(
                hidden_states=z_t[one].flatten(2).transpose(1, 2),
                encoder_hidden_states=tokens,
                timestep=t[one] / 1000,
                img_ids=ids[0],
                txt_ids=before_denoise.Flux3TextRoPEInputsStep._prepare_text_ids(tokens),
                image_cond_hidden_states=cond.z_source[one].flatten(2).transpose(1, 2),
                image_cond_ids=ids[1],
                return_dict=False,
            )[0]
        )
    return torch.cat(rows)


def test_texts_are_encoded_as_the_pipeline_encodes_them(networks, pipeline):
    with torch.no_grad():
        ours = networks.text_encoder(TEXTS)
        for row, text in enumerate(TEXTS):
            theirs = encoders.Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(
                pipeline.text_encoder, pipeline.tokenizer, text, hidden_states_layers=LAYERS
            )
            length = theirs.shape[1]
            assert length == 80 * (row + 1)
            assert ours.mask[row].tolist() == [True] * length + [False] * (160 - length)
            torch.testing.assert_close(ours.tokens[row, :length], theirs[0], rtol=0, atol=1e-5)


def test_a_text_is_in_whole_windows_and_no_longer(base, networks):
    encoder = networks.text_encoder
    assert encoder.limit.max_tokens == 480
    around = encoder.limit.count("")
    assert encoder.tokenize(["x" * (80 - around)])[0].shape == (1, 80)
    assert encoder.tokenize(["x" * (81 - around)])[0].shape == (1, 160)
    with pytest.raises(InputError, match=r"text of 481 tokens with its template, .* at most 480"):
        encoder.tokenize(["x" * (481 - around)])
    with pytest.raises(InputError, match=r"max_tokens=100, needs a multiple of 80"):
        Flux3Text(str(base), list(LAYERS), 100)


def test_step_0_is_the_base_bit_for_bit_and_the_maps_learn(networks, pipeline):
    z_t, cond = cond_of(networks)
    t, denoiser = torch.tensor([988.4, 500.0]), networks.denoiser
    denoiser.zero_grad()
    output = denoiser(z_t, t, cond)
    theirs = of_pipeline(pipeline.transformer, z_t, t, cond)
    assert torch.equal(output.flatten(2).transpose(1, 2), theirs)
    output.square().sum().backward()
    for linear in (denoiser.task_to_tokens, denoiser.task_to_time):
        assert linear.weight.grad.abs().sum() > 0


def test_two_texts_of_different_windows_give_what_each_gives_alone(base, networks):
    denoiser = DiTDenoiser(str(base), task_dim=TASK_DIM).eval()
    for linear in (denoiser.task_to_tokens, denoiser.task_to_time):
        torch.nn.init.normal_(linear.weight, std=0.1)
    z_t, cond = cond_of(networks)
    t = torch.tensor([700.0, 300.0])
    with torch.no_grad():
        both = denoiser(z_t, t, cond)
        swapped = denoiser(z_t.flip(0), t.flip(0), flipped(cond))
        for row in range(2):
            one = slice(row, row + 1)
            text = networks.text_encoder(TEXTS[one])
            alone = denoiser(
                z_t[one], t[one], Conditioning(text, cond.z_source[one], cond.v_task[one])
            )
            torch.testing.assert_close(both[one], alone, rtol=0, atol=1e-5)
    assert torch.equal(swapped, both.flip(0))


def flipped(cond: Conditioning) -> Conditioning:
    text = replace(cond.text, tokens=cond.text.tokens.flip(0), mask=cond.text.mask.flip(0))
    return Conditioning(text, cond.z_source.flip(0), cond.v_task.flip(0))


def test_a_network_that_copies_gives_the_source_back_in_its_place(base, networks):
    def copying(_net: object, told: Told) -> Tensor:
        z_t, source = told.cells.chunk(2, dim=1)
        return (z_t - source) / told.sigma[:, None, None]

    denoiser = DiTDenoiser(str(base), task_dim=TASK_DIM).eval()
    denoiser.family = replace(denoiser.family, call=copying)
    z_t, cond = cond_of(networks)
    with torch.no_grad():
        v = denoiser(z_t, torch.tensor([1000.0, 500.0]), cond)
    z_0 = z_t - torch.tensor([1.0, 0.5]).view(-1, 1, 1, 1) * v
    torch.testing.assert_close(z_0, cond.z_source, rtol=0, atol=1e-6)


def editor_of(networks: EditNetworks) -> Editor:
    trained_as = networks.denoiser.trained_as
    assert trained_as is not None
    schedule = trained_as.schedule(Prediction.flow, zero_terminal_snr=True)
    assert schedule.to_config() == FlowSchedule(6.93).to_config()
    settings = EditorSettings(image_size=32, num_steps=3, guidance=Guidance(3.5, 1.0))
    return Editor(networks, schedule=schedule, prediction=Prediction.flow, settings=settings)


@pytest.mark.parametrize("text", TEXTS)  # one window, as the null text; two
def test_an_edit_is_that_of_the_pipeline(networks, pipeline, text):
    # its shift, its guidance, its order of cells, its decoder; 3 steps
    generator, image = torch.Generator().manual_seed(5), picture()
    noise = torch.randn(1, 8, SIZE[1] // 4, SIZE[0] // 4, generator=generator)
    theirs = pipeline(
        image=image,
        prompt=text,
        text_encoder_out_layers=LAYERS,
        latents=noise,
        num_inference_steps=3,
        output_type="pt",
        output="images",
    )
    editor, pixels = editor_of(networks), from_pil(image)[None]
    latents = editor.edit_latents(
        editor.encode(pixels),
        [text],
        ["local"],
        [0],
        negative=[""],
        settings=editor.settings,
        on_step=None,
        noise=noise,
    )
    ours = (networks.codec.decode(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_whole_model_is_written_and_read_again(networks, tmp_path):
    editor = editor_of(networks)
    editor.save_pretrained(tmp_path / "model")
    again = Editor.from_pretrained(tmp_path / "model", "cpu")
    assert type(again.networks.text_encoder) is Flux3Text
    assert again.schedule.to_config() == editor.schedule.to_config()
    pixels = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    both = [one.edit_batch(pixels, TEXTS[1:], ["add"], [3]) for one in (editor, again)]
    assert torch.equal(*both)


def test_its_pipeline_loads_the_file_of_its_adapters(base, networks, pipeline, tmp_path):
    pytest.importorskip("peft", reason="LoRA needs the extra `lora`")
    denoiser: Any = DiTDenoiser(str(base), TASK_DIM).eval()
    add_lora(denoiser.transformer, denoiser.family.lora, rank=2, alpha=8.0)
    adapters = {n: p for n, p in denoiser.transformer.named_parameters() if ".lora_B." in n}
    for value in adapters.values():
        torch.nn.init.normal_(value, std=0.1)
    assert len(adapters) == 4 * 4  # a block of each of three streams, and a joint one
    write_lora(denoiser.transformer, tmp_path)
    z_t, cond = cond_of(networks)
    t = torch.tensor([988.4, 500.0])
    before = of_pipeline(pipeline.transformer, z_t, t, cond)
    pipeline.load_lora_weights(str(tmp_path), weight_name=FILE)
    with torch.no_grad():
        ours = denoiser(z_t, t, cond).flatten(2).transpose(1, 2)
        theirs = of_pipeline(pipeline.transformer, z_t, t, cond)
    pipeline.unload_lora_weights()
    assert torch.equal(theirs, ours)
    assert not torch.equal(before, ours)


def test_the_distilled_model_is_refused_and_the_licence_told(networks, tmp_path):
    write_flux3(tmp_path / "distilled", flow_map=True)
    with pytest.raises(InputError, match=r"flow map, distilled to few steps .* FLUX.3-klein-base"):
        DiTDenoiser(str(tmp_path / "distilled"))
    assert "FLUX Kommunity License" in networks.denoiser.licence
