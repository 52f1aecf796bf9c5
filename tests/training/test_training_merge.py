"""One task merged into a plain pipeline: diffusers' own class makes of it the pictures we make."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix import (
    StableDiffusionInstructPix2PixPipeline,
)
from safetensors.torch import load_file
from torch import Tensor

from emu_edit.cli.main import main
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.samplers import Sampler
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import RELEASED
from emu_edit.editing.settings import EditorSettings
from emu_edit.editing.task_mix import TaskMix
from emu_edit.errors import InputError
from emu_edit.images import to_pil
from emu_edit.models.codec import KLCodec
from emu_edit.models.interfaces import NUM_TASK_TOKENS, Denoiser
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.sources import quiet_transformers
from emu_edit.models.text import TransformersText
from emu_edit.models.unet import PretrainedUNetDenoiser
from emu_edit.tasks import TaskTable
from emu_edit.training.merge import export_merged
from tests.datamodules.toy_shards import make_folder
from tests.editing.conftest import picture
from tests.end_to_end.test_end_to_end_documented_runs import short_training
from tests.models.conftest import TASK_DIM, small_denoiser
from tests.models.tiny_vae import tiny_vae

TASKS = TaskTable(("local", "style"))
TEXT = "make it red"
# numpy 2 on diffusers' `np.array(tensor)`; not ours to fix
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def base(stable_diffusion: Path, tmp_path: Path) -> Path:
    """A tiny Stable Diffusion whose autoencoder has no shift, as the real one's."""
    folder = shutil.copytree(stable_diffusion, tmp_path / "base")
    tiny_vae(shift=None).save_pretrained(folder / "vae")
    return folder


def trained(
    base: Path,
    prediction: Prediction = Prediction.v,
    sampler: Sampler = Sampler.ddim,
    *,
    num_steps: int = 4,
    scale_condition: bool = False,
    alike: bool = True,
    denoiser: Denoiser | None = None,
    attend_padding: bool = True,
) -> Editor:
    """An editor as training might leave it: every weight moved, tokens alike or not."""
    generator = torch.Generator().manual_seed(1)
    networks = EditNetworks(
        PretrainedUNetDenoiser(str(base), TASK_DIM) if denoiser is None else denoiser,
        TransformersText(str(base), attend_padding=attend_padding),
        KLCodec(str(base), scale_condition=scale_condition),
        task_embedding=TaskEmbedding(len(TASKS), TASK_DIM),
        tasks=TASKS,
    ).eval()
    with torch.no_grad():
        networks.task_embedding.table.normal_(generator=generator)
        for parameter in networks.denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        if alike and isinstance(networks.denoiser, PretrainedUNetDenoiser):
            for rows in networks.denoiser.task_to_tokens.parameters():
                rows.copy_(torch.cat([rows.chunk(NUM_TASK_TOKENS)[0]] * NUM_TASK_TOKENS))
    return Editor(
        networks,
        schedule=NoiseSchedule.scaled_linear(zero_terminal_snr=prediction is not Prediction.eps),
        prediction=prediction,
        settings=EditorSettings(16, Guidance(3.0, 1.5), num_steps, sampler),
    )


def merged_pipe(editor: Editor, folder: Path, task: str = "style", *words: str) -> Any:
    """Return the pipeline of one task, as diffusers alone loads it."""
    editor.save_pretrained(folder / "model")
    out = folder / "merged"
    asked = ["--task", task, "--merge", "-o", str(out), *words]
    assert main(["export", str(folder / "model"), *asked]) == 0
    with quiet_transformers():
        pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(out, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe: Any, editor: Editor, seed: int, **arguments) -> Tensor:
    settings = editor.settings
    (image,) = pipe(
        TEXT,
        to_pil(picture()),
        num_inference_steps=settings.num_steps,
        guidance_scale=settings.guidance.text,
        image_guidance_scale=settings.guidance.image,
        generator=torch.Generator().manual_seed(seed),
        **arguments,
    ).images
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def levels(first: Tensor, second: Tensor) -> float:
    return (first.float() - second.float()).abs().max().item()


@pytest.mark.parametrize(
    ("prediction", "sampler", "num_steps", "scale_condition"),
    [
        (Prediction.v, Sampler.ddim, 4, False),
        (Prediction.eps, Sampler.ddim, 10, False),
        (Prediction.z0, Sampler.ddim, 4, True),
        # step counts that do not divide 1000
        (Prediction.eps, Sampler.dpm_solver_pp_2m, 7, False),
        (Prediction.eps, Sampler.euler_ancestral, 7, False),
    ],
)
def test_diffusers_own_pipeline_makes_our_pictures(
    base: Path,
    tmp_path: Path,
    prediction: Prediction,
    sampler: Sampler,
    num_steps: int,
    scale_condition: bool,
):
    editor = trained(
        base, prediction, sampler, scale_condition=scale_condition, num_steps=num_steps
    )
    pipe = merged_pipe(editor, tmp_path)
    ours = editor.edit(picture(), TEXT, task="style", seed=5)
    assert levels(theirs(pipe, editor, 5), ours) <= 1  # less than half a level, then rounded
    assert levels(editor.edit(picture(), TEXT, task="local", seed=5), ours) > 1


def test_latents_agree_and_ddim_of_diffusers_off_its_grid_does_not(base: Path, tmp_path: Path):
    editor = trained(base)
    pipe = merged_pipe(editor, tmp_path)

    def difference(num_steps: int) -> float:
        seen = []
        editor.edit_batch(
            picture()[None],
            [TEXT],
            ["style"],
            [5],
            settings=replace(editor.settings, num_steps=num_steps),
            on_step=lambda _i, _t, z_t: seen.append(z_t),
        )
        latents = pipe(
            TEXT,
            to_pil(picture()),
            num_inference_steps=num_steps,
            guidance_scale=3.0,
            image_guidance_scale=1.5,
            generator=torch.Generator().manual_seed(5),
            output_type="latent",
        ).images
        return (latents - seen[-1]).abs().max().item()

    assert difference(4) < 1e-3  # float32 tables against float64
    assert difference(7) > 1e-2


def test_tokens_that_are_not_alike_become_their_mean_and_the_difference_is_said(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    editor = trained(base, alike=False)
    merged_pipe(editor, tmp_path)
    told = re.search(
        r"output of its U-Net is ([0-9.]+)% off the model's own", capsys.readouterr().out
    )
    assert told is not None
    assert 0.01 < float(told[1]) < 5
    alike = trained(base)
    alike.save_pretrained(tmp_path / "alike")
    assert export_merged(tmp_path / "alike", tmp_path / "out", "style").deviation < 1e-5


def test_a_base_that_has_learnt_no_task_is_merged_as_it_is(base: Path, tmp_path: Path):
    editor = trained(base)
    for name, values in editor.networks.denoiser.named_parameters():
        if name.startswith("task_to_"):
            values.data.zero_()
    editor.save_pretrained(tmp_path / "model")
    assert export_merged(tmp_path / "model", tmp_path / "out", "style").deviation < 1e-6
    own = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    plain = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert own.keys() == plain.keys()
    assert all(torch.equal(own[name], plain[name]) for name in own)


def test_a_merged_model_is_plain_and_half_of_it_is_a_grey_level_off(base: Path, tmp_path: Path):
    editor = trained(base)
    pipe = merged_pipe(editor, tmp_path, "local+style:0.25", "--half")
    unet = pipe.unet.config
    assert (unet["class_embed_type"], unet["in_channels"]) == (None, 8)
    kinds = {type(one).__name__ for one in pipe.unet.attn_processors.values()}
    assert kinds == {"AttnProcessor2_0"}
    index = json.loads((tmp_path / "merged" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
    ours = editor.edit(picture(), TEXT, task=TaskMix("local", "style", 0.25), seed=5)
    assert levels(theirs(pipe, editor, 5), ours) <= 2
    with pytest.raises(InputError, match="is a diffusers model, not one of this project"):
        Editor.from_pretrained(tmp_path / "merged")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction": Prediction.change}, "it predicts change, the pipeline eps, v or z0"),
        ({"attend_padding": False}, "its text encoder hides the padding, which the pipeline att"),
        ({"denoiser": {"position_octaves": 1}}, "told the pooled text or positions, which no pl"),
        ({"denoiser": {"modulate_by_text": True}}, "told the pooled text or positions, which no"),
    ],
)
def test_what_the_pipeline_cannot_do_is_refused_by_name(
    base: Path, tmp_path: Path, changes: dict[str, Any], words: str
):
    if "denoiser" in changes:
        changes = {"denoiser": small_denoiser(**changes["denoiser"])}
    trained(base, **changes).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=words):
        export_merged(tmp_path / "model", tmp_path / "out", "style")
    assert not (tmp_path / "out").exists()


def test_other_networks_an_unknown_task_and_half_a_request_are_refused(
    base: Path, stable_diffusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shifted = trained(stable_diffusion)
    shifted.save_pretrained(tmp_path / "shifted")
    trained(base).save_pretrained(tmp_path / "model")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    asked = {
        (str(RELEASED), "out", "--task", "local", "--merge"): "autoencoder is not an AutoencoderKL",
        (f"{tmp_path}/shifted", "out", "--task", "style", "--merge"): "without shift_factor",
        (f"{tmp_path}/model", "out", "--task", "styl", "--merge"): "unknown task 'styl'",
        (f"{tmp_path}/model", "out", "--merge"): "--merge makes a model of one task, named by --ta",
        (f"{tmp_path}/model", "out", "--task", "style"): "give both, or neither",
        (
            f"{tmp_path}/model",
            "else",
            "--task",
            "style",
            "--merge",
        ): "exists and is no model direct",
    }
    for (model, out, *words), said in asked.items():
        assert main(["export", model, "-o", str(tmp_path / out), *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_of_the_recipe_sd15_is_merged(
    base: Path, workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    make_folder(workplace / "shards", {"local": 4, "style": 3}, size=16)
    slots = [f"--model.{slot}.path={base}" for slot in ("denoiser", "text_encoder", "codec")]
    few = (*short_training(["fit", "--config", "sd15"]), *slots)
    arguments = ["fit", "--config", "sd15", "--data.train", "shards", "--run", "run", *few]
    assert main(arguments) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "was trained with" in line]
    assert len(said) == 1
    assert said[0].startswith(f"emu-edit: {base}/scheduler/scheduler_config.json: the base was")
    assert main(["export", "run", "--task", "style", "--merge", "-o", "merged"]) == 0
    out = capsys.readouterr().out
    assert "num_inference_steps=50, guidance_scale=7.5, image_guidance_scale=1.5" in out
    assert (workplace / "merged" / "unet" / "config.json").is_file()
