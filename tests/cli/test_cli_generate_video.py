"""Videos from the command line: trained by a recipe, exported, drawn; what cannot be meant."""

import json
import shutil
from pathlib import Path

import pytest

from emu_edit.cli.main import main
from emu_edit.diffusion.prediction import Prediction
from emu_edit.images import save_png
from emu_edit.tasks import CAPTION
from emu_edit.training.export import export_model
from emu_edit.video.io import open_video
from tests.training.stage import make_module
from tests.training.test_training_video import SIZE, make_clip, module, moved


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model of captions."""
    folder = tmp_path_factory.mktemp("base") / "model"
    make_module(prediction=Prediction.z0, tasks=[CAPTION]).make_editor().save_pretrained(folder)
    return folder


@pytest.fixture
def video_model(base: Path, tmp_path: Path) -> Path:
    export_model(moved(module(base)), tmp_path / "video_model", ema=None)
    return tmp_path / "video_model"


def test_the_verb_writes_a_video_of_a_drawn_or_a_given_picture(
    video_model: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "a square", "--model", str(video_model), "--steps", "1"]
    assert main([*command, "-o", "a.mkv", "--frames", "2", "--rate", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        **{"output": "a.mkv", "caption": "a square", "seed": 0},
        **{"frames": 2, "rate": 5},
    }
    info = open_video("a.mkv").info
    assert (info.frames, info.size, info.rate) == (2, (SIZE, SIZE), 5)
    save_png("photo.png", make_clip(0).target[0][:, :, :12])
    assert main([*command, "-o", "b.gif", "--image", "photo.png"]) == 0
    assert "photo.png is 12x16, the model was trained at 16x16" in capsys.readouterr().err
    assert open_video("b.gif").info.size == (SIZE, 12)
    assert main([*command, "-o", "c.mp4", "--image", "photo.png", "--size", "16"]) == 0
    assert capsys.readouterr().err == ""
    assert open_video("c.mp4").info.size == (21, SIZE)
    assert main([*command, "-o", "picture.png"]) == 0
    assert {path.name for path in workplace.iterdir()} == {
        *("a.mkv", "b.gif", "c.mp4", "photo.png", "picture.png")
    }


@pytest.mark.usefixtures("workplace")
def test_damaged_or_foreign_layers_are_refused_in_one_line(
    base: Path, video_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "a square", "-o", "a.mp4", "--model"]

    def refused(model: Path, *more: str) -> str:
        assert main([*command, str(model), *more]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert not Path("a.mp4").exists()
        return line

    assert "frames=4097 of a video must be 1 to" in refused(video_model, "--frames", "4097")
    assert "draws pictures and no videos (it has no temporal/)" in refused(base)
    other = tmp_path / "other"
    drawing = make_module(prediction=Prediction.z0, tasks=[CAPTION], weights_seed=7)
    drawing.make_editor().save_pretrained(other)
    shutil.copytree(video_model / "temporal", other / "temporal")
    assert "was trained on the base" in refused(other)
    record = video_model / "temporal" / "video.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "frames": 0}))
    assert "video.json: frames is 0, needs a whole number of 1 to" in refused(video_model)
    record.write_text(json.dumps({**values, "zero_terminal_snr": 1}))
    assert "zero_terminal_snr is 1, needs true or false" in refused(video_model)


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_a_recipe_trains_exports_and_draws(base: Path) -> None:
    clips = ("--captions", "--size", "16", "--frames", "3")
    assert main(["shards", "world", "clips", "--clips", "4", *clips]) == 0
    settings = (
        *("--data.train=clips", "--data.image_size=16", "--data.frames=3", "--model.frames=3"),
        *("--data.global_batch=2", "--data.steps_per_epoch=2", "--trainer.max_epochs=1"),
        *("--model.temporal.head_dim=8", "--model.editor.num_steps=1", f"--model.model={base}"),
        *("--trainer.accelerator=cpu", "--trainer.precision=32", "--run=run"),
    )
    assert main(["fit", "--config=emu_video", *settings]) == 0
    assert main(["fit", "--config=emu_video", *settings, "--resume=auto"]) == 0  # writes it again
    assert main(["export", "run", "-o", "exported"]) == 0
    layers = "temporal/temporal.safetensors"
    assert Path("exported", layers).read_bytes() == Path("run/model", layers).read_bytes()
    assert main(["generate", "a red star", "-o", "a.mp4", "--model", "run"]) == 0
    assert open_video("a.mp4").info.frames == 3
