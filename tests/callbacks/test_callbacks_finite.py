# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import re

import pytest
import torch
from lightning import Callback
from torch import Tensor, nn

from callbacks.finite import Finite, NonFiniteError
from emu_edit.errors import InputError
from emu_edit.training.averaging import copy_of
from emu_edit.training.module import EditModule
from tests.training.stage import TRAINER_WARNINGS, Squares, make_module, make_trainer

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


class WeightLog(Callback):
    weights: dict[str, Tensor]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights = copy_of(pl_module)


def spoil(module: EditModule, forward: int, row: int) -> None:
    """Make one row of one forward pass of the denoiser not a number."""
    calls = []

    def hook(_: nn.Module, __: tuple, output: Tensor) -> Tensor | None:
        calls.append(1)
        if len(calls) - 1 != forward:
            return None
        broken = output.clone()
        broken[row] = float("nan")
        return broken

    module.networks.denoiser.register_forward_hook(hook)


def test_a_broken_loss_stops_before_the_weights_and_names_the_sample(tmp_path):
    module, log = make_module(), WeightLog()
    spoil(module, forward=2, row=1)
    # the pair at position 9 of a stream of batches of four: key, task 9 % 3, and its timestep
    message = (
        r"optimizer step 2 is not.*samples: pair-009 \(task local, t=\d+, error nan\); look at"
    )
    with pytest.raises(NonFiniteError, match=message):
        make_trainer(tmp_path, log, Finite()).fit(module, datamodule=Squares(steps=4))
    assert all(torch.equal(tensor, log.weights[name]) for name, tensor in copy_of(module).items())
    assert all(tensor.isfinite().all() for tensor in log.weights.values())


def test_only_the_bad_micro_batch_of_an_accumulated_step_is_named(tmp_path):
    module = make_module()
    spoil(module, forward=2, row=0)
    trainer = make_trainer(tmp_path, Finite(), accumulate_grad_batches=2)
    with pytest.raises(
        NonFiniteError, match=r"optimizer step 1 .*samples: pair-004 \([^)]*\); look"
    ):
        trainer.fit(module, datamodule=Squares(steps=4, batch=2))


def test_a_broken_gradient_alone_stops_too_and_names_every_sample_of_the_step(tmp_path):
    module = make_module()
    module.networks.task_embedding.table.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(
        NonFiniteError, match=r"pair-000 .*pair-001 .*pair-002 .*pair-003"
    ) as caught:
        make_trainer(tmp_path, Finite()).fit(module, datamodule=Squares())
    assert "error nan" not in str(caught.value)
    assert isinstance(caught.value, InputError)


def test_at_most_eight_samples_are_named_and_the_rest_is_counted(tmp_path):
    module = make_module()
    module.networks.task_embedding.table.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(NonFiniteError, match=re.escape(", and 4 more; look at")):
        make_trainer(tmp_path, Finite()).fit(module, datamodule=Squares(batch=12))


def test_a_healthy_run_is_left_alone(tmp_path):
    trainer = make_trainer(tmp_path, Finite(), accumulate_grad_batches=2)
    trainer.fit(make_module(), datamodule=Squares(steps=4))
    assert trainer.global_step == 2
