"""Photographs in the world: found, credited, split by content, edited exactly, asked for apart."""

import json
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from datamodules.world import photograph_edits, photographs
from datamodules.world.instructions import corpus
from datamodules.world.pair import make_pair
from datamodules.world.photograph_edits import BEHIND, FILTERS
from datamodules.world.photograph_filters import COLOURS, WEATHER, soften
from datamodules.world.photograph_sky import SKIES, coloured_sky, find_sky
from datamodules.world.photographs import INSTALLED, Photos, installed
from datamodules.world.phrasings import PHOTOGRAPH_CAPTIONS, PHOTOGRAPH_PHRASINGS, PHRASINGS
from datamodules.world.render import coverage
from datamodules.world.sessions import make_noop
from datamodules.world.studio import WorldPair
from datamodules.world.write import write_world
from emu_edit.errors import InputError

SIZE = 32
WHOLE = ("global", "style", "color", "sketch")


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four photographs of scikit-image, made smaller."""
    folder = tmp_path_factory.mktemp("album")
    for name in ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg"):
        with Image.open(Path(skimage.__file__).parent / "data" / name) as photo:
            photo.convert("RGB").reduce(3).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def pairs(album: Path) -> list[WorldPair]:
    """The edits of photographs alone among 60 pairs of each task that has some."""
    photos = Photos(album)
    made = [
        make_pair(0, index, task=task, size=SIZE, photos=photos)
        for task in WHOLE
        for index in range(60)
    ]
    return [pair for pair in made if str(pair.extra["kind"]).startswith("photo_")]


def photograph(album: Path, size: int, name: str = "coffee.png") -> np.ndarray:
    with Image.open(album / name) as photo:
        square = photo.crop((0, 0, min(photo.size), min(photo.size)))
        return np.asarray(square.resize((size, size), Image.Resampling.BOX)).astype(np.float32)


def landscape(size: int) -> np.ndarray:
    """A light blue sky with a cloud over uneven green land."""
    picture = np.empty((size, size, 3), dtype=np.float32)
    picture[:] = (120, 170, 235)
    picture[size // 8 : size // 4, size // 4 : size // 2] = 235
    noise = np.random.default_rng(0).uniform(-30, 30, (size - size // 2, size, 1))
    picture[size // 2 :] = np.array((70, 120, 40)) + noise
    return picture


@pytest.mark.parametrize("kind", FILTERS)
def test_a_filter_is_pure_and_seen_and_keeps_the_shape(kind: str, album: Path):
    picture = photograph(album, 48)
    before = picture.copy()
    filtered = FILTERS[kind](picture)
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(FILTERS[kind](picture), filtered)
    assert filtered.shape == picture.shape
    assert np.isfinite(filtered).all()
    least = 2 if kind in {"photo_autumn", "photo_blur_edges"} else 5
    assert np.abs(np.clip(filtered, 0, 255) - picture).mean() > least


@pytest.mark.parametrize("kind", [*WEATHER, *COLOURS])
def test_light_weather_and_colour_look_alike_at_two_sizes(kind: str, album: Path):
    small, large = (
        np.clip(FILTERS[f"photo_{kind}"](photograph(album, size)), 0, 255) for size in (48, 144)
    )
    shrunk = large.reshape(48, 3, 48, 3, 3).mean(axis=(1, 3))
    changed = np.abs(small - photograph(album, 48)).mean()
    assert np.abs(shrunk - small).mean() < max(4.0, 0.25 * changed)


def test_every_kind_of_whole_edit_occurs_and_says_what_it_is_of(pairs: list[WorldPair]):
    kinds = {str(pair.extra["kind"]) for pair in pairs}
    asked = {kind for task in WHOLE for kind in PHOTOGRAPH_PHRASINGS[task]}
    assert asked - kinds <= {"photo_autumn"}  # nothing green grows in these photographs
    assert kinds <= asked
    for pair in pairs:
        kind = str(pair.extra["kind"])
        assert pair.extra["photograph"] in {
            "astronaut.png",
            "coffee.png",
            "chelsea.png",
            "rocket.jpg",
        }
        assert pair.instruction in PHOTOGRAPH_PHRASINGS[pair.task][kind].train
        assert pair.target_caption.endswith(PHOTOGRAPH_CAPTIONS[kind])


def test_a_target_is_the_filter_of_the_source(pairs: list[WorldPair]):
    for pair in pairs:
        kind = str(pair.extra["kind"])
        if kind in BEHIND:
            continue
        clear, made = pair.source, pair.target
        if kind == "photo_sharpen":
            clear, made = made, clear
        function = soften if kind == "photo_sharpen" else FILTERS[kind]
        right = np.rint(np.clip(function(clear.astype(np.float32)), 0, 255))
        np.testing.assert_array_equal(right, made)
        assert pair.mask.all()


def test_behind_figures_all_changes_but_the_figures(pairs: list[WorldPair]):
    found = [pair for pair in pairs if pair.extra["kind"] in BEHIND]
    assert found
    for pair in found:
        assert pair.scenes is not None
        behind = coverage(pair.scenes[0], SIZE).background
        np.testing.assert_array_equal(pair.mask, behind > 0)
        np.testing.assert_array_equal(pair.source[~pair.mask], pair.target[~pair.mask])
        assert (pair.source != pair.target).any()
        assert 0 < pair.mask.mean() < 1


def test_a_third_of_whole_edits_have_figures_before_the_photograph(pairs: list[WorldPair]):
    plain = [p for p in pairs if p.extra["kind"] not in BEHIND and p.task != "sketch"]
    share = sum(" on a photograph" in pair.source_caption for pair in plain) / len(plain)
    # 0.3 of about 170: four deviations
    assert 0.16 < share < 0.44


def test_photographs_alone_are_left_alone_when_what_is_to_go_is_not_there(album: Path):
    photos = Photos(album)
    made = [make_noop(0, i, task="remove", size=16, photos=photos) for i in range(30)]
    alone = [pair for pair in made if pair.scenes is not None and not pair.scenes[0].figures]
    assert 5 < len(alone) < 25
    for pair in alone:
        assert pair.is_noop
        np.testing.assert_array_equal(pair.source, pair.target)


def test_a_share_of_the_backgrounds_are_photographs(album: Path):
    photos = Photos(album, share=0.5)
    tasks = ("remove", "detect", "add")
    made = [
        make_pair(1, index, task=task, size=16, photos=photos)
        for task in tasks
        for index in range(60)
    ]
    scenes = [pair.scenes[0] for pair in made if pair.scenes is not None]
    before = [scene.background.crop is not None for scene in scenes]
    # half of about 180: four deviations
    assert 0.35 < sum(before) / len(before) < 0.65
    for pair, is_photograph in zip(made, before, strict=True):
        assert ("photograph" in pair.extra) == is_photograph
        np.testing.assert_array_equal(pair.source[~pair.mask], pair.target[~pair.mask])


def test_the_words_and_the_photograph_do_not_depend_on_the_size(album: Path):
    photos = Photos(album)
    for task in WHOLE:
        for index in range(6):
            small, large = (
                make_pair(2, index, task=task, size=size, photos=photos) for size in (16, 48)
            )
            assert (small.instruction, small.extra) == (large.instruction, large.extra)


@pytest.mark.parametrize("size", [16, 64, 100])
def test_the_sky_changes_its_colour_and_nothing_else_does(size: int):
    picture = landscape(size)
    sky = find_sky(picture)
    assert sky is not None
    land = size // 2 + 1 + size // 32  # the cell below the horizon may be grown into
    assert sky[: size // 2 - 2].mean() > 0.9
    assert not sky[land:].any()
    for colour, paint in SKIES.items():
        pink = coloured_sky(picture, sky, colour)
        np.testing.assert_array_equal(pink[land:], picture[land:])
        assert np.abs(pink[0, -1] - paint).max() < 30


@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg"])
def test_no_sky_is_found_where_there_is_none_by_day(name: str, album: Path):
    assert find_sky(photograph(album, 64, name)) is None


def test_a_sky_is_edited_only_where_a_person_saw_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Image.fromarray(landscape(96).clip(0, 255).astype(np.uint8)).save(tmp_path / "hill.png")
    monkeypatch.setitem(
        photograph_edits.EDITS, "local", (photograph_edits.of_photograph("local"), 1.0)
    )
    photos = Photos(tmp_path)
    assert make_pair(0, 0, task="local", size=SIZE, photos=photos).extra["kind"] != "photo_sky"
    hill = photos.photographs[0]
    photos.photographs = [photographs.Photograph(hill.path, hill.name, has_sky=True)]
    pair = make_pair(0, 0, task="local", size=SIZE, photos=photos)
    assert pair.extra["kind"] == "photo_sky"
    assert str(pair.extra["colour"]) in pair.instruction
    assert 0.2 < pair.mask.mean() < 0.7
    np.testing.assert_array_equal(pair.source[~pair.mask], pair.target[~pair.mask])


def test_no_sentence_is_asked_in_both_splits_or_for_two_tasks():
    of_task: dict[str, str] = {}
    for task, kinds in PHOTOGRAPH_PHRASINGS.items():
        for kind, sentences in kinds.items():
            assert kind not in PHRASINGS[task]
            assert len(set(sentences.train)) >= 5
            assert len(set(sentences.heldout)) >= 2
            for sentence in (*sentences.train, *sentences.heldout):
                assert of_task.setdefault(sentence, kind) == kind, sentence
    trained, heldout = dict(corpus("train")), dict(corpus("heldout"))
    assert not set(trained) & set(heldout)
    assert trained["black and white"] == "color"
    assert trained["make the sky pink"] == "local"


def test_a_photograph_stays_on_its_side_and_equal_files_count_once(tmp_path: Path):
    def save(numbers: range) -> None:
        for number in numbers:
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:02}.png")

    save(range(20))
    (tmp_path / "copy.png").write_bytes((tmp_path / "03.png").read_bytes())
    learn, test = Photos(tmp_path).split()
    assert len(learn) + len(test) == 20
    assert len(test) > 1
    save(range(20, 30))
    later_learn, later_test = Photos(tmp_path).split()
    assert {*learn.paths} < {*later_learn.paths}
    assert {*test.paths} <= {*later_test.paths}
    assert (learn.description["part"], test.description["part"]) == ("train", "heldout")


def test_without_packages_the_way_to_get_some_is_told(monkeypatch: pytest.MonkeyPatch):
    gone = {
        "some-backgrounds": {"with": "apt", "folder": "/nowhere", "files": {"a.jpg": "CC0, A B"}},
        "some-pictures": {
            "with": "pip",
            "module": "no_such_module",
            "folder": "data",
            "files": {"b.png": "CC0, C"},
        },
    }
    monkeypatch.setattr(photographs, "_packages", lambda: gone)
    told = "apt-get install some-backgrounds` or `pip install some-pictures`, or give a folder"
    with pytest.raises(InputError, match=told):
        Photos(INSTALLED)


def test_every_photograph_of_a_package_has_a_licence_and_an_author():
    packages = photographs._packages()
    for about in packages.values():
        assert about["with"] in {"apt", "pip"}
        assert set(about.get("skies", ())) <= about["files"].keys()
        for credit in about["files"].values():
            licence, _, author = credit.partition(", ")
            assert licence
            assert author
    # scikit-image comes with the tests
    found = {photo.name: photo for photo in installed() if photo.package == "scikit-image"}
    assert found["astronaut.png"].licence == "public domain"
    assert found["astronaut.png"].path.is_file()


def test_a_written_world_lists_its_photographs_and_their_licences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    only = {"scikit-image": photographs._packages()["scikit-image"]}
    monkeypatch.setattr(photographs, "_packages", lambda: only)
    learn, test = Photos(INSTALLED, share=0.5).split()
    manifest = write_world(tmp_path, 16, size=16, photos=learn)
    said = manifest.made_by["photos"]
    assert isinstance(said, dict)
    assert (said["folder"], said["part"], said["share"]) == (INSTALLED, "train", 0.5)
    assert sum(said["licences"].values()) == said["pictures"] == len(learn)
    rows = [json.loads(row) for row in (tmp_path / "photographs.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [photo.name for photo in learn.photographs]
    assert not {row["sha256"] for row in rows} & {row["sha256"] for row in test.table()}
    assert all(row["licence"] and row["author"] for row in rows)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_is_above_nothing_and_at_most_all(share: float, album: Path):
    with pytest.raises(InputError, match=r"photo_share=.* must be above 0 and at most 1"):
        Photos(album, share=share)
