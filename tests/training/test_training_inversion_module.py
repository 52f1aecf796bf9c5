"""Task inversion under Lightning is that of `invert`, and holds one vector only."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file

from callbacks.ema import Ema
from datamodules.fewshot_data import FewShotData
from emu_edit.errors import InputError
from emu_edit.models.unet import UNetDenoiser
from emu_edit.training.checkpoint_io import DurableCheckpointIO, read_checkpoint
from emu_edit.training.inversion import InversionSettings, invert
from emu_edit.training.inversion_module import InversionModule
from emu_edit.training.optim import EMA_STATE_KEY
from tests.datamodules.toy_shards import make_folder
from tests.training.few_shot import make_base
from tests.training.stage import TRAINER_WARNINGS, make_trainer

# a resumed job writes into the folder it comes from
RESUMED = "ignore:Checkpoint directory .* exists and is not empty"
pytestmark = [pytest.mark.filterwarnings(line) for line in (*TRAINER_WARNINGS, RESUMED)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inversion") / "model"
    make_base().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inversion-shards")
    make_folder(path, {"invert": 6})
    return path


def fit(
    model: Path, shards: Path, folder: Path, *callbacks, checkpoint: Path | None = None, **changes
) -> InversionModule:
    """Train six steps, in epochs of two, as QUICK does."""
    options = {"max_epochs": 3, **changes}
    pairs = options.pop("pairs", None)
    module = InversionModule(str(model), "invert", init="mean")
    data = FewShotData(
        str(shards), "invert", image_size=16, batch_size=2, steps_per_epoch=2, pairs=pairs
    )
    trainer = make_trainer(folder, Ema(0.9), *callbacks, **options)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return module


def plain(model: Path, shards: Path, pairs: int | None = None):
    from datamodules.fewshot import FewShotSource, read_few_shot
    from emu_edit.editing.editor import Editor

    settings = InversionSettings(steps=6, batch_size=2, check_every=2, init="mean", patience=9)
    source = FewShotSource(shards, "invert", pairs=pairs)
    return invert(Editor.from_pretrained(model), read_few_shot(source, image_size=16), settings)


def average(module: InversionModule) -> torch.Tensor:
    ema = next(c for c in module.trainer.callbacks if isinstance(c, Ema))  # type: ignore[attr-defined]
    assert ema.average is not None
    return ema.average["new_task.vector"]


@pytest.mark.parametrize("pairs", [None, 3])
def test_a_trainer_finds_the_vector_that_invert_finds(
    model: Path, shards: Path, tmp_path: Path, pairs: int | None
) -> None:
    module = fit(model, shards, tmp_path, pairs=pairs)
    found, expected = module.result(average(module)), plain(model, shards, pairs)
    torch.testing.assert_close(found.vector, expected.vector)
    assert (found.trained_on, found.held_out) == (expected.trained_on, expected.held_out)
    assert found.best_step == expected.best_step
    assert found.began_at == expected.began_at == "mean"
    checks = {check.step: check for check in expected.history}
    for check in found.history:
        assert check.train == pytest.approx(checks[check.step].train)
        assert check.held_out == pytest.approx(checks[check.step].held_out)


def test_optimizer_average_and_checkpoint_hold_the_vector_only(
    model: Path, shards: Path, tmp_path: Path
) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(
        model,
        shards,
        tmp_path,
        saver,
        enable_checkpointing=True,
        plugins=[DurableCheckpointIO()],
    )
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert list(checkpoint["state_dict"]) == ["new_task.vector"]
    (states,) = checkpoint["optimizer_states"]
    assert set(states["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert list(checkpoint["callbacks"][EMA_STATE_KEY]["average"]) == ["new_task.vector"]
    # the vector, Adam's two means of it, its average and the best one so far; numbers besides
    assert [len(tensor) for tensor in tensors_in(checkpoint) if tensor.ndim] == [8] * 5


def tensors_in(value: object) -> list[torch.Tensor]:
    """Return all tensors in lists and dictionaries."""
    match value:
        case torch.Tensor():
            return [value]
        case dict():
            return [tensor for entry in value.values() for tensor in tensors_in(entry)]
        case list() | tuple():
            return [tensor for entry in value for tensor in tensors_in(entry)]
        case _:
            return []


def test_the_base_stays_bit_by_bit(model: Path, shards: Path, tmp_path: Path) -> None:
    files = sorted(model.rglob("*.safetensors"))
    before = [file.read_bytes() for file in files]
    module = fit(model, shards, tmp_path)
    assert [file.read_bytes() for file in files] == before
    weights = load_file(model / "unet" / "diffusion_pytorch_model.safetensors")
    denoiser = module.networks.denoiser
    assert isinstance(denoiser, UNetDenoiser)
    for name, value in denoiser.unet.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["new_task.vector"]


def test_a_resumed_inversion_ends_at_the_same_vector(
    model: Path, shards: Path, tmp_path: Path
) -> None:
    whole = fit(model, shards, tmp_path / "whole")
    plugin = {"plugins": [DurableCheckpointIO()], "enable_checkpointing": True}
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    fit(model, shards, tmp_path / "first", saver, **plugin)
    saver = ModelCheckpoint(dirpath=tmp_path, filename="again-{epoch}", save_top_k=-1)
    checkpoint = tmp_path / "epoch=0.ckpt"
    resumed = fit(model, shards, tmp_path / "second", saver, checkpoint=checkpoint, **plugin)
    assert torch.equal(resumed.new_task.vector, whole.new_task.vector)
    assert torch.equal(average(resumed), average(whole))
    assert resumed.learner.history == whole.learner.history


def test_early_stopping_hears_of_the_held_out_pairs(
    model: Path, shards: Path, tmp_path: Path
) -> None:
    # an improvement of a million is none, so that patience ends at once
    stopper = EarlyStopping("val/loss", patience=1, min_delta=1e6, check_on_train_epoch_end=False)
    module = fit(model, shards, tmp_path, stopper, max_epochs=9)
    assert module.trainer.global_step == 4
    assert module.result(None).stopped_early


def test_a_checkpoint_of_another_base_is_refused(model: Path, shards: Path, tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    plugin = {"plugins": [DurableCheckpointIO()], "enable_checkpointing": True}
    fit(model, shards, tmp_path, saver, **plugin)
    other = tmp_path / "other"
    make_base(seed=1).save_pretrained(other)
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    with pytest.raises(InputError, match=r"the checkpoint's vector is for the model \w{12}, model"):
        fit(other, shards, tmp_path, saver, checkpoint=tmp_path / "last.ckpt", **plugin)


def test_a_checkpoint_of_weights_is_refused(model: Path) -> None:
    module = InversionModule(str(model), "invert")
    with pytest.raises(InputError, match="the checkpoint is not of a task inversion"):
        module.on_load_checkpoint({"state_dict": {}})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("local", "model.task='local': .* has a task of that name"),
        ("Local", "a task's name must begin with a-z"),
    ],
)
def test_a_name_that_is_taken_or_odd_is_refused(model: Path, task: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        InversionModule(str(model), task)


def test_an_unknown_beginning_is_refused_before_training(model: Path) -> None:
    with pytest.raises(InputError, match=r"cannot begin at .meen.*Did you mean .mean."):
        InversionModule(str(model), "invert", init="meen")


def test_accumulation_is_refused(model: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one vector is learnt on one device, without accumul"):
        fit(model, shards, tmp_path, accumulate_grad_batches=2)


def test_an_empty_epoch_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.batch_size=0 must be at least 1"):
        FewShotData("pairs", batch_size=0)
    with pytest.raises(InputError, match=r"data\.steps_per_epoch=0 must be at least 1"):
        FewShotData("pairs", steps_per_epoch=0)
