import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback

import callbacks.durable
from callbacks.durable import Checkpoints, is_accumulating, point_last_to, step_in
from emu_edit.errors import BrokenCheckpointError, InputError, StorageError
from emu_edit.training.checkpoint_io import (
    DurableCheckpointIO,
    read_checkpoint,
    read_sidecar,
    verify,
)
from tests.callbacks.line import train
from tests.training.disks import read_only, tiny_disk
from tests.training.stage import TRAINER_WARNINGS

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


def steps_in(folder: Path) -> list[int]:
    return sorted(step for file in folder.iterdir() if (step := step_in(file.name)) is not None)


def fill_disk(monkeypatch: pytest.MonkeyPatch, full: set[int]) -> None:
    """Let the disk seem full for some of the questions, which are counted from 0."""
    usage, asked = shutil.disk_usage("/"), iter(range(1000))

    def disk_usage(_: object):
        return usage._replace(free=1000 if next(asked) in full else 10**12)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)


class KeepLog(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the callback logs."""
    handler = KeepLog()
    callbacks.durable.log.addHandler(handler)
    yield handler.lines
    callbacks.durable.log.removeHandler(handler)


def test_the_newest_checkpoints_stay_each_with_its_sidecar_and_last_points_to_the_newest(tmp_path):
    keeper = Checkpoints(str(tmp_path / "c"), keep=3)
    train(tmp_path, keeper, max_epochs=5)
    assert steps_in(tmp_path / "c") == [6, 8, 10]
    names = {file.name for file in (tmp_path / "c").iterdir()}
    numbered = {f"step-{step:08}.ckpt" for step in (6, 8, 10)}
    assert names == numbered | {f"{name}.json" for name in numbered} | {"last.ckpt"}
    last = tmp_path / "c" / "last.ckpt"
    assert last.is_symlink()
    assert last.resolve() == keeper.latest == (tmp_path / "c" / "step-00000010.ckpt").resolve()
    for step in (6, 8, 10):
        file = tmp_path / "c" / f"step-{step:08}.ckpt"
        verify(file)
        known = read_sidecar(file)
        assert known is not None
        assert known.step == step == read_checkpoint(file)["global_step"]


def test_epochs_and_steps_between_checkpoints_are_as_asked(tmp_path):
    train(tmp_path, Checkpoints(str(tmp_path / "e"), every_epochs=2, keep=9), max_epochs=5)
    assert steps_in(tmp_path / "e") == [4, 8, 10]  # every second epoch, and the end
    train(
        tmp_path, Checkpoints(str(tmp_path / "s"), every_epochs=9, every_steps=3, keep=9), steps=8
    )
    assert steps_in(tmp_path / "s") == [3, 6, 8]


def stop_at(batches: int) -> Callback:
    """Ends training after some micro-batches."""

    def stop(trainer: Trainer, *arguments: object) -> None:
        trainer.should_stop = trainer.should_stop or arguments[-1] == batches - 1

    return LambdaCallback(on_train_batch_end=stop)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize(("batches", "saved"), [(4, [2]), (3, [])])
def test_training_that_is_ended_within_an_epoch_is_saved_between_steps_or_not_at_all(
    tmp_path, batches, saved
):
    keeper = Checkpoints(str(tmp_path / "c"))
    train(tmp_path, stop_at(batches), keeper, steps=8, accumulate_grad_batches=2)
    assert steps_in(tmp_path / "c") == saved
    for step in saved:  # it can be gone on from within the epoch
        file = tmp_path / "c" / f"step-{step:08}.ckpt"
        trainer = train(
            tmp_path,
            Checkpoints(str(tmp_path / "d")),
            steps=8,
            accumulate_grad_batches=2,
            ckpt=file,
        )
        assert trainer.global_step == 4


@pytest.mark.parametrize(("accumulate", "inside"), [(1, 0), (2, 3), (3, 4)])
def test_nothing_is_saved_inside_an_accumulation_window(tmp_path, accumulate, inside):
    keeper = Checkpoints(str(tmp_path / "c"), every_steps=1, keep=99)
    unused = Checkpoints(str(tmp_path / "u"))
    places: list[bool] = []

    def ask(trainer: Trainer, *_: object) -> None:
        places.append(is_accumulating(trainer))
        if places[-1]:
            with pytest.raises(RuntimeError, match="accumulation window would lose gradients"):
                unused.save(trainer)

    asker = LambdaCallback(on_train_batch_end=ask)
    train(tmp_path, asker, keeper, steps=7, accumulate_grad_batches=accumulate)
    assert (len(places), sum(places)) == (7, inside)
    assert steps_in(tmp_path / "c") == list(range(1, 7 - inside + 1))
    for step in steps_in(tmp_path / "c")[:-1]:
        loops = read_checkpoint(tmp_path / "c" / f"step-{step:08}.ckpt")["loops"]["fit_loop"]
        assert loops["epoch_loop.batch_progress"]["current"]["ready"] == step * accumulate


def test_a_save_asked_for_twice_is_made_once(tmp_path, monkeypatch):
    keeper = Checkpoints(str(tmp_path / "c"))
    made: list[Path] = []
    save = Trainer.save_checkpoint

    def counted(self, path, *arguments, **named):
        made.append(Path(path))
        save(self, path, *arguments, **named)

    monkeypatch.setattr(Trainer, "save_checkpoint", counted)

    def ask(trainer: Trainer, *_: object) -> None:
        assert keeper.save(trainer) == keeper.save(trainer) == keeper.latest

    train(tmp_path, LambdaCallback(on_train_batch_end=ask), keeper, max_epochs=2)
    assert [path.name for path in made] == [f"step-{step:08}.ckpt" for step in (1, 2, 3, 4)]


def test_a_failed_save_is_reported_and_training_goes_on(tmp_path, monkeypatch, said):
    fill_disk(monkeypatch, full={2, 3})  # each good save looks at the disk twice
    trainer = train(tmp_path, Checkpoints(str(tmp_path / "c"), keep=9), max_epochs=4)
    assert trainer.global_step == 8
    assert steps_in(tmp_path / "c") == [2, 8]
    words = r"checkpoint step {} not written: need 1.28 MB, free 1 kB in .*: free some space"
    assert re.search(words.format(4) + r" \(failure 1 of 3\)", said[0])
    assert re.search(words.format(6) + r" \(failure 2 of 3\)", said[1])
    assert len(said) == 2


def test_the_third_failure_in_a_row_stops_training_and_keeps_the_previous(tmp_path, monkeypatch):
    fill_disk(monkeypatch, full={2, 3, 6, 7, 8})  # a good one between begins the count anew
    keeper = Checkpoints(str(tmp_path / "c"), keep=9)
    with pytest.raises(
        StorageError, match=r"training stops after 3 failed checkpoints: .* step 14"
    ):
        train(tmp_path, keeper, max_epochs=9)
    assert steps_in(tmp_path / "c") == [2, 8]
    assert keeper.latest == tmp_path / "c" / "step-00000008.ckpt"
    verify(tmp_path / "c" / "step-00000008.ckpt")


def test_a_full_disk_stops_nothing_but_the_save(tmp_path, said):
    with tiny_disk(tmp_path / "disk", megabytes=3) as disk:  # two checkpoints of 1 MB, not three
        trainer = train(tmp_path, Checkpoints(str(disk)), max_epochs=4)
        assert trainer.global_step == 8
        assert steps_in(disk) == [2, 4]
        for file in disk.glob("step-*.ckpt"):
            verify(file)
    assert [line for line in said if "checkpoint step 6 not written: need 1.28 MB, free" in line]
    assert [line for line in said if re.match("only .* free in .*, a checkpoint takes 1 MB", line)]


def test_older_checkpoints_go_only_after_the_newer_one_was_read_back(tmp_path, monkeypatch, said):
    def bad_disk(path: Path) -> None:
        raise BrokenCheckpointError(f"{path.name}: sha256 mismatch")

    keeper = Checkpoints(str(tmp_path / "c"))
    train(tmp_path, keeper, max_epochs=2)
    monkeypatch.setattr(callbacks.durable, "verify", bad_disk)
    train(tmp_path, keeper, max_epochs=4, ckpt=tmp_path / "c" / "last.ckpt")
    assert steps_in(tmp_path / "c") == [2, 4]
    assert (tmp_path / "c" / "last.ckpt").resolve().name == "step-00000004.ckpt"
    assert "step-00000006.ckpt was not stored as written and is deleted, the previous" in said[0]


def test_files_that_are_no_checkpoints_of_ours_and_newer_ones_are_left_alone(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    others = (
        "epoch=0-step=1.ckpt",
        "step-1.ckpt",
        "step-00000099.ckpt",
        "step-00000001.ckpt.corrupt",
    )
    for name in others:
        (folder / name).write_bytes(b"x")
    train(tmp_path, Checkpoints(str(folder)), max_epochs=4)
    assert steps_in(folder) == [6, 8, 99]
    assert {file.name for file in folder.iterdir()} >= set(others)


def test_a_folder_nobody_may_write_is_refused_before_training(tmp_path):
    (tmp_path / "c").mkdir()
    with (
        read_only(tmp_path / "c") as folder,
        pytest.raises(StorageError, match=r"checkpoints cannot be written into .*/c \(.*\); free"),
    ):
        train(tmp_path, Checkpoints(str(folder)))


def test_what_a_killed_writer_left_is_swept_at_the_start(tmp_path):
    orphan = tmp_path / "c" / ".step-00000004.ckpt.1234.tmp"
    orphan.parent.mkdir()
    orphan.write_bytes(b"half a file")
    train(tmp_path, Checkpoints(str(orphan.parent)))
    assert not orphan.exists()
    assert steps_in(orphan.parent) == [2]


def test_a_trial_writes_nothing(tmp_path):
    train(tmp_path, Checkpoints(str(tmp_path / "c")), fast_dev_run=True)
    assert not (tmp_path / "c").exists()


def test_a_run_that_goes_on_in_its_folder_keeps_what_it_has(tmp_path):
    train(tmp_path, Checkpoints(str(tmp_path / "c")), max_epochs=2)
    before = (tmp_path / "c" / "step-00000004.ckpt").stat().st_mtime_ns
    keeper = Checkpoints(str(tmp_path / "c"), keep=3)
    train(tmp_path, keeper, max_epochs=3, ckpt=tmp_path / "c" / "last.ckpt")
    assert steps_in(tmp_path / "c") == [2, 4, 6]
    assert (tmp_path / "c" / "step-00000004.ckpt").stat().st_mtime_ns == before
    other = Checkpoints(str(tmp_path / "d"), every_epochs=9)

    def ask(trainer: Trainer, *_: object) -> None:
        assert other.save(trainer) == other.folder / "step-00000006.ckpt"

    # a checkpoint of another folder is none of this run: asked to save, it does
    asker = LambdaCallback(on_train_start=ask)
    train(tmp_path, other, asker, max_epochs=4, ckpt=tmp_path / "c" / "last.ckpt")
    assert steps_in(tmp_path / "d") == [6, 8]


def test_a_file_of_an_older_version_becomes_the_link(tmp_path):
    DurableCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "last.ckpt")
    DurableCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "step-00000003.ckpt")
    point_last_to(tmp_path / "step-00000003.ckpt")
    assert (tmp_path / "last.ckpt").is_symlink()
    verify(tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt.json").exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"keep": 1},
            "Checkpoints needs keep of at least 2, got 1: the newest may turn out broken",
        ),
        ({"every_epochs": 0}, "every_epochs and every_steps of at least 1, got 0 and None"),
        ({"every_steps": 0}, "every_epochs and every_steps of at least 1, got 1 and 0"),
    ],
)
def test_settings_that_would_lose_checkpoints_are_refused(settings, reason):
    with pytest.raises(InputError, match=reason):
        Checkpoints("c", **settings)
