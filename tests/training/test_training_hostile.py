"""Checkpoints of wrong types, of numbers that are none, and of more bytes than they have."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from emu_edit.errors import BrokenCheckpointError, InputError
from emu_edit.training.checkpoint_io import read_checkpoint, verify
from emu_edit.training.export import export_checkpoint, export_model, start_from
from emu_edit.training.optim import EMA_STATE_KEY, copy_of
from emu_edit.training.stored import load_module
from tests.training.stage import TRAINER_WARNINGS, make_module
from tests.training.test_training_checkpoints import DEPRECATED, trained  # noqa: F401  a fixture

pytestmark = [pytest.mark.filterwarnings(line) for line in (*TRAINER_WARNINGS, DEPRECATED)]
WRONG = (None, 3, "x", [], [1], {"a": 1}, {"a": {"b": 2}}, torch.zeros(2))
VALUES = 3  # are tried in each place, others in the next
PLACES = (
    ("state_dict",),
    ("callbacks",),
    ("callbacks", EMA_STATE_KEY),
    ("callbacks", EMA_STATE_KEY, "average"),
    ("hyper_parameters",),
    ("hyper_parameters", "denoiser"),
    ("hyper_parameters", "tasks"),
    ("hyper_parameters", "optimizer"),
    ("tasks",),
    ("global_step",),
    ("epoch",),
    ("loops",),
    ("optimizer_states",),
    ("lr_schedulers",),
    ("pytorch-lightning_version",),
)


def put(checkpoint: dict[str, Any], place: tuple[str, ...], value: object) -> None:
    *outer, last = place
    for name in outer:
        checkpoint = checkpoint[name]
    checkpoint[last] = value


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(place))
@pytest.mark.slow
def test_a_part_of_a_wrong_type_is_used_or_refused_in_one_line(
    place: tuple[str, ...],
    trained: tuple[Any, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    module = make_module()
    first = PLACES.index(place)
    for value in (WRONG * 2)[first % len(WRONG) :][:VALUES]:
        checkpoint = torch.load(trained[1], weights_only=True)
        put(checkpoint, place, value)
        path = tmp_path / "wrong.ckpt"
        torch.save(checkpoint, path)
        for use in (
            load_module,
            lambda file: export_checkpoint(file, tmp_path / "model"),
            lambda file: start_from(module, file),
        ):
            try:
                use(path)
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017
                assert str(error)  # noqa: PT017


@pytest.mark.parametrize("where", ["state_dict", "average"])
def test_weights_that_are_no_numbers_are_not_exported(
    where: str,
    trained: tuple[Any, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    checkpoint = torch.load(trained[1], weights_only=True)
    average = checkpoint["callbacks"][EMA_STATE_KEY]["average"]
    weights = average if where == "average" else checkpoint["state_dict"]
    name = "networks.task_embedding.table"
    weights[name][0, 0] = float("nan")
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    words = rf"^1 of \d+ weights are not finite, e\.g\. {name}; take an older checkpoint"
    with pytest.raises(InputError, match=words):
        export_checkpoint(tmp_path / "nan.ckpt", tmp_path / "model", ema=where == "average")
    assert not (tmp_path / "model").exists()


def test_neither_a_module_nor_a_start_has_weights_that_are_no_numbers(tmp_path: Path) -> None:
    module = make_module()
    weights = copy_of(module)
    weights["networks.task_embedding.table"][0, 0] = float("inf")
    with pytest.raises(InputError, match="weights are not finite"):
        export_model(module, tmp_path / "model", ema=weights)
    checkpoint = {"state_dict": weights, "tasks": list(module.networks.tasks.names)}
    torch.save(checkpoint, tmp_path / "inf.ckpt")
    with pytest.raises(InputError, match="weights are not finite"):
        start_from(module, tmp_path / "inf.ckpt")


@pytest.mark.parametrize("is_overlapping", [False, True])
def test_an_archive_of_more_than_its_own_bytes_is_refused_by_its_table_alone(
    is_overlapping: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.ckpt"
    kind = zipfile.ZIP_STORED if is_overlapping else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
        if is_overlapping:  # many names for the same bytes
            archive.filelist += archive.filelist * 99

    def read(*_: object) -> None:
        raise AssertionError("a byte was unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "testzip", read)
    monkeypatch.setattr(torch, "load", read)
    for look in (verify, read_checkpoint):
        with pytest.raises(BrokenCheckpointError, match=r"would unpack to .*MB, more than"):
            look(path)
