import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from callbacks.skipped import FILE, SkipCounts
from tests.callbacks.test_callbacks_skipped import FAULTS, module, train
from tests.datamodules.bad_shards import spoil
from tests.datamodules.toy_shards import make_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 asks torch 2.13 in a way that has a successor
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on two gloo processes; return the folder of data, run and results."""
    folder = tmp_path_factory.mktemp("ranks")
    make_folder(folder / "data", {"local": 10, "add": 6})
    spoil(folder / "data", FAULTS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests" / "callbacks" / "skipping_ranks.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "data"), str(folder / "run")],
        cwd=folder,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def results(ranks: Path) -> list[dict]:
    return [json.loads((ranks / "run" / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_list_and_count_what_one_does(ranks: Path, tmp_path: Path):
    _, alone = train(module(ranks / "data"), tmp_path)
    for result in results(ranks):
        assert SkipCounts.from_dict(result["counts"]) == alone.counts
    assert (ranks / "run" / FILE).read_text() == (tmp_path / FILE).read_text()


def test_two_processes_stop_together_above_the_limit(ranks: Path):
    first, second = (result["ended"] for result in results(ranks))
    assert "of 24 samples" in first
    assert first == second


@pytest.mark.parametrize("name", ["step-1", "step-4", "epoch-0", "step-6"])
def test_a_checkpoint_of_two_processes_goes_on_in_one(ranks: Path, tmp_path: Path, name: str):
    whole, _ = train(module(ranks / "data"), tmp_path / "whole")
    (tmp_path / "part").mkdir()
    file = ranks / "run" / f"{name}.ckpt"
    toy, skipped = train(module(ranks / "data"), tmp_path / "part", ckpt=file)
    assert SkipCounts.from_dict(results(ranks)[0]["counts"]) == skipped.counts
    # means of gradients in another order: equal to a few roundings of float64
    torch.testing.assert_close(toy.weights(), whole.weights(), rtol=1e-12, atol=0)
