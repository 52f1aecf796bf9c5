import errno
import json
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from callbacks.durable import Checkpoints
from callbacks.preemption import Stop
from emu_edit.errors import (
    BadDataError,
    BadSampleError,
    ExitStatus,
    InputError,
    NonFiniteError,
    ShardError,
    StorageError,
    status_of,
)
from emu_edit.runs import status as run_status
from emu_edit.runs.status import OtherRankError, RunStatus, StatusWriter


class StandIn(Trainer):
    """A trainer as far as a status is taken from it, on any rank."""

    global_rank: Any = 0
    local_rank: Any = 0
    is_global_zero: Any = True
    global_step: Any = 14
    datamodule: Any = None
    strategy: Any = None

    def __init__(self, rank: int = 0, *, is_trial: bool = False) -> None:
        self.global_rank = self.local_rank = rank
        self.is_global_zero = rank == 0
        self.fast_dev_run = is_trial
        saved = Checkpoints("somewhere")
        saved.latest = Path("somewhere/step-00000012.ckpt")
        self.callbacks = [saved]


@pytest.fixture
def writer(tmp_path: Path) -> StatusWriter:
    """A writer that follows rank 0."""
    made = StatusWriter(tmp_path)
    made.follow(StandIn())
    return made


def read(folder: Path) -> RunStatus:
    found = RunStatus.read(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("error", "fit", "edit"),
    [
        (InputError("an option"), 78, 2),
        (BadDataError("too many"), 65, 65),
        (BadSampleError("one sample"), 65, 65),
        (ShardError("a shard"), 65, 65),
        (NonFiniteError("nan"), 70, 70),
        (StorageError("a disk"), 74, 74),
        (OSError(errno.ENOSPC, "No space left on device"), 74, 2),
    ],
)
def test_each_kind_of_error_has_its_exit_status(
    error: InputError | OSError, fit: int, edit: int
) -> None:
    assert [status_of(error, verb=verb) for verb in ("fit", "validate", "test")] == [fit] * 3
    assert status_of(error, verb="edit") == edit


def test_a_run_is_running_until_it_has_ended(writer: StatusWriter, tmp_path: Path) -> None:
    first = read(tmp_path)
    assert (first.status, first.exit, first.step) == ("running", None, 14)
    assert first.resume == "somewhere/step-00000012.ckpt"
    assert writer.ended(Stop.no) == ExitStatus.done
    assert (read(tmp_path).status, read(tmp_path).exit) == ("done", 0)


@pytest.mark.parametrize(
    ("stop", "status", "exit_status"),
    [(Stop.preempted, "preempted", 75), (Stop.interrupted, "interrupted", 130)],
)
def test_a_stopped_run_says_by_what(
    stop: Stop, status: str, exit_status: int, writer: StatusWriter, tmp_path: Path
) -> None:
    assert writer.ended(stop) == exit_status
    assert (read(tmp_path).status, read(tmp_path).exit) == (status, exit_status)


@pytest.mark.parametrize(
    ("error", "status", "exit_status", "message"),
    [
        (InputError("wrong\n  option"), "failed", 78, "wrong option"),
        (BadDataError("bad"), "failed", 65, "bad"),
        (NonFiniteError("nan"), "diverged", 70, "nan"),
        (StorageError("disk"), "failed", 74, "disk"),
        (OSError(errno.EIO, "Input/output error"), "failed", 74, "[Errno 5] Input/output error"),
        (RuntimeError("defect"), "failed", 1, "RuntimeError: defect"),
        (KeyboardInterrupt(), "interrupted", 130, ""),
    ],
)
def test_an_error_is_noted_and_goes_on(
    error: BaseException,
    status: str,
    exit_status: int,
    message: str,
    writer: StatusWriter,
    tmp_path: Path,
) -> None:
    with pytest.raises(type(error)), writer.noting_errors():
        raise error
    found = read(tmp_path)
    assert (found.status, found.exit, found.message) == (status, exit_status, message)


def test_the_rank_that_fails_first_has_the_word(writer: StatusWriter, tmp_path: Path) -> None:
    other = StatusWriter(tmp_path)
    other.follow(StandIn(rank=1))
    with pytest.raises(BadDataError), other.noting_errors():
        raise BadDataError("shard 7 is broken")
    lost = pytest.raises(OtherRankError, match="rank 1 stopped: shard 7 is broken")
    with lost as caught, writer.noting_errors():
        raise RuntimeError("connection closed by peer")
    assert status_of(caught.value, verb="fit") == 65
    assert (read(tmp_path).rank, read(tmp_path).message) == (1, "shard 7 is broken")


def test_an_error_all_ranks_have_agreed_on_stays_that_error(
    writer: StatusWriter, tmp_path: Path
) -> None:
    other = StatusWriter(tmp_path)
    other.follow(StandIn(rank=1))
    for each in (other, writer):
        with pytest.raises(NonFiniteError, match="step 3"), each.noting_errors():
            raise NonFiniteError("step 3")
    assert read(tmp_path).exit == 70


def test_the_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    """As long as the run has not taken it, an error is not its business."""
    with pytest.raises(InputError, match="in use"), StatusWriter(tmp_path).noting_errors():
        raise InputError("in use by process 7")
    assert list(tmp_path.iterdir()) == []


def test_a_trial_of_a_few_batches_writes_nothing(tmp_path: Path) -> None:
    writer = StatusWriter(tmp_path)
    writer.follow(StandIn(is_trial=True))
    assert writer.ended(Stop.no) == ExitStatus.done
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_hide_the_error(
    writer: StatusWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_status, "write_json", full)
    with pytest.raises(StorageError, match="no checkpoint"), writer.noting_errors():
        raise StorageError("no checkpoint")
    assert read(tmp_path).status == "running"


def test_passwords_in_addresses_are_not_written(writer: StatusWriter, tmp_path: Path) -> None:
    with pytest.raises(BadDataError), writer.noting_errors():
        raise BadDataError("https://me:hunter2@example.org/shards is gone")
    text = (tmp_path / "run_status.json").read_text()
    assert "example.org/shards is gone" in text
    assert "hunter2" not in text


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"status": "done"}'])
def test_half_a_file_is_no_status(text: str, tmp_path: Path) -> None:
    (tmp_path / "run_status.json").write_text(text)
    assert RunStatus.read(tmp_path) is None


def test_the_file_is_plain_json(writer: StatusWriter, tmp_path: Path) -> None:
    writer.ended(Stop.preempted)
    assert json.loads((tmp_path / "run_status.json").read_text())["exit"] == 75
