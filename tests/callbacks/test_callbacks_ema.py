# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import re
from pathlib import Path

import pytest
import torch
from lightning import Callback
from torch import Tensor, nn
from torch.testing import assert_close

from callbacks.ema import Ema
from emu_edit.errors import InputError
from emu_edit.training.optim import (
    check_matches,
    copy_of,
    decay_at,
    trainable,
    update,
    with_weights,
)
from tests.training.stage import TRAINER_WARNINGS, Squares, make_module, make_trainer

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


class WeightLog(Callback):
    """Keep the weights after every step, before the average sees them."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append(copy_of(pl_module))


class Break(Callback):
    """Fail in the middle of validation."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        raise KeyError("broken on purpose")


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainable(module).items()}


@pytest.mark.parametrize(("n", "decay"), [(0, 0.1), (1, 2 / 11), (90, 0.91), (10**6, 0.999)])
def test_the_decay_grows_from_a_tenth_to_its_limit(n, decay):
    assert decay_at(n, 0.999) == pytest.approx(decay)


def test_an_update_moves_the_average_by_the_complement_of_the_decay():
    module = nn.Linear(1, 1)
    average = {"weight": torch.tensor([[1.0]]), "bias": torch.tensor([2.0])}
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.bias.fill_(-2.0)
    update(average, module, decay=0.75)
    assert_close(average, {"weight": torch.tensor([[1.5]]), "bias": torch.tensor([1.0])})


def test_the_average_is_float32_and_leaves_frozen_weights_out():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)).to(
        torch.bfloat16
    )
    average = copy_of(module)
    assert set(average) == {"0.weight", "0.bias"}
    assert {tensor.dtype for tensor in average.values()} == {torch.float32}


def test_lent_weights_go_back_bit_by_bit_also_after_an_exception():
    module = nn.Linear(2, 2)
    own = weights_of(module)
    lent = {name: tensor + 1 for name, tensor in own.items()}
    with pytest.raises(KeyError), with_weights(module, lent):  # noqa: PT012
        assert torch.equal(module.weight, lent["weight"])
        raise KeyError
    assert all(torch.equal(tensor, own[name]) for name, tensor in weights_of(module).items())


def test_averages_of_another_model_are_refused():
    with pytest.raises(
        InputError, match=re.escape("bias is (3,) in the checkpoint, (2,) in the model")
    ):
        check_matches(copy_of(nn.Linear(2, 3)), nn.Linear(2, 2))
    with pytest.raises(
        InputError, match=re.escape("bias is absent in the checkpoint, (2,) in the model")
    ):
        check_matches(copy_of(nn.Linear(2, 2, bias=False)), nn.Linear(2, 2))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_decay_is_refused(decay):
    with pytest.raises(InputError, match=re.escape("must be in [0, 1)")):
        Ema(decay)


def test_training_averages_once_per_optimizer_step_by_the_formula(tmp_path):
    module, ema, log = make_module(), Ema(0.15), WeightLog()
    expected = copy_of(module)
    trainer = make_trainer(tmp_path, log, ema, accumulate_grad_batches=2, limit_val_batches=0)
    trainer.fit(module, datamodule=Squares(steps=6, batch=2))
    for n, weights in enumerate(log.weights[1::2]):
        d = min(0.15, (1 + n) / (10 + n))
        expected = {name: d * expected[name] + (1 - d) * weights[name] for name in expected}
    assert ema.num_updates == 3
    assert ema.average is not None
    assert_close(ema.average, expected, rtol=1e-5, atol=1e-7)


def test_validation_runs_with_the_average_and_training_with_its_own_weights(tmp_path):
    class Look(Callback):
        seen: dict[str, Tensor]

        def on_validation_batch_end(
            self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
        ):
            self.seen = weights_of(pl_module)

    module, ema, log, look = make_module(), Ema(), WeightLog(), Look()
    make_trainer(tmp_path, log, ema, look).fit(module, datamodule=Squares(steps=3))
    assert ema.average is not None
    assert_close(look.seen, ema.average, rtol=0, atol=0)
    assert_close(weights_of(module), log.weights[-1], rtol=0, atol=0)
    name = "networks.denoiser.unet.conv_in.weight"
    assert not torch.equal(look.seen[name], log.weights[-1][name])


def test_an_exception_in_validation_gives_the_trained_weights_back(tmp_path):
    module, ema, log = make_module(), Ema(), WeightLog()
    with pytest.raises(KeyError, match="broken on purpose"):
        make_trainer(tmp_path, log, ema, Break()).fit(module, datamodule=Squares(steps=3))
    assert not ema.is_swapped
    assert_close(weights_of(module), log.weights[-1], rtol=0, atol=0)


def test_a_checkpoint_is_not_written_while_the_average_is_lent(tmp_path):
    class SaveInValidation(Callback):
        def on_validation_batch_end(
            self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
        ):
            trainer.save_checkpoint(tmp_path / "swapped.ckpt")

    with pytest.raises(RuntimeError, match="while the module holds averaged weights"):
        make_trainer(tmp_path, Ema(), SaveInValidation()).fit(make_module(), datamodule=Squares())
    assert not Path(tmp_path / "swapped.ckpt").exists()


def test_validating_a_checkpoint_uses_the_average_it_holds(tmp_path):
    module = make_module()
    trainer = make_trainer(tmp_path, Ema())
    trainer.fit(module, datamodule=Squares(steps=3))
    inside = trainer.callback_metrics["val/loss"].item()
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fresh = make_module(weights_seed=1)
    (with_ema,) = make_trainer(tmp_path, Ema()).validate(
        fresh, datamodule=Squares(), ckpt_path=tmp_path / "a.ckpt", weights_only=True, verbose=False
    )
    # the module now holds the checkpoint's raw weights
    (raw,) = make_trainer(tmp_path).validate(fresh, datamodule=Squares(), verbose=False)
    assert with_ema["val/loss"] == pytest.approx(inside, rel=1e-6)
    assert raw["val/loss"] != pytest.approx(inside, rel=1e-6)
