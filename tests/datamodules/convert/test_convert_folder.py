"""`source/ target/ [mask/] instructions.jsonl`: written, left out, or stopped."""

import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from datamodules.convert.folder import LINES
from datamodules.convert.pair import is_safe_name, key_of
from datamodules.convert.run import ConvertSettings, convert
from datamodules.shards.manifest import read_manifest
from emu_edit.errors import InputError
from emu_edit.images import decode_mask, decode_rgb
from tests.datamodules.convert.shards import of_task, read_back

GOOD = {"file": "0.png", "instruction": "make it red", "task": "local"}


@pytest.fixture
def folder(tiny_pairs_folder):
    return tiny_pairs_folder


def write_lines(folder, *lines) -> None:
    rows = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "instructions.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def skipped(out) -> list[tuple[str, str]]:
    rows = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    return [(row["name"], row["reason"]) for row in rows]


def details(out) -> list[str]:
    return [
        json.loads(line)["detail"] for line in (out / "quarantine.jsonl").read_text().splitlines()
    ]


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_every_pair_comes_back_with_its_exact_pixels_and_texts(folder, tmp_path):
    report = convert("folder", folder, tmp_path / "out")
    assert report.written == {"local": 3, "color": 3}
    assert report.skipped == {}
    assert report.quarantine is None
    assert not (tmp_path / "out" / "quarantine.jsonl").exists()
    assert report.summary() == "6 pairs written (local 3, color 3)"
    samples = read_back(tmp_path / "out")
    assert len(samples) == 6
    for sample in samples:
        text = json.loads(sample["json"])
        index = text["instruction"].removeprefix("invert number ")
        assert text["task"] == ("color", "local")[int(index) % 2]
        assert text["origin"] == f"instructions.jsonl:{int(index) + 1}"
        for side in ("source", "target"):
            decoded = decode_rgb(sample[f"{side}.png"]).permute(1, 2, 0).numpy()
            assert np.array_equal(decoded, pixels(folder / side / f"{index}.png"))


def test_the_manifest_says_what_was_made(folder, tmp_path):
    convert("folder", folder, tmp_path / "out", ConvertSettings(pairs_per_shard=2))
    manifest = read_manifest(tmp_path / "out")
    assert [(entry.file, entry.samples) for entry in manifest.entries] == [
        ("local-000000.tar", 2),
        ("local-000001.tar", 1),
        ("color-000000.tar", 2),
        ("color-000001.tar", 1),
    ]
    assert manifest.made_by["convert"] == "folder"
    assert manifest.made_by["source"] == "pairs"
    assert manifest.made_by["listed"] == 6
    assert manifest.made_by["written"] == {"local": 3, "color": 3}
    assert manifest.made_by["skipped"] == {}


def test_the_same_folder_gives_the_same_bytes(folder, tmp_path):
    for name in ("a", "b"):
        convert("folder", folder, tmp_path / name)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_progress_counts_every_listed_pair(folder, tmp_path):
    write_lines(folder, GOOD, {**GOOD, "file": "missing.png"}, {**GOOD, "file": "1.png"})
    seen = []
    convert("jsonl", folder / LINES, tmp_path / "out", on_progress=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_lines_may_name_both_sides_in_their_folders_or_beside_the_file(folder, tmp_path):
    write_lines(
        folder,
        {**GOOD, "file": None, "source": "0.png", "target": "1.png"},
        {**GOOD, "file": None, "source": "source/0.png", "target": "target/2.png"},
    )
    convert("jsonl", folder / "instructions.jsonl", tmp_path / "out")
    targets = [decode_rgb(s["target.png"]).permute(1, 2, 0) for s in read_back(tmp_path / "out")]
    for target, index in zip(targets, (1, 2), strict=True):
        assert np.array_equal(target.numpy(), pixels(folder / "target" / f"{index}.png"))


def test_captions_and_masks_travel(folder, tmp_path):
    white = np.zeros((16, 24), dtype=np.uint8)
    white[:5] = 255
    (folder / "mask").mkdir()
    Image.fromarray(white).save(folder / "mask" / "0.png")
    Image.fromarray(255 - white).save(folder / "mask" / "other.png")
    captions = {"source_caption": " a  cat ", "target_caption": "a red cat"}
    write_lines(
        folder,
        {**GOOD, **captions},
        {**GOOD, "file": "2.png", "mask": "other.png"},
        {**GOOD, "file": "1.png"},
    )
    convert("folder", folder, tmp_path / "out")
    with_mask, with_named, without = read_back(tmp_path / "out")
    text = json.loads(with_mask["json"])
    assert (text["source_caption"], text["target_caption"]) == ("a cat", "a red cat")
    assert np.array_equal(decode_mask(with_mask["mask.png"]).numpy(), white == 255)
    assert np.array_equal(decode_mask(with_named["mask.png"]).numpy(), white == 0)
    assert "mask.png" not in without


def test_a_mask_of_another_extension_is_found(folder, tmp_path):
    (folder / "mask").mkdir()
    Image.new("L", (24, 16), 255).save(folder / "mask" / "0.webp")
    write_lines(folder, GOOD)
    convert("folder", folder, tmp_path / "out")
    assert decode_mask(read_back(tmp_path / "out")[0]["mask.png"]).all()


def test_pairs_of_different_sizes_and_odd_modes_share_a_folder(folder, tmp_path):
    for side, colour in (("source", (255, 0, 0, 0)), ("target", (0, 0, 255, 255))):
        picture = Image.new("RGBA", (40, 9), colour)
        picture.paste((0, 0, 0, 255), (0, 0, 20, 9))
        picture.save(folder / side / "1.png")
    write_lines(folder, GOOD, {**GOOD, "file": "1.png"})
    convert("folder", folder, tmp_path / "out")
    samples = [decode_rgb(sample["source.png"]) for sample in read_back(tmp_path / "out")]
    assert [sample.shape for sample in samples] == [(3, 16, 24), (3, 9, 40)]
    # transparent red is white, not red
    assert samples[1][:, :, 20:].unique().tolist() == [255]


def test_exif_rotation_is_applied_before_sizes_are_compared(folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(folder / "source" / "0.png").transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "source" / "0.png", exif=exif)
    write_lines(folder, GOOD)
    assert convert("folder", folder, tmp_path / "out").written == {"local": 1}


def test_several_instructions_for_one_pair_are_several_samples(folder, tmp_path):
    write_lines(folder, GOOD, {**GOOD, "instruction": "paint it red"})
    convert("folder", folder, tmp_path / "out")
    assert len({sample["__key__"] for sample in read_back(tmp_path / "out")}) == 2


def test_the_task_of_a_line_wins_over_the_given_one(folder, tmp_path):
    write_lines(folder, GOOD, {"file": "1.png", "instruction": "x-ray"})
    assert convert("folder", folder, tmp_path / "out", of_task("style")).written == {
        "local": 1,
        "style": 1,
    }


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("{not json", "bad line", "not a line of JSON"),
        ("[" * 100_000, "bad line", "not a line of JSON"),
        ("[1, 2]", "bad line", "holds list, needs an object"),
        ({**GOOD, "instruction": 5}, "bad line", "'instruction' is int, needs text"),
        ({"instruction": "x", "task": "add"}, "bad line", "names no pictures, needs 'file' or"),
        ({**GOOD, "file": "../source/0.png"}, "unsafe name", "without '..'"),
        ({**GOOD, "file": "/etc/0.png"}, "unsafe name", "relative name inside the folder"),
        ({**GOOD, "file": "a\x00.png"}, "unsafe name", "relative name"),
        ({**GOOD, "file": "x" * 300 + ".png"}, "unsafe name", "relative name"),
        ({**GOOD, "mask": "../m.png"}, "unsafe name", "mask '../m.png' must"),
        ({**GOOD, "file": "no.png"}, "missing source", "source/no.png: no such file"),
        (
            {**GOOD, "file": None, "source": "0.png", "target": "no.png"},
            "missing target",
            "target/no.png: no such file",
        ),
        ({**GOOD, "mask": "no.png"}, "missing mask", "mask/no.png: no such file"),
        ({**GOOD, "instruction": " \n"}, "empty instruction", "the instruction is empty"),
        ({"file": "0.png", "task": "add"}, "empty instruction", "the instruction is empty"),
        ({**GOOD, "instruction": "a\x00b"}, "bad instruction", "the character U+0000"),
        ({**GOOD, "instruction": "\ud800"}, "bad instruction", "the character U+D800"),
        ({**GOOD, "instruction": "x" * 2001}, "bad instruction", "has 2001 characters"),
        ({**GOOD, "source_caption": "\x07"}, "bad caption", "the caption has the character U+0007"),
        ({**GOOD, "file": "text.png"}, "unreadable picture", "text.png: is no picture"),
        ({**GOOD, "file": "folder"}, "unreadable picture", "folder: is a folder"),
        ({**GOOD, "file": "wide.png"}, "sizes differ", "source and target are 30x16 and 24x16"),
        (
            {**GOOD, "mask": "wide.png"},
            "mask does not fit",
            "the mask is 30x16 and the pictures 24x16",
        ),
        ({**GOOD, "mask": "text.png"}, "unreadable picture", "text.png: is no picture"),
        ({**GOOD, "file": "same.png"}, "identical pair", "have the same pixels"),
    ],
)
def test_a_broken_pair_is_left_out_with_its_reason(folder, tmp_path, line, reason, detail):
    for side, width in (("source", 30), ("target", 24), ("mask", 30)):
        (folder / side).mkdir(exist_ok=True)
        (folder / side / "text.png").write_text("no picture")
        (folder / side / "folder").mkdir()
        Image.new("RGB", (width, 16)).save(folder / side / "wide.png")
        Image.new("RGB", (24, 16), (9, 9, 9)).save(folder / side / "same.png")
    write_lines(folder, {**GOOD, "file": "1.png"}, line)
    report = convert("jsonl", folder / LINES, tmp_path / "out")
    assert report.written == {"local": 1}
    assert report.skipped == {reason: 1}
    assert skipped(tmp_path / "out") == [("instructions.jsonl:2", reason)]
    assert detail in details(tmp_path / "out")[0]
    assert f"1 left out: 1 {reason} (listed in " in report.summary()
    assert read_manifest(tmp_path / "out").made_by["skipped"] == {reason: 1}


def test_a_line_that_is_not_utf8_is_left_out(folder, tmp_path):
    lines = folder / "instructions.jsonl"
    lines.write_bytes(lines.read_bytes() + b'{"file": "0.png", "instruction": "\xff"}\n')
    assert convert("folder", folder, tmp_path / "out").skipped == {"bad line": 1}


def test_a_list_that_says_its_encoding_is_read(folder, tmp_path):
    (folder / LINES).write_bytes((folder / LINES).read_text(encoding="utf-8").encode("utf-16"))
    report = convert("folder", folder, tmp_path / "out")
    assert (sum(report.written.values()), report.skipped) == (6, {})


def test_a_list_in_utf16_without_a_mark_is_refused_with_the_remedy(folder, tmp_path):
    (folder / LINES).write_bytes((folder / LINES).read_text().encode("utf-16-le"))
    with pytest.raises(InputError, match=r"instructions.jsonl: has NUL bytes, .* -t UTF-8 FILE"):
        convert("folder", folder, tmp_path / "out")


def test_pictures_that_no_line_names_are_counted(folder, tmp_path):
    write_lines(folder, GOOD, {**GOOD, "file": "1.png"})
    (folder / "source" / "notes.md").touch()
    report = convert("folder", folder, tmp_path / "out")
    assert report.skipped == {"named by no line": 8, "no file of a pair": 1}
    assert report.is_whole
    assert "source/2.png: no line names it; to take a list's pairs alone, give its file" in (
        details(tmp_path / "out")
    )


def test_names_of_lines_are_found_in_either_form_of_unicode(folder, tmp_path):
    composed, other = unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png")
    for side, name in (("source", composed), ("target", other)):
        (folder / side / "0.png").rename(folder / side / name)
    write_lines(folder, {**GOOD, "file": other})
    report = convert("folder", folder, tmp_path / "out")
    assert (report.written, report.skipped) == ({"local": 1}, {"named by no line": 10})


def test_paths_of_windows_are_read_or_refused_with_the_remedy(folder, tmp_path):
    inside = {**GOOD, "source": r"source\0.png", "target": r"target\0.png"}
    drive = {**GOOD, "file": r"C:\pairs\1.png"}
    single = (rf'{{"file": "a\{name}.png", "instruction": "x"}}' for name in ("new", "cat"))
    write_lines(folder, inside, drive, *single)
    report = convert("jsonl", folder / LINES, tmp_path / "out")
    assert report.written == {"local": 1}
    told = details(tmp_path / "out")
    assert told[0].endswith("without '..'; cut the drive and folders before it off")
    assert told[1].endswith("in JSON one \\ is no part of a path: write / or two \\")
    assert told[2].endswith("write / or two \\ in paths")


def test_blank_lines_and_a_byte_order_mark_are_no_pairs(folder, tmp_path):
    lines = folder / "instructions.jsonl"
    lines.write_bytes(b"\xef\xbb\xbf" + lines.read_bytes() + b"\n  \n")
    report = convert("folder", folder, tmp_path / "out")
    assert (sum(report.written.values()), report.skipped) == (6, {})


def test_a_task_whose_pairs_are_all_broken_is_left_out(folder, tmp_path):
    write_lines(folder, GOOD, {**GOOD, "file": "no.png", "task": "add"})
    report = convert("folder", folder, tmp_path / "out")
    assert report.written == {"local": 1}
    assert read_manifest(tmp_path / "out").tasks == ["local"]


def test_nothing_left_over_is_an_error_that_counts_the_reasons(folder, tmp_path):
    write_lines(folder, {**GOOD, "file": "no.png"}, {**GOOD, "instruction": ""}, "{")
    counts = "3 left out: 1 bad line, 1 empty instruction, 1 missing source; see .*quarantine.jsonl"
    with pytest.raises(InputError, match=f"jsonl: no pair is left to write: {counts}"):
        convert("jsonl", folder / LINES, tmp_path / "out")
    assert len(skipped(tmp_path / "out")) == 3
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_empty_listing_is_an_error(folder, tmp_path):
    (folder / "instructions.jsonl").write_text("")
    with pytest.raises(InputError, match="no pair is left to write: nothing was listed"):
        convert("jsonl", folder / LINES, tmp_path / "out")


def test_after_fixing_the_data_the_same_command_works(folder, tmp_path):
    write_lines(folder, {**GOOD, "file": "no.png"})
    with pytest.raises(InputError, match="no pair is left"):
        convert("jsonl", folder / LINES, tmp_path / "out")
    write_lines(folder, GOOD)
    assert convert("jsonl", folder / LINES, tmp_path / "out").written == {"local": 1}
    assert not (tmp_path / "out" / "quarantine.jsonl").exists()


def test_an_unknown_task_stops_before_anything_is_written(folder, tmp_path):
    write_lines(folder, GOOD, {**GOOD, "task": "colour"})
    wanted = r"pairs: unknown task 'colour' \(1 pair\). Did you mean 'color'\? known tasks: local"
    with pytest.raises(InputError, match=wanted):
        convert("folder", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_line_without_a_task_needs_one_from_the_command(folder, tmp_path):
    write_lines(folder, {"file": "0.png", "instruction": "x"})
    with pytest.raises(
        InputError, match=r"instructions.jsonl:1: names no task \(1 of 1 .*--task NAME"
    ):
        convert("folder", folder, tmp_path / "out")


def test_a_folder_of_another_layout_is_told_so(tmp_path):
    for name in ("images", "control"):
        (tmp_path / "in" / name).mkdir(parents=True)
    wanted = r"instructions.jsonl: no such file; needs .* it has images/ and control/: convert"
    with pytest.raises(InputError, match=wanted):
        convert("folder", tmp_path / "in", tmp_path / "out")


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        convert("folder", tmp_path / "nowhere", tmp_path / "out")


def test_an_unknown_kind_is_refused_with_the_nearest(folder, tmp_path):
    with pytest.raises(InputError, match=r"unknown kind 'controls'; .* Did you mean 'control'\?"):
        convert("controls", folder, tmp_path / "out")


def test_a_folder_with_shards_is_not_overwritten(folder, tmp_path):
    convert("folder", folder, tmp_path / "out")
    with pytest.raises(InputError, match="out: has shards already; give a new folder or delete"):
        convert("folder", folder, tmp_path / "out")


def test_an_output_that_is_a_file_is_refused(folder, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out: is a file, needs a folder"):
        convert("folder", folder, tmp_path / "out")


def test_an_output_inside_the_source_is_refused(folder):
    with pytest.raises(InputError, match=r"shards: lies inside .*pairs, where it would be read"):
        convert("folder", folder, folder / "shards")


def test_an_output_that_cannot_be_made_is_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*Not a directory; nothing usable was written"):
        convert("folder", folder, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    "identity", ["../../etc/passwd", "/abs/x", "..", "a.b/c d", "", "图/ü", "x" * 500, "a\0b", "."]
)
def test_a_key_is_always_a_plain_short_name(identity):
    key = key_of(identity)
    assert key.replace("-", "").replace("_", "").isalnum()
    assert key.isascii()
    assert len(key) <= 80
    assert os.path.basename(key) == key


def test_keys_of_different_pairs_differ_though_their_stems_agree():
    assert len({key_of(identity) for identity in ("a b", "a_b", "a/b", "a.b", "A_b")}) == 5


@pytest.mark.parametrize("name", ["a.png", "sub/a.png", "a..b.png", "图.png", "..a/b 1.png"])
def test_ordinary_names_are_safe(name):
    assert is_safe_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/a", "a/../b", "a//b", "./a", "C:/a", "..\\a", "a\nb", " a", "a/" * 600],
)
def test_names_that_leave_the_folder_or_break_a_line_are_unsafe(name):
    assert not is_safe_name(name)
