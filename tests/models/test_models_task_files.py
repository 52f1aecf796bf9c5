"""Learned tasks in a model directory: the base keeps its bytes, changes are whole or none."""

import logging
import shutil
from pathlib import Path

import pytest
import torch

from emu_edit.errors import InputError
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.learned_task import LearnedTask
from emu_edit.models.networks import EditNetworks
from emu_edit.models.task_files import (
    LEARNED,
    check_base,
    check_free,
    install_task,
    read_base_tasks,
    read_learned_task,
    read_learned_tasks,
    read_task_table,
    remove_task,
    rename_task,
)
from emu_edit.models.weights import load_networks, save_networks
from tests.models.test_models_learned_task import OTHER, learned
from tests.models.test_models_weights import (
    SCHEDULER,
    SETTINGS,
    TASKS,
    outputs,
    shake,
    tiny_networks,
)


@pytest.fixture
def networks(cpu_generator: torch.Generator) -> EditNetworks:
    return shake(tiny_networks(), cpu_generator)


@pytest.fixture
def base(networks: EditNetworks) -> str:
    return model_hash(networks)


@pytest.fixture
def folder(tmp_path: Path, networks: EditNetworks) -> Path:
    """A model directory of three tasks."""
    save_networks(networks, tmp_path / "model", scheduler_config=SCHEDULER, settings=SETTINGS)
    return tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a model but those of its learned tasks."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in files
        if (folder / LEARNED) not in file.parents
    }


def test_a_learned_task_is_one_file_more_and_the_base_keeps_its_bytes(
    folder: Path, base: str
) -> None:
    before = contents(folder)
    install_task(folder, learned(base=base), base=base)
    assert contents(folder) == before
    assert [file.name for file in (folder / LEARNED).iterdir()] == ["contour.safetensors"]
    assert read_base_tasks(folder) == TASKS
    assert read_task_table(folder).names == (*TASKS.names, "contour")


def test_a_loaded_model_knows_the_task_and_edits_with_its_others_bit_for_bit_as_before(
    folder: Path, base: str
) -> None:
    before = outputs(load_networks(folder)[0])[0]
    install_task(folder, learned(base=base), base=base)
    loaded, _, _ = load_networks(folder)
    assert loaded.tasks.names == (*TASKS.names, "contour")
    assert loaded.base_tasks == TASKS
    assert torch.equal(loaded.task_vectors(["contour"])[0], learned().vector)
    assert torch.equal(outputs(loaded)[0], before)


def test_saving_a_loaded_model_keeps_its_learned_tasks_and_base(
    folder: Path, base: str, tmp_path: Path
) -> None:
    install_task(folder, learned(base=base), base=base)
    loaded, scheduler, settings = load_networks(folder)
    for place in (tmp_path / "copy", folder):
        save_networks(loaded, place, scheduler_config=scheduler, settings=settings)
        assert read_task_table(place).names == (*TASKS.names, "contour")
        again, _, _ = load_networks(place)
        assert torch.equal(again.task_embedding.table, loaded.task_embedding.table)
    assert contents(tmp_path / "copy") == contents(folder)


def test_learned_tasks_follow_the_base_oldest_first(folder: Path, base: str) -> None:
    days = {"b": "2026-11-02", "c": "2026-11-01", "a": "2026-11-02", "d": "2026-11-02T07:00:00"}
    for name, day in days.items():
        install_task(folder, learned(name, base=base, created=day), base=base)
    assert [task.name for task in read_learned_tasks(folder)] == ["c", "a", "b", "d"]
    loaded, _, _ = load_networks(folder)
    assert loaded.tasks == read_task_table(folder)
    for name in days:
        assert torch.equal(loaded.task_vectors([name])[0], learned(name).vector)


def test_a_training_that_starts_from_the_model_gets_the_base_alone(folder: Path, base: str) -> None:
    install_task(folder, learned(base=base), base=base)
    loaded, _, _ = load_networks(folder, tasks=TASKS)
    assert loaded.tasks == TASKS
    assert loaded.learned == ()


def test_a_task_of_another_base_is_refused_by_hash_and_writes_nothing(
    folder: Path, base: str
) -> None:
    words = (
        rf"^task contour was learnt with the model {OTHER[:12]}, this one is {base[:12]}; learn it "
        "again .* with --allow-mismatch$"
    )
    with pytest.raises(InputError, match=words):
        install_task(folder, learned(base=OTHER), base=base)
    assert not (folder / LEARNED).exists()


def test_an_allowed_mismatch_is_written_down_and_told_once_at_every_loading(
    folder: Path, base: str, caplog: pytest.LogCaptureFixture
) -> None:
    written = install_task(folder, learned(base=OTHER), base=base, allow_mismatch=True)
    assert (written.base, written.allowed_on) == (OTHER, base)
    assert read_learned_tasks(folder)[0].allowed_on == base
    with caplog.at_level(logging.WARNING):
        loaded, _, _ = load_networks(folder)
    assert "contour" in loaded.tasks.names
    (message,) = caplog.messages
    assert f"learnt with the model {OTHER[:12]}, this one is {base[:12]}; it was allowed" in message


def test_a_permission_holds_for_one_model_only(folder: Path, base: str, tmp_path: Path) -> None:
    install_task(folder, learned(base=OTHER), base=base, allow_mismatch=True)
    third = tiny_networks()
    save_networks(third, tmp_path / "third", scheduler_config=SCHEDULER, settings=SETTINGS)
    shutil.copytree(folder / LEARNED, tmp_path / "third" / LEARNED)
    words = f"this one is {model_hash(third)[:12]}; remove it with 'emu-edit tasks remove .*third"
    with pytest.raises(InputError, match=words):
        load_networks(tmp_path / "third")


def test_a_task_on_its_own_base_needs_no_permission(base: str) -> None:
    task = check_base(learned(base=base, allowed_on=OTHER), base, allow_mismatch=True)
    assert task.allowed_on == ""


def test_weights_that_changed_in_memory_are_saved_with_their_tasks(
    folder: Path, base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install_task(folder, learned(base=base), base=base)
    loaded, scheduler, settings = load_networks(folder)
    next(loaded.denoiser.parameters()).data += 1e-3
    save_networks(loaded, tmp_path / "new", scheduler_config=scheduler, settings=settings)
    assert "contour" in load_networks(tmp_path / "new")[0].tasks.names
    assert "allowed all the same" in caplog.text


def test_names_that_are_taken_or_odd_are_refused(folder: Path, base: str) -> None:
    install_task(folder, learned(base=base), base=base)
    for name in ("contour", "add"):
        words = f"has a task '{name}' already; give another name, or remove that one with"
        with pytest.raises(InputError, match=words):
            install_task(folder, learned(name, base=base), base=base)
        with pytest.raises(InputError, match=words):
            check_free(folder, name)
    with pytest.raises(InputError, match="a task's name must begin with a-z"):
        check_free(folder, "a b")
    with pytest.raises(InputError, match="is no model directory"):
        check_free(folder / "unet", "new")


def test_a_vector_of_another_width_is_refused_before_it_is_written(folder: Path, base: str) -> None:
    words = "task contour is a vector of 7 numbers, the model .* takes 6; learn it again"
    with pytest.raises(InputError, match=words):
        install_task(folder, learned(width=7, base=base), base=base)
    assert not (folder / LEARNED).exists()


def test_removing_leaves_the_model_as_it_was(folder: Path, base: str) -> None:
    install_task(folder, learned(base=base), base=base)
    remove_task(folder, "contour")
    assert read_task_table(folder) == TASKS
    assert load_networks(folder)[0].tasks == TASKS


def test_a_damaged_file_can_be_removed(folder: Path, base: str) -> None:
    install_task(folder, learned(base=base), base=base)
    (folder / LEARNED / "contour.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"cannot read .*contour\.safetensors"):
        read_task_table(folder)
    remove_task(folder, "contour")
    assert read_task_table(folder) == TASKS


def test_renaming_keeps_everything_but_the_name(folder: Path, base: str) -> None:
    install_task(folder, learned(base=base), base=base)
    rename_task(folder, "contour", "outline")
    (task,) = read_learned_tasks(folder)
    assert (task.name, task.pairs, task.base) == ("outline", 10, base)
    assert torch.equal(task.vector, learned().vector)
    assert [file.name for file in (folder / LEARNED).iterdir()] == ["outline.safetensors"]


def test_base_and_unknown_tasks_cannot_be_removed_or_renamed(folder: Path, base: str) -> None:
    with pytest.raises(InputError, match="has no learned task 'contour'; it has none"):
        remove_task(folder, "contour")
    install_task(folder, learned(base=base), base=base)
    with pytest.raises(
        InputError, match="'add' is a task the model was trained with; only learned"
    ):
        remove_task(folder, "add")
    with pytest.raises(InputError, match="'add' is a task the model was trained with"):
        rename_task(folder, "add", "insert")
    with pytest.raises(InputError, match=r"it has contour\. Did you mean 'contour'"):
        rename_task(folder, "contur", "x")
    with pytest.raises(InputError, match="has a task 'local' already"):
        rename_task(folder, "contour", "local")


def test_renaming_is_done_when_the_file_is_renamed_and_a_crash_then_loses_nothing(
    folder: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_task(folder, learned(base=base), base=base)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LearnedTask, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            rename_task(folder, "contour", "outline")
    assert [file.name for file in (folder / LEARNED).iterdir()] == ["outline.safetensors"]
    (task,) = read_learned_tasks(folder)
    assert (task.name, read_task_table(folder).names[-1]) == ("outline", "outline")
    assert torch.equal(task.vector, learned().vector)
    assert load_networks(folder)[0].tasks.names[-1] == "outline"
    assert rename_task(folder, "outline", "line").name == "line"
    assert LearnedTask.load(folder / LEARNED / "line.safetensors").name == "line"


def test_a_task_is_called_what_its_file_is_and_odd_names_are_refused(
    folder: Path, base: str
) -> None:
    install_task(folder, learned(base=base), base=base)
    (folder / LEARNED / "contour.safetensors").rename(folder / LEARNED / "outline.safetensors")
    assert read_task_table(folder).names == (*TASKS.names, "outline")
    assert read_learned_task(folder, "outline").name == "outline"
    (folder / LEARNED / "outline.safetensors").rename(folder / LEARNED / "Out line.safetensors")
    with pytest.raises(
        InputError, match=r"Out line\.safetensors: a task's name must begin with a-z"
    ):
        read_task_table(folder)


@pytest.mark.parametrize("name", ["best", "mean", "nearest", "none"])
def test_no_new_task_is_called_like_a_word_of_init(folder: Path, base: str, name: str) -> None:
    words = f"a task cannot be called '{name}': 'invert --init {name}' means something else; give"
    with pytest.raises(InputError, match=words):
        check_free(folder, name)
    with pytest.raises(InputError, match=words):
        install_task(folder, learned(name, base=base), base=base)
    # one of before can be read, and so be given another name
    (folder / LEARNED).mkdir()
    learned(name, base=base).save(folder / LEARNED / f"{name}.safetensors")
    with pytest.raises(InputError, match=words):
        rename_task(folder, name, name)
    assert rename_task(folder, name, "other").name == "other"


def test_a_file_with_a_base_tasks_name_is_refused(folder: Path) -> None:
    (folder / LEARNED).mkdir()
    learned("add").save(folder / LEARNED / "add.safetensors")
    with pytest.raises(InputError, match="bears the name of a task of the base; remove the file"):
        load_networks(folder)


def test_a_model_with_learned_tasks_is_not_replaced_by_one_without_them(
    folder: Path, base: str, networks: EditNetworks
) -> None:
    install_task(folder, learned(base=base), base=base)
    words = (
        rf"^{folder} has the learned tasks contour, which would be lost with its weights; move it "
        rf"away as a whole \(mv {folder} {folder}-kept\) and give the same command again, or give"
    )
    with pytest.raises(InputError, match=words):
        save_networks(networks, folder, scheduler_config=SCHEDULER, settings=SETTINGS)
    assert "contour" in read_task_table(folder).names


def test_in_memory_a_learned_task_is_replaced_by_one_of_its_name_and_a_base_task_never(
    networks: EditNetworks,
) -> None:
    networks.add_task(learned())
    networks.add_task(learned("dots"))
    newer = learned(vector=torch.ones(6))
    networks.add_task(newer)
    assert networks.tasks.names == (*TASKS.names, "contour", "dots")
    assert torch.equal(networks.task_vectors(["contour"])[0], newer.vector)
    assert torch.equal(networks.task_vectors(["dots"])[0], learned("dots").vector)
    assert [task is newer for task in networks.learned] == [True, False]
    with pytest.raises(InputError, match="the model was trained with a task 'add'; give"):
        networks.add_task(learned("add"))
    with pytest.raises(InputError, match="the width of the vector of task wide is 7, but the task"):
        networks.add_task(learned("wide", width=7))
