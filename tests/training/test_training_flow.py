"""A small editor of the linear path: trained by a config, resumed, exported, edited with."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.testing import assert_close

from callbacks.mixture import SteeredMixture
from callbacks.task_loss import ErrorTable
from emu_edit.diffusion.flow import DynamicShift, FlowSchedule
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.samplers import Sampler
from emu_edit.diffusion.schedule import LogitNormal, NoiseSchedule
from emu_edit.diffusion.weighting import Weighting
from emu_edit.editing.editor import Editor
from emu_edit.editing.manifest import fingerprint
from emu_edit.errors import InputError
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.unet import PretrainedUNetDenoiser
from emu_edit.tasks import CAPTION
from emu_edit.training.checkpoint_io import DurableCheckpointIO
from emu_edit.training.draws import Phase
from emu_edit.training.export import export_checkpoint, start_from
from emu_edit.training.module import EditModule
from emu_edit.training.objective import Objective
from emu_edit.training.optim import with_weights
from emu_edit.training.stored import load_ema, load_module
from emu_edit.training.video_module import VideoModule
from tests.training.stage import TRAINER_WARNINGS, Squares, make_batch, make_module, make_trainer
from tests.training.test_training_checkpoints import DEPRECATED, is_primitive, train_by_config

pytestmark = [pytest.mark.filterwarnings(line) for line in (*TRAINER_WARNINGS, DEPRECATED)]
SHIFTED = FlowSchedule(shift=3.0, shift_terminal=0.1)
NO_DROPOUT = DropoutRates(text=0.0, image=0.0, both=0.0, task=0.0)
OPTIONS = (
    *("--model.prediction=flow", "--model.flow.shift=3", "--model.flow.shift_terminal=0.1"),
    *("--model.logit_normal.mean=0.5", "--model.weighting=uniform"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[EditModule, Path]:
    """Two steps by Lightning's command line."""
    return train_by_config(tmp_path_factory.mktemp("flow"), *OPTIONS)


@pytest.fixture(scope="module")
def exported(trained: tuple[EditModule, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow") / "model"
    export_checkpoint(trained[1], folder)
    return folder


def edits(editor: Editor) -> torch.Tensor:
    batch = make_batch([0, 1])
    return editor.edit_batch(batch.source, list(batch.instruction), ["local", "add"], [3, 4])


def test_options_of_the_command_line_reach_the_module_and_its_checkpoint(trained):
    module, path = trained
    assert module.prediction is Prediction.flow
    assert module.schedule == SHIFTED
    assert module.objective == Objective(logit_normal=LogitNormal(0.5))
    stored = dict(torch.load(path, weights_only=True)["hyper_parameters"])
    assert is_primitive(stored)
    assert load_module(path).schedule == SHIFTED


def test_the_loss_is_the_mean_square_of_the_flow_that_is_missed():
    module = make_module(
        prediction=Prediction.flow, flow=FlowSchedule(shift=3.0), dropout=NO_DROPOUT
    )
    drawn = module.drawn(make_batch([0, 1, 2]), Phase.train)
    with torch.no_grad():
        output = module.step(drawn, dropout=module.dropout)
        z_0, cond, _ = module.encoder(drawn)
        u = drawn.u[:, 0]
        sigma = 3 * u / (1 + 2 * u)
        s = sigma.view(-1, 1, 1, 1)
        v = module.networks.denoiser((1 - s) * z_0 + s * drawn.eps, 1000 * sigma, cond)
        error = (v - (drawn.eps - z_0)).square().mean((1, 2, 3))
    assert_close(output["t"], 1000 * sigma)
    assert_close(output["error"], error)
    assert_close(output["loss"], error.mean())


def test_a_dynamic_shift_draws_noisier_levels_for_larger_pictures():
    flow = FlowSchedule(dynamic=DynamicShift(base_tokens=4, max_tokens=64))
    objective, u = Objective(logit_normal=LogitNormal()), torch.tensor([0.3, 0.6])
    small, large = (objective.timesteps(u, flow, tokens) for tokens in (4, 64))
    assert (large > small).all()
    drawn = make_module(prediction=Prediction.flow, flow=flow)
    output = drawn.step(drawn.drawn(make_batch([0]), Phase.train), dropout=None)
    position = drawn.drawn(make_batch([0]), Phase.train).u[:, 0]
    assert torch.equal(output["t"], flow.draw(position, tokens=16))  # 16 px in patches of 4


@pytest.mark.parametrize("prediction", [Prediction.change, Prediction.z0])
def test_what_predicts_the_clean_latent_may_walk_the_path_too(prediction, tmp_path):
    module = make_module(prediction=prediction, flow=SHIFTED)
    output = module.step(module.drawn(make_batch([0, 1]), Phase.train), dropout=NO_DROPOUT)
    assert output["loss"].isfinite()
    module.eval().save_model(tmp_path / "model")
    loaded = Editor.from_pretrained(tmp_path / "model")
    assert (loaded.prediction, loaded.schedule) == (prediction, SHIFTED)
    assert torch.equal(edits(loaded), edits(module.make_editor()))


def test_training_goes_down_on_the_path(tmp_path):
    module = make_module(prediction=Prediction.flow, dropout=NO_DROPOUT)
    before = module.step(module.drawn(make_batch(range(8)), Phase.test), dropout=None)["loss"]
    make_trainer(tmp_path).fit(module, datamodule=Squares(steps=30))
    after = module.step(module.drawn(make_batch(range(8)), Phase.test), dropout=None)["loss"]
    assert after < 0.97 * before


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_ends_with_the_bits_of_the_uninterrupted_one(tmp_path):
    def run(checkpoint: Path | None, seed: int) -> EditModule:
        module = make_module(
            prediction=Prediction.flow, flow=SHIFTED, logit_normal=LogitNormal(), weights_seed=seed
        )
        keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(
            tmp_path,
            keep,
            max_epochs=2,
            enable_checkpointing=True,
            plugins=[DurableCheckpointIO()],
        )
        trainer.fit(module, datamodule=Squares(steps=2), ckpt_path=checkpoint, weights_only=True)
        return module

    whole = run(None, 0).state_dict()
    resumed = run(tmp_path / "kept" / "epoch=0.ckpt", 7).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_an_exported_model_gives_the_pixels_of_the_averaged_module(trained, exported):
    average, own = load_ema(trained[1]), load_module(trained[1])
    assert average is not None
    editor = Editor.from_pretrained(exported)
    with with_weights(own, average):
        assert torch.equal(edits(editor), edits(own.make_editor()))
    assert Objective.of_editor(editor) == Objective(logit_normal=LogitNormal(0.5))


def test_the_directory_names_a_scheduler_that_diffusers_loads_as_ours(exported, caplog):
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(exported / "scheduler")
    assert (scheduler.config["shift"], scheduler.config["shift_terminal"]) == (3.0, 0.1)
    assert not caplog.records
    index = json.loads((exported / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert Editor.from_pretrained(exported).schedule == SHIFTED


@pytest.mark.parametrize("sampler", list(Sampler))
def test_every_sampler_edits_whole_and_in_turns(exported, sampler):
    editor = Editor.from_pretrained(exported)
    batch = make_batch([0])
    steps = []
    edited = editor.edit_batch(
        batch.source,
        list(batch.instruction),
        ["local"],
        [1],
        settings=replace(editor.settings, sampler=sampler, num_steps=4),
        on_step=lambda _i, t, _z: steps.append(t),
    )
    assert edited.shape == batch.source.shape
    # sigma = 1 - i / 4, shifted, stretched so that the last is 0.1
    signal = [0, 1 / 10, 1 / 4, 1 / 2]
    assert steps == pytest.approx([1000 * (1 - 1.8 * alpha) for alpha in signal])


def test_a_model_of_other_shifts_is_another_model(exported):
    editor = Editor.from_pretrained(exported)
    before = fingerprint(editor)
    editor.schedule = FlowSchedule(shift=3.0)
    assert fingerprint(editor) != before


def test_the_exported_model_is_a_base_that_is_read_as_it_was_trained(exported, trained):
    base = PretrainedUNetDenoiser(str(exported), task_dim=8).trained_as
    assert base is not None
    assert base.schedule(Prediction.flow, zero_terminal_snr=True) == SHIFTED
    assert base.contradiction(Prediction.flow, SHIFTED) is None
    on_table = make_module(prediction=Prediction.z0)
    for start in (exported, trained[1]):
        start_from(on_table, start)
        assert str(on_table.contradiction).endswith("as it is: --model.prediction flow")


def test_a_damaged_directory_is_refused_by_its_file(exported, tmp_path):
    Editor.from_pretrained(exported).save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "shift": "three"}))
    with pytest.raises(InputError, match=r"scheduler_config\.json: .* shift 'three', needs a num"):
        Editor.from_pretrained(tmp_path / "model")
    file.write_text(json.dumps(NoiseSchedule.scaled_linear().to_config()))
    with pytest.raises(InputError, match=r"scheduler_config\.json: prediction 'flow' is of the"):
        Editor.from_pretrained(tmp_path / "model")


def test_models_of_two_paths_have_no_mean(trained, tmp_path):
    checkpoint = torch.load(trained[1], weights_only=True)
    for prediction, flow, name in (("z0", None, "table"), ("z0", {"shift": 3.0}, "path")):
        checkpoint["hyper_parameters"] |= {"prediction": prediction, "flow": flow}
        torch.save(checkpoint, tmp_path / name)
    with pytest.raises(InputError, match=r"was trained with schedule FlowSchedule and .* NoiseSch"):
        export_checkpoint(tmp_path / "table", tmp_path / "model", others=[tmp_path / "path"])


def test_what_does_not_go_with_the_path_is_refused(tmp_path):
    with pytest.raises(InputError, match=re.escape("model.prediction='v' does not go with the li")):
        make_module(prediction=Prediction.v, flow=SHIFTED)
    own = make_module(prediction=Prediction.flow)
    with pytest.raises(InputError, match="min_snr' gives weight 0"):
        Objective(Weighting.min_snr).check(Prediction.flow, own.schedule)
    with pytest.raises(InputError, match="compares errors of flow with copying's"):
        make_trainer(tmp_path, SteeredMixture()).fit(own, datamodule=Squares())


def test_videos_walk_a_table(tmp_path):
    drawing = make_module(prediction=Prediction.flow, tasks=[CAPTION])
    drawing.make_editor().save_pretrained(tmp_path / "path")
    with pytest.raises(InputError, match="videos are trained on a table of steps, not on the line"):
        VideoModule(str(tmp_path / "path"), prediction=Prediction.v)


def test_an_objective_without_a_density_keeps_its_bytes_and_a_broken_one_is_refused():
    assert "logit_normal" not in Objective().to_dict()
    usual = Objective.usual(Prediction.flow)
    assert Objective.from_dict(usual.to_dict(), where="x") == usual
    for broken, words in ((3, "must be a JSON object"), ({"mean": 0, "std": 0}, "std above 0")):
        with pytest.raises(InputError, match=words):
            Objective.from_dict({**usual.to_dict(), "logit_normal": broken}, where="x")


def test_noise_alone_counts_in_the_noisiest_bin():
    table = ErrorTable(("local",), 1000)
    task, t = torch.zeros(4, dtype=torch.int64), torch.tensor([1.0, 249.9, 999.9, 1000.0])
    table.update(task, t, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert {k: cell["count"] for k, cell in table.compute()["local"].items()} == {
        "t0-250": 2,
        "t750-1000": 2,
        "all": 4,
    }


def test_a_denoiser_of_fractions_is_between_its_neighbours():
    """Its embedding of time is continuous: nothing rounds on the way."""
    module = make_module(prediction=Prediction.flow, position_octaves=2).eval()
    for parameter in module.networks.denoiser.parameters():
        parameter.data += 0.02
    text, _ = module.networks.encode_text(["make it red"])
    z = torch.randn(1, 48, 4, 4, generator=torch.Generator().manual_seed(0))
    cond = Conditioning(text, torch.zeros_like(z), torch.zeros(1, 8))
    with torch.no_grad():
        low, middle, high = (
            module.networks.denoiser(z, torch.tensor([t]), cond) for t in (500.0, 500.5, 501.0)
        )
        whole = module.networks.denoiser(z, torch.tensor([500]), cond)
    assert torch.equal(low, whole)
    assert not torch.equal(middle, low)
    assert (middle - (low + high) / 2).abs().max() < (high - low).abs().max()
