"""The layout of other trainers: `images/` + `control/` + `.txt`."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from datamodules.convert.run import convert
from emu_edit.errors import InputError
from emu_edit.images import decode_rgb
from tests.datamodules.convert.shards import of_task, read_back


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "set"
    add_pair(path, "cat")
    return path


def add_pair(folder, stem, *, target=".png", control=".webp", text="make it red") -> None:
    rng = np.random.default_rng(list(stem.encode()))
    for side, suffix in (("images", target), ("control", control)):
        path = folder / side / f"{stem}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8))
        pixels.save(path, lossless=True)  # for WebP; PNG is anyway
    if text is not None:
        (folder / "images" / f"{stem}.txt").write_text(text, encoding="utf-8")


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_control_is_the_source_and_images_is_the_target(folder, tmp_path):
    report = convert("control", folder, tmp_path / "out", of_task("style"))
    assert report.written == {"style": 1}
    (sample,) = read_back(tmp_path / "out")
    text = json.loads(sample["json"])
    assert (text["instruction"], text["task"], text["origin"]) == (
        "make it red",
        "style",
        "images/cat",
    )
    for side, path in (("source", "control/cat.webp"), ("target", "images/cat.png")):
        decoded = decode_rgb(sample[f"{side}.png"]).permute(1, 2, 0).numpy()
        assert np.array_equal(decoded, pixels(folder / path))


def test_pairs_are_sorted_by_name_and_found_in_folders_inside(folder, tmp_path):
    for stem in ("b/dog.old", "a/dog", "ant"):
        add_pair(folder, stem)
    convert("control", folder, tmp_path / "out", of_task("style"))
    origins = [json.loads(sample["json"])["origin"] for sample in read_back(tmp_path / "out")]
    assert origins == ["images/a/dog", "images/ant", "images/b/dog.old", "images/cat"]


def test_a_text_of_several_lines_with_a_byte_order_mark_becomes_one_line(folder, tmp_path):
    (folder / "images" / "cat.txt").write_bytes(b"\xef\xbb\xbfmake it\r\nred\n")
    convert("control", folder, tmp_path / "out", of_task("style"))
    (sample,) = read_back(tmp_path / "out")
    assert json.loads(sample["json"])["instruction"] == "make it red"


def test_caches_notes_and_hidden_files_are_no_pairs_but_counted(folder, tmp_path):
    (folder / "images" / "cat.safetensors").write_bytes(b"x")
    (folder / "images" / ".aitk_size.json").write_text("{}")
    (folder / "images" / "._cat.png").write_bytes(b"x")
    (folder / "images" / ".cache").mkdir()
    (folder / "images" / ".cache" / "dog.png").write_bytes(b"x")
    report = convert("control", folder, tmp_path / "out", of_task("style"))
    assert report.written == {"style": 1}
    assert report.skipped == {"hidden file": 3, "no file of a pair": 1}
    assert report.is_whole


@pytest.mark.parametrize("forms", [("NFC", "NFD", "NFC"), ("NFD", "NFC", "NFC")])
def test_names_belong_together_in_whatever_form_of_unicode_each_is(folder, tmp_path, forms):
    add_pair(folder, "plain")
    names = [unicodedata.normalize(form, "café") for form in forms]
    files = ("images/plain.png", "control/plain.webp", "images/plain.txt")
    for file, name in zip(files, names, strict=True):
        (folder / file).rename((folder / file).with_stem(name))
    report = convert("control", folder, tmp_path / "out", of_task("style"))
    assert (report.written, report.skipped) == ({"style": 2}, {})


def test_two_spellings_of_one_name_are_ambiguous(folder, tmp_path):
    for form in ("NFC", "NFD"):
        add_pair(folder, unicodedata.normalize(form, "café"))
    report = convert("control", folder, tmp_path / "out", of_task("style"))
    assert (report.written, report.skipped) == ({"style": 1}, {"ambiguous name": 1})


def test_files_beside_the_two_folders_and_links_to_folders_are_counted(folder, tmp_path):
    add_pair(tmp_path / "more", "dog")
    (folder / "control" / "more").symlink_to(tmp_path / "more" / "control")
    (folder / "cat.png").touch()
    report = convert("control", folder, tmp_path / "out", of_task("style"))
    assert report.skipped == {"not followed": 1, "no file of a pair": 1}
    assert not report.is_whole
    told = (tmp_path / "out" / "quarantine.jsonl").read_text()
    assert "more: is a link to a folder; give what it stands for as another SRC" in told


def spoil_control(folder):
    (folder / "control" / "dog.webp").unlink()


def spoil_target(folder):
    (folder / "images" / "dog.png").unlink()


def spoil_text(folder):
    (folder / "images" / "dog.txt").unlink()


def empty_text(folder):
    (folder / "images" / "dog.txt").write_text("\n")


def latin_text(folder):
    (folder / "images" / "dog.txt").write_bytes(b"caf\xe9")


def huge_text(folder):
    (folder / "images" / "dog.txt").write_bytes(b"x" * 70_000)


def double_target(folder):
    Image.new("RGB", (24, 16)).save(folder / "images" / "dog.jpg")


def heic_control(folder):
    (folder / "control" / "dog.webp").unlink()
    (folder / "control" / "dog.heic").write_bytes(b"a photograph of a phone")


def cut_target(folder):
    path = folder / "images" / "dog.png"
    path.write_bytes(path.read_bytes()[:200])


def line_end_in_name(folder):
    for path in (*folder.glob("*/dog.*"),):
        path.rename(path.with_name(path.name.replace("dog", "do\ng")))


@pytest.mark.parametrize(
    ("spoil", "reason", "detail"),
    [
        (spoil_control, "missing source", "control/dog has no picture"),
        (spoil_target, "missing target", "images/dog has no picture"),
        (spoil_text, "missing instruction", "dog.txt: no such file"),
        (empty_text, "empty instruction", "the instruction is empty"),
        (
            latin_text,
            "bad instruction",
            "dog.txt: is not UTF-8 at byte 3 (0xE9, in Windows-1252 'é')",
        ),
        (huge_text, "bad instruction", "dog.txt: has more than 65536 bytes"),
        (double_target, "ambiguous name", "images/dog exists as .jpg and .png"),
        (heic_control, "refused format", "control/dog.heic needs to be one of .png"),
        (cut_target, "unreadable picture", "dog.png: cannot be decoded"),
        (line_end_in_name, "unsafe name", "a name needs printable characters"),
    ],
)
def test_a_broken_pair_is_left_out_with_its_reason(folder, tmp_path, spoil, reason, detail):
    add_pair(folder, "dog")
    spoil(folder)
    report = convert("control", folder, tmp_path / "out", of_task("style"))
    assert (report.written, report.skipped) == ({"style": 1}, {reason: 1})
    assert report.quarantine is not None
    (line,) = report.quarantine.read_text().splitlines()
    row = json.loads(line)
    assert row["reason"] == reason
    assert detail in row["detail"]


def test_the_layout_needs_a_task(folder, tmp_path):
    with pytest.raises(InputError, match=r"images/cat: names no task \(1 of 1 pairs .*--task NAME"):
        convert("control", folder, tmp_path / "out")


def test_an_unknown_task_is_refused_with_the_nearest(folder, tmp_path):
    with pytest.raises(InputError, match=r"unknown task 'styel'; .* Did you mean 'style'\?"):
        convert("control", folder, tmp_path / "out", of_task("styel"))


@pytest.mark.parametrize("missing", ["images", "control"])
def test_a_missing_side_is_named(folder, tmp_path, missing):
    (folder / missing).rename(folder / "elsewhere")
    with pytest.raises(InputError, match=rf"set/{missing}: no such folder; needs images/"):
        convert("control", folder, tmp_path / "out", of_task("style"))
