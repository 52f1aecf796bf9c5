import pytest
import torch
from lightning import Callback
from torch.testing import assert_close

from emu_edit.models.dropout import DropoutRates
from emu_edit.training.draws import Phase
from tests.training.stage import (
    TRAINER_WARNINGS,
    Squares,
    make_batch,
    make_module,
    make_trainer,
    train_step,
)

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


def test_a_timestep_shift_trains_at_higher_noise():
    module = make_module()
    batch = make_batch(list(range(16)))
    plain = train_step(module, batch)["t"]
    module.timestep_shift = 20.0
    shifted = train_step(module, batch)["t"]
    assert (shifted >= plain).all()
    assert shifted.float().mean() > plain.float().mean() + 100


def test_balance_weighs_each_pair_by_its_change():
    module = make_module()
    module.dropout = DropoutRates(text=0.0, image=0.0, both=0.0, task=0.0)
    batch = make_batch([0, 1, 2, 3])
    plain = train_step(module, batch)
    module.balance = 0.5
    balanced = train_step(module, batch)
    z_0, cond, _ = module.encoder(module.drawn(batch, Phase.train))
    change = (z_0 - cond.z_source).square().mean(dim=(1, 2, 3))
    factor = (change + 0.05).rsqrt()
    weighted = module.weight(balanced["t"]) * factor * balanced["error"]
    assert_close(balanced["error"], plain["error"], rtol=0, atol=0)
    assert_close(balanced["loss"].detach(), weighted.mean())


def test_a_pair_that_lost_its_source_weighs_by_all_of_its_picture():
    module = make_module()
    module.balance = 1.0
    module.dropout = DropoutRates(text=0.0, image=1.0, both=0.0, task=0.0)
    batch = make_batch([0, 1, 2, 3])
    output = train_step(module, batch)
    z_0, _, _ = module.encoder(module.drawn(batch, Phase.train))
    factor = 1 / (z_0.square().mean(dim=(1, 2, 3)) + 0.05)
    weighted = module.weight(output["t"]) * factor * output["error"]
    assert_close(output["loss"].detach(), weighted.mean())


class Norms(Callback):
    """Note the norm of the gradients as the optimizer sees them."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        del trainer, optimizer
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients:
            self.seen.append(torch.nn.utils.get_total_norm(gradients).item())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_in_every_precision_although_the_optimizer_is_fused(
    tmp_path, precision
):
    norms = Norms()
    make_trainer(tmp_path, norms, max_epochs=1, precision=precision, gradient_clip_val=1e-3).fit(
        make_module(), datamodule=Squares(steps=3)
    )
    assert norms.seen
    assert all(norm == pytest.approx(1e-3, rel=1e-2) for norm in norms.seen)
