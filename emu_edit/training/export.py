"""Checkpoint -> module -> model directory, and a new training from the weights of either.

Model directories are safetensors (one task of them as a plain pipeline: `merge.py`). A new training
may start from the weights of either: step 0, a new optimizer, a new order of the data. (To go on
with a training that stopped, give its checkpoint to `--ckpt_path` instead.)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from emu_edit.diffusion.flow import CLASS as LINEAR_PATH
from emu_edit.diffusion.prediction import Prediction, TrainedAs
from emu_edit.diffusion.schedule import Schedule
from emu_edit.editing.find import find_model
from emu_edit.editing.layers import RECORD as ANIMATED
from emu_edit.errors import InputError
from emu_edit.models.directory import TEMPORAL, read_json
from emu_edit.models.sources import PartSource, find_training, load_tensors
from emu_edit.models.temporal_files import WEIGHTS as LAYERS
from emu_edit.models.weights import load_networks
from emu_edit.tasks import TaskTable
from emu_edit.training.checkpoint_io import read_checkpoint
from emu_edit.training.checkpoint_parts import check_tasks
from emu_edit.training.module import EditModule
from emu_edit.training.optim import check_matches, copy_of, trainable, with_weights
from emu_edit.training.stored import average_in, load_ema, load_module
from emu_edit.training.video_module import VideoModule


def export_model(
    module: EditModule,
    path: Path | str,
    *,
    ema: Mapping[str, Tensor] | None,
    trained_on: str | None = None,
) -> None:
    """Write a model directory from a module, with the averaged weights when they are given.

    The directory gives the same pixels as the module for the same seed, and says what it was
    trained to make small. The module is unchanged afterwards.

    Raises:
        InputError: if the averaged weights are of another model, weights are not finite, or the
            folder cannot be written.
    """
    if ema is not None:
        check_matches(ema, module)
    check_finite({**dict(module.named_parameters()), **(ema or {})})
    with with_weights(module, ema) if ema is not None else nullcontext():
        module.save_model(path, trained_on=trained_on)


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights with which every picture would be black.

    Raises:
        InputError: naming the first of them and their number.
    """
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise InputError(
            f"{len(broken)} of {len(weights)} weights are not finite, e.g. {broken[0]}; take an "
            "older checkpoint, or weights raw instead of averaged"
        )


def export_checkpoint(
    checkpoint: Path | str,
    path: Path | str,
    *,
    ema: bool = True,
    others: Sequence[Path | str] = (),
) -> None:
    """Write a model directory from a checkpoint, or from the mean of the weights of several.

    The mean of weights that descend from each other, or from one start, often does what each of
    them does best.

    Args:
        checkpoint: a .ckpt file; what is not learnt, and the settings, are its own.
        path: the directory to write.
        ema: use the averaged weights.
        others: more checkpoints of the same model; how their errors were weighted may differ.

    Raises:
        InputError: if a checkpoint cannot be used, has no averaged weights although they are asked
            for, or is of another model, prediction or noise schedule than the first.

    Source of the mean: "uniform soup", Wortsman et al. 2022, arXiv:2203.05482.
    """
    module, weights = _load(checkpoint, ema=ema)
    for count, other in enumerate(others, start=2):
        partner, given = _load(other, ema=ema, tasks=module.networks.tasks)
        _check_same_output(module, partner, checkpoint, other)
        check_matches(given, module, what=f"the weights of {other}")
        for name, weight in weights.items():
            weight.lerp_(given[name], 1 / count)
    export_model(module, path, ema=weights)


def _check_same_output(
    module: EditModule, partner: EditModule, checkpoint: Path | str, other: Path | str
) -> None:
    """Refuse networks whose outputs mean different things."""
    compared = [
        ("prediction", module.prediction.name, partner.prediction.name),
        ("last noise level", _last_sigma(module.schedule), _last_sigma(partner.schedule)),
        ("schedule", type(module.schedule).__name__, type(partner.schedule).__name__),
    ]
    for what, own, its in compared:
        if own != its:
            raise InputError(
                f"{other} was trained with {what} {its} and {checkpoint} with {own}; what they say "
                "means different things, so their mean is no model; give checkpoints of one recipe"
            )


def _last_sigma(schedule: Schedule) -> float:
    return schedule.level(schedule.times(1, tokens=1)[0]).sigma


def _load(
    checkpoint: Path | str, *, ema: bool, tasks: TaskTable | None = None
) -> tuple[EditModule, dict[str, Tensor]]:
    """Return a module and the weights to export, as float32 copies."""
    average = load_ema(checkpoint) if ema else None
    if ema and average is None:
        raise InputError(f"{checkpoint} has no averaged weights; export the raw ones (ema: false)")
    module = load_module(checkpoint, tasks=tasks)
    return module, copy_of(module) if average is None else average


@torch.no_grad()
def start_from(module: EditModule, path: Path) -> None:
    """Copy the weights at `path` into the parts of a module that learn.

    Args:
        module: built from its config; what is frozen in it stays as it is.
        path: a .ckpt file, whose averaged weights are taken when it has some, or a model directory.

    Raises:
        InputError: if there is no model at `path`, or one of other networks or tasks.
    """
    weights = _of_checkpoint(path, module) if path.is_file() else _of_directory(path, module)
    own = trainable(module)
    # a model that was not told positions does not use them: their maps stay zero
    positions = {name: p for name, p in own.items() if ".positions." in name}
    weights = {**positions, **{name: tensor for name, tensor in weights.items() if name in own}}
    check_matches(weights, module, what=f"the weights of {path}")
    check_finite(weights)
    for name, parameter in own.items():
        parameter.copy_(weights[name])
    start = _training_of(path)
    module.contradiction = start and start.contradiction(module.prediction, module.schedule)


def _training_of(path: Path) -> TrainedAs | None:
    """Read what the weights at `path` were trained for.

    None for a checkpoint without a config, or one of videos that keeps what its picture model is.
    """
    if (layers := path / TEMPORAL / ANIMATED).is_file():
        told = read_json(layers)
    elif path.is_dir():
        return find_training(PartSource(str(path)))
    else:
        told = read_checkpoint(path).get("hyper_parameters") or {}
    if told.get("prediction") is None:
        return None
    ends = told.get("zero_terminal_snr", True)  # as the module's constructor
    config = {"prediction_type": told["prediction"], "rescale_betas_zero_snr": ends}
    if told.get("flow") is not None or told["prediction"] == Prediction.flow.name:
        config["_class_name"] = LINEAR_PATH
    return TrainedAs(str(path), config)


def _of_checkpoint(path: Path, module: EditModule) -> Mapping[str, Tensor]:
    checkpoint = read_checkpoint(path)
    check_tasks(checkpoint, module.networks.tasks)
    return {**checkpoint["state_dict"], **(average_in(checkpoint, path) or {})}


def _of_directory(path: Path, module: EditModule) -> Mapping[str, Tensor]:
    if isinstance(module, VideoModule) and (path / TEMPORAL).is_dir():
        layers = load_tensors(path / TEMPORAL / LAYERS)
        return {f"networks.denoiser.adapter.{name}": value for name, value in layers.items()}
    networks, _, _ = load_networks(path, tasks=module.networks.tasks)
    return {f"networks.{name}": tensor for name, tensor in networks.state_dict().items()}


@contextmanager
def model_directory(path: Path) -> Iterator[Path]:
    """Yield the model directory meant by `path`; a checkpoint is exported to a temporary one.

    Raises:
        InputError: if there is no model at `path`.
    """
    if not path.is_file():
        yield find_model(path)
        return
    with TemporaryDirectory() as folder:
        model = Path(folder, "model")
        export_checkpoint(path, model, ema=load_ema(path) is not None)
        yield model
