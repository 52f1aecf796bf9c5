"""Shards that others wrote, with fields that the user names."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from datamodules.convert.naming import TaskNaming
from datamodules.convert.pair import FieldMap
from datamodules.convert.report import ConvertReport
from datamodules.convert.run import ConvertSettings, convert
from datamodules.convert.webdataset import expand_braces
from emu_edit.cli.main import main
from emu_edit.errors import BadDataError, InputError, ShardError
from tests.datamodules.convert.sets import after, before, png, quarantine, region, samples

FIELDS = FieldMap("jpg", "edited.jpg", "txt")
Members = list[tuple[str, bytes]]


def members(seed: int, **others: bytes) -> Members:
    """Return the members of one sample; `others` replace or add fields, empty ones go."""
    fields = {
        "jpg": png(before(seed)),
        "edited.jpg": png(after(seed)),
        "txt": f"invert {seed}".encode(),
        **{name.replace("_", "."): data for name, data in others.items()},
    }
    return [(f"{seed:05d}.{name}", data) for name, data in fields.items() if data]


def write_tar(path: Path, files: Members, *odd: tarfile.TarInfo) -> Path:
    """Write a tar as `tar cf X.tar .` does, with an entry for the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = tarfile.TarInfo("./")
    root.type = tarfile.DIRTYPE
    with tarfile.open(path, "w:gz" if path.suffix in {".gz", ".tgz"} else "w") as tar:
        for info in (root, *odd):
            tar.addfile(info)
        for name, data in files:
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def run(source: Path, out: Path, fields: FieldMap | None = FIELDS) -> ConvertReport:
    return convert("webdataset", source, out, ConvertSettings(TaskNaming("local"), fields=fields))


@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz", "0.tgz"])
def test_pairs_come_back_with_their_pixels_and_texts_from_a_tar_alone(
    tmp_path: Path, name: str
) -> None:
    files = [member for seed in range(3) for member in members(seed, cls=b"7")]
    report = run(write_tar(tmp_path / "in" / name, files), tmp_path / "out")
    assert (report.written, report.skipped) == ({"local": 3}, {})
    for seed, sample in enumerate(samples(tmp_path / "out")):
        assert np.array_equal(sample.source, before(seed))
        assert np.array_equal(sample.target, after(seed))
        assert sample.text["instruction"] == f"invert {seed}"
        assert sample.text["origin"] == f"{name}, sample {seed:05d}"


def test_folders_and_braces_give_all_shards_and_whatever_lies_beside_them_is_counted(
    tmp_path: Path,
) -> None:
    for shard in range(2):  # img2dataset writes a table and statistics beside each
        write_tar(tmp_path / "in" / f"a{shard}" / "0.tar", members(shard))
        (tmp_path / "in" / f"a{shard}" / "0_stats.json").touch()
    report = run(tmp_path / "in", tmp_path / "all")
    assert (report.written, report.skipped) == ({"local": 2}, {"no file of a pair": 2})
    report = run(tmp_path / "in" / "a{0..1}" / "0.tar", tmp_path / "braces")
    assert (report.written, report.skipped) == ({"local": 2}, {})
    with pytest.raises(InputError, match=r"a2/0.tar: no such file \(2 of 4 are missing\)"):
        run(tmp_path / "in" / "a{0..3}" / "0.tar", tmp_path / "more")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{a}{..}", ["{a}{..}"]),
    ],
)
def test_braces_mean_what_a_shell_makes_of_them(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


def test_endless_braces_are_refused() -> None:
    for pattern in ("{0..99999999999}", "{0..999}{0..999}{0..999}"):
        with pytest.raises(InputError, match="means more than 100000 shards; give fewer"):
            expand_braces(pattern)


def test_columns_of_json_several_extensions_masks_and_task_names(tmp_path: Path) -> None:
    texts = [{"edit": "invert it", "kind": kind} for kind in ("texture", "style")]
    files = members(0, txt=b"", json=json.dumps(texts[0]).encode(), mask_png=png(region()))
    other = members(1, txt=b"", jpg=b"", PNG=png(before(1)), json=json.dumps(texts[1]).encode())
    fields = FieldMap("jpg,png", "edited.jpg", "json:edit", mask="mask.png", task="json:kind")
    report = run(write_tar(tmp_path / "0.tar", files + other), tmp_path / "out", fields)
    assert report.written == {"texture": 1, "style": 1}
    found = {sample.text["task"]: sample.mask for sample in samples(tmp_path / "out")}
    assert found["style"] is None
    assert found["texture"] is not None
    assert np.array_equal(found["texture"], region() > 0)


def test_each_fault_of_a_sample_is_named_and_counted(tmp_path: Path) -> None:
    link = tarfile.TarInfo("00009.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    files = [
        *members(0),
        *members(1, jpg=b""),
        *members(2, edited_jpg=b""),
        *members(3, txt="é".encode("cp1252")),
        *members(4, jpg=b"no picture"),
        *members(5),
        ("00005.jpg", png(before(6))),
        ("._00000.jpg", b"a Mac's"),
        ("README", b"no field"),
        *members(7, txt=b"x" * 70_000),
    ]
    report = run(write_tar(tmp_path / "0.tar", files, link), tmp_path / "out")
    assert report.written == {"local": 1}
    assert {row["reason"]: row["detail"] for row in quarantine(tmp_path / "out")} == {
        "not followed": "0.tar, '00009.jpg' is a symbolic link, not a file",
        "missing source": "0.tar, sample 00001: has no jpg; it has edited.jpg, txt",
        "missing target": "0.tar, sample 00002: has no edited.jpg; it has jpg, txt",
        "bad line": "0.tar, sample 00003: txt: is not UTF-8 at byte 0 (0xE9, in Windows-1252 "
        "'é'); save it as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW)",
        "unreadable picture": "0.tar, sample 00004: jpg: is no picture, needs a JPEG, PNG, WebP, "
        "GIF, TIFF, BMP or AVIF picture",
        "ambiguous name": "0.tar, sample 00005: has two members jpg",
        "hidden file": "0.tar, './._00000.jpg': a hidden name",
        "no file of a pair": "0.tar, './README': is no field of a sample",
        "bad instruction": "0.tar, sample 00007: txt has 70000 bytes, at most 65536 are read",
    }


def test_fields_that_no_sample_has_are_refused_with_those_there_are(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", members(0))
    with pytest.raises(InputError, match=r"no sample has out.jpg; there are the fields jpg \(1\)"):
        run(tar, tmp_path / "out", FieldMap("jpg", "out.jpg", "txt"))
    with pytest.raises(
        InputError, match=r"no sample has mask; .*; say which is what: --source jpg"
    ):
        run(tar, tmp_path / "out", FieldMap("jpg", "edited.jpg", "txt", mask="mask"))
    with pytest.raises(InputError, match=r"sample 00000 has jpg, edited.jpg, txt; say which is"):
        run(tar, tmp_path / "out", None)
    with pytest.raises(InputError, match=r"there are the fields \(none\)"):
        run(write_tar(tmp_path / "empty.tar", []), tmp_path / "out")
    tar = write_tar(tmp_path / "1.tar", members(0, json=b'{"caption": "a"}'))
    with pytest.raises(BadDataError, match=r"no pair is left to write: .*1 missing instruction"):
        run(tar, tmp_path / "out", FieldMap("jpg", "edited.jpg", "json:edit"))
    (row,) = quarantine(tmp_path / "out")
    assert row["detail"].endswith("json has no text 'edit'; it has caption")


def test_a_damaged_archive_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "0.tar", members(0) + members(1)).read_bytes()
    packed = gzip.compress(whole)
    for name, data, words in (
        ("cut.tar", whole[:1100], "is cut inside a member"),
        ("end.tar", whole.rstrip(b"\0"), "cut|no end-of-archive mark"),
        ("cut.tar.gz", packed[: len(packed) // 2], "the gzip data are damaged"),
        ("crc.tar.gz", packed[:-8] + bytes(8), "the gzip data are damaged"),
        ("two.tar", whole + whole, "data behind its end-of-archive mark"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ShardError, match=f"{name}: .*({words})"):
            run(tmp_path / name, tmp_path / "out")
    (tmp_path / "x.tar").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600))
    with pytest.raises(InputError, match=r"x.tar: is compressed with zstandard; unpack it"):
        run(tmp_path / "x.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_benchmark_is_refused_by_its_name_and_its_fields(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="GEdit-Bench, which is for evaluation only"):
        run(write_tar(tmp_path / "GEdit-Bench" / "0.tar", members(0)), tmp_path / "out")
    declared = json.dumps({"edit": "x", "benchmark": "emu"}).encode()
    tar = write_tar(tmp_path / "0.tar", members(0, json=declared))
    with pytest.raises(InputError, match="of the benchmark 'emu', which is for evaluation only"):
        run(tar, tmp_path / "out", FieldMap("jpg", "edited.jpg", "json:edit"))


def test_the_command_line_maps_the_fields_and_tells_by_its_status_what_was_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "in" / "0.tar", members(0))
    (tmp_path / "in" / "more").symlink_to(tmp_path, target_is_directory=True)
    command = ["shards", "convert", "webdataset", str(tmp_path / "in"), str(tmp_path / "out")]
    command += ["--task", "local", "--source", "jpg", "--target", "edited.jpg"]
    assert main(command) == 2
    assert "--instruction is missing: a pair needs --source" in capsys.readouterr().err
    assert main([*command, "--instruction", "txt"]) == 65
    out = capsys.readouterr().out
    assert "not followed      1" in out
    assert "1 pair written (local 1); 1 left out: 1 not followed" in out
    assert out.endswith(
        "what was not followed may hold pairs: exit status 65, though the shards are whole\n"
    )
    (tmp_path / "in" / "more").unlink()
    command[4] = str(tmp_path / "again")
    assert main([*command, "--instruction", "txt"]) == 0
    command[2] = "folder"
    assert main([*command, "--instruction", "txt"]) == 2
    assert "folder knows what its fields are; --source and the like are for webdataset and" in (
        capsys.readouterr().err
    )
