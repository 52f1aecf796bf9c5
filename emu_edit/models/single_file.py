"""Weights in a single file, as their authors publish them: a checkpoint, or one network of it.

Such a file has its authors' names for the weights, which diffusers translates, and does not say
how its network is built: a local model directory of the same base does. Nothing is fetched.
"""

from pathlib import Path
from typing import TypeVar

import torch
from diffusers.loaders.single_file_model import FromOriginalModelMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging

from emu_edit.errors import InputError
from emu_edit.models.trust import judge_directory, judge_weights

PARTS = ("unet", "transformer", "vae")  # that are read from single files

AnyModel = TypeVar("AnyModel", bound=ModelMixin)


def find_config(file: Path, part: str, config: str | None) -> tuple[str, str]:
    """Return where the config of a single file's network is: a root, and a folder in it or "".

    Args:
        file: the weights.
        part: "unet", "transformer" or "vae"; others come from directories.
        config: a local model directory, or that of the part.

    Raises:
        InputError: if the file is no safetensors, is refused by `judge_weights`, or has no config.
    """
    if file.suffix != ".safetensors" or part not in PARTS:
        raise InputError(
            f"{file} is a file, needs a model directory in diffusers layout, or of U-Net, "
            "transformer and autoencoder a single file in safetensors; export a checkpoint first"
        )
    if config is None:
        raise InputError(
            f"{file} is a single file, and does not say how its {part} is built; give config, a "
            "local model directory of the same base (its config.json files do)"
        )
    root = Path(config).expanduser()
    folder = root / part if (root / part).is_dir() else root
    judge_weights(file)
    judge_directory(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json, needs that of the {part} of {file}")
    return str(root), "" if folder == root else part


def load_single(
    kind: type[AnyModel], file: str, root: str, subfolder: str, precision: torch.dtype
) -> AnyModel:
    """Load a network from a single file, whose config `find_config` has found.

    Raises:
        InputError: if diffusers reads no such files of the class, or this one lacks weights.
    """
    if not issubclass(kind, FromOriginalModelMixin):
        raise InputError(f"diffusers reads no single files of a {kind.__name__}")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of its own cast
    try:
        return kind.from_single_file(
            file,
            config=root,
            subfolder=subfolder or None,
            local_files_only=True,
            torch_dtype=precision,
        )
    except NotImplementedError as error:  # of weights that are left without numbers
        raise InputError(
            f"{file} lacks weights that {root} has; they belong to different models"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
