"""The row of the fault list about a loss that jumps: a warning that names the samples."""

import logging
import re

import pytest
import torch
from torch import Tensor, nn

from callbacks.loss_spikes import LossSpikes
from emu_edit.errors import InputError
from emu_edit.training.module import EditModule
from tests.training.stage import TRAINER_WARNINGS, Squares, make_module, make_trainer

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


def raise_error(module: EditModule, forward: int, row: int) -> None:
    """Make one row of one forward pass of the denoiser very wrong."""
    calls: list[int] = []

    def hook(_: nn.Module, __: tuple, output: Tensor) -> Tensor | None:
        calls.append(1)
        if len(calls) - 1 != forward:
            return None
        wrong = output.clone()
        wrong[row] += 100
        return wrong

    module.networks.denoiser.register_forward_hook(hook)


def warnings_of(tmp_path, caplog, spikes: LossSpikes, forward: int, **settings) -> list[str]:
    """Train eight batches of four with a spike in one; return what was said."""
    module = make_module()
    raise_error(module, forward=forward, row=1)
    with caplog.at_level(logging.WARNING, logger="callbacks.loss_spikes"):
        make_trainer(tmp_path, spikes, **settings).fit(module, datamodule=Squares(steps=8))
    return [record.getMessage() for record in caplog.records if "loss_spikes" in record.name]


def test_a_spike_is_said_with_step_ratio_and_the_worst_samples_first(tmp_path, caplog):
    (told,) = warnings_of(tmp_path, caplog, LossSpikes(window=4), forward=6)
    # the pair at position 25 of a stream of batches of four
    assert re.search(
        r"^the error of optimizer step 6 is [\d.e+]+, \d+\.\d times that of the steps before "
        r"\([\d.e+-]+\); its samples on rank 0 with the largest are pair-025 \(error [\d.e+]+\), "
        r"pair-02[467] .*: look at them, or lower model\.optimizer\.lr$",
        told,
    )


def test_all_micro_batches_of_a_step_are_looked_at_together(tmp_path, caplog):
    (told,) = warnings_of(
        tmp_path, caplog, LossSpikes(window=2), forward=4, accumulate_grad_batches=2
    )
    # micro-batch 4 is the first of step 2
    assert re.search(r"of optimizer step 2 is .* the largest are pair-017 \(", told)


def test_nothing_is_said_before_the_window_is_full_or_below_the_factor(tmp_path, caplog):
    assert warnings_of(tmp_path, caplog, LossSpikes(window=8), forward=6) == []
    assert warnings_of(tmp_path, caplog, LossSpikes(factor=1e9, window=4), forward=6) == []


def test_a_resumed_training_compares_with_the_steps_before():
    spikes, again = LossSpikes(window=3), LossSpikes(window=3)
    spikes._latest.extend([1.0, 2.0, 3.0, 4.0])
    state = spikes.state_dict()
    assert state == {"latest": [2.0, 3.0, 4.0]}
    again.load_state_dict(state)
    assert again.state_dict() == state
    # and it is read without running code
    assert not any(isinstance(value, torch.Tensor) for value in state.values())


@pytest.mark.parametrize("numbers", [{"factor": 1.0}, {"factor": float("nan")}, {"window": 1}])
def test_numbers_that_cannot_be_meant_are_refused(numbers):
    with pytest.raises(InputError, match="needs a factor above 1 and a window of at least 2 steps"):
        LossSpikes(**numbers)
