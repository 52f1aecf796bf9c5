import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.kill_test_run import STEPS_PER_EPOCH, diary, differences, steps_of, write_data
from emu_edit.runs.status import RunStatus
from emu_edit.training.checkpoint_io import read_checkpoint
from tests.distributed.launch import ROOT, TORCHRUN, environment

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "tests" / "distributed" / "signalled_ranks.py"
LAUNCHERS = {"lightning": (), "torchrun": TORCHRUN}
STEP = 6  # not one at which a checkpoint is due
DEADLINE = 400  # seconds; a hang fails the test


@dataclass(frozen=True)
class Outcome:
    """How the launching process ended, and what the ranks left."""

    exit: int
    error: str
    status: RunStatus
    steps: list[int]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training nothing happens to."""
    folder = tmp_path_factory.mktemp("alone")
    assert launch("lightning", folder, "nothing", "all").exit == 0
    return folder / "run"


def launch(
    launcher: str, folder: Path, event: str, where: str, *, step: int = STEP, ranks: int = 2
) -> Outcome:
    """Train, or go on; wait for the end."""
    if not (folder / "data").exists():
        write_data(folder / "data")
    what = [str(folder), str(ranks), event, where, str(step)]
    command = [sys.executable, *LAUNCHERS[launcher], str(SCRIPT), *what]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        start_new_session=True,
    )
    status = RunStatus.read(folder / "run")
    assert status is not None, done.stderr[-3000:]
    steps = [line["step"] for line in diary(folder / "run", 0)]
    return Outcome(done.returncode, done.stderr, status, steps)


@pytest.mark.parametrize(
    ("launcher", "name", "where"),
    [
        ("lightning", "SIGUSR1", "rank1"),
        ("torchrun", "SIGTERM", "group"),
    ],
)
def test_a_signal_to_any_rank_saves_and_the_rest_is_trained_later(
    launcher: str, name: str, where: str, alone: Path, tmp_path: Path
) -> None:
    first = launch(launcher, tmp_path, name, where)
    assert first.status.status == "preempted", first.error[-3000:]
    assert first.status.exit == 75
    # torchrun has a status of its own
    assert first.exit == (75 if launcher == "lightning" else 1)
    assert first.status.step == STEP
    assert first.steps == list(range(STEP))
    assert Path(first.status.resume or "").name == f"step-{STEP:08}.ckpt"
    second = launch(launcher, tmp_path, "nothing", "all")
    assert second.exit == 0, second.error[-3000:]
    assert second.status.status == "done"
    assert second.steps[STEP] == STEP
    assert differences(tmp_path / "run", alone) == []


def test_a_signal_to_one_in_a_validation_stops_all_ranks_after_it(
    alone: Path, tmp_path: Path
) -> None:
    first = launch("lightning", tmp_path, "validation-SIGTERM", "rank1")
    assert first.status.status == "preempted", first.error[-3000:]
    assert first.exit == 75
    assert first.status.step == 2 * STEPS_PER_EPOCH  # the first validation comes after two epochs
    second = launch("lightning", tmp_path, "nothing", "all")
    assert second.exit == 0, second.error[-3000:]
    assert differences(tmp_path / "run", alone) == []


@pytest.mark.parametrize(
    ("launcher", "event", "where", "exit_status", "state"),
    [
        ("lightning", "non_finite", "all", 70, "diverged"),
        ("lightning", "defect", "rank1", 1, "failed"),
        ("torchrun", "bad_data", "rank1", 65, "failed"),
    ],
)
def test_an_error_ends_all_ranks_and_says_whose_it_was(
    launcher: str, event: str, where: str, exit_status: int, state: str, tmp_path: Path
) -> None:
    done = launch(launcher, tmp_path, event, where)
    assert done.status.status == state, done.error[-3000:]
    assert done.status.exit == exit_status
    assert "broken on rank" in done.status.message
    if where == "rank1":
        assert done.status.rank == 1
    if launcher == "lightning":
        # by itself, not killed by its launcher
        assert done.exit == exit_status
    # nothing was saved on the way down
    assert [f.name for f in (tmp_path / "run" / "checkpoints").glob("step-*.ckpt")] == [
        "step-00000004.ckpt"
    ]


def test_other_numbers_of_ranks_take_the_same_samples_into_each_step(
    alone: Path, tmp_path: Path
) -> None:
    for ranks, event, step in ((2, "SIGTERM", 6), (1, "SIGTERM", 17), (2, "nothing", 0)):
        done = launch("lightning", tmp_path, event, "rank0", step=step, ranks=ranks)
        assert done.exit == (0 if event == "nothing" else 75), done.error[-3000:]
    run = tmp_path / "run"
    assert steps_of(run) == steps_of(alone)
    assert {line["place"][0] for line in diary(run, 0)} == {1, 2}
    ours, theirs = (
        read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
        for folder in (run, alone)
    )
    # gradients are summed in another order
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
