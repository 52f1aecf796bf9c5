import errno
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest

from emu_edit.cli import edit_run
from emu_edit.cli.main import main


def assert_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("emu-edit: error: ")
    assert printed.err.count("\n") == 1
    assert re.search(words, printed.err), printed.err


def edit(model: Path, *arguments: str) -> list[str]:
    return ["edit", *arguments, "--model", str(model), "--task", "local"]


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("output", ["out", "out.png", "out.jpg"])
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(
    photo: Path,
    model: Path,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
) -> None:
    room = {"files": 2 if output == "out" else 0}

    def fsync(_: int) -> None:
        room["files"] -= 1
        if room["files"] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    arguments = edit(model, str(photo), "make it red", "make it blue", "-o", output)
    assert_refused(capsys, arguments, "out.* cannot be written .No space left on device.; ")
    assert everything(workplace) == []


@pytest.mark.usefixtures("workplace")
def test_a_full_disk_leaves_the_file_that_was_there(
    photo: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out.png").write_bytes(b"the old one")

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    arguments = edit(model, str(photo), "make it red", "-o", "out.png")
    assert_refused(capsys, arguments, r"out\.png cannot be written")
    assert everything(Path()) == ["out.png"]
    assert Path("out.png").read_bytes() == b"the old one"


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("is_there", [False, True])
def test_picture_sheet_and_manifest_are_written_together_or_not_at_all(
    photo: Path,
    model: Path,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: int,
    suffix: str,
    is_there: bool,
) -> None:
    names = ["out.manifest.json", f"out.{suffix}", "out.sheet.png"]
    old = {name: f"the old {name}".encode() for name in names} if is_there else {}
    for name, data in old.items():
        (workplace / name).write_bytes(data)
    calls = iter(range(1, 9))

    def fsync(_: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    arguments = edit(model, str(photo), "make it red", "-o", f"out.{suffix}")
    words = r"out\.\S+ cannot be written .No space left on device.; free some space or write elsew"
    assert_refused(capsys, [*arguments, "--sheet", "--manifest"], words)
    assert {path.name: path.read_bytes() for path in workplace.iterdir()} == old


@pytest.mark.usefixtures("workplace")
def test_a_picture_whose_name_is_no_pictures_leaves_nothing_behind(
    photo: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = edit(model, str(photo), "make it red", "-o", "out.json", "--sheet", "--manifest")
    assert_refused(capsys, arguments, r"out\.json: cannot write '\.json', needs one of \.png")
    assert everything(Path()) == []


@pytest.mark.usefixtures("workplace")
def test_ctrl_c_while_writing_leaves_nothing_behind(
    photo: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    assert main(edit(model, str(photo), "make it red", "-o", "out")) == 130
    assert everything(Path()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_standard_output_is_one_line(
    photo: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(edit(model, str(photo), "make it red", "-o", "-")) == 2
    monkeypatch.undo()
    assert capsys.readouterr().err == (
        "emu-edit: error: standard output cannot be written (No space left on device); "
        "free some space or write elsewhere\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("output", ["locked/out.png", "locked/out", "locked"])
def test_a_folder_one_may_not_write_to_is_refused_before_any_work(
    photo: Path, model: Path, workplace: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    (workplace / "locked").mkdir(mode=0o555)
    arguments = edit(model, str(photo), "make it red", "-o", output)
    assert_refused(capsys, arguments, "cannot be written: no permission; choose another output")


def test_no_permission_is_refused_for_root_too_when_the_system_says_so(
    photo: Path,
    model: Path,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (workplace / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "locked")
    for output in ("locked/out.png", "locked/out", "locked"):
        arguments = edit(model, str(photo), "make it red", "-o", output)
        assert_refused(capsys, arguments, "cannot be written: no permission; choose another")


def test_a_model_without_predictor_and_no_task_is_refused_before_it_is_loaded(
    photo: Path,
    model: Path,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delattr(edit_run.Editor, "from_pretrained")
    arguments = ["edit", str(photo), "make it red", "-o", "out.png", "--model", str(model)]
    words = "has no task predictor; name the task with --task, or train one with 'emu-edit predict"
    assert_refused(capsys, arguments, words)
    assert everything(workplace) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "-o", "PHOTO"], "photo.png would overwrite the picture itself; choose another"),
        (["x", "y", "-o", "old"], "old holds turn-03.png of a longer session; remove it or choose"),
        (["x", "-o", "file"], "file is a file, the output needs a picture's suffix or a folder"),
        (["x", "-o", "odd.png"], "odd.png cannot be written: it is no regular file; choose"),
        (["x", "-o", "a.png", "--sheet"], "a.sheet.png cannot be written: it is no regular file"),
        (["x", "-o", "-", "--sheet"], "--sheet and --manifest need a file: give -o OUT.png or a"),
        (["x", "-o", "-", "--json"], "--json and -o - both need standard output; write the pict"),
        (["-o", "a.png"], 'say what to change: emu-edit edit IMAGE "make the sky red" -o OUT'),
        (["x", "old/turn-03.png", "-o", "a"], "the instruction 'old/turn-03.png' is a picture; "),
        (["x", "", "-o", "a"], "turn 2: the instruction is empty; say what to change"),
        (["x", "y", "z", "-o", "a", "--task", "add"], "3 turns with 2 tasks; give --task once, "),
        (["x", "-o", "a", "--threshold=1", "--no-threshold"], "--threshold and --no-threshold ex"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_model_is_loaded(
    photo: Path,
    model: Path,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    (workplace / "old").mkdir()
    (workplace / "old/turn-03.png").write_bytes(photo.read_bytes())
    (workplace / "file").write_text("")
    os.mkfifo(workplace / "odd.png")
    os.mkfifo(workplace / "a.sheet.png")
    before = everything(workplace)
    monkeypatch.delattr(edit_run.Editor, "from_pretrained")
    told = [str(photo) if argument == "PHOTO" else argument for argument in arguments]
    assert_refused(capsys, edit(model, str(photo), *told), words)
    assert everything(workplace) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, r"m\.json: the manifest is not JSON"),
        ({"version": 2}, r"m\.json: the manifest has version 2, this program reads 1"),
        ({"model": {"sha256": "0" * 64}}, "was made with another model .its weights differ."),
        (
            {"original": {"width": 20, "height": 16, "sha256": "0" * 64}},
            "the manifest is of another picture",
        ),
        ({"turns": [], "results": []}, r"m\.json: the manifest has no turns, there is nothing"),
        ({"turns": [{}]}, r"m\.json: turn 1 has no 'guidance_image'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    photo: Path,
    model: Path,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, object] | None,
    words: str,
) -> None:
    assert main(edit(model, str(photo), "make it red", "-o", "out.png", "--manifest")) == 0
    capsys.readouterr()
    manifest = json.loads(Path("out.manifest.json").read_text())
    text = "no JSON" if change is None else json.dumps({**manifest, **change})
    (workplace / "m.json").write_text(text)
    arguments = ["edit", str(photo), "--replay", "m.json", "--model", str(model), "-o", "again.png"]
    assert_refused(capsys, arguments, words)
    assert not Path("again.png").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--replay", "missing.json"], r"missing\.json: no such file; give the manifest.json"),
        (["--replay", "."], r"\.: no such file; give the manifest.json of a session"),
        (["make it red", "--replay", "m"], "takes the turns from the manifest; leave instructions"),
        (["--seed", "3", "--replay", "m"], "takes the turns from the manifest; leave seed out"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_a_replay_that_cannot_be_is_refused(
    photo: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    words: str,
) -> None:
    arguments = ["edit", str(photo), *more, "--model", str(model), "-o", "again.png"]
    assert_refused(capsys, arguments, words)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "standard input: is empty"), (b"no picture", "standard input: is no picture")],
)
@pytest.mark.usefixtures("workplace")
def test_standard_input_without_a_picture_is_refused(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: bytes,
    words: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert_refused(capsys, edit(model, "-", "make it red", "-o", "out.png"), words)


@pytest.mark.usefixtures("workplace")
def test_a_terminal_for_standard_input_is_refused_instead_of_waited_for(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    words = "standard input has no picture; pipe one in: emu-edit edit - < a.png"
    assert_refused(capsys, edit(model, "-", "make it red", "-o", "out.png"), words)


@pytest.mark.usefixtures("workplace")
def test_an_endless_standard_input_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("emu_edit.cli.edit_run.MAX_BYTES", 100)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * 101)))
    words = "standard input gave more than the 100 bytes a picture may have"
    assert_refused(capsys, edit(model, "-", "make it red", "-o", "out.png"), words)
