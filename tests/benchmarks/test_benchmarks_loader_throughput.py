"""The throughput benchmark compares the same pictures, and its measurements come through."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from benchmarks.loader_throughput import (
    BATCH,
    measure_reading,
    measure_resume,
    our_batches,
    plain_batches,
    write_folders,
)
from datamodules.shards.manifest import read_manifest
from tests.datamodules.toy_shards import make_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def digests(batches: list[Tensor]) -> list[str]:
    return sorted(hashlib.sha256(p.numpy().tobytes()).hexdigest() for b in batches for p in b)


def test_both_loops_read_the_same_pictures_in_batches_of_one_size(tmp_path: Path):
    make_folder(tmp_path, {"local": 3 * BATCH})
    ours = list(our_batches(tmp_path, 16, 3 * BATCH)())
    plain = list(plain_batches(tmp_path, 3 * BATCH)())
    assert {tuple(b.shape) for b in ours} == {tuple(b.shape) for b in plain} == {(BATCH, 3, 16, 16)}
    assert digests(ours) == digests(plain)
    assert len(set(digests(ours))) == 6 * BATCH


def test_the_written_folders_can_be_trained_on_together_with_their_names(tmp_path: Path):
    folders = write_folders(tmp_path, pairs=2 * BATCH, size=32)
    assert {name: read_manifest(f).num_samples for name, f in folders.items()} == {
        "world": 32,
        "photos": 32,
    }
    (photo, *_), _ = plain_batches(folders["photos"], BATCH)()
    neighbours = np.abs(np.diff(photo.numpy().astype(int), axis=-1))
    assert 0 < np.median(neighbours) < 30  # neither flat nor noise


def test_reading_and_resume_are_measured(tmp_path: Path):
    make_folder(tmp_path, {"local": 2 * BATCH})
    reading = measure_reading("x", tmp_path, 16, turns=2)
    assert reading.low <= reading.value <= reading.high
    resume = measure_resume(tmp_path, turns=2)
    assert "after 1e+11 steps" in resume.detail
