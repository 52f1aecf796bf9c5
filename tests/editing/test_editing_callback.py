"""What a callback of the pipeline is told after each step, and what it may put in its place."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.diffusion.samplers import Sampler
from emu_edit.editing.editor import Editor
from emu_edit.editing.pipeline import EmuEditPipeline
from emu_edit.editing.settings import Sampling
from emu_edit.editing.task_mix import task_vectors
from emu_edit.errors import InputError
from emu_edit.images import to_float, to_uint8
from emu_edit.models.interfaces import Conditioning
from tests.editing.conftest import SETTINGS, make_editor, make_pipeline, picture

TEXT = "make it red"
PLAIN = {"guidance_scale": 1.0, "image_guidance_scale": 1.0}  # one branch of the network


def edited(pipe: EmuEditPipeline, **arguments: Any) -> UInt8[Tensor, "b 3 h w"]:
    usual = {"prompt": TEXT, "image": picture(), "task": "local", "num_inference_steps": 2}
    generator = torch.Generator().manual_seed(7)
    shown = {"output_type": "pt", "return_dict": False, "generator": generator}
    (pictures,) = pipe(**{**usual, **shown, **arguments})
    assert isinstance(pictures, Tensor)
    return to_uint8(pictures * 2 - 1)


def with_sampler(editor: Editor, sampler: Sampler) -> EmuEditPipeline:
    return make_pipeline(make_editor(editor.networks, settings=replace(SETTINGS, sampler=sampler)))


def test_the_callback_hears_of_every_step_with_its_timestep_and_latents(
    pipe: EmuEditPipeline,
) -> None:
    heard: list[tuple[object, int, int, dict[str, Tensor]]] = []

    def listen(
        pipeline: EmuEditPipeline, step: int, timestep: int, kwargs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        heard.append((pipeline, step, timestep, kwargs))
        return kwargs

    images = [picture(seed=seed) for seed in range(3)]
    edited(pipe, image=images, num_inference_steps=4, callback_on_step_end=listen)
    scheduler = DDIMScheduler.from_config(pipe.editor.schedule.to_config())
    assert isinstance(scheduler, DDIMScheduler)
    scheduler.set_timesteps(4)
    steps = [(pipeline, step, timestep) for pipeline, step, timestep, _ in heard]
    assert steps == [(pipe, i, t) for i, t in enumerate(scheduler.timesteps.tolist())]
    for *_, kwargs in heard:
        assert list(kwargs) == ["latents"]
        assert kwargs["latents"].shape == (3, 12, 8, 8)
        assert kwargs["latents"].dtype == torch.float32
    last = pipe.editor.networks.codec.decode(heard[-1][3]["latents"])
    assert torch.equal(to_uint8(last), edited(pipe, image=images, num_inference_steps=4))


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_callback_that_gives_back_what_it_got_changes_nothing(
    editor: Editor, sampler: Sampler
) -> None:
    pipe = with_sampler(editor, sampler)
    ours = editor.edit(picture(), TEXT, task="local", seed=7, sampling=Sampling(3, sampler=sampler))
    for answer in (
        lambda kwargs: kwargs,
        lambda kwargs: {"latents": kwargs["latents"].double()},
        lambda _kwargs: {},
        lambda _kwargs: None,
    ):
        theirs = edited(
            pipe,
            num_inference_steps=3,
            callback_on_step_end=lambda _p, _i, _t, kwargs, answer=answer: answer(kwargs),
        )
        assert torch.equal(theirs[0], ours)


@pytest.mark.parametrize("sampler", list(Sampler))
@torch.no_grad()
def test_latents_set_to_zero_are_edited_on_from_as_computed_by_hand(
    editor: Editor, sampler: Sampler
) -> None:
    networks = editor.networks
    text, _ = networks.encode_text([TEXT])
    z_source = networks.codec.encode_condition(to_float(picture()[None]))
    zeros, t = torch.zeros_like(z_source), torch.tensor([499])
    cond = Conditioning(text, z_source, task_vectors(networks, ["local"]))
    # the last step of all samplers returns z_0_hat, which is z_source + f here
    after_first = z_source + networks.denoiser(zeros, t, cond)
    for step, z_0 in ((0, after_first), (1, zeros)):

        def blank(
            _pipeline: object, i: int, _t: int, kwargs: dict[str, Tensor], at: int = step
        ) -> dict[str, Tensor]:
            return {"latents": kwargs["latents"] * (i != at)}

        pictures = edited(with_sampler(editor, sampler), callback_on_step_end=blank, **PLAIN)
        assert torch.equal(pictures, to_uint8(networks.codec.decode(z_0)))
        assert not torch.equal(pictures, edited(with_sampler(editor, sampler), **PLAIN))


def test_latents_can_be_replaced_without_having_been_asked_for(pipe: EmuEditPipeline) -> None:
    seen: list[dict[str, Tensor]] = []

    def blank(_p: object, _i: int, _t: int, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(kwargs)
        return {"latents": torch.zeros(1, 12, 8, 8)}

    without = edited(
        pipe, callback_on_step_end=blank, callback_on_step_end_tensor_inputs=[], **PLAIN
    )
    assert seen == [{}, {}]
    assert torch.equal(without, edited(pipe, callback_on_step_end=blank, **PLAIN))


class Halved(PipelineCallback):
    """One of diffusers' callbacks: says by itself which tensors it wants."""

    @property
    def tensor_inputs(self) -> list[str]:
        return ["latents"]

    def callback_fn(
        self, pipeline: object, step_index: int, timesteps: int, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        del pipeline, step_index, timesteps
        return {"latents": callback_kwargs["latents"] / 2}


def test_diffusers_own_callbacks_bring_their_names(pipe: EmuEditPipeline) -> None:
    def quartered(_p: object, _i: int, _t: int, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": kwargs["latents"] / 4}

    twice = MultiPipelineCallbacks([Halved(), Halved()])
    # the names beside it are not looked at, as in diffusers
    pictures = edited(
        pipe, callback_on_step_end=twice, callback_on_step_end_tensor_inputs=["image_latents"]
    )
    assert torch.equal(pictures, edited(pipe, callback_on_step_end=quartered))
    with pytest.raises(InputError, match=r"tensor_inputs has 'prompt_embeds'; this pipeline gives"):
        edited(pipe, callback_on_step_end=SDCFGCutoffCallback())


def test_the_pipeline_names_what_its_callbacks_may_ask_for(pipe: EmuEditPipeline) -> None:
    assert pipe._callback_tensor_inputs == ["latents"]


@pytest.mark.parametrize(
    ("names", "answer", "message"),
    [
        (
            ["latents", "image_latents", "prompt_embeds"],
            {},
            "callback_on_step_end_tensor_inputs has 'image_latents', 'prompt_embeds'; this pipeli",
        ),
        (
            ["latents"],
            {"latents": torch.zeros(1, 12, 8, 8), "prompt_embeds": torch.zeros(1)},
            "callback_on_step_end returned 'prompt_embeds'; this pipeline gives and takes 'la",
        ),
        (
            ["latents"],
            {"latents": torch.zeros(2, 12, 8, 8)},
            r"returned latents of \(2, 12, 8, 8\), needs a tensor of \(1, 12, 8, 8\), the shape of",
        ),
        (["latents"], {"latents": None}, r"returned latents of NoneType, needs a tensor of \(1, 1"),
    ],
)
def test_what_a_callback_can_neither_have_nor_replace_is_refused_in_one_line(
    pipe: EmuEditPipeline, names: list[str], answer: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        edited(
            pipe,
            callback_on_step_end=lambda *_: answer,
            callback_on_step_end_tensor_inputs=names,
        )
    assert "\n" not in str(refusal.value)
