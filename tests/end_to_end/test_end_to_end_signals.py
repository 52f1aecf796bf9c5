import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
def test_ctrl_c_ends_a_training_quietly_and_says_how_to_go_on(tmp_path: Path) -> None:
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
        training.send_signal(signal.SIGINT)
        error = training.communicate(timeout=300)[1]
    finally:
        training.kill()
    assert training.returncode == 130
    assert "Traceback" not in error
    assert error.splitlines()[-1] == "stopped; go on with: emu-edit fit --ckpt_path r"
