"""Rows of the fault list as the command line words them: no memory, a checkpoint from the web."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from callbacks.edit_grid import EditGrid
from datamodules.fewshot import FewShotSource
from datamodules.stream.order import OrderSpec
from datamodules.world.data import WorldData
from emu_edit.cli.fit import parse
from emu_edit.cli.main import main
from emu_edit.editing.find import RELEASED
from emu_edit.editing.settings import PHOTOGRAPHS_TOO, WORLD
from emu_edit.errors import ExitStatus, InputError, status_of
from emu_edit.evaluation.world import Scenes
from emu_edit.randomness import check_seed
from emu_edit.runs.failures import LostRankError, OutOfMemoryError, lost_rank, precision_here
from emu_edit.runs.options import config_arguments, find_config
from emu_edit.runs.report import what_it_has_seen
from emu_edit.runs.status import OtherRankError, RunStatus, StatusWriter
from emu_edit.runs.trainer_cli import TrainerCLI, quiet
from emu_edit.training.inversion import InversionSettings
from emu_edit.training.predictor import PredictorSettings
from tests.runs.test_runs_configs import ON_A_CPU
from tests.runs.test_runs_status import StandIn
from tests.training.stage import make_module

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.72 GiB"
WORKSPACE = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
FIRST = "no memory was left on cpu at optimizer step 0, with "


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def training_raises(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """Let training end with an error; none stands for asking for a million gigabytes."""

    def fail(*_: object, **__: object) -> None:
        if error is not None:
            raise error
        torch.empty(2**50, dtype=torch.uint8)

    monkeypatch.setattr(Trainer, "_fit_impl", fail)


def fit(folder: Path, *options: str, recipe: str = "smoke") -> None:
    with quiet():
        arguments = [*config_arguments([find_config(recipe)]), *ON_A_CPU, *options]
        TrainerCLI("fit", arguments, folder, begin=lambda _: None)


SEEDED: dict[str, Callable[[int], object]] = {
    "a seed": lambda seed: InversionSettings(seed=seed),
    "a seed of a predictor": lambda seed: PredictorSettings(seed=seed),
    "the world's seed": lambda seed: Scenes(seed=seed),
    "data.seed": lambda seed: OrderSpec(seed, ()),
    "the seed of a new task": lambda seed: FewShotSource(Path("a"), "a", seed=seed),
    "the seed of EditGrid": lambda seed: EditGrid(seed=seed),
    "a seed of anything": check_seed,
}


@pytest.mark.parametrize("seed", [-1, 2**63, 10**400])
@pytest.mark.parametrize("name", SEEDED)
def test_every_seed_has_the_same_bounds(name: str, seed: int):
    came = "a number of 1329 bits" if seed == 10**400 else str(seed)
    what = name if name.startswith(("data", "the")) else "a seed"
    with pytest.raises(InputError, match=rf"{what} must be at least 0 and below 2\^63, got {came}"):
        SEEDED[name](seed)


@pytest.mark.parametrize("option", ["model.seed", "seed_everything"])
@pytest.mark.parametrize("seed", [-1, 2**70])
def test_a_seed_that_cannot_be_is_one_line_before_anything_is_made(
    option: str, seed: int, workplace: Path
):
    words = rf"{option} must be at least 0 and below 2\^\d\d, got {seed}"
    with pytest.raises(InputError, match=words):
        fit(workplace / "run", f"--{option}={seed}")
    assert not (workplace / "run").exists()


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (None, r" \(1\.13e\+03 TB were asked for\)"),
        (torch.OutOfMemoryError(CUDA), r" \(2\.00 GiB were asked for\)"),
        (RuntimeError(WORKSPACE), ""),
        (MemoryError(), ""),
    ],
)
def test_no_memory_is_one_line_with_size_and_what_helps(
    error: Exception | None, asked: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_raises(monkeypatch, error)
    words = (
        rf"^{FIRST}4 pictures of 32x32 pixels at a time{asked}; set data\.micro_batch below 4, "
        r"which leaves optimizer steps as they are, or lower data\.image_size; the same command "
        r"with --plan tells what fits$"
    )
    with pytest.raises(OutOfMemoryError, match=words):
        fit(workplace / "run", "--data.global_batch=8", "--trainer.accumulate_grad_batches=2")


def test_where_one_picture_at_a_time_is_too_much_the_advice_is_another(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_raises(monkeypatch, None)
    words = (
        rf"{FIRST}1 pictures .*; lower data\.image_size, or set trainer\.precision: bf16-mixed; the"
    )
    with pytest.raises(OutOfMemoryError, match=words):
        fit(workplace / "run", "--data.global_batch=1")


def test_a_new_task_has_a_batch_of_its_own_to_lower(
    workplace: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_raises(monkeypatch, None)
    with pytest.raises(OutOfMemoryError, match=r"; lower data\.batch_size or data\.image_size$"):
        fit(workplace / "run", f"--model.model={model}", recipe="inversion")


def test_another_error_of_torch_stays_a_defect(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_raises(monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fit(workplace / "run")


def test_no_memory_ends_fit_with_status_71_one_line_and_a_status_file(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training_raises(monkeypatch, None)
    assert main(["fit", "--config=smoke", *ON_A_CPU, "--run=r"]) == ExitStatus.out_of_memory == 71
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"emu-edit: error: {FIRST}")
    assert "Traceback" not in error
    told = RunStatus.read(workplace / "r")
    assert told is not None
    assert (told.status, told.exit) == ("failed", 71)
    assert told.message.startswith(FIRST)


def test_the_other_ranks_end_with_the_status_of_the_one_without_memory(tmp_path: Path) -> None:
    first, other = StatusWriter(tmp_path), StatusWriter(tmp_path)
    first.follow(StandIn())
    other.follow(StandIn(rank=1))
    with pytest.raises(OutOfMemoryError), other.noting_errors():
        raise OutOfMemoryError("no memory was left on cuda:1")
    lost = pytest.raises(OtherRankError, match="rank 1 stopped: no memory was left on cuda:1")
    with lost as caught, first.noting_errors():
        raise RuntimeError("connection closed by peer")
    assert status_of(caught.value, verb="fit") is ExitStatus.out_of_memory


GLOO = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:45464: Connection reset by peer."


class Ended(StandIn):
    """A trainer of two ranks whose second one has ended so."""

    world_size: Any = 2

    def __init__(self, status: int | None) -> None:
        super().__init__()
        launcher = object.__new__(_SubprocessScriptLauncher)
        launcher.procs = cast("list", [SimpleNamespace(poll=lambda: status)])
        self.strategy = SimpleNamespace(launcher=launcher)


@pytest.mark.parametrize(
    ("status", "how"),
    [
        (-9, r"rank 1 was ended by SIGKILL \(the system does this .* when memory is short\)"),
        (-11, "rank 1 was ended by SIGSEGV"),
        (3, "rank 1 ended with status 3"),
        (None, "another rank has ended or cannot be reached; its own output, .* may tell why"),
    ],
)
def test_a_rank_that_died_is_named_with_how_to_go_on(status, how, monkeypatch):
    monkeypatch.setattr("emu_edit.runs.failures._PATIENCE", 0)
    lost = lost_rank(RuntimeError(GLOO), Ended(status))
    assert lost is not None
    words = rf"^rank 0 lost its partners at optimizer step \d+ \(Connection reset by peer\): {how}"
    assert re.search(rf"{words}; start again with --resume auto", str(lost))
    assert status_of(lost, verb="fit") is ExitStatus.storage


def test_other_errors_and_a_training_alone_lose_no_rank():
    assert lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Ended(-9)) is None
    alone = Ended(-9)
    alone.world_size = 1
    assert lost_rank(RuntimeError(GLOO), alone) is None


def test_the_rank_that_failed_first_has_the_word_before_the_one_that_lost_it(tmp_path: Path):
    first, other = StatusWriter(tmp_path), StatusWriter(tmp_path)
    first.follow(StandIn())
    other.follow(StandIn(rank=1))
    with pytest.raises(InputError), other.noting_errors():
        raise InputError("shard 7 is broken")
    with pytest.raises(OtherRankError, match="rank 1 stopped: shard 7"), first.noting_errors():
        raise LostRankError("rank 0 lost its partners")


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_a_checkpoint_is_never_fetched_from_an_address(verb: str, workplace: Path) -> None:
    del workplace
    words = r"there is no checkpoint at https:/+example\.invalid/a\.ckpt; give a \.ckpt file or"
    with pytest.raises(InputError, match=words):
        parse(verb, ["--ckpt_path=https://example.invalid/a.ckpt"])


@pytest.mark.parametrize(
    ("precision", "accelerator", "able", "expected"),
    [
        ("bf16-mixed", "cpu", False, "32-true"),
        ("bf16-mixed", "cpu", True, "bf16-mixed"),
        ("bf16-mixed", "cuda", False, "bf16-mixed"),
        ("bf16-true", "cpu", False, "bf16-true"),
        (32, "cpu", False, 32),
        (None, "cpu", False, None),
    ],
)
def test_a_cpu_without_bfloat16_trains_in_float32(
    monkeypatch: pytest.MonkeyPatch,
    precision: str | int | None,
    accelerator: str,
    able: bool,
    expected: str | int,
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: able)
    assert precision_here(precision, accelerator) == expected


def test_a_training_may_start_from_the_released_model() -> None:
    assert parse("fit", ["--start_from", "released"]).start == RELEASED


def test_what_a_model_has_seen_goes_on_with_its_weights(tmp_path: Path) -> None:
    def seen(start: Path | None, photos: str | None = None, data: str = "world") -> str | None:
        world = WorldData(str(tmp_path / data), photos=photos)
        return what_it_has_seen(make_module(), world, start)

    assert (seen(None), seen(None, "installed")) == (WORLD, PHOTOGRAPHS_TOO)
    module = make_module()
    for told, expected in ((WORLD, WORLD), (PHOTOGRAPHS_TOO, PHOTOGRAPHS_TOO), (None, None)):
        module.save_model(start := tmp_path / str(told), trained_on=told)
        assert seen(start) == expected
    assert seen(tmp_path / WORLD, "installed") == PHOTOGRAPHS_TOO
    assert seen(tmp_path / "some.ckpt") is None
