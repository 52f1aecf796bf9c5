import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from emu_edit.errors import BrokenCheckpointError, ExitStatus, InputError, StorageError
from emu_edit.training.checkpoint_io import (
    DurableCheckpointIO,
    in_words,
    read_checkpoint,
    read_sidecar,
    sha256_of,
    sidecar_of,
    size_of,
    sweep,
    verify,
)
from tests.training.disks import tiny_disk

KILLED_AT = Path(__file__).with_name("kill_while_saving.py")


def small(step: int = 7) -> dict:
    return {
        "state_dict": {"w": torch.full((500,), float(step))},
        "global_step": step,
        "EditDataModule": {"version": 1, "consumed": 4 * step},
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint with its sidecar."""
    path = tmp_path / "step-00000007.ckpt"
    DurableCheckpointIO().save_checkpoint(small(), path)
    return path


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0b100
    path.write_bytes(data)


def test_the_sidecar_tells_hash_size_step_position_and_versions(file):
    known = read_sidecar(file)
    assert known is not None
    assert json.loads(sidecar_of(file).read_text()) == json.loads(known.to_json())
    assert (known.step, known.consumed, known.world) == (7, 28, 1)
    assert (known.bytes, known.sha256) == (file.stat().st_size, sha256_of(file))
    assert known.versions["torch"] == str(torch.__version__)
    assert read_checkpoint(file)["global_step"] == 7


def test_a_data_module_that_counts_nothing_leaves_the_position_empty(tmp_path):
    DurableCheckpointIO().save_checkpoint({"state_dict": {}, "global_step": 1}, tmp_path / "a.ckpt")
    known = read_sidecar(tmp_path / "a.ckpt")
    assert known is not None
    assert known.consumed is None


@pytest.mark.parametrize("has_sidecar", [True, False])
def test_a_flipped_bit_anywhere_in_the_tensors_is_found(file, has_sidecar):
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        (data,) = [entry for entry in archive.infolist() if entry.filename.endswith("data/0")]
    start = whole.index(torch.full((500,), 7.0).numpy().tobytes(), data.header_offset)
    if not has_sidecar:
        sidecar_of(file).unlink()
    for at in range(start, start + 2000, 97):
        file.write_bytes(whole)
        verify(file)
        flip(file, at)
        with pytest.raises(BrokenCheckpointError, match=r"sha256 mismatch|damaged in .*data/0"):
            read_checkpoint(file)


@pytest.mark.parametrize("has_sidecar", [True, False])
def test_a_file_cut_anywhere_is_found_in_one_line(file, has_sidecar):
    whole = file.read_bytes()
    if not has_sidecar:
        sidecar_of(file).unlink()
    for length in (0, 1, 500, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(BrokenCheckpointError, match=r"step-00000007\.ckpt is truncated") as one:
            read_checkpoint(file)
        assert "\n" not in str(one.value)
        assert one.value.status is ExitStatus.storage


def test_a_longer_file_is_not_taken_for_the_one_that_was_written(file):
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(BrokenCheckpointError, match=r"truncated or another file: it has \d+ bytes"):
        verify(file)


def test_a_damaged_sidecar_is_named_and_not_believed(file):
    for content in ("", "{", "[]", '{"sha256": "x"}'):
        sidecar_of(file).write_text(content)
        with pytest.raises(BrokenCheckpointError, match=r"ckpt\.json is damaged, so .* cannot be"):
            verify(file)


def test_a_link_is_verified_by_the_sidecar_of_the_file_it_points_to(file):
    link = file.with_name("last.ckpt")
    link.symlink_to(file.name)
    verify(link)
    flip(file, 900)
    with pytest.raises(BrokenCheckpointError, match=r"last\.ckpt: sha256 mismatch"):
        verify(link)


def test_saving_over_a_link_leaves_the_file_it_pointed_to(file):
    link = file.with_name("last.ckpt")
    link.symlink_to(file.name)
    DurableCheckpointIO().save_checkpoint(small(9), link)
    assert not link.is_symlink()
    assert [read_checkpoint(path)["global_step"] for path in (link, file)] == [9, 7]


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("kind", ["torch", "bare pickle", "signed"])
def test_a_file_that_carries_code_is_refused_by_name_and_not_run(tmp_path, kind):
    path, marker = tmp_path / "evil.ckpt", tmp_path / "executed"
    content = {"state_dict": {}, "global_step": 1, "extra": Payload(str(marker))}
    match kind:
        case "torch":
            torch.save(content, path)
        case "bare pickle":
            path.write_bytes(pickle.dumps(content))
        case "signed":  # by somebody who knows the sidecar
            DurableCheckpointIO().save_checkpoint(content, path)
            verify(path)
    reason = r"not a checkpoint" if kind == "bare pickle" else r"\((posix|os)\.mkdir\): code, which"
    with pytest.raises(BrokenCheckpointError, match=reason) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_a_disk_that_does_not_answer_says_nothing_about_the_file(file, monkeypatch):
    def broken_disk(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "open", broken_disk)
    with pytest.raises(StorageError, match=r"cannot be read \(Input/output error\)") as caught:
        verify(file)
    assert not isinstance(caught.value, BrokenCheckpointError)


def test_too_little_space_is_noticed_before_anything_is_written(file, monkeypatch):
    usage = shutil.disk_usage(file.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    before = {path: path.read_bytes() for path in file.parent.iterdir()}
    reason = (
        r"checkpoint step 8 not written: need 81 kB, free 50 kB in .*; the previous one is kept"
    )
    with pytest.raises(StorageError, match=reason):
        DurableCheckpointIO().save_checkpoint(small(8), file)
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == before


def test_tensors_that_share_memory_are_counted_once():
    weight = torch.zeros(100)
    assert size_of({"a": weight, "b": [weight[:50], (torch.zeros(10), 1)], "c": "x"}) == 440


def test_sizes_are_written_for_people():
    assert [in_words(size) for size in (5, 1500, 14.2e9)] == ["5 B", "1.5 kB", "14.2 GB"]


@pytest.fixture
def full_soon(tmp_path: Path) -> Iterator[Path]:
    with tiny_disk(tmp_path / "disk", megabytes=1) as folder:
        yield folder


def test_a_disk_that_fills_up_while_writing_keeps_the_previous_file(full_soon, monkeypatch):
    path = full_soon / "a.ckpt"
    DurableCheckpointIO().save_checkpoint(small(1), path)
    usage = shutil.disk_usage(full_soon)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    large = {"state_dict": {"w": torch.zeros(400_000)}, "global_step": 2}
    with pytest.raises(StorageError, match=r"not written \(ENOSPC No space left on device\)"):
        DurableCheckpointIO().save_checkpoint(large, path)
    assert read_checkpoint(path)["global_step"] == 1
    assert sorted(entry.name for entry in full_soon.iterdir()) == ["a.ckpt", "a.ckpt.json"]


def test_the_temporary_folder_of_the_system_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    DurableCheckpointIO().save_checkpoint(small(), tmp_path / "a.ckpt")
    verify(tmp_path / "a.ckpt")


def test_what_killed_writers_left_is_swept_and_named(file):
    orphans = [".step-00000009.ckpt.12.tmp", ".step-00000009.ckpt.json.12.tmp"]
    others = [".something.tmp", "step-00000001.ckpt.tmp", "notes.txt"]
    for name in (*orphans, *others):
        file.with_name(name).write_text("x")
    assert sweep(file.parent) == ["step-00000009.ckpt"]
    left = {path.name for path in file.parent.iterdir()}
    assert left == {*others, file.name, sidecar_of(file).name}
    assert sweep(file.parent / "missing") == []


@pytest.mark.slow
def test_kill_9_at_every_moment_of_saving_leaves_the_old_checkpoint_or_the_new_one(tmp_path):
    """The script forks a writer for each moment; each kills itself there."""
    done = subprocess.run(
        [sys.executable, str(KILLED_AT), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    moments = json.loads(done.stdout)
    assert moments["killed"] >= 10
    assert moments["complete"] == 1  # the last writer met no moment and ended
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == moments["killed"] + 1
    steps = []
    for folder in folders:
        swept = sweep(folder)
        verify(folder / "a.ckpt")
        steps.append(read_checkpoint(folder / "a.ckpt")["global_step"])
        assert {path.name for path in folder.iterdir()} <= {"a.ckpt", "a.ckpt.json"}
        assert set(swept) <= {"a.ckpt"}
    assert steps == sorted(steps)  # old before the rename, new after
    assert set(steps) == {1, 2}


def test_a_missing_file_is_the_users_mistake_not_the_disks():
    with pytest.raises(InputError, match="no checkpoint at nowhere") as caught:
        read_checkpoint("nowhere")
    assert caught.value.status is ExitStatus.usage
