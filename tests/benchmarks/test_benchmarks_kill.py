import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kill_test import Trial, draw_blows, table
from benchmarks.kill_test_run import (
    EPOCHS,
    GLOBAL_BATCH,
    STEPS_PER_EPOCH,
    Layout,
    differences,
    gaps,
    steps_of,
)
from emu_edit.training.checkpoint_io import DurableCheckpointIO, read_checkpoint

ROOT = Path(__file__).parents[2]
DEADLINE = 600  # seconds; a hang fails the test


def run_kill_test(folder: Path, *options: str) -> list[dict]:
    """Run the program in a process of its own, since it forks; return its trials."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_test", "--every-cli=0", *options, f"-o={folder}"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.endswith((folder / "table.md").read_text())
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A short kill test on one rank, and its folder."""
    folder = tmp_path_factory.mktemp("killed")
    return folder, run_kill_test(folder, "--trials=2", "--ranks=1", "--seed=4")


@pytest.fixture
def pair(killed: tuple[Path, list[dict]], tmp_path: Path) -> tuple[Path, Path]:
    """A trial's folder, to be spoilt, and that of the training left alone."""
    folder, _ = killed
    (alone,) = (
        path for path in folder.glob("alone-forked-ranks1-workers0-accumulate1-*") if path.is_dir()
    )
    shutil.copytree(folder / "trial-4-00000", tmp_path / "trial", symlinks=True)
    return tmp_path / "trial", alone


def test_interrupted_trainings_end_like_one_left_alone(killed: tuple[Path, list[dict]]) -> None:
    _, trials = killed
    assert [trial["problems"] for trial in trials] == [[], []]
    assert [trial["layout"]["accumulate"] for trial in trials] == [1, 2]


def test_the_training_left_alone_takes_every_step_once(pair: tuple[Path, Path]) -> None:
    steps = steps_of(pair[1])
    assert list(steps) == list(range(EPOCHS * STEPS_PER_EPOCH))
    assert {len(keys) for keys in steps.values()} == {GLOBAL_BATCH}


def test_another_key_a_lost_step_and_another_bit_are_found(pair: tuple[Path, Path]) -> None:
    trial, alone = pair
    assert differences(trial, alone) == []
    diary = trial / "diary-0.jsonl"
    text = diary.read_text()
    lines = text.splitlines()
    last = json.loads(lines[-1])
    diary.write_text("\n".join([*lines[:-1], json.dumps({**last, "keys": ["other"]})]) + "\n")
    assert any("had ['other'], not" in words for words in differences(trial, alone))
    diary.write_text("\n".join(line for line in lines if json.loads(line)["step"] != 39) + "\n")
    assert differences(trial, alone) == ["rank 0 never trained on (39, 1, 0, 0)"]
    diary.write_text(text)
    last_file = (trial / "checkpoints" / "last.ckpt").resolve()
    checkpoint = read_checkpoint(last_file)
    weight = checkpoint["state_dict"]["map.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0, dtype=weight.dtype))
    DurableCheckpointIO().save_checkpoint(checkpoint, last_file)
    assert differences(trial, alone) == ["the last checkpoint differs in state_dict"]


def write_diaries(folder: Path, *, without: list[tuple[int, int, bool]]) -> None:
    """Write what two ranks note of three steps; leave out lines, by step, rank and whether done."""
    for rank in (0, 1):
        lines = [
            {"step": step, "place": [2, rank, 0], "keys": [f"{step}-{rank}"], "done": is_done}
            for step in range(3)
            for is_done in (False, True)
            if (step, rank, is_done) not in without
        ]
        (folder / f"diary-{rank}.jsonl").write_text("".join(json.dumps(n) + "\n" for n in lines))


@pytest.mark.parametrize(
    ("lost", "found"),
    [
        # killed after the gradients were averaged, before its note; the other rank saved the step
        ([(1, 1, True)], []),
        ([(1, 1, False), (1, 1, True)], ["rank 1 never trained on (1, 2, 1, 0)"]),
        (
            [(1, 0, True), (1, 1, True)],
            [f"rank {rank} began (1, 2, {rank}, 0), but none was done" for rank in (0, 1)],
        ),
    ],
)
def test_a_rank_killed_between_the_step_and_its_note_has_trained_on_it(
    pair: tuple[Path, Path], tmp_path: Path, lost: list[tuple[int, int, bool]], found: list[str]
) -> None:
    trial, alone = pair
    alone = shutil.copytree(alone, tmp_path / "alone", symlinks=True)
    write_diaries(alone, without=[])
    write_diaries(trial, without=lost)
    assert differences(trial, alone) == found


def test_a_saved_end_that_is_not_gone_on_with_is_found() -> None:
    steps = [0, 1, 2, 3, 2, 3, 4]
    assert gaps(steps, ends=[4, 7], saved=[False, False]) == []
    assert gaps(steps, ends=[4, 7], saved=[True, False]) == [
        "saved after step 3, went on with step 2"
    ]
    assert gaps([0, 0, 1, 1, 2, 2], ends=[4, 6], saved=[True, False]) == []


def test_blows_are_those_of_the_seed() -> None:
    layout = Layout(ranks=2, workers=0, accumulate=1)
    first, again, other = (list(draw_blows(seed, 3, layout, seconds=2.0)) for seed in (0, 0, 1))
    assert first == again != other
    assert all(0 <= blow.after <= 2.0 for blow in first)


def test_the_table_counts_blows_by_signal_and_trials_that_were_exact() -> None:
    layout = Layout(ranks=2, workers=0, accumulate=1)
    blows = ["SIGTERM to all after 1.00 s -> 75 0", "SIGINT to rank 1 after 0.50 s -> 130 0"]
    trials = [
        Trial(0, 0, "forked", layout, blows, [], 3.0),
        Trial(0, 1, "forked", layout, blows[:1], ["rank 0 never trained on (3, 2, 0, 0)"], 3.0),
    ]
    _, _, row, total = table(trials).splitlines()
    assert row == "| 2 | 0 | 1 | 2 | 0 | 2 | 0 | 1 | 3 | 1/2 |"
    assert total == "| all | all | all | 2 | 0 | 2 | 0 | 1 | 3 | 1/2 |"


@pytest.mark.slow
def test_interrupted_trainings_on_two_ranks_end_like_one_left_alone(tmp_path: Path) -> None:
    trials = run_kill_test(tmp_path, "--trials=4", "--ranks=2", "--seed=4")
    assert [trial["problems"] for trial in trials] == [[]] * 4
