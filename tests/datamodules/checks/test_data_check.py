from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from datamodules.checks.folders import CheckReport, check_folder, check_folders
from datamodules.checks.leaks import LeakGuard
from datamodules.checks.report import Doubles, hash_of, summarize
from datamodules.shards.index import index_path, load_index, save_index
from emu_edit.errors import ShardError
from emu_edit.tasks import TaskTable
from tests.datamodules.toy_shards import folder_of, make_folder, png, records, sample, text


def findings(report: CheckReport) -> list[tuple[bool, str, str]]:
    return [(p.is_error, p.key, p.message) for p in report.problems]


def test_a_good_folder_has_no_findings_and_a_table(tmp_path: Path):
    make_folder(tmp_path, {"local": 6, "add": 3})
    seen = []
    report = check_folder(tmp_path, lambda done, total: seen.append((done, total)))
    assert report.is_good
    assert report.problems == []
    assert seen == [(i, 9) for i in range(1, 10)]
    header, local, add = report.rows()
    assert dict(zip(header, local, strict=True)) == {
        "task": "local",
        "shards": "2",
        "samples": "6",
        "MiB": "0.1",
        "masks": "3",
        "sizes": "16x16",
        "errors": "0",
        "warnings": "0",
    }
    assert add[:3] == ("add", "1", "3")


def test_a_bad_picture_is_found_and_does_not_hide_the_next(tmp_path: Path):
    report = folder_of(
        tmp_path,
        [*sample("a", source=b"hello"), *sample("b"), *sample("c", target=png((16, 24)))],
    )
    assert [(e, key) for e, key, _ in findings(report)] == [(True, "a"), (True, "c")]
    assert "source: is no picture" in report.problems[0].message
    assert "differ in size" in report.problems[1].message
    assert not report.is_good
    assert report.rows()[1][-2:] == ("2", "0")


def test_a_shard_that_the_manifest_does_not_name_is_a_warning(tmp_path: Path):
    make_folder(tmp_path, {"local": 2})
    (tmp_path / "more-000000.tar").write_bytes(b"copied from elsewhere")
    (problem,) = check_folder(tmp_path).problems
    assert (problem.is_error, problem.file) == (False, "more-000000.tar")
    assert problem.message == "is not named in the manifest, so nothing reads it"


def test_the_same_key_in_two_shards_is_an_error(tmp_path: Path):
    other = sample("a", source=png(level=50))
    report = folder_of(tmp_path, sample("a"), other)
    assert [(p.is_error, p.file, p.key) for p in report.problems] == [
        (True, "local-000001.tar", "a")
    ]
    assert "has this key in 2 shards" in report.problems[0].message


def test_the_same_pair_under_two_keys_is_a_warning(tmp_path: Path):
    paraphrase = sample("c", json=text(instruction="do it otherwise"))
    report = folder_of(tmp_path, [*sample("a"), *sample("b"), *paraphrase])
    assert findings(report) == [
        (False, "b", "is the same pair and instruction as a of local-000000.tar")
    ]
    assert report.is_good


def test_identical_and_black_pictures_and_empty_masks_are_warnings(tmp_path: Path):
    members = [
        *sample("same", target=png(level=40), source=png(level=40)),
        *sample("black", target=png(level=8)),
        *sample("dark", target=png(level=9)),
        *sample("mask", mask=png(level=0), source=png(level=50)),
    ]
    report = folder_of(tmp_path, members)
    assert findings(report) == [
        (False, "same", "target and source are identical"),
        (False, "black", "the target is black"),
        (False, "mask", "the mask is empty: nothing may change"),
    ]
    assert report.errors == []


def test_identical_pictures_with_an_empty_mask_are_a_pair_that_asks_for_nothing(tmp_path: Path):
    noop = sample("noop", mask=png(level=0), target=png(level=40), source=png(level=40))
    full = sample("full", mask=png(level=255), target=png(level=41), source=png(level=41))
    report = folder_of(tmp_path, [*noop, *full])
    assert findings(report) == [(False, "full", "target and source are identical")]


def test_changed_bytes_are_found_by_their_hash(tmp_path: Path):
    make_folder(tmp_path, {"local": 6})
    path = tmp_path / "local-000001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(bytes(data))
    report = check_folder(tmp_path)
    assert [problem.file for problem in report.errors] == ["local-000001.tar"]
    assert "changed since the manifest was written" in report.errors[0].message


def test_an_index_of_something_else_is_found(tmp_path: Path):
    manifest = make_folder(tmp_path, {"local": 3})
    shard = tmp_path / manifest.entries[0].file
    index = np.array(load_index(shard, manifest.entries[0]))
    index["offset"] += 512
    save_index(shard, index)
    report = check_folder(tmp_path)
    assert "its index file does not describe it" in report.errors[0].message
    index_path(shard).unlink()
    assert "cannot be read as a shard index" in check_folder(tmp_path).errors[0].message


def test_an_unknown_task_is_an_error_with_the_nearest_name(tmp_path: Path):
    make_folder(tmp_path, {"locall": 2})
    report = check_folder(tmp_path)
    message = "unknown task 'locall'. Did you mean 'local'?"
    assert [problem.message for problem in report.errors] == [message]
    assert check_folder(tmp_path, table=TaskTable(("locall",))).is_good


def test_a_pair_that_two_data_sets_share_is_a_warning_that_names_both(tmp_path: Path):
    make_folder(tmp_path / "a", {"local": 3})
    make_folder(tmp_path / "b", {"local": 2, "add": 1})
    report = check_folders([tmp_path / "a", tmp_path / "b"])
    assert report.is_good  # one key in two folders is no mistake
    assert [(p.folder, p.key) for p in report.problems] == [
        (str(tmp_path / "b"), "local_00000"),
        (str(tmp_path / "b"), "local_00001"),
    ]
    assert f"of {tmp_path / 'a'}/local-000000.tar" in report.problems[0].message
    rows = report.rows()
    assert [row[:2] for row in rows[1:]] == [
        (str(tmp_path / "a"), "local"),
        (str(tmp_path / "b"), "local"),
        (str(tmp_path / "b"), "add"),
    ]
    assert [row[-1] for row in rows[1:]] == ["0", "2", "0"]
    assert summarize(report.problems)[0].startswith("warning: local-000000.tar: sample")


def test_a_picture_of_an_evaluation_set_is_an_error(tmp_path: Path):
    make_folder(tmp_path, {"local": 3}, size=32)
    target = 255 - next(islice(records("local", 3, size=32), 1, None)).source
    report = check_folder(tmp_path, guard=LeakGuard([("bench/7.png", target)]))
    assert [(e, key) for e, key, _ in findings(report)] == [(True, "local_00001")]
    assert report.problems[0].message.startswith(
        "the target shows the evaluation picture bench/7.png"
    )


def test_doubles_are_found_among_thousands_as_by_comparing_all():
    rng = np.random.default_rng(3)
    shards = {s: rng.integers(0, 3000, 400).tolist() for s in (4, 2, 9)}
    doubles, expected = Doubles(), defaultdict(list)
    for shard, hashes in shards.items():
        doubles.add(shard, hashes)
        for number, value in enumerate(hashes):
            expected[value].append((shard, number))
    groups = list(doubles.groups())
    assert groups == [places for places in expected.values() if len(places) > 1]
    assert len(groups) > 100
    assert list(Doubles().groups()) == []


def test_hashes_tell_parts_apart():
    assert hash_of("a", "bc") != hash_of("ab", "c")
    assert hash_of(1, "2") != hash_of("1", 2)
    assert hash_of("x", (3, 4)) == hash_of("x", (3, 4))


def test_a_folder_without_manifest_cannot_be_checked(tmp_path: Path):
    with pytest.raises(ShardError, match="is not a shard folder"):
        check_folder(tmp_path)


def test_findings_are_summarized_in_lines(tmp_path: Path):
    members = [
        member for i in range(5) for member in sample(f"k{i}", source=b"not a picture %d" % i)
    ]
    lines = summarize(folder_of(tmp_path, members).problems, limit=2)
    assert lines[0].startswith("error: local-000000.tar: sample 'k0': ")
    assert lines[2] == "... and 3 more in local-000000.tar"
    assert len(lines) == 3
