"""`fit --resume auto` through the program: killed, broken, in use, on two ranks."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from emu_edit.cli.main import main
from emu_edit.runs.lock import RunLock
from emu_edit.runs.status import RunStatus
from emu_edit.training.checkpoint_io import read_checkpoint, read_sidecar
from tests.end_to_end.killer import KILL_AT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("place")]
REPOSITORY = Path(__file__).parents[2]
CONFIGS = (
    f"--config={REPOSITORY / 'tests' / 'training' / 'tiny.yaml'}",
    f"--config={REPOSITORY / 'tests' / 'end_to_end' / 'resume.yaml'}",
)
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(REPOSITORY),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with an uninterrupted run in `whole` and one in `killed`."""
    folder = tmp_path_factory.mktemp("resume")
    before = Path.cwd()
    os.chdir(folder)
    try:
        # every run in a process of its own with one thread: another number rounds otherwise
        assert program("fit", *CONFIGS, "--run=whole").returncode == 0
        killed = program("fit", *CONFIGS, "--run=killed", "--resume=auto", **{KILL_AT: "5"})
        assert killed.returncode == -signal.SIGKILL
        assert "resume: no checkpoint in killed yet, begins anew" in killed.stderr
        yield folder
    finally:
        os.chdir(before)


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "emu_edit", *arguments], **environment)


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def copy_of(run: str, name: str) -> Path:
    shutil.copytree(run, name, symlinks=True)
    return Path(name)


def checkpoint(run: Path | str, step: int) -> Path:
    return Path(run, "checkpoints", f"step-{step:08}.ckpt")


def weights(file: Path) -> dict[str, torch.Tensor]:
    content = read_checkpoint(file)
    (average,) = [s["average"] for s in content["callbacks"].values() if "average" in s]
    return {**content["state_dict"], **{f"average of {name}": w for name, w in average.items()}}


def logged_steps(run: Path) -> list[int]:
    with (run / "logs" / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_killed_run_goes_on_in_its_folder_and_ends_with_the_same_bits():
    folder = copy_of("killed", "resumed")
    assert checkpoint(folder, 4).exists()
    assert not checkpoint(folder, 6).exists()
    assert (folder / "run.lock").exists()  # nobody gave it back
    said = program("fit", "--run=resumed", "--resume=auto")
    assert said.returncode == 0
    assert "resume: last valid step 4\n" in said.stderr
    assert f"checkpoint  {checkpoint(folder, 6)}" in said.stdout
    expected, found = weights(checkpoint("whole", 6)), weights(checkpoint(folder, 6))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert logged_steps(folder) == logged_steps(Path("whole")) == [0, 1, 2, 3, 4, 5]
    assert not (folder / "run.lock").exists()
    assert (folder / "model" / "model_index.json").is_file()


def test_a_run_that_is_done_is_not_trained_further():
    before = checkpoint("whole", 6).stat().st_mtime_ns
    assert main(["fit", "--run=whole", "--resume=auto"]) == 0
    assert checkpoint("whole", 6).stat().st_mtime_ns == before


def test_a_broken_newest_checkpoint_is_put_aside_or_stops_the_program(capsys):
    folder = copy_of("killed", "broken")
    flip_a_bit(checkpoint(folder, 4))
    assert main(["fit", "--run=broken", "--resume=strict"]) == 74
    assert "step-00000004.ckpt: sha256 mismatch" in capsys.readouterr().err
    said = program("fit", "--run=broken", "--resume=auto")
    assert said.returncode == 0
    line = (
        "resume: last valid step 2 (step-00000004.ckpt is broken, now step-00000004.ckpt.corrupt)"
    )
    assert line in said.stderr
    found = weights(checkpoint(folder, 6))
    assert all(torch.equal(w, found[name]) for name, w in weights(checkpoint("whole", 6)).items())


def test_two_trainings_in_one_folder_are_refused():
    with RunLock(Path("killed")) as lock:
        lock.acquire()
        second = program("fit", "--run=killed", "--resume=auto")
    assert second.returncode == 78
    assert f"killed is in use by process {os.getpid()} on" in second.stderr.splitlines()[-1]
    assert not checkpoint("killed", 6).exists()


def test_everything_that_reads_checkpoints_finds_those_of_the_run(capsys):
    assert main(["export", "whole", "-o", "exported"]) == 0
    assert main(["validate", "--ckpt_path=whole"]) == 0
    assert main(["fit", "--start_from=whole", *CONFIGS, "--run=started"]) == 0
    assert main(["fit", "--ckpt_path=whole", "--run=longer", "--trainer.max_epochs=4"]) == 0
    assert checkpoint("longer", 8).exists()
    assert "starts with the weights of" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_ranks_go_on_from_the_same_checkpoint(launcher):
    folder = copy_of("killed", launcher)
    flip_a_bit(checkpoint(folder, 4))
    arguments = ["fit", f"--run={launcher}", "--resume=auto"]
    arguments += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    # two dashes: torchrun takes --run for its own --run-path
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--"]
    start = torchrun if launcher == "torchrun" else []
    done = run([sys.executable, "-m", *start, "emu_edit", *arguments])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("resume: last valid step 2 (step-00000004.ckpt is broken") == 1
    known = read_sidecar(checkpoint(folder, 6))
    assert known is not None
    assert known.world == 2
    assert len(list(folder.rglob("*.corrupt"))) == 1


def test_a_rank_that_is_killed_is_named_and_the_checkpoint_before_stays():
    folder = copy_of("killed", "lost")
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    event = "--trainer.callbacks"
    kill = [f"{event}+=tests.distributed.signalled_ranks.Event", f"{event}.event=SIGKILL"]
    kill += [f"{event}.where=rank1", f"{event}.step=6"]
    lost = program("fit", "--run=lost", "--resume=auto", *two, *kill)
    assert lost.returncode == 74, lost.stderr[-3000:]
    assert re.search(
        r"emu-edit: error: rank 0 lost its partners at optimizer step 5 \(Connection .* by peer\): "
        r"rank 1 was ended by SIGKILL \(.*\); start again with --resume auto",
        lost.stderr.splitlines()[-1],
    )
    assert "Traceback" not in lost.stderr
    assert not checkpoint(folder, 6).exists()
    assert read_checkpoint(checkpoint(folder, 4))["global_step"] == 4


COUNT = ("loops", "fit_loop", "epoch_loop.batch_progress", "total", "ready")
WRONG = {
    COUNT: (None, "x", {"a": 1}, -1),
    ("loops", "fit_loop", "epoch_loop.batch_progress"): (None, "x"),
    ("optimizer_states", 0): (None, [1], {"a": 1}),
    ("optimizer_states", 0, "state", 0): (None, "x"),
    ("optimizer_states", 0, "state", 0, "exp_avg"): (None, torch.zeros(3)),
    ("optimizer_states", 0, "state", 1, "exp_avg_sq"): (torch.zeros(3),),
    ("optimizer_states", 0, "param_groups"): ([], [{}, {}]),
    ("lr_schedulers", 0): (None, [1]),
    ("pytorch-lightning_version",): (None, "x"),
    ("callbacks", "emu_edit.ema"): ([1], {"a": 1}),
}


@pytest.mark.parametrize(
    ("where", "value"), [(where, value) for where, values in WRONG.items() for value in values]
)
def test_a_checkpoint_of_wrong_types_is_refused_in_one_line(where, value, capsys):
    content = torch.load(checkpoint("whole", 6), weights_only=True)
    part = content
    for name in where[:-1]:
        part = part[name]
    part[where[-1]] = value
    torch.save(content, "wrong.ckpt")
    begin = ["fit", "--config=whole/config.yaml", "--ckpt_path=wrong.ckpt", "--run=hostile"]
    assert main([*begin, "--trainer.max_epochs=9"]) == 74
    assert re.fullmatch(
        r"emu-edit: error: wrong\.ckpt: .*(; give a \.ckpt file written by|: --start_from).*",
        capsys.readouterr().err.splitlines()[-1],
    )
    status = RunStatus.read(Path("hostile"))
    assert status is None or status.exit == 74
    shutil.rmtree("hostile", ignore_errors=True)
