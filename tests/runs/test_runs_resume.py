import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emu_edit.cli.fit import parse
from emu_edit.cli.main import main
from emu_edit.errors import InputError, StorageError
from emu_edit.runs.folder import (
    FROM_PARENT,
    find_checkpoint,
    new_run_folder,
    recipe_of,
    resumed_run_folder,
)
from emu_edit.runs.options import training_run
from emu_edit.runs.resume import newest_whole, step_of
from emu_edit.training.checkpoint_io import DurableCheckpointIO, read_checkpoint, sidecar_of

Save = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run; the current folder is the one above."""
    (tmp_path / "r" / "checkpoints").mkdir(parents=True)
    return tmp_path / "r"


@pytest.fixture
def save(run: Path) -> Save:
    """Write a checkpoint of a step, with the name of ours or another."""

    def write(step: int, name: str = "step-{:08}.ckpt", *, sidecar: bool = True) -> Path:
        path = run / "checkpoints" / name.format(step)
        content = {"state_dict": {"w": torch.ones(300)}, "global_step": step}
        DurableCheckpointIO().save_checkpoint(content, path)
        if not sidecar:
            sidecar_of(path).unlink()
        return path

    return write


def spoil(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def test_the_newest_checkpoint_is_taken_and_nothing_is_renamed(run, save):
    save(1000)
    newest = save(1200)
    before = names(run)
    assert newest_whole(run, "auto") == (newest, "resume: last valid step 1200")
    assert names(run) == before | {"last.ckpt"}
    assert (run / "checkpoints" / "last.ckpt").resolve() == newest


def test_a_save_that_was_killed_is_swept_and_said_so(run, save):
    good = save(1200)
    for end in ("", ".json"):
        (run / "checkpoints" / f".step-00001400.ckpt{end}.77.tmp").write_bytes(b"half")
    line = "resume: last valid step 1200 (step 1400 incomplete, ignored)"
    assert newest_whole(run, "auto") == (good, line)
    assert names(run) == {good.name, f"{good.name}.json", "last.ckpt"}


@pytest.mark.parametrize("harm", [spoil, cut])
def test_broken_checkpoints_get_another_name_and_the_one_before_is_taken(run, save, harm):
    good, newer, newest = save(1000), save(1200), save(1400)
    (run / "checkpoints" / "last.ckpt").symlink_to(newest.name)
    harm(newer)
    harm(newest)
    chosen, line = newest_whole(run, "auto")
    assert chosen == good
    assert line == (
        "resume: last valid step 1000 (step-00001400.ckpt is broken, now "
        "step-00001400.ckpt.corrupt; step-00001200.ckpt is broken, now step-00001200.ckpt.corrupt)"
    )
    assert names(run) == {
        *(
            f"step-0000{step}.ckpt{end}"
            for step in (1200, 1400)
            for end in (".corrupt", ".corrupt.json")
        ),
        *(good.name, f"{good.name}.json", "last.ckpt"),
    }
    assert (run / "checkpoints" / "last.ckpt").resolve() == good
    assert newest_whole(run, "auto") == (good, "resume: last valid step 1000")  # told once


def test_strict_stops_at_a_broken_checkpoint_and_touches_nothing(run, save):
    save(1000)
    broken = spoil(save(1200))
    before = names(run)
    with pytest.raises(StorageError, match=r"sha256 mismatch.*--resume auto would put it aside"):
        newest_whole(run, "strict")
    assert names(run) == before
    assert broken.exists()


def test_a_run_without_checkpoints_begins_anew_and_says_so(run):
    assert newest_whole(run, "auto") == (None, f"resume: no checkpoint in {run} yet, begins anew")
    (run / "checkpoints" / ".step-00000200.ckpt.77.tmp").write_bytes(b"half")
    line = f"resume: no checkpoint in {run} yet, begins anew (step 200 incomplete, ignored)"
    assert newest_whole(run, "auto") == (None, line)
    assert newest_whole(run / "never", "auto")[0] is None


def test_a_run_that_has_only_broken_checkpoints_is_not_begun_anew_unasked(run, save):
    cut(save(200))
    for found in (r" \(step-00000200\.ckpt is broken, now .*\)", ""):
        reason = (
            rf"no whole checkpoint is left in .*checkpoints{found}; delete the \*\.corrupt files"
        )
        with pytest.raises(StorageError, match=reason):
            newest_whole(run, "auto")
    for path in (run / "checkpoints").glob("*.corrupt*"):
        path.unlink()
    assert newest_whole(run, "auto")[0] is None


def test_a_checkpoint_whose_writer_was_killed_before_the_sidecar_is_whole(run, save):
    save(1000)
    newest = save(1200, sidecar=False)
    assert newest_whole(run, "auto") == (newest, "resume: last valid step 1200")


def test_files_of_older_versions_are_found_too(run, save):
    save(4, "epoch=1-step={}.ckpt", sidecar=False)
    assert newest_whole(run, "auto")[1] == "resume: last valid step 4"
    last = save(6, "last.ckpt", sidecar=False)
    assert newest_whole(run, "auto") == (last, "resume: last valid step 6")
    cut(last)
    assert newest_whole(run, "auto")[1] == (
        "resume: last valid step 4 (last.ckpt is broken, now last.ckpt.corrupt)"
    )


def test_other_files_in_the_folder_are_no_checkpoints_of_the_run(run, save):
    good = save(3)
    save(99, "mine.ckpt", sidecar=False)
    (run / "checkpoints" / "notes.txt").write_text("x")
    assert newest_whole(run, "auto")[0] == good
    assert step_of(run / "checkpoints" / "mine.ckpt") is None


def test_a_checkpoint_that_cannot_be_read_now_keeps_its_name(run, save, monkeypatch):
    newest = save(1200)

    def no_answer(path: Path) -> None:
        raise StorageError(f"{path} cannot be read (Input/output error); try again")

    monkeypatch.setattr("emu_edit.runs.resume.verify", no_answer)
    with pytest.raises(StorageError, match="Input/output error"):
        newest_whole(run, "auto")
    assert newest.exists()


def test_a_copy_of_a_run_without_links_still_has_a_last_checkpoint(run, save):
    save(2)
    save(4)
    assert read_checkpoint(find_checkpoint(run))["global_step"] == 4


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no job around."""
    monkeypatch.chdir(tmp_path)
    for name in ("LOCAL_RANK", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(FROM_PARENT, "")  # so that what the code sets is undone
    return tmp_path


def start(folder: str, age: int) -> Path:
    """Make the folder of a run that was started so many seconds ago."""
    config = Path(folder, "config.yaml")
    config.parent.mkdir(parents=True)
    config.write_text("trainer: {}\n")
    os.utime(config, (1e9 - age, 1e9 - age))
    return config.parent


@pytest.mark.usefixtures("alone")
def test_without_a_folder_the_newest_run_of_the_recipe_goes_on():
    start("runs/tiny-20250101-000000", age=50)
    newest = start("runs/tiny-20250102-000000", age=20)
    start("runs/smoke-20250103-000000", age=10)
    assert resumed_run_folder("tiny", None) == newest
    assert resumed_run_folder("pairs", None).name.startswith("pairs-20")
    assert resumed_run_folder("tiny", "runs/mine") == Path("runs/mine")


@pytest.mark.usefixtures("alone")
def test_a_job_that_is_queued_again_finds_its_own_folder(monkeypatch):
    start("runs/tiny-20250102-000000", age=20)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert resumed_run_folder("tiny", None) == Path("runs/tiny-4711")


@pytest.mark.usefixtures("alone")
def test_ranks_of_torchrun_need_a_folder_and_children_of_lightning_are_told(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(
        InputError, match=r"under torchrun the ranks cannot agree .*; give --run DIR"
    ):
        resumed_run_folder("tiny", None)
    parent = resumed_run_folder("tiny", "r")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resumed_run_folder("tiny", "r") == parent.absolute()


@pytest.mark.usefixtures("alone")
def test_a_run_that_goes_on_has_its_own_config_unless_another_is_named():
    folder = start("r", age=1)
    options, found = training_run(parse("fit", ["--resume=auto", "--run=r"]))
    assert (found, options.configs) == (folder, (folder / "config.yaml",))
    options, _ = training_run(parse("fit", ["--resume=auto", "--run=new"]))
    assert options.configs[0].name == "tiny.yaml"
    more = ["--resume=auto", "--run=r", "--config=smoke"]
    assert training_run(parse("fit", more))[0].configs[0].name == "smoke.yaml"
    with pytest.raises(
        InputError, match=r"r already holds a run; .* go on with this one: --resume"
    ):
        new_run_folder("tiny", "r")


@pytest.mark.usefixtures("alone")
def test_runs_started_in_the_same_second_get_different_folders(monkeypatch):
    monkeypatch.setattr("emu_edit.runs.folder._stamp", lambda: "20250131-235959")
    found = []
    for _ in range(3):
        monkeypatch.delenv(FROM_PARENT, raising=False)
        found.append(new_run_folder("tiny", None))
    assert [folder.name.removeprefix("tiny-20250131-235959") for folder in found] == [
        "",
        "-2",
        "-3",
    ]
    assert all(folder.is_dir() for folder in found)
    assert {recipe_of(folder / "config.yaml") for folder in found} == {"tiny"}


@pytest.mark.usefixtures("alone")
def test_neither_a_question_nor_a_refused_start_leaves_a_folder():
    with pytest.raises(SystemExit):
        main(["fit", "--config=smoke", "--print_config"])
    assert main(["fit", "--config=smoke", "--trainer.strategy=none_such"]) == 78
    assert not [path for path in Path().rglob("*") if path.name.startswith("smoke")]


@pytest.mark.usefixtures("alone")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
def test_a_missing_graphics_card_is_told_before_a_network_is_looked_for(capsys):
    assert main(["fit", "--config=sd15", "--data.train=nowhere"]) == 78
    assert re.fullmatch(
        r"emu-edit: error: trainer\.accelerator=gpu: torch finds no graphics card .*cpu trains.*\n",
        capsys.readouterr().err,
    )
    assert not list(Path("runs").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--resume=auto", "--ckpt_path=x"], "--resume looks for the checkpoint of a run itself"),
        (["--resume=maybe"], "invalid choice: 'maybe'"),
        (["--resume"], "expected one argument"),
    ],
)
def test_contradicting_options_are_refused(arguments, reason):
    with pytest.raises(InputError, match=reason):
        parse("fit", arguments)


def test_only_a_training_can_be_resumed():
    assert parse("validate", ["--resume=auto"]).rest == ("--resume=auto",)
