"""A new training that starts from weights: a checkpoint's, averaged or not, or a model's."""

from pathlib import Path

import pytest
import torch

from callbacks.ema import Ema
from emu_edit.errors import InputError
from emu_edit.models.surgery import freeze
from emu_edit.training.checkpoint_io import read_checkpoint
from emu_edit.training.export import export_model, start_from
from emu_edit.training.module import EditModule
from emu_edit.training.optim import trainable
from tests.training.stage import TRAINER_WARNINGS, Squares, make_module, make_trainer

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
