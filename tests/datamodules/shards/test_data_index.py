import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from webdataset.compat import WebDataset

from datamodules.shards import index as index_module
from datamodules.shards.index import ROLES, index_path, index_shard, load_index, save_index
from datamodules.shards.manifest import ShardEntry, read_manifest
from emu_edit.errors import ShardError
from tests.datamodules.toy_shards import make_folder, png, sample, text, write_tar

GOOD = [*sample("a"), *sample("b", mask=png()), *sample("c")]
BLOCK = 512


def refuse(path: Path, reason: str) -> None:
    with pytest.raises(ShardError, match=reason) as caught:
        index_shard(path, task="local")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_member_is_found_where_the_index_says(tmp_path: Path):
    path = write_tar(tmp_path / "x.tar", GOOD)
    index = index_shard(path, task="local")
    data, members = path.read_bytes(), dict(GOOD)
    assert [key.decode() for key in index["key"]] == ["a", "b", "c"]
    for row in index:
        for column, role in enumerate(ROLES):
            offset, size = int(row["offset"][column]), int(row["size"][column])
            name = f"{row['key'].decode()}.{role}" + ("" if role == "json" else ".png")
            assert data[offset : offset + size] == members.get(name, b"")


def test_an_index_is_read_back_from_its_file(tmp_path: Path):
    path = write_tar(tmp_path / "x.tar", GOOD)
    index = index_shard(path, task="local")
    save_index(path, index)
    entry = ShardEntry("local", "x.tar", path.stat().st_size, "", 3)
    np.testing.assert_array_equal(load_index(path, entry), index)
    assert index_path(path).name == "x.idx.npy"


@pytest.mark.parametrize("extension", ["png", "PNG", "jpg", "jpeg", "webp"])
def test_keys_may_lie_in_folders_and_pictures_have_four_extensions(tmp_path: Path, extension: str):
    members = [
        ("sub/dir/k_1-x.json", text()),
        (f"sub/dir/k_1-x.source.{extension}", png()),
        (f"sub/dir/k_1-x.target.{extension}", png()),
    ]
    index = index_shard(write_tar(tmp_path / "x.tar", members), task="local")
    assert index["key"].tolist() == [b"sub/dir/k_1-x"]


def cut(keep: Callable[[tarfile.TarInfo, bytes], int]) -> Callable[[bytes], bytes]:
    """Cut the file at a place relative to its sixth member, `b.target.png`."""

    def apply(data: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return data[: keep(tar.getmembers()[5], data)]

    return apply


def spoil_checksum(data: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        at = tar.getmembers()[5].offset
    return data[: at + 148] + b"0000001\0" + data[at + 156 :]


DAMAGES = {
    "cut inside a member": (cut(lambda m, _: m.offset_data + 20), "is cut inside a member"),
    "cut inside the last member": (
        lambda d: d[: d.rindex(b"IEND")],
        "is cut inside a member",
    ),
    "cut at a header": (cut(lambda m, _: m.offset), "no end-of-archive mark"),
    "cut inside a header": (cut(lambda m, _: m.offset + 100), "is cut inside a header"),
    "cut before the end mark": (lambda d: d.rstrip(b"\0") + b"\0" * 5, "is cut inside a member"),
    "bad checksum": (spoil_checksum, r"header with a bad checksum at byte \d+"),
    "empty": (lambda _: b"", "the file is empty"),
    "garbage": (lambda _: bytes(range(256)) * 40, "is not a plain tar"),
    "short garbage": (lambda _: b"hello", "is not a plain tar"),
    "only zeros": (lambda _: bytes(10240), "holds no samples"),
    "gzip": (gzip.compress, "is compressed with gzip"),
    "xz": (lambda d: b"\xfd7zXZ\x00" + d, "is compressed with xz"),
    "bzip2": (lambda d: b"BZh9" + d, "is compressed with bzip2"),
    "zstandard": (lambda d: b"\x28\xb5\x2f\xfd" + d, "is compressed with zstandard"),
    "two archives in one": (lambda d: d + d, "data behind its end-of-archive mark"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_with_the_reason(tmp_path: Path, name: str):
    damage, reason = DAMAGES[name]
    path = write_tar(tmp_path / "x.tar", GOOD)
    path.write_bytes(damage(path.read_bytes()))
    refuse(path, reason)


def test_a_cut_anywhere_is_refused(tmp_path: Path):
    whole = write_tar(tmp_path / "x.tar", GOOD).read_bytes()
    end = len(whole.rstrip(b"\0"))
    path = tmp_path / "cut.tar"
    for length in [*range(0, end, 97), *range(0, end, BLOCK), end]:
        path.write_bytes(whole[:length])
        with pytest.raises(ShardError):
            index_shard(path, task="local")


def test_a_missing_file_is_refused(tmp_path: Path):
    refuse(tmp_path / "none.tar", "cannot be read")


A, B = sample("a"), sample("b")
CONTENTS = {
    "duplicate member": ([*A, A[1]], "sample 'a' has two source members"),
    "duplicate role": ([*A, ("a.source.jpg", png())], "sample 'a' has two source members"),
    "duplicate key": ([*A, *B, *A], "sample 'a' appears twice"),
    "not adjacent": ([*A[:2], *B, A[2]], "members of sample 'a' are not adjacent"),
    "interleaved": ([A[0], B[0], A[1], B[1], A[2], B[2]], "of sample 'a' are not adjacent"),
    "no source": ([*A, *B[::2]], "sample 'b' has no source"),
    "no target": ([*A, *B[:2]], "sample 'b' has no target"),
    "no json": ([*A[1:], *B], "sample 'a' has no json"),
    "lonely mask": ([*A, ("b.mask.png", png())], "'b' has no source and no target and no json"),
    "traversal": ([("../../etc/passwd.source.png", png())], "leaves its folder"),
    "inner traversal": ([("x/../../a.source.png", png())], "leaves its folder"),
    "absolute": ([("/abs/a.source.png", png())], "is absolute"),
    "backslash": ([("x\\..\\a.source.png", png())], "is absolute, leaves"),
    "control character": ([("a\x07.source.png", png())], "is not printable"),
    "unknown member": ([*A, ("a.weights.pkl", b"x")], "member 'a.weights.pkl' is unknown"),
    "hidden file": ([*A, (".source.png", b"x")], "member '.source.png' is unknown"),
    "no extension": ([*A, ("README", b"x")], "member 'README' is unknown"),
    "bad json": (sample("a", json=b"{"), "sample 'a': its json cannot be parsed"),
    "bad utf-8": (sample("a", json=b'{"task": "\xff"}'), "its json cannot be parsed"),
    "json list": (sample("a", json=b"[1]"), "sample 'a': its json is list"),
    "no instruction": (sample("a", json=b'{"task": "local"}'), "'a': its json has no instruction"),
    "instruction null": (sample("a", json=text(instruction=None)), "has no instruction that is a"),
    "empty instruction": (sample("a", json=text(instruction=" ")), "'a': the instruction is empty"),
    "long instruction": (sample("a", json=text(instruction="x" * 9999)), "9999 characters"),
    "NUL in instruction": (sample("a", json=text(instruction="a\0b")), r"character U\+0000"),
    "no task": (sample("a", json=b'{"instruction": "x"}'), "'a': its json has no task"),
    "another task": (sample("a", json=text(task="depth")), "task 'depth', the manifest says 'loc"),
    "one wording": (
        sample("a", json=text(instruction_alt="b")),
        "'a': instruction_alt .* not a list of strings",
    ),
    "a wording": (sample("a", json=text(instruction_alt=["b", 3])), "not a list of strings"),
    "no words": (sample("a", json=text(instruction_alt=["b", " "])), "instruction"),
    "caption": (sample("a", json=text(source_caption=3)), "'a': source_caption .* not a string"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_bad_contents_are_refused_with_the_reason(tmp_path: Path, name: str):
    members, reason = CONTENTS[name]
    refuse(write_tar(tmp_path / "x.tar", members), reason)


KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.DIRTYPE: "a folder",
    tarfile.CHRTYPE: "a device or pipe",
    tarfile.FIFOTYPE: "a device or pipe",
    b"Q": "of an unknown type",
}


@pytest.mark.parametrize("kind", KINDS)
def test_members_that_are_not_files_are_refused(tmp_path: Path, kind: bytes):
    path = write_tar(tmp_path / "x.tar", GOOD)
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("d.source.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    refuse(path, f"member 'd.source.png' is {KINDS[kind]}")


def test_a_member_over_the_size_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index_module, "MAX_MEMBER_BYTES", 100)
    path = write_tar(tmp_path / "x.tar", [("a.source.png", bytes(101))])
    refuse(path, r"'a.source.png' has 101 bytes, allowed are 0\.\.100")


def test_a_large_json_is_refused(tmp_path: Path):
    path = write_tar(tmp_path / "x.tar", [("a.json", bytes(2**20 + 1))])
    refuse(path, r"'a.json' has 1048577 bytes, allowed are 0\.\.1048576")


def test_a_negative_size_does_not_send_the_reader_backwards(tmp_path: Path):
    path = write_tar(tmp_path / "x.tar", GOOD)
    data = bytearray(path.read_bytes())
    data[124:136] = b"\xff" * 11 + b"\x00"  # base 256: -256
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:BLOCK])
    path.write_bytes(bytes(data))
    refuse(path, "has -256 bytes")


def test_a_damaged_extended_header_is_refused(tmp_path: Path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.source.png")
        info.size, info.pax_headers = 3, {"mtime": "1.5", "comment": "x"}
        tar.addfile(info, io.BytesIO(b"abc"))
    path.write_bytes(path.read_bytes().replace(b" mtime=", b" size=n"))
    with pytest.raises(ShardError):
        index_shard(path, task="local")


def test_random_bytes_never_raise_anything_else(tmp_path: Path):
    rng = np.random.default_rng(0)
    whole = write_tar(tmp_path / "x.tar", GOOD).read_bytes()
    path = tmp_path / "fuzz.tar"
    messages = []
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, len(whole), 8):
            data[at] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            index_shard(path, task="local")
        except ShardError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert not any("\n" in message for message in messages)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own reader
def test_what_webdataset_passes_over_in_silence_is_refused(tmp_path: Path):
    path = write_tar(tmp_path / "x.tar", GOOD)
    with tarfile.open(path) as tar:
        at_header = tar.getmembers()[5].offset
    path.write_bytes(path.read_bytes()[:at_header])
    seen = list(WebDataset(str(path), shardshuffle=False))
    assert [item["__key__"] for item in seen] == ["a", "b"]
    assert "target.png" not in seen[1]  # half a sample, and no word about it
    refuse(path, "no end-of-archive mark")


@pytest.mark.parametrize("damage", ["missing", "garbage", "rows", "fields"])
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, damage: str):
    manifest = make_folder(tmp_path, {"local": 3})
    entry = manifest.entries[0]
    shard = tmp_path / entry.file
    index = np.array(load_index(shard, entry))
    match damage:
        case "missing":
            index_path(shard).unlink()
        case "garbage":
            index_path(shard).write_bytes(b"\x80\x04pickle")
        case "rows":
            save_index(shard, index[:2])
        case _:
            save_index(shard, index[["key", "offset", "size"]])
    with pytest.raises(ShardError, match=r"idx\.npy (cannot be read|is not the index)"):
        load_index(shard, read_manifest(tmp_path).entries[0])
