import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu_edit.cli.main import main


def bomb() -> bytes:
    """Return a PNG of a few bytes whose header promises 50000x50000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def size_of(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def assert_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("emu-edit: error: ")
    assert printed.err.count("\n") == 1
    assert re.search(words, printed.err), printed.err


def edit(image: Path, model_path: Path, **changes: str) -> list[str]:
    options = {"task": "local", "output": "out.png", "model": str(model_path), **changes}
    picture = options.pop("picture", str(image))
    instruction = options.pop("instruction", "make it red")
    return ["edit", picture, instruction, *(f"--{k}={v}" for k, v in options.items())]


@pytest.mark.usefixtures("workplace")
def test_a_picture_is_edited_and_keeps_its_size(
    photo: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(edit(photo, model)) == 0
    assert size_of("out.png") == (20, 16)
    assert capsys.readouterr().out.startswith("wrote out.png (20x16, task local, seed 0, model ")


@pytest.mark.usefixtures("workplace")
def test_the_same_seed_writes_the_same_file_and_options_change_it(photo: Path, model: Path) -> None:
    def written(**changes: str) -> tuple[bytes, bytes]:
        """Return the file, and its pixels alone: the file also holds the options."""
        assert main(edit(photo, model, **changes)) == 0
        with Image.open("out.png") as image:
            return Path("out.png").read_bytes(), image.tobytes()

    first = written()
    assert written() == first
    for change in (
        {"seed": "1"},
        {"steps": "2"},
        {"guidance-text": "7"},
        {"sampler": "euler_ancestral", "steps": "2"},
    ):
        assert written(**change)[1] != first[1], change


@pytest.mark.usefixtures("workplace")
def test_a_picture_is_resized_only_when_asked(photo: Path, model: Path) -> None:
    assert main(edit(photo, model, size="32")) == 0
    assert size_of("out.png") == (40, 32)


def test_the_newest_run_is_used_when_no_model_is_named(
    photo: Path, model: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for age, name in ((100, "old"), (0, "new"), (200, "older")):
        run = workplace / "runs" / name / "model"
        shutil.copytree(model, run)
        stamp = (run / "model_index.json").stat().st_mtime - age
        os.utime(run / "model_index.json", (stamp, stamp))
    assert main(["edit", str(photo), "make it red", "--task", "local", "-o", "out.png"]) == 0
    assert "model runs/new/model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "lokal"}, "unknown task 'lokal'; known tasks: .* Did you mean 'local'"),
        ({"picture": "missing.png"}, r"missing\.png: no such file"),
        ({"picture": "."}, r"\. is a folder without a picture \(\.png, "),
        ({"picture": "*.jpg"}, r"no file matches '\*\.jpg'; check the pattern"),
        ({"picture": ""}, "IMAGE and OUT must not be empty"),
        ({"instruction": "   "}, "the instruction is empty; say what to change"),
        ({"instruction": "x" * 2001}, "2001 characters"),
        ({"instruction": "a\x07b"}, r"has the character U\+0007 at position 1"),
        ({"output": "missing/out.png"}, "there is no folder missing; create it first"),
        ({"output": ""}, "IMAGE and OUT must not be empty"),
        ({"output": "missing/out"}, "missing/out cannot be made: there is no folder missing"),
        ({"output": "out.bmp"}, r"cannot write '\.bmp', needs one of"),
        ({"model": "missing"}, "there is no model at missing; train one with 'emu-edit fit'"),
        ({"model": "."}, r"is not a model directory \(it has no model_index.json\)"),
        ({"sampler": "dim"}, "unknown sampler 'dim'; known samplers: .* Did you mean 'ddim'"),
        ({"steps": "0"}, "--steps: needs a whole number of at least 1, got '0'"),
        ({"steps": "5000"}, "5000"),
        ({"seed": "-1"}, r"--seed: needs a whole number of at least 0, got '-1'"),
        ({"task": "style+"}, "unknown task ''; known tasks: "),
        ({"task": "style+global:x"}, "task 'style.global:x': the share 'x' is no number"),
        ({"threshold": "-1"}, "the threshold must be a number of at least 0, got -1"),
        ({"negative": "a\x07"}, r"the negative text has the character U\+0007"),
        ({"negative": "a dog", "guidance-text": "1"}, "negative text has no effect at text guid"),
        ({"size": "100000"}, "--size 100000 makes .* 125000x100000, at most 16384 a side"),
        ({"guidance-text": "nan"}, "guidance scales must be finite"),
        ({"guidance-text": "much"}, "--guidance-text: invalid float value: 'much'"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here; try --device cpu"),
        ({"stepz": "3"}, "unknown argument '--stepz=3'. Did you mean '--steps'"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_what_cannot_be_used_is_refused_in_one_line(
    photo: Path,
    model: Path,
    changes: dict[str, str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_refused(capsys, edit(photo, model, **changes), words)
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", r"bad\.png: "),
        (b"no picture at all", r"bad\.png: "),
        (bomb(), r"bad\.png: has more than \d+ pixels, it is not decoded"),
        (b"GIF89a" + b"\x00" * 40, r"bad\.png: "),
    ],
    ids=["empty", "text", "bomb", "gif"],
)
def test_an_unreadable_picture_is_refused_in_one_line(
    workplace: Path, model: Path, data: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "bad.png").write_bytes(data)
    assert_refused(capsys, edit(Path("bad.png"), model), words)


def test_no_model_and_no_run_is_refused_in_one_line(
    workplace: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("emu_edit.editing.find.RELEASED", workplace / "not installed")
    arguments = ["edit", str(photo), "make it red", "--task", "local", "-o", "out.png"]
    assert_refused(capsys, arguments, f"no trained model in {workplace}/runs; train one with")


def test_a_picture_far_larger_than_the_training_pictures_is_refused(
    workplace: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (300, 40)).save(workplace / "wide.png")
    words = "wide.png: the picture is 300x40, more than 16 times the 16 px .* --size 16"
    assert_refused(capsys, edit(Path("wide.png"), model, large="whole"), words)
    assert main(edit(Path("wide.png"), model)) == 0
    said = "wide.png: edited as a copy of 120x16, the change put on its 300x40 pixels"
    assert said in capsys.readouterr().err
    assert main(edit(Path("wide.png"), model, size="16")) == 0


def test_odd_kinds_of_pictures_are_edited(workplace: Path, model: Path) -> None:
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (16, 20, 4), dtype=np.uint8))
    rgba.save(workplace / "rgba.png")
    Image.fromarray(rng.integers(0, 65536, (16, 20), dtype=np.uint16)).save("deep.png")
    rgb = rgba.convert("RGB")
    rgb.convert("CMYK").save("cmyk.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: turn by 90 degrees to see it upright
    rgb.save("turned.jpg", exif=turned)
    for name, size in (
        ("rgba.png", (20, 16)),
        ("deep.png", (20, 16)),
        ("cmyk.jpg", (20, 16)),
        ("turned.jpg", (16, 20)),
    ):
        assert main(edit(Path(name), model)) == 0
        assert size_of("out.png") == size, name


@pytest.mark.usefixtures("workplace")
def test_the_traceback_is_shown_when_it_is_asked_for(
    photo: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emu_edit.errors import InputError

    monkeypatch.setenv("EMU_EDIT_TRACEBACK", "1")
    with pytest.raises(InputError, match="unknown task"):
        main(edit(photo, model, task="lokal"))
