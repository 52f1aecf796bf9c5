"""Two processes with parts of the weights (fsdp2) train what one does, and write the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from callbacks.ema import Ema
from callbacks.finite import Finite
from emu_edit.training.checkpoint_io import read_checkpoint, read_sidecar
from emu_edit.training.optim import EMA_STATE_KEY
from emu_edit.training.sharding import NAME
from tests.distributed.launch import torchrun
from tests.distributed.sharded_ranks import (
    BATCH,
    CHECKPOINT,
    EPOCHS,
    LAST,
    STEPS,
    klein,
    train,
    unet,
)
from tests.models.tiny_published import write_klein
from tests.training.stage import TRAINER_WARNINGS, Squares, make_trainer

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS)]
BOTH = {"unet": unet, "klein": klein}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    write_klein(folder / "klein")
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """What one process has at the end of the two trainings."""
    return {name: train(make, folder / name / "run") for name, make in BOTH.items()}


@pytest.fixture(scope="module")
def ranks(folder: Path, alone: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each of two gloo processes has."""
    assert alone
    torchrun("sharded_ranks.py", folder)
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


def same(found: dict[str, Any], expected: dict[str, Any], weights: float = 1e-8) -> None:
    assert_close(found["weights"], expected["weights"], rtol=0, atol=weights)
    assert_close(found["average"], expected["average"], rtol=0, atol=1e-6)  # float32
    # errors are float32, too
    assert found["metrics"]["val/loss"] == pytest.approx(expected["metrics"]["val/loss"], rel=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_two_ranks_with_parts_train_what_one_process_does(name, ranks, alone):
    for rank in ranks:
        assert_close(rank[name]["gradients"], alone[name]["gradients"], rtol=0, atol=1e-12)
        same(rank[name], alone[name])
    losses = [(a + b) / 2 for a, b in zip(*(rank[name]["losses"] for rank in ranks), strict=True)]
    assert losses == pytest.approx(alone[name]["losses"], rel=1e-6)
    assert len(losses) == EPOCHS * STEPS


@pytest.mark.parametrize("name", ["unet", "klein", "klein ddp", "mixed", "auto", NAME])
def test_nothing_is_different_on_the_other_rank(name, ranks):
    first, second = ranks
    for kind in ("gradients", "weights", "average"):
        assert first[name][kind].keys() == first[name]["weights"].keys()
        assert_close(first[name][kind], second[name][kind], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "part"), [("unet", "unet"), ("klein", "transformer")])
def test_every_weight_of_the_network_is_in_two_parts_and_no_other(name, part, ranks):
    first, second = ranks
    weights, network = first[name]["weights"], f"networks.denoiser.{part}."
    assert first[name]["parts"].keys() == {n for n in weights if n.startswith(network)}
    assert len(first[name]["parts"]) < len(weights)
    for weight, (rows, *rest) in first[name]["parts"].items():
        others, *same_rest = second[name]["parts"][weight]
        assert rest == same_rest
        assert (rows + others, *rest) == weights[weight].shape
        assert rows == -(-weights[weight].shape[0] // 2)


def test_two_ranks_with_copies_of_a_transformer_train_what_one_process_does(ranks, alone):
    same(ranks[0]["klein ddp"], alone["klein"])


def test_the_checkpoint_is_that_of_one_process(folder, ranks):
    assert ranks
    parted, whole = (folder / "unet" / "run" / kind / LAST for kind in (NAME, "auto"))
    found, expected = read_checkpoint(parted), read_checkpoint(whole)
    assert found.keys() == expected.keys()
    assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=1e-8)
    averages = (one["callbacks"][EMA_STATE_KEY]["average"] for one in (found, expected))
    assert_close(*averages, rtol=0, atol=1e-6)
    (memory,), (one,) = found["optimizer_states"], expected["optimizer_states"]
    assert memory["param_groups"] == one["param_groups"]
    assert_close(memory["state"], one["state"], rtol=0, atol=1e-8)
    assert found["lr_schedulers"] == expected["lr_schedulers"]
    known = read_sidecar(parted)
    assert known is not None
    assert (known.world, known.step) == (2, EPOCHS * STEPS)


def test_one_process_measures_with_the_checkpoint_what_two_did(folder, ranks):
    trainer = make_trainer(folder, Ema(), Finite(), precision="64-true")
    file = folder / "klein" / "run" / NAME / LAST
    data = Squares(steps=STEPS, batch=BATCH)
    (found,) = trainer.validate(klein(folder), data, ckpt_path=file, verbose=False)
    assert found["val/loss"] == pytest.approx(ranks[0]["klein"]["metrics"]["val/loss"], rel=1e-6)


# weights are float32 while a checkpoint is read, so that float64 ones are rounded there
@pytest.mark.parametrize("begun", ["auto", NAME])
def test_two_ranks_go_on_from_one_process_and_from_two(begun, ranks, alone):
    same(ranks[0][begun], alone["unet"], weights=1e-6)


def test_one_process_goes_on_from_two(folder, ranks, alone):
    assert ranks
    half = folder / "unet" / "run" / NAME / CHECKPOINT
    same(train(unet, folder / "unet" / "one", ckpt_path=half), alone["unet"], weights=1e-6)


def test_with_bf16_parts_and_copies_differ_by_rounding_and_weights_are_float32(ranks):
    parts, copies = (
        torch.cat([g.flatten() for _, g in sorted(ranks[0][name]["gradients"].items())])
        for name in ("mixed", "mixed ddp")
    )
    assert (parts - copies).norm() < 0.01 * copies.norm()
    weights = ranks[0]["mixed"]["weights"]
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert_close(weights, ranks[0]["mixed ddp"]["weights"], rtol=0, atol=STEPS * 2e-3)  # lr 1e-3


def test_both_ranks_stop_at_what_is_no_number_on_one(ranks):
    first, second = ranks
    assert first["spoilt"] == second["spoilt"]
    assert "pair-006" in first["spoilt"]
    assert_close(first["spoilt weights"], second["spoilt weights"], rtol=0, atol=0)
    assert all(weight.isfinite().all() for weight in first["spoilt weights"].values())


def test_grids_are_drawn_by_all_ranks_and_written_once(folder, ranks):
    assert ranks
    drawn, expected = (
        sorted((folder / "klein" / "run" / kind / "grids").iterdir()) for kind in (NAME, "auto")
    )
    assert [file.name for file in drawn] == [file.name for file in expected]
    assert drawn[-1].read_bytes() == expected[-1].read_bytes()
