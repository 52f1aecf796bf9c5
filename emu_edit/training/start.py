"""Start a new training from weights that exist: a checkpoint's or a model directory's.

Only weights are taken: step 0, a new optimizer, a new order of the data. To go on with a training
that stopped, give its checkpoint to `--ckpt_path` instead.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from emu_edit.models.weights import load_networks
from emu_edit.training.averaging import EMA_STATE_KEY, check_matches, trainable
from emu_edit.training.checkpoint_io import read_checkpoint
from emu_edit.training.module import EditModule, check_tasks


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
    for name, parameter in own.items():
        parameter.copy_(weights[name])


def _of_checkpoint(path: Path, module: EditModule) -> Mapping[str, Tensor]:
    checkpoint = read_checkpoint(path)
    check_tasks(checkpoint, module.networks.tasks)
    average = checkpoint.get("callbacks", {}).get(EMA_STATE_KEY, {}).get("average") or {}
    return {**checkpoint["state_dict"], **average}


def _of_directory(path: Path, module: EditModule) -> Mapping[str, Tensor]:
    networks, _, _ = load_networks(path, tasks=module.networks.tasks)
    return {f"networks.{name}": tensor for name, tensor in networks.state_dict().items()}
