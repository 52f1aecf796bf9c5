"""Rows of the fault list about disks that need no disk of their own to be seen."""

import logging
import shutil
from pathlib import Path

import pytest

from callbacks.durable import Checkpoints
from emu_edit.errors import ExitStatus, StorageError, status_of
from tests.callbacks.line import train
from tests.training.stage import TRAINER_WARNINGS

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


def test_room_for_less_than_two_checkpoints_is_warned_of_before_a_save_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = shutil.disk_usage("/")
    # enough for the next one of 1 MB, not for two
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_900_000))
    with caplog.at_level(logging.WARNING, logger="callbacks.durable"):
        trainer = train(tmp_path, Checkpoints(str(tmp_path / "c")), max_epochs=1)
    assert trainer.global_step == 2
    assert [record.getMessage() for record in caplog.records if "durable" in record.name] == [
        f"only 1.9 MB free in {tmp_path / 'c'}, a checkpoint takes 1 MB: free some space before "
        "the next"
    ]


def test_a_place_for_checkpoints_that_is_none_ends_training_before_its_first_step(
    tmp_path: Path,
) -> None:
    (tmp_path / "c").write_text("a file")
    words = r"checkpoints cannot be written into .*/c \(File exists\); free space or set trainer\."
    with pytest.raises(StorageError, match=words) as caught:
        train(tmp_path, Checkpoints(str(tmp_path / "c")))
    assert status_of(caught.value, verb="fit") == ExitStatus.storage == 74
