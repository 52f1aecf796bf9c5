"""Evaluation sets never become shards, whoever writes them: by what they say, by their pixels."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.checks.leaks import LeakGuard
from datamodules.encoded.writer import WORK
from datamodules.shards.manifest import read_manifest, write_manifest
from datamodules.shards.writer import PairRecord, ShardWriter, write_task_shards
from emu_edit.errors import InputError
from tests.datamodules.benchmark_files import emu_fields
from tests.datamodules.cached_stage import cache, make_module
from tests.datamodules.toy_shards import make_folder, records

NEVER = "which is for evaluation only and never becomes training data"
# what somebody keeps of a row who writes shards in Python
GEDIT = {"task_type": "subject-add", "instruction_language": "en", "Intersection_exist": True}
FIELDS: dict[str, tuple[dict[str, object], str]] = {
    "a row of the test set": (emu_fields(3), "the Emu Edit test set"),
    "a row of GEdit-Bench": (GEDIT, "GEdit-Bench"),
    "its name": ({"dataset": "emu-edit"}, "the Emu Edit test set"),
    "its name on the hub": ({"dataset": "stepfun-ai/GEdit-Bench"}, "GEdit-Bench"),
    "its place": ({"origin": "data/emu_edit_test_set.parquet, row 3"}, "the Emu Edit test set"),
    "a cache": ({"path": "datasets--leigangqu--MSE-Bench/x.png"}, "MSE-Bench"),
    "its split": ({"dataset": "osunlp/MagicBrush", "split": "test"}, "MagicBrush's test set"),
    "a benchmark": ({"benchmark": "world"}, "of the benchmark 'world'"),
    "a result": (
        {"key": "k", "source_sha256": "a", "output_sha256": "b", "status": "ok"},
        "the result of a benchmark",
    ),
}


def told(fields: dict[str, object]) -> PairRecord:
    return replace(next(records("local", 1)), extra=fields)


@pytest.mark.parametrize("name", FIELDS)
def test_a_pair_that_says_that_it_is_for_evaluation_is_refused(tmp_path: Path, name: str) -> None:
    fields, known = FIELDS[name]
    with pytest.raises(InputError, match=f"^sample 'local_00000': is {known}, {NEVER}") as caught:
        write_task_shards(tmp_path, "local", [told(fields)])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dataset": "magicbrush", "origin": "train-00000.parquet, row 3", "session": "7"},
        {"dataset": "osunlp/MagicBrush", "split": "train"},
        {"dataset": "anyedit", "split": "test-time", "idx": 3},
        {"origin": "emu_edit/pairs.jsonl:3", "source": "a camera", "benchmark": ""},
        {"caption": "a cat", "image_path": "a.png", "status": "ok", "key": 4},
    ],
)
def test_training_pairs_are_not_taken_for_it(tmp_path: Path, fields: dict[str, object]) -> None:
    (entry,) = write_task_shards(tmp_path, "local", [told(fields)])
    assert entry.samples == 1


@pytest.mark.parametrize(
    "name", ["emu_edit_test_set", "datasets--stepfun-ai--GEdit-Bench", "MagicBrush-test/shards"]
)
def test_a_folder_called_after_an_evaluation_set_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=NEVER):
        ShardWriter(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_one_may_work_in_a_folder_of_that_name(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path / "MSE-Bench" / "mine" / "shards", {"local": 1})
    assert [entry.samples for entry in manifest.entries] == [1]


def test_a_pair_that_was_refused_leaves_no_trace_and_the_others_are_written(tmp_path: Path) -> None:
    first, second = records("local", 2)
    with ShardWriter(tmp_path) as writer:
        with pytest.raises(InputError, match="evaluation"):
            writer.add(replace(first, task="style", extra={"dataset": "emu-edit"}))
        writer.add(second)
    assert [(entry.task, entry.samples) for entry in writer.entries] == [("local", 1)]
    assert not list(tmp_path.glob("style*"))


def test_a_guard_knows_pictures_that_say_nothing(tmp_path: Path) -> None:
    first, second, third = records("local", 3)
    guard = LeakGuard([("bench/7.png", second.source), ("bench/8.png", third.target[:, ::-1])])
    message = (
        r"^sample 'local_0000[12]': the (source|target) shows .*evaluation picture bench/.*; "
        "evaluation pictures never become training data, leave the pair out$"
    )
    with ShardWriter(tmp_path, guard=guard) as writer:
        writer.add(first)
        for leak in (second, third):
            with pytest.raises(InputError, match=message):
                writer.add(leak)
    assert [entry.samples for entry in writer.entries] == [1]


def test_shards_of_a_task_take_the_guard_too(tmp_path: Path) -> None:
    pairs = list(records("local", 2))
    guard = LeakGuard([("bench/7.png", pairs[1].source)])

    def streamed() -> Iterator[PairRecord]:
        yield from pairs

    with pytest.raises(InputError, match=r"sample 'local_00001': the source shows"):
        write_task_shards(tmp_path, "local", streamed(), guard=guard)
    assert list(tmp_path.iterdir()) == []
    assert write_task_shards(tmp_path, "local", streamed())[0].samples == 2


@pytest.mark.parametrize("told_by", ["folder", "manifest", "output"])
def test_no_cache_is_made_of_an_evaluation_set(tmp_path: Path, told_by: str) -> None:
    """Shards that another program wrote."""
    make_folder(tmp_path / "shards", {"local": 1})
    folder, output = tmp_path / "shards", tmp_path / "cache"
    if told_by == "folder":
        folder = folder.rename(tmp_path / "emu_edit_test_set")
    elif told_by == "manifest":
        made_by: dict[str, object] = {"source": "facebook/emu_edit_test_set"}
        write_manifest(folder, read_manifest(folder).entries, made_by=made_by)
    else:
        output = tmp_path / "emu_edit_test_set"
    with pytest.raises(InputError, match=f"is the Emu Edit test set, {NEVER}"):
        cache(make_module(), folder, output)
    assert not (output / WORK).exists()
