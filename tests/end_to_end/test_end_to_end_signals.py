import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emu_edit.runs.status import RunStatus
from tests.end_to_end.conftest import SHORT

REPOSITORY = Path(__file__).parents[2]
# a shell lets programs in the background ignore Ctrl-C, and the tests may be such a program
LISTENING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from emu_edit.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGUSR1, 75, "preempted"),
    ],
)
def test_a_signal_ends_a_training_quietly_and_says_how_to_go_on(
    number: signal.Signals, status: int, word: str, tmp_path: Path
) -> None:
    training = subprocess.Popen(
        [sys.executable, "-c", LISTENING, "fit", *SHORT, "--trainer.max_epochs=100000", "--run=r"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (tmp_path / "r" / "checkpoints" / "last.ckpt").exists():
            assert training.poll() is None, training.communicate()[1]
            time.sleep(0.2)  # waits for another process; there is nothing to hook into
        training.send_signal(number)
        error = training.communicate(timeout=300)[1]
    finally:
        training.kill()
    assert training.returncode == status
    assert "Traceback" not in error
    assert error.splitlines()[-1] == "stopped; go on with: emu-edit fit --resume auto --run r"
    told = RunStatus.read(tmp_path / "r")
    assert told is not None
    assert (told.status, told.exit) == (word, status)
    assert (tmp_path / (told.resume or "")).is_file()
    assert told.consumed == told.step * 4
    # what a training leaves behind is made at its end
    assert not (tmp_path / "r" / "model").exists()
