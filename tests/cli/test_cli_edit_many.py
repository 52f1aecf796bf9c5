import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emu_edit.cli.main import main
from emu_edit.images import read_image


@pytest.fixture
def photos(workplace: Path) -> Path:
    """Three pictures of different sizes, a broken one and a text."""
    folder = workplace / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (16, 20)), ("b.jpg", (24, 16)), ("c.webp", (9, 31))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"no picture")
    return folder


def edit(model: Path, image: str, *arguments: str) -> list[str]:
    turns = ["make it red", *arguments]
    return ["edit", image, *turns, "--model", str(model), "--task", "local", "-o", "out"]


@pytest.mark.usefixtures("photos")
def test_all_pictures_of_a_folder_are_edited_and_a_broken_one_is_named_and_counted(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(edit(model, "photos")) == 1
    printed = capsys.readouterr()
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "b.png", "c.png"]
    assert printed.err.splitlines() == [
        "left alone: .hidden.png (hidden), notes.txt (no picture by name)",
        "emu-edit: not edited: photos/broken.png: is no picture, "
        "needs a JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF picture",
        "edited 3 of 4 pictures",
    ]
    assert printed.out.count("wrote out/") == 3
    alone = ["edit", "photos/b.jpg", "make it red", "--task", "local", "--model", str(model)]
    assert main([*alone, "-o", "alone.png"]) == 0
    assert torch.equal(read_image("alone.png"), read_image("out/b.png"))


@pytest.mark.usefixtures("photos")
def test_a_pattern_edits_what_it_matches_with_status_zero(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(edit(model, "photos/[ab].*", "--json")) == 0
    printed = capsys.readouterr()
    told = [json.loads(line) for line in printed.out.splitlines()]
    assert [one["picture"] for one in told] == ["photos/a.png", "photos/b.jpg"]
    assert [one["output"] for one in told] == ["out/a.png", "out/b.png"]
    assert printed.err == "edited 2 of 2 pictures\n"


@pytest.mark.usefixtures("photos")
def test_several_turns_of_many_pictures_give_each_a_folder(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(edit(model, "photos/*", "make it blue", "--json")) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    errors = {one["picture"]: one["error"] for one in told if "error" in one}
    assert list(errors) == ["photos/broken.png", "photos/notes.txt"]
    assert errors["photos/broken.png"].startswith("photos/broken.png: is no picture")
    for name in ("a", "b", "c"):
        assert {path.name for path in Path("out", name).iterdir()} == {
            "original.png", "turn-01.png", "turn-02.png", "sheet.png", "manifest.json",
        }  # fmt: skip
    assert not Path("out/broken").exists()


@pytest.mark.usefixtures("workplace")
def test_when_every_picture_is_broken_no_folder_is_left(model: Path) -> None:
    Path("photos").mkdir()
    Path("photos/broken.png").write_bytes(b"no picture")
    assert main(edit(model, "photos")) == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("more", "output", "words"),
    [
        ([], "out.png", "many pictures need a folder for an output, got out.png; give -o FOLDER"),
        ([], "-", "many pictures need a folder for an output, got -"),
        ([], "photos", r"photos/a\.png would overwrite the picture itself; choose another output"),
        (["a.jpg"], "out", r"photos/a\.jpg and photos/a\.png would both be written to out/a; ren"),
        (["A.webp"], "out", r"would both be written to out/a; rename one"),
        (["--replay", "m.json"], "out", "--replay takes the turns from the manifest; leave"),
    ],
)
def test_results_that_would_collide_are_refused_before_any_work(
    photos: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    output: str,
    words: str,
) -> None:
    for name in [name for name in more if not name.startswith("-") and name != "m.json"]:
        (photos / name).write_bytes((photos / "a.png").read_bytes())
    options = more if more[:1] == ["--replay"] else []
    before = sorted(photos.iterdir())
    arguments = ["edit", "photos", "make it red", "--task", "local", "--model", str(model)]
    assert main([*arguments, "-o", output, *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.search(words, printed.err), printed.err
    assert sorted(photos.iterdir()) == before
    assert not Path("out").exists()
