"""A learned task's file: it comes back as it was, is small, and anything else is refused."""

import os
import pickle
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from emu_edit.errors import InputError
from emu_edit.models.codec import PatchCodec
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.learned_task import LearnedTask, check_name, check_task_path
from emu_edit.models.weights import load_networks, save_networks
from tests.models.test_models_weights import (
    SCHEDULER,
    SETTINGS,
    pretrained_networks,
    shake,
    tiny_networks,
)

BASE, OTHER = "ab" * 32, "cd" * 32


def learned(name: str = "contour", width: int = 6, **entries: Any) -> LearnedTask:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(len(name)))
    task = LearnedTask(
        name=name,
        description="draw the outlines",
        vector=vector,
        base=BASE,
        pairs=10,
        steps=300,
        seed=3,
        created="2026-11-20",
        instruction="draw the contours",
    )
    return replace(task, **entries)


def entries(task: LearnedTask) -> dict[str, Any]:
    values = {entry.name: getattr(task, entry.name) for entry in fields(task)}
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


@pytest.mark.parametrize("has_row", [False, True])
def test_a_task_comes_back_from_its_file_bit_for_bit(tmp_path: Path, has_row: bool) -> None:
    row = {"predictor_row": torch.randn(17), "predictor": OTHER} if has_row else {}
    task = learned(description="Zeichne Umrisse: é, 線", allowed_on=OTHER, **row)
    task.save(tmp_path / "contour.safetensors")
    assert entries(LearnedTask.load(tmp_path / "contour.safetensors")) == entries(task)


def test_the_file_of_a_wide_vector_takes_a_few_kb_and_its_header_is_text(tmp_path: Path) -> None:
    file = tmp_path / "contour.safetensors"
    learned(width=1024).save(file)
    assert file.stat().st_size < 6000
    with safe_open(file, framework="pt") as stream:
        header = stream.metadata()
    assert header["name"] == "contour"
    assert header["pairs"] == "10"
    readable = tmp_path / "plain"
    readable.touch()
    assert file.stat().st_mode == readable.stat().st_mode  # others may read it where they may all
    assert header["base"] == BASE


def test_another_precision_is_saved_as_float32(tmp_path: Path) -> None:
    task = learned(vector=torch.tensor([0.5, -2.0], dtype=torch.float64))
    task.save(tmp_path / "contour.safetensors")
    vector = LearnedTask.load(tmp_path / "contour.safetensors").vector
    assert vector.dtype == torch.float32
    assert vector.tolist() == [0.5, -2.0]
    assert task.vector_hash() == learned(vector=vector).vector_hash()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "contour.safetensors"
    learned().save(file)
    before = file.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        learned(pairs=11).save(file)
    assert os.listdir(tmp_path) == ["contour.safetensors"]
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "name", ["", "Contour", "4x", "-x", "a b", "a+b", "a:b", "../x", "a/b", "é", "a" * 41, "a\n"]
)
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="must begin with a-z and have at most 40 of a-z, 0-9"):
        check_name(name)
    with pytest.raises(InputError, match="must begin with a-z"):
        learned(name=name, vector=torch.ones(6))


def test_plain_names_are_taken() -> None:
    for name in ("a", "super_resolution-4x", "a" * 40):
        check_name(name)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"description": "a\x1b[2Jb"}, r"task contour: the description has the character U\+001B"),
        ({"instruction": " "}, "task contour: the instruction is empty"),
        ({"base": ""}, "base must be 64 hexadecimal digits, got ''"),
        ({"base": "AB" * 32}, "base must be 64 hexadecimal digits"),
        ({"allowed_on": "x"}, "allowed_on must be 64 hexadecimal digits, got 'x'"),
        ({"created": "yesterday"}, "created must be an ISO date, got 'yesterday'"),
        ({"pairs": 0}, "pairs must be at least 1, got 0"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0 and below 2.63, got -1"),
        ({"vector": torch.tensor([1.0, torch.nan])}, "vector must be a row of finite numbers"),
        ({"vector": torch.ones(0)}, "vector must be a row of finite numbers"),
        ({"predictor_row": torch.ones(3)}, "a predictor_row needs the hash of its predictor"),
        ({"predictor": OTHER}, "a predictor_row needs the hash of its predictor"),
    ],
)
def test_what_no_task_can_be_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        learned(**changed)


def saved(folder: Path, **changed: str | None) -> Path:
    """A learned task's file with other entries in its header; None leaves one out."""
    learned().save(folder / "good.safetensors")
    with safe_open(folder / "good.safetensors", framework="pt") as stream:
        header = {**stream.metadata(), **changed}
    file = folder / "changed.safetensors"
    kept = {name: text for name, text in header.items() if text is not None}
    save_file({"vector": torch.ones(6)}, file, metadata=kept)
    return file


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"emu_edit_task": None}, r"is no learned task \(its header has no emu_edit_task\); give"),
        ({"emu_edit_task": "2"}, "is of version '2', this program reads 1; update the program"),
        ({"base": None}, "changed.safetensors lacks 'base' of a learned task; learn it again"),
        ({"pairs": "many"}, "pairs, steps and seed must be whole numbers"),
        ({"pairs": "0"}, "changed.safetensors: task contour: pairs must be at least 1"),
        ({"name": "../x"}, "changed.safetensors: a task's name must begin with a-z"),
    ],
)
def test_a_file_of_another_kind_or_with_a_bad_header_is_refused(
    tmp_path: Path, changed: dict[str, str | None], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        LearnedTask.load(saved(tmp_path, **changed))


def test_a_file_without_a_vector_is_refused(tmp_path: Path) -> None:
    with safe_open(saved(tmp_path), framework="pt") as stream:
        header = stream.metadata()
    save_file({"other": torch.ones(6)}, tmp_path / "none.safetensors", metadata=header)
    with pytest.raises(InputError, match="lacks 'vector' of a learned task"):
        LearnedTask.load(tmp_path / "none.safetensors")


def test_what_is_no_safetensors_file_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    for name, data in (("pickle", pickle.dumps(Trap())), ("empty", b""), ("text", b"{}" * 40)):
        (tmp_path / f"{name}.safetensors").write_bytes(data)
        with pytest.raises(InputError, match=rf"cannot read .*{name}.* as a learned task"):
            LearnedTask.load(tmp_path / f"{name}.safetensors")
    assert not (tmp_path / "ran").exists()


def test_missing_and_large_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.safetensors: no such file; give"):
        LearnedTask.load(tmp_path / "gone.safetensors")
    with pytest.raises(InputError, match="no such file"):
        LearnedTask.load(tmp_path)
    save_file({"w": torch.zeros(2**18 + 1)}, tmp_path / "large.safetensors")
    with pytest.raises(InputError, match="a learned task has a few thousand; is it a model's"):
        LearnedTask.load(tmp_path / "large.safetensors")


def test_a_path_that_cannot_hold_a_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for path, words in (
        ("task.pt", "a learned task is a .safetensors file"),
        ("folder.safetensors", "cannot be written: it is a folder or lies in none"),
        ("none/x.safetensors", "cannot be written: it is a folder or lies in none"),
    ):
        with pytest.raises(InputError, match=words):
            check_task_path(tmp_path / path)
        with pytest.raises(InputError, match=words):
            learned().save(tmp_path / path)


@pytest.mark.parametrize("kind", ["tiny", "pretrained"])
def test_a_model_has_the_same_hash_after_saving_and_loading(
    tmp_path: Path, stable_diffusion: Path, cpu_generator: torch.Generator, kind: str
) -> None:
    networks = tiny_networks() if kind == "tiny" else pretrained_networks(stable_diffusion)
    networks = shake(networks, cpu_generator)
    path = tmp_path / "model"
    save_networks(networks, path, scheduler_config=SCHEDULER, settings=SETTINGS)
    assert re.fullmatch("[0-9a-f]{64}", model_hash(networks))
    assert model_hash(load_networks(path)[0]) == model_hash(networks)


def test_the_hash_does_not_depend_on_the_table_of_tasks() -> None:
    networks = tiny_networks()
    before = model_hash(networks)
    networks.add_task(learned())
    networks.task_embedding.table.data += 1
    assert model_hash(networks) == before


@pytest.mark.parametrize("part", ["denoiser", "text_encoder", "codec"])
def test_one_weight_of_any_part_makes_another_hash(stable_diffusion: Path, part: str) -> None:
    networks = pretrained_networks(stable_diffusion)
    before = model_hash(networks)
    next(getattr(networks, part).parameters()).data.view(-1)[0] += 1e-3
    assert model_hash(networks) != before


def test_the_numbers_of_a_codec_without_weights_count() -> None:
    networks = tiny_networks()
    before = model_hash(networks)
    networks.codec = PatchCodec(patch=2, scale=2.5)
    assert model_hash(networks) != before


def test_storage_does_not_count_and_rounding_does(cpu_generator: torch.Generator) -> None:
    networks = shake(tiny_networks(), cpu_generator)
    exact = model_hash(networks)
    networks.half()
    rounded = model_hash(networks)
    assert rounded != exact
    assert model_hash(networks.float()) == rounded
