import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import preemption
from callbacks.durable import Checkpoints
from callbacks.preemption import MEANING, Preemption, SignalNotes, Stop, stopped
from datamodules.edit import EditDataModule
from emu_edit.errors import ExitStatus, InputError
from emu_edit.training.checkpoint_io import DurableCheckpointIO
from tests.datamodules.toy import Toy
from tests.datamodules.toy_shards import make_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 asks torch 2.13 in a way that has a successor
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

STEPS, EPOCHS, BATCH = 3, 4, 4


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Ended(BaseException):
    """Stands in for the end of the process."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(preemption, "time", made)

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    return made


@pytest.fixture
def notes(capfd: pytest.CaptureFixture[str]):
    """Installed handlers; what is in `ended` says that the children were ended first."""
    del capfd
    ended: list[str] = []
    made = SignalNotes(b"noted\n", before_exit=lambda: ended.append("children"))
    before = {number: signal.getsignal(number) for number in MEANING}
    made.install()
    yield made, ended
    made.restore()
    assert {number: signal.getsignal(number) for number in MEANING} == before


@pytest.mark.parametrize("number", list(MEANING))
def test_a_signal_is_only_noted(number: signal.Signals, notes, clock: Clock, capfd) -> None:
    del clock
    signal.raise_signal(number)
    assert notes[0].stop is MEANING[number]
    assert capfd.readouterr().err == "noted\n"


@pytest.mark.parametrize("number", list(MEANING))
def test_a_second_signal_within_ten_seconds_ends_the_process_at_once(
    number: signal.Signals, notes, clock: Clock
) -> None:
    signal.raise_signal(number)
    clock.now += 9.9
    with pytest.raises(Ended, match=str(128 + number)):
        signal.raise_signal(number)
    assert notes[1] == ["children"]


def test_an_echo_of_a_signal_is_not_a_second_one(notes, clock: Clock) -> None:
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
        clock.now += 0.1
    assert notes[1] == []


def test_a_signal_much_later_changes_nothing(notes, clock: Clock, capfd) -> None:
    for _ in range(3):
        signal.raise_signal(signal.SIGUSR1)
        clock.now += 10.0
    assert notes[1] == []
    assert capfd.readouterr().err == "noted\n"


def test_being_preempted_counts_more_than_ctrl_c(notes, clock: Clock) -> None:
    signal.raise_signal(signal.SIGTERM)
    clock.now += 60
    signal.raise_signal(signal.SIGINT)
    assert notes[0].stop is Stop.preempted
    assert notes[0].stop.status is ExitStatus.preempted
    assert Stop.interrupted.status is ExitStatus.interrupted


class SignalAt(Callback):
    """Send this process a signal when a hook is called for the nth time."""

    def __init__(self, hook: str, nth: int = 1, number: signal.Signals = signal.SIGTERM) -> None:
        self.seen_handlers: list[Any] = []
        self._left = nth
        self._number = number
        setattr(self, hook, self._send)

    def _send(self, *_: object) -> None:
        self.seen_handlers = [signal.getsignal(number) for number in MEANING]
        self._left -= 1
        if self._left == 0:
            signal.raise_signal(self._number)


class Followed(Callback):
    """Count what a stopped training should not do any more."""

    def __init__(self) -> None:
        self.validations = 0
        self.batches: list[int] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        self.validations += 1

    def on_validation_batch_start(self, *arguments: Any, **_: Any) -> None:
        self.batches.append(arguments[3])


def make_trainer(*callbacks: Callback, epochs: int = EPOCHS, **options: Any) -> Trainer:
    """Return a silent trainer that may write checkpoints."""
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        callbacks=list(callbacks),
        plugins=[DurableCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"num_sanity_val_steps": 0, **options},
    )


def train(
    tmp_path: Path, *callbacks: Callback, micro: int = BATCH, epochs: int = EPOCHS, **options: Any
) -> tuple[Toy, Trainer]:
    """Train, from the newest checkpoint in `tmp_path` if there is one."""
    if not (tmp_path / "train").exists():
        make_folder(tmp_path / "train", {"local": 7, "add": 5})
        make_folder(tmp_path / "val", {"local": 3})
    data = EditDataModule(
        train=str(tmp_path / "train"),
        val=str(tmp_path / "val"),
        global_batch=BATCH,
        micro_batch=micro,
        steps_per_epoch=STEPS,
        image_size=8,
        window=2,
    )
    toy, last = Toy(), tmp_path / "checkpoints" / "last.ckpt"
    trainer = make_trainer(
        Preemption(),  # Lightning moves it behind the others
        Checkpoints(str(tmp_path / "checkpoints"), keep=50),
        *callbacks,
        epochs=epochs,
        **options,
    )
    trainer.fit(toy, datamodule=data, ckpt_path=str(last) if last.exists() else None)
    return toy, trainer


def saved_steps(tmp_path: Path) -> list[int]:
    """Return the steps that have a checkpoint."""
    return sorted(int(f.stem[5:]) for f in (tmp_path / "checkpoints").glob("step-*.ckpt"))


def trained(toy: Toy) -> list[int]:
    """Return the positions that were trained on, in order."""
    return [g for batch in toy.seen for g in batch]


@pytest.mark.parametrize("number", list(MEANING))
def test_training_saves_after_the_step_and_stops(number: signal.Signals, tmp_path: Path) -> None:
    followed = Followed()
    toy, trainer = train(tmp_path, SignalAt("on_train_batch_start", 5, number), followed)
    assert stopped(trainer) is MEANING[number]
    assert trained(toy) == list(range(5 * BATCH))
    assert saved_steps(tmp_path) == [3, 5]
    assert followed.validations == 1  # that of the first epoch


def test_a_training_nobody_stops_is_not_stopped(tmp_path: Path) -> None:
    toy, trainer = train(tmp_path)
    assert stopped(trainer) is Stop.no
    assert trained(toy) == list(range(EPOCHS * STEPS * BATCH))


def test_an_accumulated_step_is_finished_first(tmp_path: Path) -> None:
    toy, _ = train(tmp_path, SignalAt("on_train_batch_start", 4 * 2 + 2), micro=1)
    assert trained(toy) == list(range(3 * BATCH))
    assert saved_steps(tmp_path) == [3]


def test_the_handlers_are_ours_in_training_and_given_back(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in MEANING}
    watch = SignalAt("on_train_batch_start", 2)
    train(tmp_path, watch)
    assert {getattr(handler, "__func__", None) for handler in watch.seen_handlers} == {
        SignalNotes._note
    }
    assert {number: signal.getsignal(number) for number in MEANING} == before


def test_the_handlers_are_given_back_after_an_error(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            raise ValueError(f"a defect of {trainer.world_size} {type(pl_module).__name__}")

    before = {number: signal.getsignal(number) for number in MEANING}
    with pytest.raises(ValueError, match="a defect of 1 Toy"):
        train(tmp_path, Fails())
    assert {number: signal.getsignal(number) for number in MEANING} == before
    assert saved_steps(tmp_path) == []


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_batch_start"])
def test_a_signal_during_validation_ends_it_after_the_batch(hook: str, tmp_path: Path) -> None:
    followed = Followed()
    toy, trainer = train(tmp_path, SignalAt(hook), followed, micro=1)
    assert stopped(trainer) is Stop.preempted
    assert trained(toy) == list(range(STEPS * BATCH))
    assert saved_steps(tmp_path) == [3]
    assert followed.batches == [0]
    again = Followed()
    toy, trainer = train(tmp_path, again, micro=1)
    assert stopped(trainer) is Stop.no
    assert trained(toy) == list(range(STEPS * BATCH, EPOCHS * STEPS * BATCH))
    # the one that was left is not made up for; those that follow are whole
    assert again.batches == [0, 1, 2] * (EPOCHS - 1)


def test_a_signal_during_the_sanity_check_trains_nothing(tmp_path: Path) -> None:
    followed = Followed()
    check = SignalAt("on_validation_batch_start")
    toy, trainer = train(tmp_path, check, followed, micro=1, num_sanity_val_steps=3)
    assert stopped(trainer) is Stop.preempted
    assert followed.batches == [0]
    assert trained(toy) == []


def test_a_signal_before_the_first_step_trains_nothing(tmp_path: Path) -> None:
    toy, trainer = train(tmp_path, SignalAt("on_fit_start"))
    assert stopped(trainer) is Stop.preempted
    assert trained(toy) == []
    toy, trainer = train(tmp_path)
    assert stopped(trainer) is Stop.no
    assert trained(toy) == list(range(EPOCHS * STEPS * BATCH))


def test_a_signal_after_the_last_step_keeps_the_report_from_being_made(tmp_path: Path) -> None:
    toy, trainer = train(tmp_path, SignalAt("on_train_end"))
    assert stopped(trainer) is Stop.preempted
    assert len(trained(toy)) == EPOCHS * STEPS * BATCH
    assert saved_steps(tmp_path)[-1] == EPOCHS * STEPS


def test_a_least_number_of_epochs_does_not_keep_it_going(tmp_path: Path) -> None:
    toy, _ = train(tmp_path, SignalAt("on_train_batch_start", 2), min_epochs=3)
    assert len(trained(toy)) == 2 * BATCH


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 11, 12])
def test_stopping_twice_neither_repeats_nor_loses_nor_adds_a_sample(
    step: int, tmp_path: Path
) -> None:
    whole, _ = train(tmp_path / "whole")
    parts = [
        train(tmp_path / "parts", SignalAt("on_train_batch_start", step))[0],
        train(tmp_path / "parts", SignalAt("on_train_batch_start", 1))[0],
        train(tmp_path / "parts")[0],
        train(tmp_path / "parts")[0],  # of a training that is done nothing is left
    ]
    assert [g for part in parts for g in trained(part)] == trained(whole)
    assert parts[2].weights() == whole.weights()


def test_preemption_needs_something_that_saves(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", {"local": 7})
    data = EditDataModule(train=str(tmp_path / "train"), global_batch=4, image_size=8)
    with pytest.raises(InputError, match=r"has Preemption but nothing that could save.*durable"):
        make_trainer(Preemption()).fit(Toy(), datamodule=data)
