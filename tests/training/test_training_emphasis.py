from dataclasses import replace

import pytest
import torch
from lightning import Callback
from torch.testing import assert_close

from emu_edit.batch import EditBatch
from emu_edit.diffusion.prediction import Prediction
from emu_edit.errors import InputError
from emu_edit.models.conditioning import DropoutRates
from emu_edit.training.draws import Phase
from emu_edit.training.objective import Objective
from tests.training.stage import (
    SIZE,
    TRAINER_WARNINGS,
    Squares,
    make_batch,
    make_module,
    make_trainer,
    noise_weight,
    train_step,
)

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


def test_a_timestep_shift_trains_at_higher_noise():
    module = make_module()
    batch = make_batch(list(range(16)))
    plain = train_step(module, batch)["t"]
    module.objective = replace(module.objective, timestep_shift=20.0)
    shifted = train_step(module, batch)["t"]
    assert (shifted >= plain).all()
    assert shifted.float().mean() > plain.float().mean() + 100


def test_balance_weighs_each_pair_by_its_change():
    module = make_module()
    module.dropout = DropoutRates(text=0.0, image=0.0, both=0.0, task=0.0)
    batch = make_batch([0, 1, 2, 3])
    plain = train_step(module, batch)
    module.objective = replace(module.objective, balance=0.5)
    balanced = train_step(module, batch)
    z_0, cond, _ = module.encoder(module.drawn(batch, Phase.train))
    change = (z_0 - cond.z_source).square().mean(dim=(1, 2, 3))
    factor = (change + 0.05).rsqrt()
    weighted = noise_weight(module, balanced["t"]) * factor * balanced["error"]
    assert_close(balanced["error"], plain["error"], rtol=0, atol=0)
    assert_close(balanced["loss"].detach(), weighted.mean())


def test_a_pair_that_lost_its_source_weighs_by_all_of_its_picture():
    module = make_module()
    module.objective = replace(module.objective, balance=1.0)
    module.dropout = DropoutRates(text=0.0, image=1.0, both=0.0, task=0.0)
    batch = make_batch([0, 1, 2, 3])
    output = train_step(module, batch)
    z_0, _, _ = module.encoder(module.drawn(batch, Phase.train))
    factor = 1 / (z_0.square().mean(dim=(1, 2, 3)) + 0.05)
    weighted = noise_weight(module, output["t"]) * factor * output["error"]
    assert_close(output["loss"].detach(), weighted.mean())


def masked_batch() -> EditBatch:
    """Four pairs: masks of the left half, of everything, of nothing, and no mask."""
    batch = make_batch([0, 1, 2, 3])
    mask = torch.ones(4, SIZE, SIZE, dtype=torch.bool)
    mask[0, :, SIZE // 2 :] = False
    mask[2] = False
    return replace(batch, mask=mask, has_mask=torch.tensor([True, True, True, False]))


def test_a_region_weight_counts_errors_inside_the_mask_and_leaves_the_others_alone():
    module = make_module(dropout=DropoutRates(text=0.0, image=0.0, both=0.0, task=0.0))
    batch = masked_batch()
    plain = train_step(module, batch)["error"]
    module.objective = replace(module.objective, region_weight=3.0)
    weighted = train_step(module, batch)
    # the left half alone: what the limit of a heavy weight must come to
    module.objective = replace(module.objective, region_weight=1e6)
    inside = train_step(module, batch)["error"][0]
    outside = 2 * plain[0] - inside
    assert abs(inside - outside) > 0.01 * plain[0]
    assert_close(weighted["error"][0], (3 * inside + outside) / 4, rtol=1e-4, atol=0)
    assert_close(weighted["error"][1:], plain[1:])
    expected = noise_weight(module, weighted["t"]) * weighted["error"]
    assert_close(weighted["loss"].detach(), expected.mean())


def test_without_a_region_weight_no_mask_is_looked_at():
    module = make_module()
    masked = masked_batch()
    plain = replace(masked, has_mask=torch.zeros(4, dtype=torch.bool))
    assert torch.equal(train_step(module, masked)["loss"], train_step(module, plain)["loss"])
    like = torch.zeros(4, 48, 4, 4)
    assert module.objective.region(masked.mask, masked.has_mask, like=like) is None
    no_pictures = torch.zeros(4, 0, 0, dtype=torch.bool)
    weighted = Objective(region_weight=2.0)
    assert weighted.region(no_pictures, plain.has_mask, like=like) is None
    assert weighted.region(masked.mask, masked.has_mask, like=like) is not None


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_region_weight_that_is_none_is_refused(weight):
    schedule = make_module().schedule
    with pytest.raises(InputError, match=r"region_weight=.* must be a number above 0"):
        Objective(region_weight=weight).check(Prediction.change, schedule)


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
