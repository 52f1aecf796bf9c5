"""The diffusers pipeline of videos is `VideoEditor` under other names: the same frames."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.animatediff import pipeline_animatediff_video2video as v2v
from diffusers.utils.export_utils import export_to_gif
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.editing.editor import Editor
from emu_edit.editing.pipeline import EmuEditPipeline
from emu_edit.editing.settings import Sampling
from emu_edit.errors import InputError
from emu_edit.images import save_png, to_float, to_pil
from emu_edit.models.frame_attention import Look
from emu_edit.video.editor import VideoEditor, VideoSettings, VideoTurn
from emu_edit.video.noise import NoiseMode
from emu_edit.video.pipeline import EmuEditVideoPipeline, EmuEditVideoPipelineOutput
from emu_edit.video.windows import Shot

TEXT = "make it red"
TIED = VideoSettings(noise=NoiseMode.mixed, look=Look.anchor, window=3, overlap=1)
LENGTH = 5


def clip(seed: int = 0, size: tuple[int, int] = (16, 16)) -> UInt8[Tensor, "f 3 h w"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (LENGTH, 3, *size), generator=generator, dtype=torch.uint8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def editor(model: Path) -> Editor:
    """The tiny model, with weights that make noise and words matter."""
    editor = Editor.from_pretrained(model, device="cpu")
    generator = seeded(0)
    for parameter in editor.networks.denoiser.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return editor


@pytest.fixture(scope="module")
def pipe(editor: Editor) -> EmuEditVideoPipeline:
    pipe = EmuEditVideoPipeline(editor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edited(pipe: EmuEditVideoPipeline, **arguments: Any) -> UInt8[Tensor, "b f 3 h w"]:
    usual = {"prompt": TEXT, "video": clip(), "task": "local", "seed": 3, "cuts": ()}
    result = pipe(**{**usual, "output_type": "pt", **arguments})
    assert isinstance(result, EmuEditVideoPipelineOutput)
    assert isinstance(result.frames, Tensor)
    return (result.frames * 255).round().to(torch.uint8)


def by_hand(
    editor: Editor,
    turn: VideoTurn,
    settings: VideoSettings = VideoSettings(),
    starts: tuple[int, ...] = (0,),
) -> UInt8[Tensor, "f 3 h w"]:
    shots = [Shot(pixels, number, number in starts) for number, pixels in enumerate(clip())]
    return torch.stack([shot.pixels for shot in VideoEditor(editor, [turn], settings).edit(shots)])


@pytest.mark.parametrize("settings", [VideoSettings(), VideoSettings(threshold=None), TIED])
def test_a_seed_gives_the_video_editors_frames(
    editor: Editor, pipe: EmuEditVideoPipeline, settings: VideoSettings
) -> None:
    ours = by_hand(editor, VideoTurn(TEXT, "local", seed=3), settings, (0, 2))
    assert torch.equal(edited(pipe, settings=settings, cuts=(0, 2))[0], ours)
    assert not torch.equal(edited(pipe, settings=settings, cuts=(0, 2), seed=4)[0], ours)


def test_arguments_override_the_models_settings_as_the_editors_do(
    editor: Editor, pipe: EmuEditVideoPipeline
) -> None:
    turn = VideoTurn(
        TEXT,
        "local",
        negative="blue",
        sampling=Sampling(2, guidance_text=6.0, guidance_image=1.1),
        seed=3,
    )
    theirs = edited(
        pipe,
        num_inference_steps=2,
        guidance_scale=6.0,
        image_guidance_scale=1.1,
        negative_prompt="blue",
    )
    assert torch.equal(theirs[0], by_hand(editor, turn))
    assert not torch.equal(edited(pipe)[0], theirs[0])


def kinds_of_video(folder: Path) -> dict[str, Any]:
    frames = clip()
    rows = frames.permute(0, 2, 3, 1).numpy()
    pictures = [to_pil(pixels) for pixels in frames]
    for number, pixels in enumerate(frames):
        save_png(folder / f"{number}.png", pixels)
    return {
        "PIL pictures": pictures,
        "an array": rows,
        "an array of floats": rows.astype(np.float32) / 255,
        "a tensor of floats": (to_float(frames) + 1) / 2,
        "a list of tensors": list(frames),
        "a list of arrays": list(rows),
        "a list of one video": [pictures],
        "a stack of one video": frames[None],
        "a path": folder,
        "the name of a path": str(folder),
    }


def test_every_kind_of_video_gives_the_same_frames(
    pipe: EmuEditVideoPipeline, tmp_path: Path
) -> None:
    usual = edited(pipe)
    for kind, video in kinds_of_video(tmp_path).items():
        assert torch.equal(edited(pipe, video=video), usual), kind


def test_the_output_has_diffusers_layout_and_all_kinds_agree(
    pipe: EmuEditVideoPipeline, tmp_path: Path
) -> None:
    usual: dict[str, Any] = {"task": "local", "seed": 3, "cuts": ()}
    made: list[Any] = [pipe(TEXT, clip(), output_type=kind, **usual) for kind in ("pil", "np")]
    pil, array = made[0].frames, made[1].frames
    tensor = edited(pipe)
    assert isinstance(pil, list)
    assert tensor.shape == (1, LENGTH, 3, 16, 16)
    assert array.shape == (1, LENGTH, 16, 16, 3)
    assert array.dtype == np.float32
    assert np.array_equal(np.rint(array * 255), tensor.permute(0, 1, 3, 4, 2).numpy())
    assert np.array_equal(np.stack([np.array(one) for one in pil[0]]), np.rint(array[0] * 255))
    alone: Any = pipe(TEXT, clip(), return_dict=False, **usual)
    assert alone == (pil,)
    export_to_gif(pil[0], str(tmp_path / "out.gif"))  # what diffusers' users do next
    assert edited(pipe, video=tmp_path / "out.gif").shape == tensor.shape


def test_results_stand_in_the_order_of_the_prompts_each_with_its_seed(
    pipe: EmuEditVideoPipeline,
) -> None:
    texts, videos = [TEXT, "make it blue"], [clip(), clip(1)]
    both = edited(pipe, prompt=texts, video=videos, seed=[3, 5])
    assert torch.equal(both[0], edited(pipe)[0])
    assert torch.equal(both[1], edited(pipe, prompt=texts[1], video=videos[1], seed=5)[0])
    twice = edited(pipe, prompt=texts, seed=[3, 4, 3, 4], num_videos_per_prompt=2)
    assert torch.equal(twice[0], both[0])
    assert torch.equal(twice[3], edited(pipe, prompt=texts[1], seed=4)[0])


def test_a_generator_is_advanced_and_decides_the_frames(pipe: EmuEditVideoPipeline) -> None:
    generator = seeded(7)
    first, second = (edited(pipe, seed=None, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    again = edited(pipe, seed=None, generator=seeded(7), num_videos_per_prompt=2)
    assert torch.equal(again, torch.cat([first, second]))
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(7)
        assert torch.equal(edited(pipe, seed=None), first)


def test_cuts_are_found_where_none_are_named(pipe: EmuEditVideoPipeline) -> None:
    dark, light = clip() // 8, 255 - clip(1) // 8
    cut = torch.cat([dark[:3], light[:3]])
    found = edited(pipe, video=cut, cuts=None, settings=TIED)
    assert torch.equal(found, edited(pipe, video=cut, cuts=(0, 3), settings=TIED))
    assert not torch.equal(found, edited(pipe, video=cut, cuts=(), settings=TIED))


def test_frames_are_resized_to_the_height_and_width_asked_for(pipe: EmuEditVideoPipeline) -> None:
    assert edited(pipe, height=24, width=20).shape == (1, LENGTH, 3, 24, 20)
    assert torch.equal(edited(pipe, height=16), edited(pipe))


def test_a_callback_hears_of_every_step_and_may_replace_latents(
    pipe: EmuEditVideoPipeline,
) -> None:
    heard: list[tuple[int, int]] = []

    def callback(
        called: EmuEditVideoPipeline, step: int, _: int, given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        assert called is pipe
        heard.append((step, len(given["latents"])))
        return {"latents": torch.zeros_like(given["latents"])} if step == 1 else {}

    changed = edited(pipe, settings=TIED, num_inference_steps=2, callback_on_step_end=callback)
    # windows of 3 that share 1, the second with the scene's anchor before it
    assert heard == [(0, 3), (1, 3), (0, 4), (1, 4)]
    assert not torch.equal(changed, edited(pipe, settings=TIED, num_inference_steps=2))


def test_the_arguments_are_those_of_the_picture_pipeline_and_diffusers() -> None:
    ours = inspect.signature(EmuEditVideoPipeline.__call__).parameters
    pictures = inspect.signature(EmuEditPipeline.__call__).parameters
    renamed = {"image": "video", "num_images_per_prompt": "num_videos_per_prompt"}
    # how a picture larger than the model's is edited; frames are edited at their size
    shared = [renamed.get(name, name) for name in pictures if name != "large"]
    assert [name for name in ours if name in shared] == shared
    assert set(ours) - set(shared) == {"seed", "cuts", "settings"}
    theirs = inspect.signature(v2v.AnimateDiffVideoToVideoPipeline.__call__).parameters
    assert set(shared) - set(theirs) == {"image_guidance_scale", "task"}


def test_a_model_directory_is_loaded_and_moved_as_of_pictures(model: Path) -> None:
    loaded = EmuEditVideoPipeline.from_pretrained(model)
    assert isinstance(loaded, EmuEditVideoPipeline)
    assert loaded.to("cpu", torch.float32) is loaded
    assert EmuEditPipeline(**loaded.components).editor is loaded.editor
    with pytest.raises(InputError, match=r"^enable_model_cpu_offload is not for EmuEditVideoPipel"):
        loaded.enable_model_cpu_offload()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": [TEXT] * 2, "video": [clip()] * 3}, "got 2 of prompt for 3 results"),
        ({"seed": [1, 2]}, "got 2 of seed for 1 results"),
        ({"seed": 1, "generator": seeded(0)}, "seed and generator exclude each other; give one"),
        ({"seed": -1}, "seed"),
        ({"seed": None, "generator": [seeded(0)] * 2}, "got 2 generators for 1 results"),
        ({"video": []}, "got a video without frames; give at least one"),
        ({"video": clip()[:0]}, "got a video without frames; give at least one"),
        ({"video": [*clip()[:2], clip(0, (16, 20))[0]]}, "need one size, got 16x16, 20x16"),
        ({"video": [clip(), clip()[:2]]}, "one pt stack only if they are alike, got 2 frames of"),
        ({"video": "none.mp4"}, "none.mp4: No such file"),
        ({"video": np.zeros((2, 3, 16, 16))}, r"image has the shape \(2, 3, 16, 16\), needs"),
        ({"cuts": [9]}, "a cut at frame 9: the video has the frames 0 to 4"),
        ({"output_type": "latent"}, "unknown output_type 'latent'; known: pil, np, pt"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"task": "locall"}, "unknown task 'locall'"),
        ({"task": None}, "this model has no task predictor"),
        ({"prompt": " "}, "the instruction is empty"),
        ({"eta": 0.5}, "eta 0.5 cannot be had"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "has 'noise'; this pipeline gives"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    pipe: EmuEditVideoPipeline, arguments: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        edited(pipe, **arguments)
    assert "\n" not in str(refusal.value)
