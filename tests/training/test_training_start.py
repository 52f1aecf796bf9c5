"""A new training that starts from weights: a base's, a checkpoint's, averaged or not, or a model's.

What the weights were trained for decides, or contradicts loudly.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from callbacks.ema import Ema
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.errors import InputError
from emu_edit.models import sources
from emu_edit.models.codec import KLCodec
from emu_edit.models.surgery import freeze
from emu_edit.models.text import TransformersText
from emu_edit.models.unet import PretrainedUNetDenoiser
from emu_edit.training.checkpoint_io import read_checkpoint
from emu_edit.training.export import export_model, start_from
from emu_edit.training.module import EditModule
from emu_edit.training.optim import trainable
from tests.training.stage import TRAINER_WARNINGS, Squares, make_module, make_trainer
from tests.training.video_stage import module as module_of_videos
from tests.training.video_stage import write_base

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


def assert_equal_weights(module: EditModule, other: EditModule) -> None:
    given = trainable(other)
    assert trainable(module).keys() == given.keys()
    for name, parameter in trainable(module).items():
        assert torch.equal(parameter, given[name]), name


def trained(folder: Path, *callbacks: Ema) -> Path:
    """Train two steps and return the checkpoint."""
    trainer = make_trainer(folder, *callbacks, max_steps=2)
    trainer.fit(make_module(), datamodule=Squares())
    path = folder / "some.ckpt"
    trainer.save_checkpoint(path)
    return path


def test_a_model_directory_gives_its_weights_bit_by_bit(tmp_path: Path):
    other = make_module(weights_seed=1)
    export_model(other, tmp_path / "model", ema=None)
    module = make_module(weights_seed=0)
    start_from(module, tmp_path / "model")
    assert_equal_weights(module, other)


def test_a_checkpoint_gives_its_weights_and_no_step_count(tmp_path: Path):
    path = trained(tmp_path)
    module = make_module(weights_seed=5)
    start_from(module, path)
    state = read_checkpoint(path)["state_dict"]
    assert all(torch.equal(p, state[name]) for name, p in trainable(module).items())
    assert make_trainer(tmp_path).global_step == 0


def test_averaged_weights_are_preferred(tmp_path: Path):
    path = trained(tmp_path, Ema(decay=0.5))
    checkpoint = read_checkpoint(path)
    average = checkpoint["callbacks"]["emu_edit.ema"]["average"]
    assert any(not torch.equal(average[n], checkpoint["state_dict"][n]) for n in average)
    module = make_module(weights_seed=5)
    start_from(module, path)
    assert all(torch.equal(p, average[name]) for name, p in trainable(module).items())


def test_weights_that_are_read_as_another_prediction_are_said_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    export_model(make_module(), tmp_path / "model", ema=None)
    module = make_module(prediction=Prediction.z0)
    start_from(module, tmp_path / "model")
    make_trainer(tmp_path, max_steps=1).fit(module, datamodule=Squares())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"emu-edit: {tmp_path}/model/scheduler/scheduler_config.json: the base")
    assert "trained with prediction_type 'change'" in line
    assert "read as model.prediction z0, model.zero_terminal_snr true" in line
    assert line.endswith("as it is: --model.prediction change --model.zero_terminal_snr true")
    same = make_module()
    start_from(same, tmp_path / "model")
    assert same.contradiction is None


def test_a_checkpoint_of_another_prediction_contradicts_too(tmp_path: Path):
    path = trained(tmp_path)
    checkpoint = read_checkpoint(path)
    checkpoint["hyper_parameters"] = {"prediction": "v"}
    torch.save(checkpoint, path)
    module = make_module()
    start_from(module, path)
    assert module.contradiction is not None
    assert module.contradiction.startswith(f"{path}: the base was trained with prediction_type 'v'")


def test_what_is_frozen_stays_as_it_is(tmp_path: Path):
    export_model(make_module(weights_seed=1), tmp_path / "model", ema=None)
    module = make_module(weights_seed=0)
    freeze(module.networks.text_encoder)
    before = {name: p.clone() for name, p in module.networks.text_encoder.named_parameters()}
    start_from(module, tmp_path / "model")
    after = dict(module.networks.text_encoder.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_without_positions_starts_one_that_has_them(tmp_path: Path):
    other = make_module(weights_seed=1)
    export_model(other, tmp_path / "model", ema=None)
    module = make_module(weights_seed=0, position_octaves=2)
    start_from(module, tmp_path / "model")
    old = dict(other.named_parameters())
    new = {n: p for n, p in module.named_parameters() if n not in old}
    assert new
    assert all(".positions." in name and not p.any() for name, p in new.items())
    assert all(torch.equal(p, old[n]) for n, p in module.named_parameters() if n in old)


def test_a_model_of_other_tasks_is_refused(tmp_path: Path):
    export_model(make_module(), tmp_path / "model", ema=None)
    with pytest.raises(InputError, match="style"):
        start_from(make_module(tasks=["local", "add", "depth"]), tmp_path / "model")


def test_weights_of_other_networks_are_refused_by_name(tmp_path: Path):
    path = trained(tmp_path)
    module = make_module()
    module.networks.denoiser.register_module("task_to_time", torch.nn.Linear(3, 3))
    reason = r"the weights of .*some\.ckpt are of another model: .*task_to_time\.bias is .* \(3,\)"
    with pytest.raises(InputError, match=reason):
        start_from(module, path)


def test_no_checkpoint_is_refused(tmp_path: Path):
    (tmp_path / "x.ckpt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="truncated or not a checkpoint"):
        start_from(make_module(), tmp_path / "x.ckpt")


ENDS = {"rescale_betas_zero_snr": True}
AS_IT_IS = "; to go on as it is: --model.prediction {} --model.zero_terminal_snr {}"


@pytest.fixture
def base(stable_diffusion: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stable_diffusion, tmp_path / "base")


def say(base: Path, **changes: object) -> Path:
    """Change the base's scheduler config, which is in diffusers' own format."""
    file = base / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return file


def module_of(base: Path, prediction: Prediction, *, ends: bool, unet: str = "") -> EditModule:
    return EditModule(
        PretrainedUNetDenoiser(str(base / unet), 8),
        TransformersText(str(base)),
        KLCodec(str(base)),
        prediction=prediction,
        zero_terminal_snr=ends,
    )


@pytest.mark.parametrize("unet", ["", "unet"])
@pytest.mark.parametrize(
    ("says", "prediction", "ends", "words"),
    [
        ({}, Prediction.v, True, AS_IT_IS.format("eps", "false")),
        ({}, Prediction.v, False, AS_IT_IS.format("eps", "false")),
        ({}, Prediction.eps, False, None),
        ({"prediction_type": "v_prediction"}, Prediction.eps, False, AS_IT_IS.format("v", "false")),
        ({"prediction_type": "v_prediction"}, Prediction.v, True, AS_IT_IS.format("v", "false")),
        ({"prediction_type": "v_prediction"} | ENDS, Prediction.v, True, None),
        ({"prediction_type": "sample"}, Prediction.z0, False, None),
    ],
)
def test_what_the_base_was_trained_for_is_what_it_is_read_as_or_said(
    base: Path, says: dict, prediction: Prediction, ends: bool, words: str | None, unet: str
):
    file = say(base, **says)
    said = module_of(base, prediction, ends=ends, unet=unet).contradiction
    if words is None:
        assert said is None
        return
    assert said is not None
    assert "\n" not in said
    assert said.startswith(f"{file}: the base was trained with prediction_type")
    assert f"read as model.prediction {prediction.name}, model.zero_terminal_snr" in said
    assert said.endswith(words)


def test_a_base_that_says_nothing_is_said_to_say_nothing(base: Path):
    shutil.rmtree(base / "scheduler")
    words = "scheduler_config.json is missing, so nothing says what the base predicts; read as mode"
    assert words in str(module_of(base, Prediction.v, ends=True).contradiction)


def test_the_betas_of_the_base_decide(base: Path):
    say(base, beta_end=0.02, num_train_timesteps=500)
    schedule = module_of(base, Prediction.eps, ends=False).schedule
    assert isinstance(schedule, NoiseSchedule)
    assert (schedule.beta_range, schedule.num_steps) == ((0.00085, 0.02), 500)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({"beta_schedule": "linear"}, "has betas 'linear'; only 'scaled_linear' can be read"),
        ({"trained_betas": [0.1, 0.2]}, "has betas 'trained_betas'; only"),
        ({"beta_start": "little"}, "has beta_start 'little', needs a number"),
        ({"prediction_type": "flux"}, "has prediction_type 'flux', needs one of epsilon, v_pred"),
    ],
)
def test_a_base_that_cannot_be_read_is_refused_by_its_file(base: Path, says: dict, words: str):
    file = say(base, **says)
    with pytest.raises(InputError, match=words) as refusal:
        module_of(base, Prediction.v, ends=True)
    assert str(file) in str(refusal.value)


def test_on_the_hub_the_same_file_is_asked_for(base: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        if name == "owner/none":
            raise FileNotFoundError(file)
        return str(base / file)

    monkeypatch.setattr(sources, "hf_hub_download", download)
    told = sources.find_training(sources.PartSource("owner/name", "unet"))
    assert told.where == "owner/name/scheduler/scheduler_config.json"
    assert told.config["prediction_type"] == "epsilon"
    assert not sources.find_training(sources.PartSource("owner/none", "unet")).config
    assert {file for _, file in asked} == {"scheduler/scheduler_config.json"}


def test_layers_of_videos_are_taken_from_a_model_directory(tmp_path: Path):
    base = write_base(tmp_path / "base")
    trained = module_of_videos(base)
    with torch.no_grad():
        for parameter in trainable(trained).values():
            parameter.add_(0.25)
    export_model(trained, tmp_path / "model", ema=None)
    other = module_of_videos(base, prediction=Prediction.v)
    start_from(other, tmp_path / "model")
    assert_equal_weights(other, trained)
    assert other.contradiction is not None
    assert "v" in other.contradiction
    start_from(same := module_of_videos(base), tmp_path / "model")
    assert same.contradiction is None
    with pytest.raises(InputError, match=r"the weights of .*base"):
        start_from(other, base)
