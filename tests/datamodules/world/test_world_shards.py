"""The world as shards: written, read back by webdataset, with photographs, and as a data module."""

import gc
import io
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from webdataset.compat import WebDataset

from datamodules.checks.folders import check_folder
from datamodules.shards.manifest import read_manifest
from datamodules.world.data import WorldData
from datamodules.world.pair import VERSION, make_pair
from datamodules.world.photographs import Photos
from datamodules.world.scene import Crop
from datamodules.world.write import Extras, write_world
from emu_edit.batch import EditBatch
from emu_edit.errors import BadDataError, InputError
from emu_edit.tasks import SIXTEEN

BUNDLED = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photographs scikit-image brings along, made smaller."""
    folder = tmp_path_factory.mktemp("album")
    for name in BUNDLED:
        with Image.open(Path(skimage.__file__).parent / "data" / name) as photo:
            photo.reduce(3).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 pairs of the world of seed 3 at 16 px."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 40, seed=3, size=16)
    return folder


def read_with_webdataset(folder: Path) -> dict[str, dict]:
    files = [str(path) for path in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():
        # webdataset 1.0 leaves closing the tars to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        samples = WebDataset(files, shardshuffle=False)
        read = {sample["__key__"]: sample for sample in samples}
        del samples
        gc.collect()
    return read


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_the_kinds_of_a_world_may_lie_apart(world: Path, tmp_path: Path):
    write_world(tmp_path, 40, seed=3, size=16, extras=Extras(by_kind=True))
    plain, apart = read_with_webdataset(world), read_with_webdataset(tmp_path)
    assert plain.keys() == apart.keys()
    manifest = read_manifest(tmp_path)
    assert manifest.made_by == {**read_manifest(world).made_by, "by_kind": True}
    for entry in manifest.entries:
        (kind,) = {
            json.loads(sample["json"])["kind"]
            for sample in apart.values()
            if sample["__url__"].endswith(entry.file)
        }
        assert kind == (entry.kind or entry.task)
    assert {entry.kind for entry in read_manifest(world).entries} == {""}
    assert check_folder(tmp_path).is_good


def test_webdataset_reads_back_what_was_written(world: Path):
    read = read_with_webdataset(world)
    for index in range(40):
        pair = make_pair(3, index, size=16)
        sample = read.pop(pair.key)
        np.testing.assert_array_equal(pixels_of(sample["source.png"]), pair.source)
        np.testing.assert_array_equal(pixels_of(sample["target.png"]), pair.target)
        np.testing.assert_array_equal(pixels_of(sample["mask.png"]) == 255, pair.mask)
        text = json.loads(sample["json"])
        assert (text["instruction"], text["task"]) == (pair.instruction, pair.task)
        assert text["kind"] == pair.extra["kind"]
    assert not read


def test_the_manifest_counts_the_pairs_and_says_how_the_world_was_made(world: Path):
    manifest = read_manifest(world)
    assert manifest.num_samples == 40
    assert manifest.tasks == list(SIXTEEN.names)
    assert manifest.made_by == {
        "program": "emu_edit shards world",
        "world_version": VERSION,
        "seed": 3,
        "pairs": 40,
        "size": 16,
        "split": "train",
        "photos": None,
    }


def test_a_contact_sheet_of_all_tasks_lies_beside_the_shards(world: Path):
    with Image.open(world / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
        assert sheet.height > 16 * 128


def test_a_folder_with_shards_is_not_written_over(world: Path):
    with pytest.raises(InputError, match="holds shards already; give another folder"):
        write_world(world, 16, size=16)


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("datamodules.world.write.MIN_FOR_PROCESSES", 0)
    one = write_world(tmp_path / "one", 32, size=16, workers=1)
    two = write_world(tmp_path / "two", 32, size=16, workers=2)
    assert one == two


def test_a_world_needs_a_pair_of_each_task_and_a_process(tmp_path: Path):
    with pytest.raises(InputError, match="pairs=15 is too few for a world; give 16 or more"):
        write_world(tmp_path, 15)
    with pytest.raises(InputError, match="workers=0 must be at least 1"):
        write_world(tmp_path, 16, workers=0)


def test_photographs_become_backgrounds_of_every_task(album: Path):
    photos = Photos(album)
    assert len(photos) == len(BUNDLED)
    for index in range(64):
        pair = make_pair(0, index, size=32, photos=photos)
        again = make_pair(0, index, size=32, photos=Photos(album))
        np.testing.assert_array_equal(pair.source, again.source)
        np.testing.assert_array_equal(pair.target, again.target)
        np.testing.assert_array_equal(pair.source[~pair.mask], pair.target[~pair.mask])
        if pair.extra.get("direction") is None:
            assert "a photograph" in pair.source_caption
            assert len(np.unique(pair.source.reshape(-1, 3), axis=0)) > 200


def test_a_crop_of_a_photograph_is_the_square_it_names(tmp_path: Path):
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, 24:] = 255  # resampling looks a little beyond the crop
    Image.fromarray(pixels).save(tmp_path / "half.png")
    photos = Photos(tmp_path)
    assert not photos.picture(Crop(0, 0.0, 0.0, 0.5), 16).any()
    assert (photos.picture(Crop(0, 1.0, 1.0, 0.5), 16) == 255).all()


def test_a_world_before_photographs_reports_progress_and_names_the_photographs(
    album: Path, tmp_path: Path
):
    seen: list[tuple[int, int]] = []
    manifest = write_world(
        tmp_path,
        20,
        size=16,
        split="heldout",
        photos=Photos(album),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (20, 20)
    assert len(seen) == 16
    assert seen == sorted(seen)
    assert manifest.made_by["split"] == "heldout"
    photos = manifest.made_by["photos"]
    assert isinstance(photos, dict)
    assert photos["pictures"] == len(BUNDLED)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_photographs_that_cannot_be_read_give_way_to_others_and_are_named_and_counted(
    workers: int,
    album: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr("datamodules.world.write.MIN_FOR_PROCESSES", 0)
    mixed = tmp_path / "mixed"
    shutil.copytree(album, mixed)
    good = sorted(path.name for path in mixed.iterdir())
    (mixed / "aa.jpg").write_bytes(b"no picture at all")
    (mixed / "zz.png").write_bytes((mixed / good[0]).read_bytes()[:200])  # cut off
    photos = Photos(mixed)
    write_world(tmp_path / "one", 64, size=16, photos=photos, workers=workers)
    lines = (tmp_path / "one" / "skipped.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["file"]).name for line in lines] == ["aa.jpg", "zz.png"]
    assert all(json.loads(line)["reason"] for line in lines)
    for name in ("aa.jpg", "zz.png"):
        assert caplog.text.count(f"{name}: ") == 1
    assert "the next photograph takes the place of one: " in caplog.text
    # still a function of seed, index and folder
    again = write_world(tmp_path / "two", 64, size=16, photos=Photos(mixed), workers=1)
    assert again == read_manifest(tmp_path / "one")
    picture = photos.picture(Crop(0, 0.1, 0.2, 0.7), 16)
    np.testing.assert_array_equal(picture, photos.picture(Crop(1, 0.1, 0.2, 0.7), 16))


def test_a_folder_in_which_no_photograph_can_be_read_is_refused(tmp_path: Path):
    for number in range(20):
        (tmp_path / f"{number:02}.jpg").write_bytes(b"no picture")
    with pytest.raises(BadDataError, match=r"8 files in a row cannot be read .* is no pict"):
        write_world(tmp_path / "world", 16, size=16, photos=Photos(tmp_path))


def test_a_folder_without_photographs_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"has no pictures; give a folder with \.png"):
        Photos(tmp_path)
    with pytest.raises(InputError, match="nowhere' is not a folder; give a folder with photo"):
        Photos(tmp_path / "nowhere")


def test_the_data_module_writes_its_world_once_and_feeds_it(tmp_path: Path):
    def module(pairs: int = 48) -> WorldData:
        return WorldData(
            str(tmp_path), pairs=pairs, image_size=16, global_batch=8, steps_per_epoch=2
        )

    data = module()
    data.prepare_data()
    written = (tmp_path / "train" / "manifest.json").stat().st_mtime_ns
    data.prepare_data()
    assert (tmp_path / "train" / "manifest.json").stat().st_mtime_ns == written
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    batch = batches[0]
    assert isinstance(batch, EditBatch)
    assert batch.source.shape == (8, 3, 16, 16)
    assert batch.has_mask.all()
    made_by = json.loads((tmp_path / "val" / "manifest.json").read_text())["made_by"]
    assert made_by["split"] == "heldout"
    with pytest.raises(InputError, match="train was made with pairs=48, needed is 64; give anoth"):
        module(64).prepare_data()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"global_batch": 0}, "global_batch=0"),
        ({"global_batch": 8, "micro_batch": 3}, "micro_batch=3 on 1 processes does not divide"),
        ({"weights": {"locl": 1.0}}, "names task 'locl'.*local"),
        ({"weights": {"local": 0.0}}, "'local' has weight 0.0, needs one above 0"),
    ],
)
def test_settings_that_cannot_train_are_refused_before_a_world_is_written(
    tmp_path: Path, settings: dict, message: str
):
    data = WorldData(str(tmp_path / "world"), pairs=48, image_size=16, **settings)
    with pytest.raises(InputError, match=message):
        data.prepare_data()
    assert not (tmp_path / "world").exists()
