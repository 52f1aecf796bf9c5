"""Every verb on a model directory that our `export` made of each family's recipe: tiny weights."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import (
    pipeline_stable_diffusion_instruct_pix2pix as pix2pix,
)
from diffusers.pipelines.stable_diffusion_xl import (
    pipeline_stable_diffusion_xl_instruct_pix2pix as pix2pix_xl,
)
from PIL import Image

from emu_edit.cli.main import main
from emu_edit.editing.editor import Editor
from emu_edit.editing.pipeline import EmuEditPipeline
from emu_edit.editing.session import EditSession, TurnSettings
from emu_edit.editing.threshold import is_unchanged, mean_difference
from emu_edit.images import from_pil, read_image
from emu_edit.models.sources import quiet_transformers
from emu_edit.models.task_files import read_task_table
from emu_edit.training.module import EditModule
from emu_edit.video.io import open_video
from tests.datamodules.toy import SaveEverything
from tests.models.conftest import write_stable_diffusion
from tests.models.tiny_flux3 import write_flux3
from tests.models.tiny_published import (
    write_klein,
    write_kontext,
    write_longcat,
    write_qwen,
    write_sdxl,
)
from tests.models.tiny_vae import tiny_vae
from tests.runs.test_runs_configs import build
from tests.training.stage import TRAINER_WARNINGS, Squares, make_trainer
from tests.video.conftest import write_video

pytestmark = [
    pytest.mark.slow,
    *(pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS),
    # numpy 2 on diffusers' `np.array(tensor)`; not ours to fix
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
TIMES = list(range(0, 200, 40))  # of five frames
SMALL = (
    "--model.editor.image_size=16",
    "--model.editor.num_steps=2",
    "--model.denoiser.task_dim=8",
)
QUICK = ("--model.optimizer.lr=1e-2", "--model.optimizer.warmup_steps=0")


def write_sd15(folder: Path) -> None:
    """Write a Stable Diffusion whose autoencoder has no shift, as the real one's."""
    write_stable_diffusion(folder)
    shutil.rmtree(folder / "vae")
    tiny_vae(shift=None).save_pretrained(folder / "vae")


ADAPTED = ("--model.denoiser.lora_rank=2",)  # on a base in bfloat16, as the recipe has it
FAMILIES = {
    "klein": (write_klein, (*ADAPTED, "--model.text_encoder.layers=[1, 2, 3]")),
    "kontext": (write_kontext, (*ADAPTED, "--model.text_encoder.max_tokens=64")),
    "qwen": (write_qwen, ADAPTED),
    "flux3": (write_flux3, (*ADAPTED, "--model.text_encoder.layers=[1, 2, 3]")),
    "longcat": (write_longcat, ADAPTED),
    "sdxl": (write_sdxl, ()),
    "sd15": (write_sd15, ()),
}


def trained(family: str, folder: Path) -> Path:
    """Train the recipe of a family for a step on a tiny base; return the checkpoint."""
    write, options = FAMILIES[family]
    write(folder / "base")
    slots = (f"--model.{slot}.path=base" for slot in ("denoiser", "text_encoder", "codec"))
    tasks = "--model.tasks=[local, add, style]"
    run = folder / "run"
    module = build(family, run, *slots, *options, *SMALL, *QUICK, tasks, "--data.train=none").model
    assert isinstance(module, EditModule)
    trainer = make_trainer(folder, SaveEverything(folder))
    trainer.fit(module, datamodule=Squares(steps=1))
    return folder / "epoch-0.ckpt"


class Made(NamedTuple):
    """A family, and a folder with its `model`, a checkpoint, a picture, pairs and a clip."""

    family: str
    folder: Path


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Made:
    """What the tests need, of a step of the family's recipe."""
    family: str = request.param
    if FAMILIES[family][1]:
        pytest.importorskip("peft", reason="LoRA needs the extra `lora`")
    folder = tmp_path_factory.mktemp(family)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(folder)  # the base is given from here, the model must be read from anywhere
        patch.setenv("WANDB_MODE", "disabled")
        torch.default_generator.manual_seed(0)
        checkpoint = trained(family, folder)
        assert main(["export", str(checkpoint), "-o", "model", "--weights=raw"]) == 0
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(folder / "photo.png")
    for name in ("a.png", "b.png"):
        pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        for side, image in (("source", pixels), ("target", 255 - pixels)):
            (folder / "pairs" / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / "pairs" / side / name)
    write_video(folder / "clip.mp4", TIMES, codec="libx264", pixel_format="yuv420p")
    return Made(family, folder)


def edit(folder: Path, *words: str) -> int:
    model, *rest = words
    return main(["edit", str(folder / "photo.png"), *rest, f"--model={model}", "--device=cpu"])


def refused(capsys: pytest.CaptureFixture[str], said: str) -> None:
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.usefixtures("workplace")
def test_two_turns_keep_what_hardly_changed(made: Made) -> None:
    turns, model = ["make it red", "add a dog"], str(made.folder / "model")
    editor = Editor.from_pretrained(model, "cpu")
    start = EditSession.start(editor, read_image(made.folder / "photo.png"))
    free = TurnSettings("add", threshold=None)
    # some pixels of a turn change more, whatever the family's weights
    alpha = float(mean_difference(start.image, start.edit(turns[0], free).image).median())
    session = [f"--threshold={alpha}", "--task=add", "-o", "session"]
    assert edit(made.folder, model, *turns, *session) == 0
    first = start.edit(turns[0], TurnSettings("add", threshold=alpha))
    whole = first.edit(turns[1], free).image
    kept = is_unchanged(first.image, whole, alpha=alpha)
    assert 0 < kept.float().mean() < 1
    for number, expected in ((1, first.image), (2, torch.where(kept, first.image, whole))):
        assert torch.equal(read_image(f"session/turn-{number:02d}.png"), expected)


def test_the_pipeline_takes_the_precision_of_the_model_and_edits_as_the_editor(made: Made) -> None:
    pipe: Any = EmuEditPipeline.from_pretrained(made.folder / "model")
    pipe.set_progress_bar_config(disable=True)
    image = Image.open(made.folder / "photo.png")
    generator = torch.Generator().manual_seed(7)
    (theirs,) = pipe("make it red", image, task="add", generator=generator).images
    ours = Editor.from_pretrained(made.folder / "model", "cpu").edit(
        image, "make it red", task="add", seed=7
    )
    assert torch.equal(from_pil(theirs), ours)
    is_adapted = made.family not in {"sdxl", "sd15"}
    assert pipe.dtype == (torch.bfloat16 if is_adapted else torch.float32)


def test_a_clip_of_five_frames_is_edited_and_looks_where_there_is_a_u_net(
    made: Made, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["video", str(made.folder / "clip.mp4"), "make it red", "--task=add", "--size=16"]
    asked += [f"--model={made.folder / 'model'}", "--device=cpu", "-o"]
    assert main([*asked, "out.mp4"]) == 0
    edited = list(open_video("out.mp4").frames())
    assert len(edited) == len(TIMES)
    assert edited[0].pixels.shape == (3, 16, 21)
    capsys.readouterr()
    status = main([*asked, "looked.mp4", "--look=anchor"])
    if made.family in {"sdxl", "sd15"}:
        assert status == 0
        return
    assert status == 2
    refused(capsys, "no self-attention that could look at other frames (--look anchor), as a U-")
    assert [path.name for path in workplace.iterdir()] == ["out.mp4"]


@pytest.mark.usefixtures("workplace")
def test_a_task_is_learnt_listed_added_mixed_and_told_of(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(made.folder / "model")
    pairs = ["invert", "--task=flip", f"--data={made.folder / 'pairs'}", "--instruction=invert it"]
    assert main([*pairs, f"--model={model}", "--steps=2", "--batch=2", "--device=cpu"]) == 0
    assert main(["tasks", "add", model, "flip.safetensors", "-o", "more"]) == 0
    assert main(["tasks", "rename", "more", "flip", "flop"]) == 0
    assert read_task_table("more").names == ("local", "add", "style", "flop")
    capsys.readouterr()
    assert main(["tasks", "list", "more", "--json"]) == 0
    assert [row["pairs"] for row in json.loads(capsys.readouterr().out)] == [None, None, None, 2]
    assert edit(made.folder, "more", "invert it", "--task=flop+style:0.5", "-o", "mixed.png") == 0
    assert read_image("mixed.png").shape == (3, 16, 24)
    assert main(["tasks", "remove", "more", "flop"]) == 0


def test_half_of_what_was_learnt_edits_nearly_so(made: Made, workplace: Path) -> None:
    asked = ["export", str(made.folder / "epoch-0.ckpt"), "--weights=raw", "--half", "-o"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)  # where the checkpoint's base is
        assert main([*asked, str(workplace / "half")]) == 0
    names = ("unet/*.safetensors", "transformer/*.safetensors", "*.safetensors")
    whole, half = (
        sum(file.stat().st_size for name in names for file in place.glob(name))
        for place in (made.folder / "model", workplace / "half")
    )
    assert half < 0.8 * whole  # what is small has a long header
    image = read_image(made.folder / "photo.png")
    first, second = (
        Editor.from_pretrained(place, "cpu").edit(image, "make it red", task="add")
        for place in (made.folder / "model", workplace / "half")
    )
    assert (first.float() - second.float()).abs().mean() < 2


@pytest.mark.usefixtures("workplace")
def test_a_task_of_a_u_net_is_a_stock_pipeline_and_of_a_transformer_is_refused(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["export", str(made.folder / "model"), "--merge", "--task=add", "-o", "merged"])
    if made.family not in {"sdxl", "sd15"}:
        assert status == 2
        refused(capsys, "Transformer2DModel, where a task is told by the text's own tokens; edit")
        return
    assert status == 0
    kind: Any = pix2pix.StableDiffusionInstructPix2PixPipeline
    if made.family == "sdxl":
        kind = pix2pix_xl.StableDiffusionXLInstructPix2PixPipeline
    assert f"task add for {kind.__name__} (num_inference_steps=2" in capsys.readouterr().out
    with quiet_transformers():
        pipe = kind.from_pretrained("merged", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 16, "width": 24} if made.family == "sdxl" else {}
    editor = Editor.from_pretrained(made.folder / "model", "cpu")
    guidance = editor.settings.guidance
    image = Image.open(made.folder / "photo.png")
    (theirs,) = pipe(
        "make it red",
        image=image,
        num_inference_steps=2,
        guidance_scale=guidance.text,
        image_guidance_scale=guidance.image,
        generator=torch.Generator().manual_seed(7),
        **size,
    ).images
    ours = editor.edit(image, "make it red", task="add", seed=7)
    assert (from_pil(theirs).float() - ours.float()).abs().max() <= 1
