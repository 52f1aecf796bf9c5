"""LongCat-Image-Edit, whose text encoder sees the picture: equal to its pipeline, part by part."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_longcat_image import LongCatImageTransformer2DModel
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as stock
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from emu_edit.diffusion.flow import DynamicShift, FlowSchedule
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.images import from_pil, to_float
from emu_edit.models.codec import PackedCodec
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.families import Told
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.longcat_text import PADDING, QUOTED, LongCatText, edited_size
from emu_edit.models.lora import FILE, add_lora, write_lora
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.tasks import SIXTEEN
from tests.models.tiny_published import write_longcat

TASK_DIM = 6
TEXTS = ["make it red", 'write "two dogs!" on the wall, in blue letters']
SIZE = (64, 32)


class Processor:
    """Qwen2VLProcessor without its half for videos, which needs torchvision."""

    def __init__(self) -> None:
        self.image_processor = Qwen2VLImageProcessorPil()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longcat") / "model"
    write_longcat(folder)
    return folder


@pytest.fixture(scope="module")
def networks(base: Path) -> EditNetworks:
    return EditNetworks(
        DiTDenoiser(str(base), task_dim=TASK_DIM),
        LongCatText(str(base)),
        PackedCodec(str(base)),
        task_embedding=TaskEmbedding(16, TASK_DIM),
        tasks=SIXTEEN,
    ).eval()


def stock_pipeline(base: Path, networks: EditNetworks) -> Any:
    """Return diffusers' own pipeline of the same weights."""
    text, codec = networks.text_encoder, networks.codec
    assert isinstance(text, LongCatText)
    assert isinstance(codec, PackedCodec)
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler"),
        "vae": codec.vae,
        "text_encoder": text.model,
        "tokenizer": text.tokenizer,
        "text_processor": Processor(),
        "transformer": LongCatImageTransformer2DModel.from_pretrained(base / "transformer"),
    }
    pipeline = stock.LongCatImageEditPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(base: Path, networks: EditNetworks) -> Any:
    """Diffusers' own pipeline of the same weights, its text encoder told what is where.

    Transformers 5 counts cells of the picture like words unless it is told which they are, and has
    another place for padding than the one the model was trained with.
    """
    text: Any = networks.text_encoder
    pipeline = stock_pipeline(base, networks)
    untold = text.model.forward

    def told(input_ids: Tensor, attention_mask: Tensor, **rest: Any) -> Any:
        where, _ = text.model.model.get_rope_index(
            input_ids,
            mm_token_type_ids=(input_ids == text.model.config.image_token_id).int(),
            image_grid_thw=rest["image_grid_thw"],
            attention_mask=attention_mask,
        )
        where = where.masked_fill(attention_mask == 0, PADDING)
        return untold(input_ids, attention_mask, position_ids=where, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text.model, "forward", told)
        yield pipeline


def picture(size: tuple[int, int] = SIZE, seed: int = 3) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    shape = (size[1], size[0], 3)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def floats(*pictures: Image.Image) -> Tensor:
    return to_float(torch.stack([from_pil(one) for one in pictures]))


def cond_of(networks: EditNetworks) -> tuple[Tensor, Conditioning]:
    """Return noisy latents and what the denoiser is told; the task is not zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        text = networks.text_encoder(TEXTS, floats(picture(), picture(seed=4)))
    z_t, z_source = (torch.randn(2, 64, 4, 6, generator=generator) for _ in range(2))
    return z_t, Conditioning(text, z_source, torch.randn(2, TASK_DIM, generator=generator))


def of_pipeline(pipeline: Any, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Return what the network gives, called as the pipeline calls it."""
    length = cond.text.tokens.shape[1]
    where = {"type": "image", "start": (length, length), "height": 4, "width": 6}
    return pipeline.transformer(
        hidden_states=torch.cat([z_t.flatten(2), cond.z_source.flatten(2)], 2).transpose(1, 2),
        timestep=t / 1000,
        encoder_hidden_states=cond.text.tokens,
        txt_ids=stock.prepare_pos_ids(0, num_token=length),
        img_ids=torch.cat([stock.prepare_pos_ids(place, **where) for place in (1, 2)]),
        return_dict=False,
    )[0][:, :24]


@pytest.mark.parametrize(
    ("text", "size"), [(TEXTS[0], SIZE), (TEXTS[1], (30, 20)), ("", (200, 17))]
)
def test_a_text_with_its_picture_is_encoded_as_the_pipeline_encodes_it(
    networks, pipeline, text, size
):
    image = picture(size)
    width, height = stock.calculate_dimensions(1024 * 1024, size[0] / size[1])
    whole = pipeline.image_processor.resize(image, height, width)
    shown = pipeline.image_processor.resize(whole, height // 2, width // 2)
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(text, shown)
        ours = networks.text_encoder([text], floats(image))
    assert (height, width) == edited_size(*reversed(size))
    torch.testing.assert_close(ours.tokens, theirs, rtol=0, atol=1e-5)
    assert ours.mask.all()


def test_quotations_are_taken_apart_as_the_pipeline_does(networks):
    for text in (
        *(*TEXTS, "", "don't", "'a' and 'b'", "'I don't', they said", "say 'hi"),
        *(
            '\u201cone\u201d \u2018two\u2019 "three"',
            "the dogs' \"bowl\" and the cats' toys",
            "''",
            '"',
            "'\"'",
        ),
    ):
        theirs = [part for part, is_quoted in stock.split_quotation(text) if is_quoted]
        assert QUOTED.split(text)[1::2] == theirs, text
    # the pipeline's own mixes up several words with an apostrophe
    assert QUOTED.split("it's 'what I don't know'")[1::2] == ["'what I don't know'"]
    encoder = networks.text_encoder
    assert encoder.limit.count('a "<|im_end|>"') == 14  # marks are letters, too
    with pytest.raises(InputError, match=r"text of 509 tokens, .* at most 508; shorten 'xxx"):
        encoder.tokenize(["x" * 509])


def test_pictures_are_encoded_and_decoded_as_the_pipeline_does(networks, pipeline):
    image = floats(picture())
    with torch.no_grad():
        z = networks.codec.encode_condition(image)
        theirs = pipeline._encode_vae_image(image, None)
    packed = pipeline._pack_latents(theirs, 1, 16, SIZE[1] // 2, SIZE[0] // 2)
    torch.testing.assert_close(z.flatten(2).transpose(1, 2), packed, rtol=0, atol=1e-6)


def test_step_0_is_the_base_bit_for_bit_and_the_maps_learn(networks, pipeline):
    z_t, cond = cond_of(networks)
    t, denoiser = torch.tensor([988.4, 500.0]), networks.denoiser
    denoiser.zero_grad()
    output = denoiser(z_t, t, cond)
    theirs = of_pipeline(pipeline, z_t, t, cond)
    assert torch.equal(output.flatten(2).transpose(1, 2), theirs)
    output.square().sum().backward()
    for linear in (denoiser.task_to_tokens, denoiser.task_to_time):
        assert linear.weight.grad.abs().sum() > 0


def test_two_texts_of_different_length_give_what_each_gives_alone(base, networks):
    denoiser = DiTDenoiser(str(base), task_dim=TASK_DIM).eval()
    for linear in (denoiser.task_to_tokens, denoiser.task_to_time):
        torch.nn.init.normal_(linear.weight, std=0.1)
    z_t, cond = cond_of(networks)
    shown, t = floats(picture(), picture(seed=4)), torch.tensor([700.0, 300.0])
    with torch.no_grad():
        both = denoiser(z_t, t, cond)
        for row in range(2):
            one = slice(row, row + 1)
            text = networks.text_encoder(TEXTS[one], shown[one])
            alone = denoiser(
                z_t[one], t[one], Conditioning(text, cond.z_source[one], cond.v_task[one])
            )
            torch.testing.assert_close(both[one], alone, rtol=0, atol=1e-5)


def test_a_network_that_copies_gives_the_source_back_in_its_place(base, networks):
    def copying(_net: object, told: Told) -> Tensor:
        z_t, source = told.cells.chunk(2, dim=1)
        return torch.cat([(z_t - source) / told.sigma[:, None, None], source], dim=1)

    denoiser = DiTDenoiser(str(base), task_dim=TASK_DIM).eval()
    denoiser.family = replace(denoiser.family, call=copying)
    z_t, cond = cond_of(networks)
    with torch.no_grad():
        v = denoiser(z_t, torch.tensor([1000.0, 500.0]), cond)
    z_0 = z_t - torch.tensor([1.0, 0.5]).view(-1, 1, 1, 1) * v
    torch.testing.assert_close(z_0, cond.z_source, rtol=0, atol=1e-6)


def test_an_edit_is_that_of_the_pipeline(networks, pipeline, monkeypatch):
    # its shift, its guidance, its order of cells, its decoder; 3 steps
    generator, image = torch.Generator().manual_seed(5), picture()
    noise = torch.randn(1, 64, SIZE[1] // 4, SIZE[0] // 4, generator=generator)
    pixels = from_pil(image)[None]

    def encoded(prompt: list[str], image: object) -> Tensor:  # noqa: ARG001
        return networks.text_encoder(prompt, to_float(pixels)).tokens

    monkeypatch.setattr(pipeline, "_encode_prompt", encoded)
    monkeypatch.setattr(stock, "calculate_dimensions", lambda *_: SIZE)  # pictures of a tiny model
    theirs = pipeline(
        image=image,
        prompt=[TEXTS[0]],
        negative_prompt=[""],
        guidance_scale=4.5,
        latents=noise.flatten(2).transpose(1, 2),
        num_inference_steps=3,
        output_type="pt",
    ).images
    trained_as = networks.denoiser.trained_as
    schedule = trained_as.schedule(Prediction.flow, zero_terminal_snr=True)
    assert schedule.to_config() == FlowSchedule(dynamic=DynamicShift()).to_config()
    settings = EditorSettings(image_size=32, num_steps=3, guidance=Guidance(4.5, 1.0))
    editor = Editor(networks, schedule=schedule, prediction=Prediction.flow, settings=settings)
    latents = editor.edit_latents(
        editor.encode(pixels),
        TEXTS[:1],
        ["local"],
        [0],
        negative=[""],
        settings=settings,
        on_step=None,
        noise=noise,
        pictures=pixels,
    )
    ours = (networks.codec.decode(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_whole_model_is_written_for_its_own_pipeline_and_read_again(networks, tmp_path):
    settings = EditorSettings(image_size=16, num_steps=2, guidance=Guidance(4.5, 1.0))
    editor = Editor(
        networks, schedule=FlowSchedule(), prediction=Prediction.flow, settings=settings
    )
    editor.save_pretrained(tmp_path / "model")
    again = Editor.from_pretrained(tmp_path / "model", "cpu")
    assert type(again.networks.text_encoder) is LongCatText
    pixels = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    both = [one.edit_batch(pixels, ["make it red"], ["add"], [3]) for one in (editor, again)]
    assert torch.equal(*both)
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert {"text_processor", "tokenizer", "transformer", "vae"} < {*index}


def test_the_file_of_its_adapters_is_loaded_into_the_transformer_of_the_pipeline(
    base, networks, tmp_path
):
    pytest.importorskip("peft", reason="LoRA needs the extra `lora`")
    denoiser: Any = DiTDenoiser(str(base), TASK_DIM).eval()
    add_lora(denoiser.transformer, denoiser.family.lora, rank=2, alpha=8.0)
    adapters = {n: p for n, p in denoiser.transformer.named_parameters() if ".lora_B." in n}
    for value in adapters.values():
        torch.nn.init.normal_(value, std=0.1)
    # both streams of the joint block, attention and MLP; attention of the single one, whose
    # MLP has other names
    assert len(adapters) == 2 * 4 + 2 * 2 + 3
    write_lora(denoiser.transformer, tmp_path)
    pipeline = stock_pipeline(base, networks)
    assert not hasattr(pipeline, "load_lora_weights")
    pipeline.transformer.load_lora_adapter(tmp_path, weight_name=FILE)
    z_t, cond = cond_of(networks)
    t = torch.tensor([988.4, 500.0])
    with torch.no_grad():
        ours = denoiser(z_t, t, cond).flatten(2).transpose(1, 2)
        assert torch.equal(of_pipeline(pipeline, z_t, t, cond), ours)
        assert not torch.equal(networks.denoiser(z_t, t, cond).flatten(2).transpose(1, 2), ours)


def test_relatives_are_refused_by_name(base, tmp_path):
    write_longcat(tmp_path / "turbo", is_turbo=True)
    with pytest.raises(InputError, match="one shift for all sizes, as LongCat-Image-Edit-Turbo"):
        DiTDenoiser(str(tmp_path / "turbo"))
    shutil.copytree(base, tmp_path / "drawing")
    index = tmp_path / "drawing" / "model_index.json"
    index.write_text(json.dumps({"_class_name": "LongCatImagePipeline"}))
    with pytest.raises(InputError, match=r"draws from a caption .*; give LongCat-Image-Edit"):
        LongCatText(str(tmp_path / "drawing"))
