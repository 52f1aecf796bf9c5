"""Pictures from captions: nothing of a source, the same as diffusers draws, one line for slips."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

from emu_edit.cli.main import main
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.editor import Editor
from emu_edit.editing.generate import draw_pictures, load_generator
from emu_edit.editing.settings import Sampling
from emu_edit.errors import InputError
from emu_edit.images import from_pil
from emu_edit.models.codec import KLCodec
from emu_edit.models.text import TransformersText
from emu_edit.tasks import CAPTION
from tests.training.stage import make_module

CAPTIONS = ("a red circle on a beach", "a blue star", "nothing on a plain white backdrop")


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model of captions."""
    folder = tmp_path_factory.mktemp("drawing") / "model"
    make_module(prediction=Prediction.z0, tasks=[CAPTION]).make_editor().save_pretrained(folder)
    return folder


def test_a_picture_depends_on_its_caption_and_seed_alone(drawing: Path) -> None:
    editor = load_generator(drawing)
    together = draw_pictures(editor, CAPTIONS, (1, 2, 3))
    assert together.shape == (3, 3, 16, 16)
    for i, caption in enumerate(CAPTIONS):
        alone = draw_pictures(editor, [caption], [i + 1])
        assert (alone[0].int() - together[i].int()).abs().max() <= 1  # of another batch's rounding
    assert not torch.equal(draw_pictures(editor, CAPTIONS[:1], [2])[0], together[0])


def test_guidance_of_the_source_has_nothing_to_say(drawing: Path) -> None:
    editor = load_generator(drawing)
    usual = draw_pictures(editor, CAPTIONS, (1, 2, 3))
    editor.settings = Sampling(guidance_image=4.0).applied(editor.settings)
    assert torch.equal(draw_pictures(editor, CAPTIONS, (1, 2, 3)), usual)


def test_sides_that_no_latent_fits_are_cut_back(drawing: Path) -> None:
    drawn = draw_pictures(load_generator(drawing), CAPTIONS[:1], [0], size=(18, 13))
    assert drawn.shape == (1, 3, 18, 13)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_a_stable_diffusion_draws_as_diffusers_does(
    stable_diffusion: Path, guidance: float
) -> None:
    """With DDIM at trailing timesteps, from the same noise: both are the same algebra."""
    editor = load_generator(stable_diffusion, "cpu")
    size, steps = 2 * editor.settings.image_size, 4
    editor.settings = Sampling(num_steps=steps, guidance_text=guidance).applied(editor.settings)
    ours = draw_pictures(editor, CAPTIONS[:1], [5], size=(size, size))
    codec = cast("KLCodec", editor.networks.codec)
    text = cast("TransformersText", editor.networks.text_encoder)
    scheduler = DDIMScheduler.from_pretrained(
        stable_diffusion,
        subfolder="scheduler",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    parts: dict[str, Any] = {
        "vae": codec.vae,
        "text_encoder": text.model,
        "tokenizer": text.tokenizer,
        "unet": plain_unet(stable_diffusion),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipe: Any = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.tokenizer.model_max_length = 77
    pipe.set_progress_bar_config(disable=True)
    cells = size // codec.factor
    latents = torch.randn(4, cells, cells, generator=torch.Generator().manual_seed(5))[None]
    theirs = pipe(
        CAPTIONS[0],
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latents,
    ).images[0]
    assert (from_pil(theirs).int() - ours[0].int()).abs().max() <= 1


def plain_unet(folder: Path) -> torch.nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()


def test_the_verb_writes_one_picture_or_a_folder_with_a_sheet(
    drawing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one.png"
    assert (
        main(["generate", CAPTIONS[0], "-o", str(one), "--model", str(drawing), "--seed", "3"]) == 0
    )
    again = draw_pictures(load_generator(drawing), [CAPTIONS[0]], [3])[0]
    assert np.array_equal(np.asarray(Image.open(one)), again.permute(1, 2, 0).numpy())
    capsys.readouterr()
    many = tmp_path / "many"
    command = ["generate", *CAPTIONS[:2], "--count", "2", "--json", "--model", str(drawing)]
    assert main([*command, "-o", str(many)]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["caption"], line["seed"]) for line in told] == [
        (caption, seed) for caption in CAPTIONS[:2] for seed in (0, 1)
    ]
    assert sorted(path.name for path in many.iterdir()) == [
        *(f"{number:04d}.png" for number in range(1, 5)),
        "captions.jsonl",
        "sheet.png",
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["", "-o", "a.png"], "the caption is empty"),
        (["x" * 5000, "-o", "a.png"], "characters"),
        (["a", "b", "-o", "a.png"], "2 of them need a folder"),
        (["a", "-o", "a.xyz"], "pictures are written as .png and videos as .mp4"),
        (["a", "-o", "a.mp4"], "draws pictures and no videos"),
        (["a", "b", "-o", "a.mp4"], "2 of them need a folder"),
        (["a", "-o", "a.png", "--frames", "2"], "--frames is of videos"),
        (["a", "-o", "no/a.png"], "there is no folder no"),
        (["a", "-o", "a.png", "--guidance-image", "2"], "--guidance-image is of a source"),
        (["a", "-o", "a.png", "--steps", "0"], "at least 1"),
    ],
)
def test_slips_are_one_line(
    workplace: Path,
    drawing: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert main(["generate", *more, "--model", str(drawing)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not list(workplace.iterdir())


def test_a_model_that_edits_is_told_apart(
    model: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del workplace
    assert main(["generate", "a", "-o", "a.png", "--model", str(model)]) == 2
    assert "was not trained to draw" in capsys.readouterr().err
    with pytest.raises(InputError, match="unknown task"):
        draw_pictures(Editor.from_pretrained(model), ["a"], [0])
