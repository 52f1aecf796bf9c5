"""`shards world --clips` from the command line: what it writes streams; what cannot be meant."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.checks.folders import check_folder
from datamodules.clip import ClipDataModule
from datamodules.shards.clips import decode_mp4
from datamodules.shards.manifest import read_manifest
from datamodules.world.clips.clip import make_clip, make_flat_clip
from emu_edit.batch import ClipBatch
from emu_edit.cli.main import main
from emu_edit.tasks import CAPTION

SMALL = ("--size", "16", "--frames", "4", "--seed", "3")


def world(folder: Path, *options: str) -> int:
    return main(["shards", "world", str(folder), *options])


@pytest.mark.parametrize("options", [(), ("--movie",)])
def test_clips_of_the_world_are_written_and_streamed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
):
    assert world(tmp_path, "--clips", "2", "--rate", "5", *SMALL, *options) == 0
    assert capsys.readouterr().out.startswith(f"wrote 2 clips to {tmp_path}; look at")
    assert (tmp_path / "contact_sheet.png").is_file()
    made_by = read_manifest(tmp_path).made_by
    assert (made_by["program"], made_by["movie"]) == (
        "emu_edit shards world --clips",
        bool(options),
    )
    data = ClipDataModule(str(tmp_path), str(tmp_path), 16, 4, global_batch=1)
    data.setup("fit")
    for index, batch in enumerate(data.val_dataloader()):
        assert isinstance(batch, ClipBatch)
        clip = make_clip(3, "train", index, size=16, frames=4)
        np.testing.assert_array_equal(batch.target[0], clip.target)
        assert batch.rate[0] == 5


def test_captioned_clips_have_no_edit_and_no_cut(tmp_path: Path):
    options = ("--size", "16", "--frames", "8", "--seed", "3", "--captions")
    assert world(tmp_path, "--clips", "4", *options) == 0
    data = ClipDataModule(str(tmp_path), str(tmp_path), 16, 8, global_batch=4, tasks=[CAPTION])
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert isinstance(batch, ClipBatch)
    assert not batch.has_source.any()
    made = (make_clip(3, "train", i, task="local", size=16, frames=8) for i in range(20))
    uncut = [clip for clip in made if not clip.cuts][:4]
    assert batch.instruction == tuple(clip.caption for clip in uncut)
    np.testing.assert_array_equal(batch.target, np.stack([clip.source for clip in uncut]))
    assert not check_folder(tmp_path).problems


def test_flat_clips_of_a_folder_are_those_of_their_index(tmp_path: Path):
    options = ("--size", "16", "--frames", "4", "--seed", "3", "--captions", "--flat")
    assert world(tmp_path, "--clips", "3", *options) == 0
    data = ClipDataModule(str(tmp_path), str(tmp_path), 16, 4, global_batch=3, tasks=[CAPTION])
    data.setup("fit")
    (batch,) = data.val_dataloader()
    made = [make_flat_clip(3, "train", i, size=16, frames=4) for i in range(3)]
    assert batch.instruction == tuple(clip.caption for clip in made)
    np.testing.assert_array_equal(batch.target, np.stack([clip.source for clip in made]))


def test_plain_clips_are_mp4s_with_captions(tmp_path: Path):
    assert world(tmp_path, "--clips", "1", "--plain", "--crf", "10", *SMALL) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target", "instructions.jsonl"}
    for role in ("source", "target"):
        (movie,) = (tmp_path / role).glob("*.mp4")
        assert len(decode_mp4(movie.read_bytes())) == 4
        assert movie.with_suffix(".txt").read_text().strip()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--clips", "2", "--photos", "x"), "--photos says nothing to --clips; leave it out"),
        (("--pairs", "16", "--photo-share", "0.5"), "says nothing without --photos; add --photos"),
        (("--clips", "2", "--new-task", "x"), "--new-task says nothing to --clips"),
        (("--pairs", "16", "--frames", "4"), "--frames says nothing to --pairs"),
        (("--pairs", "16", "--plain"), "--plain says nothing to --pairs"),
        (("--clips", "2", "--pairs", "16"), "not allowed with argument"),
        (("--pairs", "16", "--captions"), "--captions says nothing to --pairs"),
        (("--clips", "2", "--flat"), "flat clips are not edited"),
        (("--clips", "2", "--captions", "--plain"), "--captions says nothing to --plain"),
        (("--clips", "2", "--crf", "9"), "crf=9 is of mp4s"),
        (("--clips", "2", "--movie", "--crf", "52"), "crf=52 must be 1 (best) to 51"),
        ((), "one of the arguments --pairs --clips is required"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
):
    assert world(tmp_path / "out", *options) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert not list(tmp_path.rglob("*.tar"))
