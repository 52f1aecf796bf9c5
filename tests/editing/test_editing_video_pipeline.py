"""`EmuVideoPipeline`: `animate` under diffusers' names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance
from emu_edit.editing.animate import animate
from emu_edit.editing.generate import draw_pictures
from emu_edit.editing.settings import Sampling
from emu_edit.editing.video_pipeline import EmuVideoPipeline, EmuVideoPipelineOutput
from emu_edit.errors import InputError
from emu_edit.images import from_pil, to_pil
from emu_edit.models.given import Given, GivenFrames
from emu_edit.training.export import export_model
from tests.training.test_training_video import moved
from tests.training.video_stage import FRAMES, SIZE, make_clip, module, write_base

FEW = {"num_inference_steps": 2, "guidance_scale": 3.0, "image_guidance_scale": 2.0}
PICTURE = make_clip(0).target[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of videos."""
    folder = tmp_path_factory.mktemp("models")
    export_model(moved(module(write_base(folder / "base"))), folder / "videos", ema=None)
    return folder / "videos"


@pytest.fixture(scope="module")
def pipe(model: Path) -> EmuVideoPipeline:
    made = EmuVideoPipeline.from_pretrained(model)
    made.set_progress_bar_config(disable=True)
    return made


def pixels(frames: object) -> Tensor:
    assert isinstance(frames, list)
    assert all(isinstance(frame, Image.Image) for frame in frames)
    return torch.stack([from_pil(frame) for frame in frames])


def test_the_same_seed_gives_the_frames_of_animate(pipe: EmuVideoPipeline) -> None:
    asked = {"num_frames": 5, "seed": 7, "negative_prompt": "a circle", **FEW}  # two windows
    found = pipe("a square", to_pil(PICTURE), **asked)
    assert isinstance(found, EmuVideoPipelineOutput)
    assert found.fps == 8
    settings = Sampling(2, 3.0, 2.0).applied(pipe.animator.video.settings)
    assert settings.guidance == Guidance(text=3.0, image=2.0)
    drawn = {"seed": 7, "frames": 5, "negative": "a circle", "settings": settings}
    made = animate(pipe.animator, PICTURE, "a square", **drawn)
    (video,) = found.frames
    assert torch.equal(pixels(video), made)


def test_without_a_picture_one_is_drawn_of_the_caption(pipe: EmuVideoPipeline) -> None:
    found = pipe("a square", seed=7, height=12, fps=5, **FEW)
    assert isinstance(found, EmuVideoPipelineOutput)
    assert found.fps == 5
    (drawn,) = draw_pictures(pipe.editor, ["a square"], [7], size=(12, SIZE))
    settings = Sampling(2, 3.0, 2.0).applied(pipe.animator.video.settings)
    made = animate(pipe.animator, drawn, "a square", seed=7, settings=settings)
    (video,) = found.frames
    assert torch.equal(pixels(video), made)


def test_results_are_in_the_order_of_prompts_and_of_diffusers_kinds(pipe: EmuVideoPipeline) -> None:
    asked = {"image": PICTURE, "num_frames": 2, "seed": [1, 2, 3, 4], **FEW}
    prompts = ["a square", "a circle"]
    (lists,) = pipe(prompts, num_videos_per_prompt=2, return_dict=False, **asked)
    (array,) = pipe(prompts, num_videos_per_prompt=2, return_dict=False, output_type="np", **asked)
    (tensor,) = pipe(prompts, num_videos_per_prompt=2, return_dict=False, output_type="pt", **asked)
    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, Tensor)
    assert array.shape == (4, 2, SIZE, SIZE, 3)
    assert tensor.shape == (4, 2, 3, SIZE, SIZE)
    assert np.array_equal(array, tensor.permute(0, 1, 3, 4, 2).numpy())
    for number, (frames, text) in enumerate(zip(lists, [*"ssdd"], strict=True)):
        caption = {"s": "a square", "d": "a circle"}[text]
        settings = Sampling(2, 3.0, 2.0).applied(pipe.animator.video.settings)
        made = animate(
            pipe.animator, PICTURE, caption, seed=number + 1, frames=2, settings=settings
        )
        assert torch.equal(pixels(frames), made)
        assert torch.equal((tensor[number] * 255).round().to(torch.uint8), made)


def test_a_generator_gives_every_video_its_seed_and_goes_on(pipe: EmuVideoPipeline) -> None:
    def draw(generator: torch.Generator) -> Tensor:
        found = pipe("a square", PICTURE, 2, generator=generator, output_type="pt", **FEW)
        assert isinstance(found, EmuVideoPipelineOutput)
        assert isinstance(found.frames, Tensor)
        return found.frames

    one = torch.Generator().manual_seed(3)
    first, second = draw(one), draw(one)
    assert torch.equal(first, draw(torch.Generator().manual_seed(3)))
    assert not torch.equal(first, second)


def test_a_callback_hears_of_every_step_of_every_window_and_may_replace_latents(
    pipe: EmuVideoPipeline,
) -> None:
    steps: list[tuple[int, tuple[int, ...]]] = []

    def hear(owner: EmuVideoPipeline, step: int, _t: float, inputs: dict) -> dict:
        assert owner is pipe
        steps.append((step, tuple(inputs["latents"].shape)))
        return {"latents": torch.zeros_like(inputs["latents"])} if step == 1 else {}

    channels = pipe.editor.networks.codec.latent_channels
    shape = (1, FRAMES * channels, SIZE // 4, SIZE // 4)
    found = pipe(
        *("a square", PICTURE, 5), seed=1, callback_on_step_end=hear, output_type="pt", **FEW
    )
    assert steps == [(0, shape), (1, shape)] * 2
    assert isinstance(found, EmuVideoPipelineOutput)
    assert isinstance(found.frames, Tensor)
    assert len(found.frames.unique()) < 20  # the decoder's answer to zeros, in every cell
    with pytest.raises(InputError, match="'prompt_embeds'; this pipeline gives and takes"):
        pipe(
            "a",
            PICTURE,
            callback_on_step_end=hear,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )


def test_a_saved_pipeline_is_the_models_directory(
    pipe: EmuVideoPipeline, model: Path, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path / "again")
    names = [path.relative_to(model) for path in sorted(model.rglob("*")) if path.is_file()]
    for name in names:
        if name.suffix == ".safetensors":
            assert (tmp_path / "again" / name).read_bytes() == (model / name).read_bytes(), name
    again = EmuVideoPipeline.from_pretrained(tmp_path / "again")
    again.set_progress_bar_config(disable=True)
    both = [
        one("a square", PICTURE, seed=1, output_type="pt", return_dict=False, **FEW)[0]
        for one in (pipe, again)
    ]
    assert isinstance(both[0], Tensor)
    assert isinstance(both[1], Tensor)
    assert torch.equal(both[0], both[1])


def test_what_does_not_fit_is_refused(pipe: EmuVideoPipeline, tmp_path: Path) -> None:
    for arguments, words in (
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"num_frames": 5000}, "frames=5000 of a video must be 1 to 4096"),
        ({"output_type": "pill"}, "unknown output_type 'pill'.* Did you mean 'pil'"),
        ({"seed": [1, 2]}, "got 2 of seed for 1 results"),
        ({"seed": 1, "generator": torch.Generator()}, "seed and generator exclude each other"),
        (
            {"image": [PICTURE, PICTURE[:, :8]]},
            "pictures of one call need one size, got 16x8, 16x16",
        ),
        ({"fps": 0}, "fps must be at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=words):
            pipe("a square", **{"image": PICTURE, **FEW, **arguments})
    with pytest.raises(InputError, match="the prompt is empty"):
        pipe(" ", PICTURE)
    base = write_base(tmp_path / "base")
    with pytest.raises(InputError, match="draws pictures and no videos"):
        EmuVideoPipeline.from_pretrained(base)
    past = EmuVideoPipeline(module(base, given=GivenFrames(Given.past)).eval().animator())
    with pytest.raises(InputError, match=r"goes on from a video .*kind first"):
        past("a square", PICTURE)
    with pytest.raises(InputError, match=r"float32, got torch\.float16; give a device only"):
        pipe.to(torch.float16)
