"""The same commands on photographs and on a user's own pairs, good and broken."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from datamodules.world.write import PHOTOGRAPHS
from emu_edit.batch import EditBatch, EditSample
from emu_edit.cli.main import main
from tests.datamodules.toy_shards import make_folder, sample, text, write_tar

NARROW = (
    "--model.denoiser.channels=[32, 32]",
    "--model.denoiser.attention=[false, true]",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--data.global_batch=4",
    "--data.steps_per_epoch=2",
    "--data.image_size=32",
)
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


@pytest.fixture
def photos(workplace: Path) -> Path:
    """Four of scikit-image's photographs, made smaller."""
    folder = workplace / "photos"
    folder.mkdir()
    for name in PHOTOS:
        with Image.open(Path(skimage.__file__).parent / "data" / name) as photo:
            photo.thumbnail((96, 96))
            photo.convert("RGB").save(folder / name)
    return folder


@pytest.fixture
def photo_pairs(photos: Path) -> Path:
    """The photographs as pairs in the folder layout: each is to become its negative."""
    folder = photos.parent / "my_pairs"
    (folder / "source").mkdir(parents=True)
    (folder / "target").mkdir()
    lines = []
    for path in sorted(photos.iterdir()):
        with Image.open(path) as photo:
            photo.save(folder / "source" / f"{path.stem}.png")
            negative = Image.fromarray(255 - np.asarray(photo))
            negative.save(folder / "target" / f"{path.stem}.png")
        lines.append(json.dumps({"file": f"{path.stem}.png", "instruction": "show a negative"}))
    (folder / "instructions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_fit_trains_on_the_world_in_front_of_photographs(photos: Path) -> None:
    arguments = (f"--data.photos={photos}", "--data.pairs=16", "--score_pairs=1")
    assert main(["fit", "--config=photos", *NARROW, *arguments]) == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("photos-")
    assert json.loads((run / "results.json").read_text())["photos"] is None  # scored on the world
    lines = (run / "model" / PHOTOGRAPHS).read_text().splitlines()
    learnt_from = {json.loads(line)["name"] for line in lines}
    assert learnt_from
    assert learnt_from < set(PHOTOS)  # the others are for testing
    assert main(["export", str(run), "-o", "exported"]) == 0
    for name in (PHOTOGRAPHS, "model_index.json"):
        assert Path("exported", name).read_bytes() == (run / "model" / name).read_bytes()


@pytest.mark.slow
def test_fit_trains_on_photographs_that_were_converted(
    photo_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert = ["shards", "convert", "folder", str(photo_pairs), "my_shards", "--task", "style"]
    assert main(convert) == 0
    assert "4 pairs written (style 4)" in capsys.readouterr().out
    assert main(["shards", "check", "my_shards"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert main(["fit", "--config=pairs", *NARROW, "--data.train=my_shards"]) == 0
    arguments = [*NARROW, "--data.train=my_shards", "--data.val=my_shards", "--run=validated"]
    assert main(["fit", "--config=pairs", *arguments, "--no_predictor"]) == 0
    assert Path("validated", "model", "unet").is_dir()
    assert not Path("validated", "model", "predictor").exists()
    assert list(Path("validated", "grids").glob("*.png"))
    edit = ["edit", str(photo_pairs / "source" / "coffee.png"), "show a negative"]
    assert main([*edit, "--task=style", "--output=out.png", "--steps=1", "--model=validated"]) == 0
    assert Path("out.png").is_file()


@pytest.mark.slow
def test_fit_keeps_the_shape_of_photographs_in_buckets(
    photo_pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert = ["shards", "convert", "folder", str(photo_pairs), "my_shards", "--task", "style"]
    assert main([*convert, "--by-shape"]) == 0
    assert main(["shards", "check", "my_shards"]) == 0
    seen: list[tuple[int, ...]] = []
    collate = EditBatch.collate

    def keep(samples: list[EditSample]) -> EditBatch:
        batch = collate(samples)
        seen.append(tuple(batch.target.shape))
        return batch

    monkeypatch.setattr(EditBatch, "collate", keep)
    folders = ("--data.train=my_shards", "--data.val=my_shards", "--run=buckets")
    steps = ("--data.global_batch=1", "--data.steps_per_epoch=8", "--data.buckets=true")
    assert main(["fit", "--config=pairs", *NARROW, *folders, *steps, "--no_predictor"]) == 0
    # three of the photographs are about 3:2, one is a square
    assert set(seen) >= {(1, 3, 28, 40), (1, 3, 32, 32)}
    assert {shape[1:] for shape in seen} == {(3, 28, 40), (3, 32, 32)}
    assert list(Path("buckets", "grids").glob("*.png"))
    capsys.readouterr()
    again = ["fit", "--config=pairs", *NARROW, *steps, "--data.train=plain"]
    assert main([*convert[:4], "plain", "--task", "style"]) == 0
    capsys.readouterr()
    error = refused(capsys, *again, status=78)
    assert "plain: style-000000.tar does not say of which shape its pictures are" in error
    assert "convert again with --by-shape" in error
    uneven = [*again[:-1], "--data.train=my_shards", "--data.image_size=40"]
    assert "data.image_size=40 is no multiple of 16" in refused(capsys, *uneven, status=78)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    assert main(list(arguments)) == status
    error = capsys.readouterr().err
    assert error.startswith("emu-edit: error: ")
    assert error.count("\n") == 1
    return error


def test_shards_world_writes_shards_and_a_contact_sheet(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = ["shards", "world", "w", "--pairs=32", "--size=16"]
    assert main(world) == 0
    assert "wrote 32 pairs of 16 tasks to w; look at w/contact_sheet.png" in capsys.readouterr().out
    assert (workplace / "w" / "contact_sheet.png").is_file()
    assert "w holds shards already" in refused(capsys, *world)
    assert main(["shards", "world", "h", "--pairs=16", "--size=16", "--split=heldout"]) == 0
    assert "pairs=3 is too few" in refused(capsys, "shards", "world", "x", "--pairs=3")


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("wrold", "x"), "unknown command 'shards wrold'; known: world, convert, cache, check."),
        (("world", "x"), "one of the arguments --pairs --clips is required"),
        (("world", "x", "--pairs=32", "--photos=none"), "photos='none' is not a folder"),
        (("world", "x", "--pairs=32", "--split=val"), "invalid choice: 'val'"),
        (("convert", "folders", "x", "y"), "unknown kind 'folders'.*Did you mean 'folder'"),
        (("convert", "folder", "x", "y"), "x: no such file or folder"),
    ],
)
def test_what_shards_cannot_use_is_refused_in_one_line(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(words, refused(capsys, "shards", *arguments))


@pytest.mark.usefixtures("workplace")
def test_a_folder_without_shards_is_bad_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert "x is not a shard folder" in refused(capsys, "shards", "check", "x", status=65)


@pytest.mark.usefixtures("workplace")
def test_pairs_of_an_unknown_task_are_refused_with_the_nearest_name(
    photo_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert = ("shards", "convert", "folder", str(photo_pairs), "out", "--task", "stile")
    assert "Did you mean 'style'" in refused(capsys, *convert)


def truncated(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:700])


def half_a_sample(shard: Path) -> None:
    write_tar(shard, [*sample("a"), ("b.source.png", b"x"), ("b.json", text())])


def doubled_keys(shard: Path) -> None:
    write_tar(shard, [*sample("a"), *sample("a")])


def traversal(shard: Path) -> None:
    write_tar(shard, sample("../../etc/passwd"))


def changed_since(shard: Path) -> None:
    data = io.BytesIO(shard.read_bytes())
    with tarfile.open(fileobj=data) as tar:
        start = tar.getmembers()[0].offset_data
    changed = bytearray(data.getvalue())
    changed[start + 40] ^= 1
    shard.write_bytes(changed)


@pytest.mark.parametrize(
    "damage", [truncated, half_a_sample, doubled_keys, traversal, changed_since]
)
def test_a_broken_shard_is_listed_by_check_and_refused_by_fit(
    damage, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(workplace / "shards", {"local": 4, "add": 4}, size=32)
    damage(workplace / "shards" / "local-000000.tar")
    assert main(["shards", "check", "shards"]) == 65
    printed = capsys.readouterr().out
    assert "error: local-000000.tar" in printed
    listed = [json.loads(line) for line in Path("shards/problems.jsonl").read_text().splitlines()]
    assert any(problem["is_error"] for problem in listed)
    fit = ("fit", "--config=pairs", *NARROW, "--data.train=shards")
    error = refused(capsys, *fit, status=65)
    assert "local-000000.tar" in error
