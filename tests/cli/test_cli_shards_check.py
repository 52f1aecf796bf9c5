"""`emu-edit shards check`: what it prints, lists and returns."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.shards.manifest import write_manifest
from datamodules.shards.writer import write_task_shards
from emu_edit.cli.shards import PROBLEMS, run_check
from emu_edit.errors import ExitStatus, InputError
from tests.datamodules.loopback import serve
from tests.datamodules.toy_shards import make_folder, records


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sound folders `a` and `b`, which share three pairs; the working directory."""
    make_folder(tmp_path / "a", {"local": 3, "add": 1})
    make_folder(tmp_path / "b", {"local": 3})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def damage(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(bytes(data))


def listed(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.usefixtures("folders")
def test_a_sound_folder_is_status_0_and_leaves_no_list(capsys: pytest.CaptureFixture[str]):
    assert run_check(["a"]) == ExitStatus.done == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [
        "task", "shards", "samples", "MiB", "masks", "sizes", "errors", "warnings",
    ]  # fmt: skip
    assert printed[-1] == "nothing is wrong"
    assert not Path("a", PROBLEMS).exists()


@pytest.mark.usefixtures("folders")
def test_instructions_longer_than_a_model_takes_are_named(capsys: pytest.CaptureFixture[str]):
    pairs = list(records("local", 2))
    pairs[1] = replace(pairs[1], instruction=" ".join(f"word {i}," for i in range(60)))
    Path("long").mkdir()
    write_manifest(Path("long"), write_task_shards(Path("long"), "local", pairs), made_by={})
    assert run_check(["long"]) == ExitStatus.done
    assert "nothing is wrong" in capsys.readouterr().out
    assert run_check(["long", "--config", "smoke"]) == ExitStatus.done  # training cuts it
    (problem,) = listed(Path("long", PROBLEMS))
    assert problem["key"] == "local_00001"
    message = str(problem["message"])
    assert re.fullmatch(r"the instruction has \d+ tokens, .* encoder takes at most 96", message)


@pytest.mark.usefixtures("folders")
def test_a_damaged_folder_is_status_65_and_listed_as_lines_of_json(
    capsys: pytest.CaptureFixture[str],
):
    damage(Path("a/local-000000.tar"))
    assert run_check(["a"]) == ExitStatus.bad_data == 65
    (problem,) = listed(Path("a", PROBLEMS))
    assert problem["is_error"] is True
    assert (problem["folder"], problem["file"]) == ("a", "local-000000.tar")
    assert "1 errors, 0 warnings: a/problems.jsonl" in capsys.readouterr().out


@pytest.mark.usefixtures("folders")
def test_warnings_alone_are_status_0(capsys: pytest.CaptureFixture[str]):
    assert run_check(["a", "b"]) == 0
    assert "0 errors, 3 warnings: b/problems.jsonl" in capsys.readouterr().out
    assert len(listed(Path("b", PROBLEMS))) == 3
    assert not Path("a", PROBLEMS).exists()


@pytest.mark.usefixtures("folders")
def test_one_list_takes_the_problems_of_all_folders():
    damage(Path("a/add-000000.tar"))
    assert run_check(["a", "b", "--list", "all.jsonl"]) == 65
    assert [row["folder"] for row in listed(Path("all.jsonl"))] == ["a", "b", "b", "b"]
    assert not Path("b", PROBLEMS).exists()


@pytest.mark.usefixtures("folders")
def test_a_folder_that_was_mended_loses_its_old_list():
    whole = Path("a/local-000000.tar").read_bytes()
    damage(Path("a/local-000000.tar"))
    assert run_check(["a"]) == 65
    Path("a/local-000000.tar").write_bytes(whole)
    assert run_check(["a"]) == 0
    assert not Path("a", PROBLEMS).exists()


@pytest.mark.usefixtures("folders")
def test_pictures_of_an_evaluation_set_are_errors(capsys: pytest.CaptureFixture[str]):
    assert run_check(["a", "--against", "b"]) == 65
    printed = capsys.readouterr().out
    assert "sample 'local_00000': the source shows the evaluation picture" in printed
    assert "6 errors, 0 warnings" in printed


@pytest.mark.usefixtures("folders")
def test_a_list_that_cannot_be_written_is_refused():
    damage(Path("a/local-000000.tar"))
    with pytest.raises(InputError, match=r"cannot be written to none/x \(No such .* --list$"):
        run_check(["a", "--list", "none/x"])


def test_a_folder_elsewhere_is_checked_through_the_cache(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders / "cache"))
    damage(folders / "a" / "add-000000.tar")
    with serve(folders / "a") as site:
        assert run_check([site.url, "b", "--list", "all.jsonl"]) == 65
    errors = [row for row in listed(Path("all.jsonl")) if row["is_error"]]
    assert [row["file"] for row in errors] == ["add-000000.tar"]
    assert "1 errors, 3 warnings: all.jsonl" in capsys.readouterr().out


def test_problems_of_a_folder_elsewhere_are_listed_here(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders / "cache"))
    with serve(folders / "a") as site:
        assert run_check(["b", site.url]) == 0  # the pairs of the one are those of the other
    assert {row["folder"] for row in listed(Path(PROBLEMS))} == {site.url}
    assert not Path("b", PROBLEMS).exists()
    assert f"warnings: {PROBLEMS}" in capsys.readouterr().out
