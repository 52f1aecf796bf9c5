"""What lies in a user's folder is read or told; names have one form, texts a known encoding."""

import os
import socket
import unicodedata
from pathlib import Path

import pytest

from datamodules.checks.leaks import LeakGuard
from datamodules.listing import (
    decode_text,
    find_file,
    how_to_convert,
    list_entries,
    list_files,
    parse_object,
    read_table,
    text_lines,
)
from datamodules.world.photographs import Photos
from emu_edit.cli.edit_places import find_sources
from emu_edit.errors import InputError, ShardError
from tests.datamodules.convert.sets import before, save

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one picture and something of every kind that is not followed."""
    root = tmp_path / "in"
    save(root / "a" / "good.png", before(0))
    elsewhere = save(tmp_path / "elsewhere" / "b.png", before(1)).parent
    (root / "more").symlink_to(elsewhere, target_is_directory=True)
    (root / "linked.png").symlink_to(elsewhere / "b.png")
    (root / "gone.png").symlink_to(elsewhere / "no.png")
    (root / "circle.png").symlink_to(root / "circle.png")
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(os.path.relpath(root / "door.png"))
    (root / ".cache").mkdir()
    save(root / ".cache" / "c.png", before(2))
    return root


def test_every_entry_of_a_folder_is_a_file_hidden_or_not_followed_with_a_reason(
    folder: Path,
) -> None:
    found = {entry.name: entry for entry in list_entries(folder)}
    assert {name for name, entry in found.items() if entry.is_file} == {"a/good.png", "linked.png"}
    assert {name for name, entry in found.items() if entry.is_hidden} == {".cache"}
    assert found["more"].why == "is a link to a folder"
    assert found["gone.png"].why == "is a link to nothing"
    assert found["pipe.png"].why == found["door.png"].why == "is a pipe, a device or a socket"
    assert found["circle.png"].why
    assert len(found) == 8
    assert list_files(folder) == [folder / "a" / "good.png", folder / "linked.png"]


def test_a_folder_that_cannot_be_listed_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def denied(path: Path) -> object:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    (entry,) = (entry for entry in list_entries(folder) if entry.name == "a")
    assert entry.why == "cannot be listed (Permission denied)"


def test_a_guard_refuses_what_it_cannot_look_into(folder: Path) -> None:
    with pytest.raises(InputError, match=r"circle.png: .*; take it away or name it by itself"):
        LeakGuard.of([folder])


def test_photographs_are_listed_by_the_same_rule_and_the_rest_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(Photos(folder)) == 2
    assert "5 of its entries are not followed, first" in caplog.text


def test_edit_says_of_everything_in_the_folder_why_it_is_left_alone(folder: Path) -> None:
    sources, left = find_sources(str(folder))
    assert [str(source) for source in sources] == [str(folder / "linked.png")]
    assert len(left) == 7
    assert {".cache (hidden)", "more (is a link to a folder)"} <= {*left}
    assert "a (is a folder inside, not searched here)" in left


@pytest.mark.parametrize(("written", "asked"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_name_is_found_in_either_form_of_unicode(
    tmp_path: Path, written: str, asked: str
) -> None:
    path = tmp_path / written / f"{written}.png"
    path.parent.mkdir()
    path.touch()
    assert find_file(tmp_path, f"{asked}/{asked}.png") == path
    assert find_file(tmp_path, f"{asked}/other.png") is None
    assert [entry.name for entry in list_entries(tmp_path)] == [f"{COMPOSED}/{COMPOSED}.png"]


def test_a_file_added_later_is_found_too(tmp_path: Path) -> None:
    assert find_file(tmp_path, COMPOSED) is None
    (tmp_path / DECOMPOSED).touch()
    os.utime(tmp_path, ns=(1, 1))  # a coarse clock would hide the change
    assert find_file(tmp_path, COMPOSED) == tmp_path / DECOMPOSED


def test_the_exact_spelling_wins_and_backslashes_mean_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in (COMPOSED, DECOMPOSED, "a/b.png"):
        (tmp_path / name).touch()
    for name in (COMPOSED, DECOMPOSED):
        assert find_file(tmp_path, name) == tmp_path / name
    assert find_file(tmp_path, r"a\b.png") == tmp_path / "a" / "b.png"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_texts_that_say_their_encoding_are_read(tmp_path: Path, encoding: str) -> None:
    rows = '{"a": "café"}\r\n\n{"a": "頁"}\n'
    (tmp_path / "t.jsonl").write_bytes(rows.encode(encoding))
    assert decode_text(rows.encode(encoding), "t") == rows
    assert [number for number, _ in text_lines(tmp_path / "t.jsonl")] == [1, 2, 3]
    found = [(1, {"a": "café"}), (3, {"a": "頁"})]
    assert list(read_table(tmp_path / "t.jsonl", "t")) == found
    (tmp_path / "t.csv").write_bytes('a,b\r\ncafé,"x\r\n\r\ny"\r\n'.encode(encoding))
    ((_, row),) = read_table(tmp_path / "t.csv", "t")
    assert (row["a"], str(row["b"]).split()) == ("café", ["x", "y"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("é".encode("cp1252"), r"t: is not UTF-8 at byte 0 \(0xE9, in Windows-1252 'é'\); save it"),
        ("é".encode("cp1252"), r"iconv -f WINDOWS-1252 -t UTF-8"),
        ("make it".encode("utf-16-le"), r"t: has NUL bytes, as UTF-16 without a mark .* UTF-16LE"),
        ("é".encode("utf-16")[:-1], r"t: is damaged utf-16.* \(truncated data\); save it as UTF-8"),
    ],
)
def test_other_encodings_are_refused_with_the_remedy(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode_text(data, "t")


def test_a_path_with_single_backslashes_in_json_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"t:1: is not a line of JSON .*; write / or two \\"):
        parse_object(rb'{"file": "source\cat.png"}', "t:1")


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("00000.tar", "webdataset DIR OUT --source jpg --target edited.jpg --instruction txt"),
        ("00000.tar.gz", "webdataset DIR OUT --source"),
        ("metadata.csv", "imagefolder DIR OUT --source COLUMN --target COLUMN"),
        ("instructions.jsonl", "folder DIR OUT"),
    ],
)
def test_the_reader_of_shards_names_the_command_for_what_others_wrote(
    tmp_path: Path, file: str, kind: str
) -> None:
    from datamodules.shards.manifest import read_manifest

    (tmp_path / file).touch()
    command = f"emu-edit shards convert {kind.replace('DIR', str(tmp_path))}"
    with pytest.raises(ShardError) as refused:
        read_manifest(tmp_path)
    assert command in str(refused.value)
    assert not how_to_convert(tmp_path / "elsewhere")


@pytest.mark.parametrize("place", ["00000.tar", "part-{000..010}.tar"])
def test_a_tar_or_a_pattern_as_training_data_names_the_command(tmp_path: Path, place: str) -> None:
    from datamodules.remote.folder import open_folder

    with pytest.raises(InputError, match=r"shards convert webdataset .*tar OUT --source jpg"):
        open_folder(str(tmp_path / place))
