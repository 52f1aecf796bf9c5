"""Rows of the fault list about signals: what is read at the first, and left by the second."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from callbacks.preemption import NOTICE
from emu_edit.runs.resume import newest_whole
from emu_edit.training.checkpoint_io import verify

REPOSITORY = Path(__file__).parents[2]
# both signals come while the checkpoint of the second epoch is written
SIGNALLED = """
import signal, sys
from pathlib import Path
from lightning.pytorch.callbacks import LambdaCallback
import callbacks.preemption as preemption
from callbacks.durable import Checkpoints
from emu_edit.training import checkpoint_io
from tests.callbacks.line import train

folder, number = Path(sys.argv[1]), int(sys.argv[2])
preemption.ECHO = 0.0  # nobody passes signals on here
write = checkpoint_io._Hashing.write

def interrupted(file, data):
    size = write(file, data)
    file.flush()
    for _ in range(2):
        signal.raise_signal(number)
    return size

def arm(trainer, module):
    if trainer.current_epoch == 1:
        checkpoint_io._Hashing.write = interrupted

keeper = Checkpoints(str(folder / "checkpoints"))
train(
    folder, preemption.Preemption(), keeper, LambdaCallback(on_train_epoch_start=arm), max_epochs=3
)
"""


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGINT, signal.SIGUSR1)),
    ],
)
def test_a_second_signal_ends_a_save_in_the_middle_and_leaves_the_checkpoint_before(
    number: signal.Signals, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SIGNALLED, str(tmp_path), str(int(number))],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.splitlines()[-1] == NOTICE.decode().strip()
    verify(tmp_path / "checkpoints" / "last.ckpt")
    chosen, line = newest_whole(tmp_path, "strict")
    assert chosen == tmp_path / "checkpoints" / "step-00000002.ckpt"
    assert line == "resume: last valid step 2 (step 4 incomplete, ignored)"


def test_the_notice_says_what_happens_and_what_once_more_does() -> None:
    assert NOTICE == b"stopping after this optimizer step; once more within 10 s stops at once\n"
