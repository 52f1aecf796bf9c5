"""The diffusers pipeline is the editor under other names: the same pixels, whatever is given."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_instruct_pix2pix as ip2p
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from emu_edit.diffusion.samplers import Sampler
from emu_edit.editing.editor import Editor
from emu_edit.editing.pipeline import EmuEditPipeline
from emu_edit.editing.pipeline_base import read_pictures
from emu_edit.editing.settings import Sampling
from emu_edit.editing.task_mix import TaskMix
from emu_edit.errors import InputError
from emu_edit.images import to_float, to_pil
from tests.editing.conftest import SETTINGS, make_editor, make_pipeline, picture

TEXT = "make it red"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(result: object) -> Any:
    """The pictures of a result that is no tuple."""
    assert isinstance(result, ImagePipelineOutput)
    return result.images


def pixels(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_generators_seed_gives_the_editors_pixels(editor: Editor, sampler: Sampler) -> None:
    settings = replace(SETTINGS, sampler=sampler, num_steps=3)
    stepping = make_editor(editor.networks, settings=settings)
    pipe = make_pipeline(stepping)
    image = to_pil(picture(15, 18))
    ours = stepping.edit(image, TEXT, task="local", seed=7)
    (theirs,) = made(pipe(TEXT, image, task="local", generator=seeded(7)))
    assert torch.equal(pixels(theirs), ours)


def test_arguments_override_the_models_settings_as_the_editors_do(
    editor: Editor, pipe: EmuEditPipeline
) -> None:
    ours = editor.edit(
        picture(),
        TEXT,
        task=TaskMix("local", "style", 0.25),
        seed=3,
        negative="blue",
        sampling=Sampling(3, guidance_text=6.0, guidance_image=1.1),
    )
    (theirs,) = made(
        pipe(
            TEXT,
            to_pil(picture()),
            num_inference_steps=3,
            guidance_scale=6.0,
            image_guidance_scale=1.1,
            negative_prompt="blue",
            task="local+style:0.25",
            generator=seeded(3),
        )
    )
    assert torch.equal(pixels(theirs), ours)


def test_the_shared_arguments_stand_where_instruct_pix2pix_has_them() -> None:
    theirs = inspect.signature(ip2p.StableDiffusionInstructPix2PixPipeline.__call__).parameters
    ours = inspect.signature(EmuEditPipeline.__call__).parameters
    assert set(ours) - set(theirs) == {"task", "large", "height", "width"}
    positional = [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)]


def kinds_of_picture() -> dict[str, object]:
    one = picture(15, 18)
    rows = one.permute(1, 2, 0).numpy()
    shares = (to_float(one) + 1) / 2
    locked = rows.copy()
    locked.flags.writeable = False
    return {
        "PIL": to_pil(one),
        "list of PIL": [to_pil(one)],
        "tensor": one,
        "stack of tensors": one[None],
        "list of tensors": [one],
        "float tensor": shares,
        "float64 tensor": shares.double(),
        "array": rows,
        "read-only array": locked,
        "stack of arrays": rows[None],
        "list of arrays": [rows],
        "float array": shares.permute(1, 2, 0).numpy(),
    }


@pytest.mark.parametrize("kind", kinds_of_picture())
def test_every_kind_of_picture_gives_the_same_pixels(
    editor: Editor, pipe: EmuEditPipeline, kind: str
) -> None:
    ours = editor.edit(picture(15, 18), TEXT, task="local", seed=1, sampling=Sampling(1))
    (theirs,) = made(
        pipe(
            TEXT,
            kinds_of_picture()[kind],  # type: ignore[arg-type]
            num_inference_steps=1,
            task="local",
            generator=seeded(1),
        )
    )
    assert torch.equal(pixels(theirs), ours)


def test_the_output_comes_as_asked_and_all_kinds_agree(pipe: EmuEditPipeline) -> None:
    def edit(output_type: str):
        return made(
            pipe(
                TEXT,
                to_pil(picture(15, 18)),
                num_inference_steps=1,
                task="local",
                generator=seeded(1),
                output_type=output_type,
            )
        )

    (pil,), array, tensor = edit("pil"), edit("np"), edit("pt")
    assert isinstance(pil, Image.Image)
    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, Tensor)
    assert (array.shape, array.dtype) == ((1, 15, 18, 3), np.float32)
    assert (tuple(tensor.shape), tensor.dtype) == ((1, 3, 15, 18), torch.float32)
    assert array.min() >= 0
    assert array.max() <= 1
    np.testing.assert_array_equal(np.rint(array[0] * 255).astype(np.uint8), np.asarray(pil))
    np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)


def test_a_tuple_is_returned_when_no_dictionary_is_wanted(pipe: EmuEditPipeline) -> None:
    result = pipe(TEXT, to_pil(picture()), num_inference_steps=1, task="local", return_dict=False)
    assert isinstance(result, tuple)
    assert len(result) == 1
    assert len(result[0]) == 1


def test_lists_are_edited_together_each_with_its_own_seed(
    editor: Editor, pipe: EmuEditPipeline
) -> None:
    images, texts, tasks = [picture(seed=s) for s in (1, 2)], [TEXT, "add a dog"], ["local", "add"]
    ours = editor.edit_batch(torch.stack(images), texts, tasks, [5, 6])
    theirs = made(
        pipe(texts, [to_pil(i) for i in images], task=tasks, generator=[seeded(5), seeded(6)])
    )
    assert torch.equal(torch.stack([pixels(i) for i in theirs]), ours)


def test_one_prompt_serves_many_pictures_and_one_picture_many_prompts(
    editor: Editor, pipe: EmuEditPipeline
) -> None:
    images, texts = torch.stack([picture(seed=s) for s in (1, 2)]), [TEXT, "blur"]
    generators = [seeded(5), seeded(6)]
    many = made(pipe(TEXT, images, task="local", generator=generators, output_type="pil"))
    ours = editor.edit_batch(images, [TEXT] * 2, ["local"] * 2, [5, 6])
    assert torch.equal(torch.stack([pixels(i) for i in many]), ours)
    generators = [seeded(5), seeded(6)]
    one = made(pipe(texts, to_pil(images[0]), task="local", generator=generators))
    ours = editor.edit_batch(images[[0, 0]], texts, ["local"] * 2, [5, 6])
    assert torch.equal(torch.stack([pixels(i) for i in one]), ours)


def test_images_per_prompt_stand_next_to_each_other_and_differ(
    editor: Editor, pipe: EmuEditPipeline
) -> None:
    images = torch.stack([picture(seed=s) for s in (1, 2)])
    four = made(
        pipe(
            [TEXT, "blur"],
            images,
            num_images_per_prompt=2,
            task=["local", "color"],
            generator=[seeded(s) for s in range(4)],
        )
    )
    ours = editor.edit_batch(
        images[[0, 0, 1, 1]],
        [TEXT, TEXT, "blur", "blur"],
        ["local", "local", "color", "color"],
        [0, 1, 2, 3],
    )
    assert torch.equal(torch.stack([pixels(i) for i in four]), ours)
    assert not torch.equal(ours[0], ours[1])


def test_one_generator_is_drawn_from_in_turn_and_advanced(pipe: EmuEditPipeline) -> None:
    generator = seeded(0)
    state = generator.get_state()
    twins = made(pipe(TEXT, [to_pil(picture())] * 2, task="local", generator=generator))
    assert twins[0] != twins[1]
    assert not torch.equal(generator.get_state(), state)
    again = made(pipe(TEXT, [to_pil(picture())] * 2, task="local", generator=seeded(0)))
    assert list(again) == list(twins)


def test_without_a_generator_torchs_global_one_is_used(pipe: EmuEditPipeline) -> None:
    def edit() -> Image.Image:
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(11)
            return made(pipe(TEXT, to_pil(picture()), task="local"))[0]

    with_global = edit()
    assert with_global == edit()
    (given,) = made(pipe(TEXT, to_pil(picture()), task="local", generator=seeded(11)))
    assert given == with_global


def test_a_model_directory_is_loaded_and_saved_with_the_same_pixels(
    editor: Editor, pipe: EmuEditPipeline, tmp_path: Path
) -> None:
    editor.save_pretrained(tmp_path / "model")
    loaded = EmuEditPipeline.from_pretrained(tmp_path / "model")
    loaded.save_pretrained(str(tmp_path / "again"))
    twice = EmuEditPipeline.from_pretrained(str(tmp_path / "again"))
    first = made(pipe(TEXT, to_pil(picture()), task="add", generator=seeded(2)))[0]
    for other in (loaded, twice):
        other.set_progress_bar_config(disable=True)
        assert made(other(TEXT, to_pil(picture()), task="add", generator=seeded(2)))[0] == first


def test_diffusers_machinery_sees_one_component_and_its_device(pipe: EmuEditPipeline) -> None:
    assert pipe.components == {"editor": pipe.editor}
    assert EmuEditPipeline(**pipe.components).editor is pipe.editor
    assert pipe.to("cpu") is pipe
    assert pipe.device == torch.device("cpu")
    assert pipe.dtype == torch.float32
    assert "EmuEditPipeline" in repr(pipe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": [TEXT] * 2, "image": [picture()] * 3}, "got 2 of prompt for 3 results"),
        ({"image": [picture()] * 3, "task": ["add"] * 2}, "got 2 of task for 3 results"),
        ({"generator": [seeded(0)] * 2}, "got 2 generators for 1 results; give one"),
        ({"image": [picture(), picture(16, 20)]}, "need one size, got 16x16, 20x16; make a call"),
        ({"image": []}, "got no image; give at least one picture"),
        ({"image": torch.zeros(16, 16)}, r"image has the shape \(16, 16\), needs 'h w 3'"),
        ({"image": np.zeros((3, 16, 16))}, r"image has the shape \(3, 16, 16\), needs 'h w 3'"),
        ({"image": torch.zeros(3, 8, 8).int()}, "image has torch.int32 values, needs uint8 or"),
        ({"image": torch.full((3, 8, 8), -1.0)}, r"values from -1 to -1, floats must be in \[0,"),
        ({"image": torch.full((3, 8, 8), torch.nan)}, r"values from nan to nan, floats must be"),
        ({"output_type": "latent"}, "unknown output_type 'latent'; known: pil, np, pt"),
        ({"negative_prompt": ["a", "b"]}, "got 2 of negative_prompt for 1 results"),
        ({"height": 0}, "height must be at least 1, got 0"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1, got 0"),
        ({"task": "locall"}, "unknown task 'locall'"),
        ({"task": "local+style:much"}, "the share 'much' is no number"),
        ({"task": None}, "this model has no task predictor"),
        ({"prompt": " "}, "the instruction is empty"),
        ({"num_inference_steps": 0}, "num_steps must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    pipe: EmuEditPipeline, arguments: dict, message: str
) -> None:
    usual = {"prompt": TEXT, "image": picture(), "task": "local"}
    with pytest.raises(InputError, match=message) as refusal:
        pipe(**{**usual, **arguments})
    assert "\n" not in str(refusal.value)


def test_the_name_of_a_picture_is_no_picture() -> None:
    with pytest.raises(InputError, match="image is of type str; give PIL pictures, arrays or ten"):
        read_pictures("photo.png")


@pytest.mark.gpu
def test_a_generator_of_the_gpu_is_refused(pipe: EmuEditPipeline) -> None:
    with pytest.raises(InputError, match="the generator is on cuda"):
        pipe(TEXT, picture(), task="local", generator=torch.Generator("cuda"))
