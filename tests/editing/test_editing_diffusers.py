"""What else a diffusers user asks of a pipeline: it works as there, or is refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emu_edit.diffusion.samplers import Sampler
from emu_edit.editing.editor import Editor
from emu_edit.editing.pipeline import EmuEditPipeline
from emu_edit.editing.settings import Sampling
from emu_edit.errors import InputError
from emu_edit.images import resize, to_pil
from tests.editing.conftest import SETTINGS, make_editor, make_pipeline, picture
from tests.editing.test_editing_pipeline import TEXT, made, pixels, seeded


def test_each_prompt_may_have_a_negative_one_of_its_own(
    editor: Editor, pipe: EmuEditPipeline
) -> None:
    texts, negatives = [TEXT, "blur"], ["blue", ""]
    ours = [
        editor.edit(picture(), text, task="local", seed=seed, negative=negative)
        for seed, (text, negative) in enumerate(zip(texts, negatives, strict=True))
    ]
    (first, second) = made(
        pipe(
            texts,
            picture(),
            task="local",
            negative_prompt=negatives,
            generator=[seeded(0), seeded(1)],
        )
    )
    for theirs, alone in zip((first, second), ours, strict=True):
        # sums over other rows round differently: one grey level at most
        assert (pixels(theirs).int() - alone.int()).abs().max() <= 1
    without = made(pipe(TEXT, picture(), task="local", generator=seeded(0)))[0]
    assert (pixels(without).int() - ours[0].int()).abs().max() > 1


def test_one_negative_prompt_for_all_is_the_same_as_one_for_each(pipe: EmuEditPipeline) -> None:
    usual: dict[str, Any] = {"prompt": [TEXT, "blur"], "image": picture(), "task": "local"}
    one = made(pipe(**usual, negative_prompt="blue", generator=seeded(0)))
    assert one == made(pipe(**usual, negative_prompt=["blue"] * 2, generator=seeded(0)))


def test_an_eta_of_one_is_the_euler_ancestral_sampler(
    editor: Editor, pipe: EmuEditPipeline
) -> None:
    ours = editor.edit(
        picture(), TEXT, task="local", seed=1, sampling=Sampling(3, sampler=Sampler.euler_ancestral)
    )
    (theirs,) = made(
        pipe(TEXT, picture(), 3, task="local", eta=1.0, generator=seeded(1)),
    )
    assert torch.equal(pixels(theirs), ours)


def test_an_eta_that_the_sampler_has_not_is_refused(editor: Editor, pipe: EmuEditPipeline) -> None:
    with pytest.raises(
        InputError, match=r"eta 0\.5 cannot be had with the sampler ddim; give 0, o"
    ):
        pipe(TEXT, picture(), task="local", eta=0.5)
    second_order = replace(SETTINGS, sampler=Sampler.dpm_solver_pp_2m)
    pipe = make_pipeline(make_editor(editor.networks, settings=second_order))
    with pytest.raises(InputError, match="eta 1 cannot be had with the sampler dpm_solver_pp_2m"):
        pipe(TEXT, picture(), task="local", eta=1.0)


@pytest.mark.parametrize(
    ("asked", "size"),
    [({"height": 12, "width": 20}, (12, 20)), ({"width": 8}, (16, 8)), ({}, (16, 16))],
)
def test_pictures_are_resized_to_the_height_and_width_asked_for(
    editor: Editor, pipe: EmuEditPipeline, asked: dict[str, Any], size: tuple[int, int]
) -> None:
    ours = editor.edit(resize(picture(), size), TEXT, task="local", seed=1)
    (theirs,) = made(pipe(TEXT, picture(), task="local", generator=seeded(1), **asked))
    assert torch.equal(pixels(theirs), ours)
    assert theirs.size == size[::-1]


def test_pictures_of_several_sizes_are_edited_at_one_that_is_given(pipe: EmuEditPipeline) -> None:
    images = [to_pil(picture()), to_pil(picture(20, 18))]
    two = made(pipe(TEXT, images, task="local", height=16, width=16, generator=seeded(0)))
    assert {image.size for image in two} == {(16, 16)}


def test_the_precision_of_the_weights_may_be_given_and_no_other(
    editor: Editor, pipe: EmuEditPipeline, tmp_path: Path
) -> None:
    assert pipe.to(torch.float32) is pipe
    assert pipe.to("cpu", torch.float32) is pipe
    assert pipe.to(device=torch.device("cpu"), dtype=torch.float32) is pipe
    words = r"precision of its weights, torch.float32, got torch.float16; give a device only, e.g"
    for arguments in ((torch.float16,), ("cpu", torch.float16)):
        with pytest.raises(InputError, match=words):
            pipe.to(*arguments)
    with pytest.raises(InputError, match=words):
        pipe.to(dtype=torch.float16)
    editor.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=words):
        EmuEditPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine that has it")
@pytest.mark.parametrize(("place", "name"), [("cuda", "cuda"), (0, "cuda:0"), ("gpu", "gpu")])
def test_a_device_that_is_not_here_is_refused(
    pipe: EmuEditPipeline, place: str | int, name: str
) -> None:
    with pytest.raises(InputError, match=f"device '{name}' cannot be used here"):
        pipe.to(place)


@pytest.mark.gpu
def test_all_networks_move_to_the_gpu_and_edit_there() -> None:
    pipe = make_pipeline(make_editor())
    before = made(pipe(TEXT, picture(), task="local", generator=seeded(0)))[0]
    assert pipe.to("cuda").device.type == "cuda"
    after = made(pipe(TEXT, picture(), task="local", generator=seeded(0)))[0]
    assert (pixels(after).int() - pixels(before).int()).abs().max() <= 2


@pytest.mark.parametrize(
    "method",
    [
        "enable_model_cpu_offload",
        "enable_sequential_cpu_offload",
        "enable_group_offload",
        "enable_attention_slicing",
        "enable_xformers_memory_efficient_attention",
    ],
)
def test_what_would_do_nothing_is_refused_by_name(pipe: EmuEditPipeline, method: str) -> None:
    with pytest.raises(InputError, match=f"^{method} is not for EmuEditPipeline: .*; ") as refusal:
        getattr(pipe, method)(device="cuda")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "ip_adapter_image"])
def test_arguments_that_are_not_meant_to_work_are_refused_by_name(
    pipe: EmuEditPipeline, name: str
) -> None:
    unmeant: dict[str, Any] = {name: torch.zeros(1)}
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        pipe(TEXT, picture(), task="local", **unmeant)
