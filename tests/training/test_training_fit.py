from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader

from callbacks.edit_grid import evaluating
from emu_edit.batch import EditBatch
from emu_edit.diffusion.prediction import Prediction
from emu_edit.models.conditioning import DropoutRates
from emu_edit.training.optim import OptimizerSettings, adamw
from tests.training.stage import (
    TRAINER_WARNINGS,
    Squares,
    make_batch,
    make_module,
    make_sample,
    make_trainer,
    train_step,
)

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


@pytest.mark.slow
def test_a_batch_is_learnt_by_heart_and_its_edit_is_reproduced():
    module = make_module(
        dropout=DropoutRates(text=0.0, image=0.0, both=0.0, task=0.0), prediction=Prediction.change
    )
    batch = make_batch([0, 1, 2, 3])
    optimizer = adamw(module, OptimizerSettings(lr=4e-3, weight_decay=0.0, warmup_steps=0))
    errors = []
    for step in range(200):
        # the same pictures meet new noise in every step, as they would in training
        output = train_step(module, replace(batch, position=batch.position + 4 * step))
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
        errors.append(output["error"].mean().item())
    assert sum(errors[-10:]) < 0.05 * sum(errors[:10])
    with evaluating(module):
        tasks = [module.networks.tasks.names[i] for i in batch.task.tolist()]
        edited = module.make_editor().edit_batch(
            batch.source, list(batch.instruction), tasks, [0, 1, 2, 3]
        )
    away = (edited.float() - batch.target.float()).abs().mean()
    copying = (batch.source.float() - batch.target.float()).abs().mean()
    assert away < 0.15 * copying


def test_fit_logs_losses_moves_the_rate_and_leaves_frozen_parts_frozen(tmp_path):
    module = make_module(optimizer=OptimizerSettings(lr=1e-3, warmup_steps=2))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, datamodule=Squares(steps=3))
    assert trainer.global_step == 6
    assert {"train/loss", "val/loss"} <= trainer.callback_metrics.keys()
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0  # the cosine ends with the run
    changed = [name for name, p in module.named_parameters() if not torch.equal(p, before[name])]
    assert "networks.denoiser.unet.conv_in.weight" in changed
    assert not module.networks.text_encoder.training
    assert not module.networks.codec.training
    assert module.networks.denoiser.training


def test_validation_gives_the_same_loss_every_time_and_in_batches_of_any_size(tmp_path):
    module = make_module()
    losses = []
    for _ in range(2):
        trainer = make_trainer(tmp_path)
        losses.append(trainer.validate(module, datamodule=Squares(), verbose=False)[0]["val/loss"])
    one_by_one = DataLoader(
        [make_sample(i) for i in range(6)],  # type: ignore[arg-type]
        batch_size=1,
        collate_fn=EditBatch.collate,
    )
    (alone,) = make_trainer(tmp_path).validate(module, dataloaders=one_by_one, verbose=False)
    assert losses[0] == losses[1]
    assert alone["val/loss"] == pytest.approx(losses[0], rel=1e-4)


def test_accumulated_micro_batches_make_the_step_of_the_whole_batch(tmp_path):
    whole, parts = make_module(), make_module()
    make_trainer(tmp_path).fit(whole, datamodule=Squares(steps=2, batch=4))
    make_trainer(tmp_path, accumulate_grad_batches=2).fit(
        parts, datamodule=Squares(steps=4, batch=2)
    )
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        # AdamW's first steps have the size of the rate whatever the gradient, so tiny differences
        # show
        assert_close(a, b, rtol=0, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
