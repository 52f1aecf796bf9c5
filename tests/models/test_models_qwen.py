"""Qwen-Image-Edit, whose text encoder sees the picture: equal to its own pipeline, part by part."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from emu_edit.diffusion.flow import DynamicShift, FlowSchedule
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.editor import Editor
from emu_edit.editing.generate import draw_pictures
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.images import from_pil, to_float
from emu_edit.models.codec import PackedCodec
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.vision_text import CELL, DROPPED, VisionText, places, shown_size
from emu_edit.tasks import SIXTEEN
from tests.models.test_models_dit import move
from tests.models.tiny_published import tiny_qwen, write_klein, write_qwen

TASK_DIM = 6
TEXTS = ["make it red", "a longer instruction: add two dogs!"]
SIZE = (64, 32)  # multiples of 32, which the pipeline would resize others to


class Processor:
    """Qwen2VLProcessor without its half for videos, which needs torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.images = tokenizer, Qwen2VLImageProcessorPil()

    def __call__(self, text: list[str], images: list[Image.Image], **_: object) -> BatchFeature:
        seen = self.images(images, return_tensors="pt")
        cells = int(seen["image_grid_thw"].prod()) // 4
        words = self.tokenizer(
            [one.replace(CELL, CELL * cells) for one in text], padding=True, return_tensors="pt"
        )
        return BatchFeature({**words, **seen})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "model"
    write_qwen(folder)
    return folder


@pytest.fixture(scope="module")
def networks(base: Path) -> EditNetworks:
    return EditNetworks(
        DiTDenoiser(str(base), task_dim=TASK_DIM),
        VisionText(str(base)),
        PackedCodec(str(base)),
        task_embedding=TaskEmbedding(16, TASK_DIM),
        tasks=SIXTEEN,
    ).eval()


@pytest.fixture
def pipeline(base: Path, networks: EditNetworks) -> Iterator[Any]:
    """Diffusers' own pipeline of the same weights."""
    with pipeline_of(base, networks) as pipeline:
        yield pipeline


@contextmanager
def pipeline_of(model: Path, networks: EditNetworks) -> Iterator[Any]:
    """Diffusers' own pipeline of a directory, its text encoder told what is a picture.

    It does not tell it yet (huggingface/diffusers#14194), without which transformers 5 counts cells
    of the picture like words.
    """
    text: Any = networks.text_encoder
    pipeline = plus.QwenImageEditPlusPipeline.from_pretrained(
        model, text_encoder=text.model, tokenizer=text.tokenizer, processor=None
    )
    pipeline.processor = Processor(text.tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    untold = text.model.forward

    def told(input_ids: Tensor, **rest: Any) -> Any:
        kinds = (input_ids == text.model.config.image_token_id).int()
        return untold(input_ids=input_ids, mm_token_type_ids=kinds, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text.model, "forward", told)
        # pictures of a tiny model
        patch.setattr(plus, "VAE_IMAGE_SIZE", SIZE[0] * SIZE[1])
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
    z_t, z_source = (torch.randn(2, 8, 4, 6, generator=generator) for _ in range(2))
    return z_t, Conditioning(text, z_source, torch.randn(2, TASK_DIM, generator=generator))


@pytest.mark.parametrize("size", [SIZE, (32, 64), (30, 20), (200, 17)])
def test_a_text_with_its_picture_is_encoded_as_the_pipeline_encodes_it(networks, pipeline, size):
    image = picture(size)
    width, height = plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, size[0] / size[1])
    shown = pipeline.image_processor.resize(image, height, width)
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(TEXTS[0], [shown])
        ours = networks.text_encoder(TEXTS[:1], floats(image))
    assert (height, width) == shown_size(*reversed(size))
    torch.testing.assert_close(ours.tokens, theirs, rtol=0, atol=1e-5)
    assert ours.mask.all()


def test_patches_are_those_of_the_processor(networks):
    text, image = networks.text_encoder, picture((50, 40))
    high, wide = shown_size(40, 50)
    theirs = Qwen2VLImageProcessorPil()(
        [image.resize((wide, high), Image.Resampling.LANCZOS)], return_tensors="pt"
    )
    ours = text._patches(from_pil(image), *text._size(40, 50))
    assert [side // 14 for side in text._size(40, 50)] == theirs["image_grid_thw"][0, 1:].tolist()
    torch.testing.assert_close(ours, theirs["pixel_values"], rtol=0, atol=1e-6)


def test_places_are_those_that_the_model_computes_for_itself(networks):
    model = networks.text_encoder.model
    ids, mask = networks.text_encoder.tokenize(["make it red"], 6)
    theirs, _ = model.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor([[1, 4, 6]]),
        attention_mask=mask.long(),
    )
    start = int((ids[0] == model.config.image_token_id).nonzero()[0])
    assert torch.equal(places(start, 2, 3, ids.shape[1]), theirs[:, 0])


def test_what_a_text_means_depends_on_its_picture_and_the_null_text_too(networks):
    shown = floats(picture(), picture(seed=4))
    with torch.no_grad():
        text, null = networks.encode_text(TEXTS[:1] * 2, pictures=shown)
        both = networks.encode_text(TEXTS[:1] * 2, ["", "dull"], shown)[1]
    assert text.tokens.shape == null.tokens.shape == both.tokens.shape
    for features in (text, null):
        assert not torch.allclose(*features.tokens, rtol=0, atol=1e-3)
    last = int(null.mask[0].sum())  # a longer text is further from the picture's padding
    torch.testing.assert_close(both.tokens[0, :last], null.tokens[0, :last], rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="sees the source picture, and here is none"):
        networks.encode_text(TEXTS)


def test_marks_of_the_template_in_a_text_are_letters(networks):
    encoder = networks.text_encoder
    ids, mask = encoder.tokenize(["<|im_end|>"])
    assert int(mask.sum()) == encoder.around + 1 + 10
    assert (ids[:, DROPPED:] == 258).sum() == 2  # those of the template itself
    assert encoder.limit.count("<|im_end|>") == encoder.around + 10
    with pytest.raises(InputError, match=r"with its template, .* at most 1024; shorten 'xxx"):
        encoder.tokenize(["x" * 700])


def test_pictures_are_encoded_and_decoded_as_the_pipeline_does(networks, pipeline):
    image = floats(picture())
    with torch.no_grad():
        z = networks.codec.encode_condition(image)
        theirs = pipeline._encode_vae_image(image[:, :, None], None)
        decoded = networks.codec.decode(z)
        expected = pipeline.vae.decode(pipeline.vae.encode(image[:, :, None])[0].mode())[0]
    packed = pipeline._pack_latents(theirs, 1, 2, SIZE[1] // 2, SIZE[0] // 2)
    torch.testing.assert_close(z.flatten(2).transpose(1, 2), packed, rtol=0, atol=1e-6)
    torch.testing.assert_close(decoded, expected[:, :, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2])  # one text, no mask; two, the shorter is padded
def test_step_0_is_the_base_bit_for_bit_and_the_maps_learn(networks, pipeline, rows):
    z_t, cond = cond_of(networks)
    z_t, z_source = z_t[-rows:], cond.z_source[-rows:]
    cond = Conditioning(
        networks.text_encoder(TEXTS[-rows:], floats(*[picture()] * rows)),
        z_source,
        cond.v_task[-rows:],
    )
    t = torch.tensor([988.4, 500.0])[:rows]
    denoiser = networks.denoiser
    denoiser.zero_grad()
    output = denoiser(z_t, t, cond)
    theirs = pipeline.transformer(
        hidden_states=torch.cat([z_t.flatten(2), z_source.flatten(2)], 2).transpose(1, 2),
        timestep=t / 1000,
        encoder_hidden_states=cond.text.tokens,
        encoder_hidden_states_mask=cond.text.mask if rows == 2 else None,
        img_shapes=[[(1, 4, 6), (1, 4, 6)]] * rows,
        return_dict=False,
    )[0][:, :24]
    assert torch.equal(output.flatten(2).transpose(1, 2), theirs)
    output.square().sum().backward()
    for linear in (denoiser.task_to_tokens, denoiser.task_to_time):
        assert linear.weight.grad.abs().sum() > 0


def test_a_model_of_2509_whose_source_has_the_level_of_z_t_is_its_network_too(networks, tmp_path):
    with torch.random.fork_rng():
        net = tiny_qwen(zero_cond_t=False).eval()
    net.save_pretrained(tmp_path)
    denoiser = DiTDenoiser(str(tmp_path), task_dim=TASK_DIM).eval()
    z_t, cond = cond_of(networks)
    t = torch.tensor([988.4, 500.0])
    with torch.no_grad():
        ours = denoiser(z_t, t, cond)
        theirs = net(
            hidden_states=torch.cat([z_t.flatten(2), cond.z_source.flatten(2)], 2).transpose(1, 2),
            timestep=t / 1000,
            encoder_hidden_states=cond.text.tokens,
            encoder_hidden_states_mask=cond.text.mask,
            img_shapes=[[(1, 4, 6)] * 2] * 2,
            return_dict=False,
        )[0][:, :24]
    assert torch.equal(ours.flatten(2).transpose(1, 2), theirs)


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


def editor_of(networks: EditNetworks, guidance: Guidance) -> Editor:
    trained_as = networks.denoiser.trained_as
    assert trained_as is not None
    schedule = trained_as.schedule(Prediction.flow, zero_terminal_snr=True)
    shift = DynamicShift(0.5, 0.9, 256, 8192)
    assert schedule.to_config() == FlowSchedule(dynamic=shift, shift_terminal=0.02).to_config()
    settings = EditorSettings(image_size=32, num_steps=3, guidance=guidance)
    return Editor(networks, schedule=schedule, prediction=Prediction.flow, settings=settings)


def compare_edits(networks: EditNetworks, pipeline: Any) -> Tensor:
    """Edit in 3 steps with both; the results agree, and one is returned."""
    # its shift with an end, its guidance that keeps the length, its order of cells
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, 8, SIZE[1] // 4, SIZE[0] // 4, generator=generator)
    image = picture()
    theirs = pipeline(
        image=image,
        prompt=TEXTS[0],
        negative_prompt=" ",
        true_cfg_scale=4.0,
        latents=noise.flatten(2).transpose(1, 2),
        height=SIZE[1],
        width=SIZE[0],
        num_inference_steps=3,
        output_type="pt",
    ).images
    editor = editor_of(networks, Guidance(4.0, 1.0))
    pixels = from_pil(image)[None]
    latents = editor.edit_latents(
        editor.encode(pixels),
        TEXTS[:1],
        ["local"],
        [0],
        negative=[" "],
        settings=editor.settings,
        on_step=None,
        noise=noise,
        pictures=pixels,
    )
    ours = (networks.codec.decode(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    return ours


def test_an_edit_is_that_of_the_pipeline(networks, pipeline):
    compare_edits(networks, pipeline)


def test_a_directory_of_a_trained_model_is_edited_with_by_the_pipeline(base, networks, tmp_path):
    with pipeline_of(base, networks) as theirs:
        untrained = compare_edits(networks, theirs)
    own = EditNetworks(
        DiTDenoiser(str(base), task_dim=TASK_DIM),
        networks.text_encoder,
        networks.codec,
        task_embedding=networks.task_embedding,
        tasks=SIXTEEN,
    ).eval()
    move(own)
    editor_of(own, Guidance(4.0, 1.0)).save_pretrained(tmp_path / "model")
    with pipeline_of(tmp_path / "model", own) as theirs:
        assert (compare_edits(own, theirs) - untrained).abs().max() > 1e-2


def test_whoever_cannot_withhold_or_show_the_picture_is_refused(networks):
    editor = editor_of(networks, Guidance(4.0, 1.5))
    pixels = from_pil(picture())[None]
    with pytest.raises(InputError, match=r"image guidance is 1.5, and the text encoder shows"):
        editor.edit_batch(pixels, TEXTS[:1], ["add"], [0])
    with pytest.raises(InputError, match="draws nothing from a caption"):
        draw_pictures(editor, TEXTS[:1], [0])


def test_without_pictures_those_of_the_latents_are_shown(networks):
    editor = editor_of(networks, Guidance(4.0, 1.0))
    z = editor.encode(from_pil(picture())[None])
    options: dict[str, Any] = {"negative": [""], "settings": editor.settings, "on_step": None}
    pixels = editor.decode(z, SIZE[::-1])
    both = [
        editor.edit_latents(z, TEXTS[:1], ["add"], [0], pictures=shown, **options)
        for shown in (None, pixels)
    ]
    assert torch.equal(*both)


def test_other_models_are_refused_by_name(base, tmp_path):
    folder = tmp_path / "layered"
    with torch.random.fork_rng():
        tiny_qwen(use_additional_t_cond=True).save_pretrained(folder)
    with pytest.raises(InputError, match="use_additional_t_cond, as Qwen-Image-Layered"):
        DiTDenoiser(str(folder))
    shutil.copytree(base, tmp_path / "first")
    index = tmp_path / "first" / "model_index.json"
    values = json.loads(index.read_text()) | {"_class_name": "QwenImageEditPipeline"}
    index.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"first Qwen-Image-Edit, which .*-2509 or 2511"):
        VisionText(str(tmp_path / "first"))
    write_klein(tmp_path / "klein")
    with pytest.raises(InputError, match="cannot load a language model from"):
        VisionText(str(tmp_path / "klein"))
    shutil.rmtree(tmp_path / "first" / "tokenizer")
    shutil.copytree(tmp_path / "klein" / "tokenizer", tmp_path / "first" / "tokenizer")
    index.unlink()
    with pytest.raises(InputError, match=r"its tokenizer has no <\|image_pad\|>"):
        VisionText(str(tmp_path / "first"))
