# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import json
import re

import pytest
import torch
from lightning import Callback
from torch import Tensor, nn

from callbacks.finite import Finite
from emu_edit.errors import ExitStatus, InputError, NonFiniteError
from emu_edit.training.module import EditModule
from emu_edit.training.optim import EMA_STATE_KEY, copy_of
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
        r"optimizer step 2 is not.*samples: pair-009 \(task local, t=\d+, error nan, position 9\); "
        r"look at .*all of the step are in .*nonfinite\.json"
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
    assert caught.value.status is ExitStatus.non_finite
    (event,) = json.loads((tmp_path / "nonfinite.json").read_text())
    assert event["parameters"] == ["networks.task_embedding.table"]


def test_at_most_eight_samples_are_named_and_the_rest_is_counted(tmp_path):
    module = make_module()
    module.networks.task_embedding.table.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(NonFiniteError, match=re.escape(", and 4 more; look at")):
        make_trainer(tmp_path, Finite()).fit(module, datamodule=Squares(batch=12))


def test_a_healthy_run_is_left_alone(tmp_path):
    trainer = make_trainer(tmp_path, Finite(), accumulate_grad_batches=2)
    trainer.fit(make_module(), datamodule=Squares(steps=4))
    assert trainer.global_step == 2


def test_the_report_of_a_broken_step_has_every_sample_of_it(tmp_path):
    module = make_module()
    spoil(module, forward=1, row=2)
    with pytest.raises(NonFiniteError, match="optimizer step 1 is not finite"):
        make_trainer(tmp_path, Finite()).fit(module, datamodule=Squares())
    (event,) = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (event["step"], event["action"]) == (1, "stopped")
    assert [sample["position"] for sample in event["samples"]] == [4, 5, 6, 7]
    assert [sample["key"] for sample in event["samples"]] == [f"pair-00{i}" for i in range(4, 8)]
    assert [sample["task"] for sample in event["samples"]] == ["add", "style", "local", "add"]
    assert [sample["error"] == "nan" for sample in event["samples"]] == [False, False, True, False]
    assert all(0 <= sample["t"] < 1000 for sample in event["samples"])


class StateLog(Callback):
    """Keep weights and optimizer state behind each step."""

    def __init__(self) -> None:
        self.states: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        (optimizer,) = trainer.optimizers
        memory = [t for state in optimizer.state.values() for t in state.values()]
        weights = list(copy_of(pl_module).values())
        self.states.append([t.clone() for t in [*weights, *memory]])


def assert_equal_states(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_step_that_is_left_out_changes_neither_weights_nor_the_optimizers_memory(tmp_path):
    module, log = make_module(), StateLog()
    spoil(module, forward=2, row=1)
    trainer = make_trainer(tmp_path, Finite(max_skips=1), log)
    trainer.fit(module, datamodule=Squares(steps=5))
    assert trainer.global_step == 5  # data and schedule go on
    assert_equal_states(log.states[1], log.states[2])
    assert not all(
        torch.equal(one, other) for one, other in zip(log.states[2], log.states[3], strict=True)
    )
    (event,) = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (event["step"], event["action"]) == (2, "left out")


def test_a_step_is_left_out_whole_when_one_of_its_micro_batches_is_broken(tmp_path):
    module, log = make_module(), StateLog()
    spoil(module, forward=3, row=0)
    trainer = make_trainer(tmp_path, Finite(max_skips=1), log, accumulate_grad_batches=2)
    trainer.fit(module, datamodule=Squares(steps=6, batch=2))
    assert_equal_states(log.states[1], log.states[3])


def spoil_from(module: EditModule, forward: int) -> None:
    """Make every forward pass from one on not a number."""
    calls = []

    def hook(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
        calls.append(1)
        return output * float("nan") if len(calls) > forward else output

    module.networks.denoiser.register_forward_hook(hook)


def test_after_as_many_steps_as_allowed_training_stops(tmp_path, caplog):
    module = make_module()
    spoil_from(module, forward=1)
    trainer = make_trainer(tmp_path, Finite(max_skips=2))
    with pytest.raises(
        NonFiniteError, match="optimizer step 3 is not finite after 2 steps left out, the weights"
    ):
        trainer.fit(module, datamodule=Squares(steps=8))
    events = json.loads((tmp_path / "nonfinite.json").read_text())
    assert [(event["step"], event["action"]) for event in events] == [
        (1, "left out"),
        (2, "left out"),
        (3, "stopped"),
    ]
    assert "left out, 2 of 2" in caplog.text


def test_a_resumed_training_goes_on_counting_the_steps_it_left_out(tmp_path):
    first, second = make_module(), make_module()
    spoil(first, forward=1, row=0)
    trainer = make_trainer(tmp_path, Finite(max_skips=1))
    trainer.fit(first, datamodule=Squares(steps=3))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    spoil_from(second, forward=0)
    with pytest.raises(NonFiniteError, match="optimizer step 3 is not finite after 1 steps"):
        make_trainer(tmp_path, Finite(max_skips=1), max_epochs=2).fit(
            second, datamodule=Squares(steps=3), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )
    events = json.loads((tmp_path / "nonfinite.json").read_text())
    assert [event["step"] for event in events] == [1, 3]


class BreakWeights(Callback):
    """Do what an optimizer does that runs away."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        next(pl_module.get_submodule("networks.task_embedding").parameters()).data[0] = torch.inf


class BreakAverage(Callback):
    @property
    def state_key(self):
        return EMA_STATE_KEY

    def state_dict(self):
        return {"average": {"networks.x": torch.tensor([1.0, float("nan")])}, "num": 3}


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    trainer = make_trainer(tmp_path, Finite(), BreakWeights())
    module = make_module()
    trainer.fit(module, datamodule=Squares(steps=1))
    with pytest.raises(
        NonFiniteError,
        match=r"after optimizer step 1, weights\.networks\.task_embedding\.table are not finite, "
        "so the checkpoint is not written",
    ):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


def test_an_average_that_is_not_finite_is_not_saved_either(tmp_path):
    trainer = make_trainer(tmp_path, Finite(), BreakAverage())
    trainer.fit(make_module(), datamodule=Squares(steps=1))
    with pytest.raises(NonFiniteError, match=r"averages\.average\.networks\.x"):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")


class BestSoFar(Callback):
    def state_dict(self):
        return {"best": torch.tensor(float("inf"))}


def test_what_other_callbacks_keep_may_be_infinite(tmp_path):
    trainer = make_trainer(tmp_path, Finite(), BestSoFar())
    trainer.fit(make_module(), datamodule=Squares(steps=1))
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    assert (tmp_path / "good.ckpt").is_file()


def test_an_optimizer_that_is_not_finite_is_not_saved(tmp_path):
    trainer = make_trainer(tmp_path, Finite())
    trainer.fit(make_module(), datamodule=Squares(steps=1))
    state = next(iter(trainer.optimizers[0].state.values()))
    state["exp_avg"].fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"optimizer\.0\.state\.\d+\.exp_avg"):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")


def test_a_report_that_cannot_be_written_does_not_hide_the_error(tmp_path, caplog):
    (tmp_path / "nonfinite.json").mkdir()
    module = make_module()
    spoil(module, forward=0, row=0)
    with pytest.raises(NonFiniteError, match="optimizer step 0 is not finite, the weights"):
        make_trainer(tmp_path, Finite()).fit(module, datamodule=Squares())
    assert "cannot be written" in caplog.text


def test_a_negative_number_of_skips_is_refused():
    with pytest.raises(InputError, match=r"Finite\.max_skips must be at least 0, got -1"):
        Finite(max_skips=-1)
