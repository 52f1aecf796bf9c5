"""All networks of a model together, and the model directory they are saved to.

The directory has diffusers' layout: `model_index.json`, `unet/`, `vae/`, `text_encoder/`,
`tokenizer/`, `scheduler/`, each loadable by diffusers or transformers alone, and beside them
`tasks/`: the names, the table and the two task maps. Safetensors only. A directory appears whole or
not at all: it is written under another name and renamed.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, device, nn

from emu_edit.errors import InputError
from emu_edit.models.codec import KLCodec, PatchCodec
from emu_edit.models.interfaces import Denoiser, ImageCodec, TextEncoder, TextFeatures
from emu_edit.models.sources import check_safetensors, quiet_transformers
from emu_edit.models.surgery import freeze
from emu_edit.models.task_embedding import TaskEmbedding
from emu_edit.models.text import ModelText, TransformersText
from emu_edit.models.unet import TASK_FILE, PretrainedUNetDenoiser, UNetDenoiser
from emu_edit.tasks import TaskTable

__all__ = [
    "EditNetworks",
    "freeze",
    "load_networks",
    "new_directory",
    "read_task_table",
    "save_networks",
]

Json = dict[str, object]
TABLE = "table"
INDEX = "model_index.json"  # diffusers' name; what makes a directory a model directory


class EditNetworks(nn.Module):
    """The four networks of a model and the names of its tasks.

    Raises:
        InputError: if they do not fit together (widths of text, task or latent, or number of
            tasks).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        text_encoder: TextEncoder,
        codec: ImageCodec,
        *,
        task_embedding: TaskEmbedding,
        tasks: TaskTable,
    ) -> None:
        super().__init__()
        _check_equal(
            "denoiser.text_dim", denoiser.text_dim, "the text encoder's width", text_encoder.dim
        )
        _check_equal(
            "denoiser.task_dim", denoiser.task_dim, "the task table's width", task_embedding.dim
        )
        _check_equal(
            "denoiser.latent_channels",
            denoiser.latent_channels,
            "the codec's latent channels",
            codec.latent_channels,
        )
        _check_equal(
            "the number of task names",
            len(tasks),
            "the rows of the task table",
            len(task_embedding),
        )
        self.denoiser = denoiser
        self.text_encoder = text_encoder
        self.codec = codec
        self.task_embedding = task_embedding
        self.tasks = tasks

    @property
    def device(self) -> device:
        """Where the task table is; the networks are moved together."""
        return self.task_embedding.table.device

    def encode_text(
        self, texts: tuple[str, ...] | list[str], null_text: str = ""
    ) -> tuple[TextFeatures, TextFeatures]:
        """Return the features of `texts` and those of `null_text` (b = 1, equal token count)."""
        features = self.text_encoder([*texts, null_text])
        b = len(texts)
        return (
            TextFeatures(tokens=features.tokens[:b], mask=features.mask[:b]),
            TextFeatures(tokens=features.tokens[b:], mask=features.mask[b:]),
        )

    def task_vectors(self, names: tuple[str, ...] | list[str]) -> Float[Tensor, "b k"]:
        """Return v_task for each name.

        Raises:
            InputError: if a name is not in the model's table.
        """
        index = [self.tasks.index(name) for name in names]
        return self.task_embedding.table[index]


def save_networks(
    networks: EditNetworks,
    path: str | Path,
    *,
    scheduler_config: Json,
    settings: Json,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write a model directory; one that exists is replaced when it is a model directory too.

    Args:
        networks: what to save; weights keep their precision.
        path: the directory to make.
        scheduler_config: for `scheduler/scheduler_config.json`, in diffusers' words.
        settings: everything else an editor needs to know, kept in `model_index.json` under
            "_emu_edit".
        also: called with the directory before it appears under its name, to write more parts.

    Raises:
        InputError: if `path` is a file or a directory of something else.
    """
    with new_directory(path, INDEX, what="model directory") as part:
        _write_parts(networks, part, scheduler_config, settings)
        if also is not None:
            also(part)


@contextmanager
def new_directory(path: str | Path, index: str, *, what: str) -> Iterator[Path]:
    """Yield an empty directory that appears under `path` when the block ends without an error.

    Args:
        path: the directory to make; replaced when it exists.
        index: name of the file that every directory of this kind has.
        what: name of the kind, for the message.

    Raises:
        InputError: if `path` is a file, or a directory of another kind that is not empty.
    """
    target = Path(path).expanduser().absolute()
    refuse_another_kind(target, index, what=what)
    part = target.parent / f".{target.name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        _put_in_place(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_another_kind(path: Path, index: str, *, what: str) -> None:
    """Refuse to replace what `new_directory` would not replace; call it before long work.

    Raises:
        InputError: if `path` is a file, or a directory without an `index` that is not empty.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / index).is_file()):
        raise InputError(f"{path} exists and is no {what}; it is left alone, give another path")


def load_networks(
    path: str | Path, device: device | str = "cpu", *, tasks: TaskTable | None = None
) -> tuple[EditNetworks, Json, Json]:
    """Load a model directory: networks (eval mode, on `device`), scheduler config and settings.

    What was frozen in training is frozen, the rest is not: torch picks other kernels for frozen
    weights, and the last bits of the output would differ from the training module's.

    Args:
        path: directory written by `save_networks`.
        device: where to put the networks.
        tasks: when given, the table the model must have.

    Raises:
        InputError: if it is no model directory, lacks a part, holds pickled weights or has another
            task table.
    """
    folder = Path(path).expanduser()
    index = _read_index(folder)
    for name in ("unet", "text_encoder"):
        check_safetensors(folder / name, name)
    encoding = index["_networks"]
    table, names = _read_tasks(folder, tasks)
    task_embedding = TaskEmbedding(*table.shape)
    task_embedding.table.data.copy_(table)
    networks = EditNetworks(
        PretrainedUNetDenoiser(str(folder), task_dim=task_embedding.dim),
        TransformersText(
            str(folder),
            attend_padding=bool(encoding["attend_padding"]),
            trainable=bool(encoding["trainable_text"]),
            max_tokens=int(encoding["max_tokens"]),
        ),
        _read_codec(folder, scale_condition=bool(encoding["scale_condition"])),
        task_embedding=task_embedding,
        tasks=names,
    )
    scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
    return networks.eval().to(device), scheduler_config, index["_emu_edit"]


def _write_parts(
    networks: EditNetworks, folder: Path, scheduler_config: Json, settings: Json
) -> None:
    denoiser, text, codec = networks.denoiser, networks.text_encoder, networks.codec
    if not isinstance(denoiser, UNetDenoiser) or not isinstance(text, ModelText):
        raise InputError(
            f"a model directory holds a UNetDenoiser and a transformers text encoder, "
            f"got {type(denoiser).__name__} and {type(text).__name__}"
        )
    denoiser.unet.save_pretrained(folder / "unet", safe_serialization=True)
    with quiet_transformers():
        text.model.save_pretrained(folder / "text_encoder")
    text.tokenizer.save_pretrained(folder / "tokenizer")
    vae = _write_codec(codec, folder / "vae")
    scheduler = {"_class_name": "DDIMScheduler", **scheduler_config}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(
        folder / "tasks" / "tasks.json",
        {"names": list(networks.tasks.names), "dim": networks.task_embedding.dim},
    )
    tensors = {TABLE: networks.task_embedding.table.detach(), **denoiser.maps()}
    save_file(
        {name: value.cpu().contiguous() for name, value in tensors.items()}, folder / TASK_FILE
    )
    write_json(
        _index_file(folder),
        {
            "_class_name": "EmuEditPipeline",
            "_diffusers_version": diffusers.__version__,
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": vae,
            "text_encoder": ["transformers", type(text.model).__name__],
            "tokenizer": ["transformers", type(text.tokenizer).__name__],
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "_networks": {
                "max_tokens": text.max_tokens,
                "attend_padding": text.attend_padding,
                "trainable_text": any(p.requires_grad for p in text.parameters()),
                "scale_condition": isinstance(codec, KLCodec) and codec.scale_condition,
            },
            "_emu_edit": settings,
        },
    )


def _write_codec(codec: ImageCodec, folder: Path) -> list[str]:
    match codec:
        case KLCodec():
            codec.vae.save_pretrained(folder, safe_serialization=True)
            return ["diffusers", "AutoencoderKL"]
        case PatchCodec():
            numbers = {"patch": codec.patch, "shift": codec.shift, "scale": codec.scale}
            write_json(folder / "config.json", {"_class_name": "PatchCodec", **numbers})
            return ["emu_edit.models.codec", "PatchCodec"]
        case _:
            raise InputError(
                f"a model directory holds a KLCodec or a PatchCodec, got {type(codec).__name__}"
            )


def _read_codec(folder: Path, *, scale_condition: bool) -> ImageCodec:
    config = read_json(folder / "vae" / "config.json")
    if config.get("_class_name") != "PatchCodec":
        return KLCodec(str(folder), scale_condition=scale_condition)
    try:
        return PatchCodec(
            patch=int(config["patch"]), shift=float(config["shift"]), scale=float(config["scale"])
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder}/vae/config.json lacks a number of the PatchCodec: {error}"
        ) from error


def read_task_table(path: str | Path) -> TaskTable:
    """Return the task names of a model directory, without loading its networks.

    Raises:
        InputError: if it is no model directory, or its list of names cannot be read.
    """
    folder = Path(path).expanduser()
    _read_index(folder)
    names = read_json(folder / "tasks" / "tasks.json").get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{folder}/tasks/tasks.json has no list of task names; export the model again"
        )
    return TaskTable(tuple(names))


def _read_tasks(folder: Path, expected: TaskTable | None) -> tuple[Float[Tensor, "n k"], TaskTable]:
    tasks = read_task_table(folder)
    if expected is not None and tasks != expected:
        raise InputError(
            f"{folder} has another task table: {', '.join(tasks.names)}; "
            f"needed: {', '.join(expected.names)}"
        )
    try:
        table = load_file(folder / TASK_FILE)[TABLE]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"cannot read the task table {folder / TASK_FILE}: {error}") from error
    if table.ndim != 2 or len(table) != len(tasks):
        raise InputError(
            f"{folder / TASK_FILE} has a table of shape {tuple(table.shape)}, "
            f"tasks.json names {len(tasks)} tasks; the two files belong to different models"
        )
    return table, tasks


def _read_index(folder: Path) -> dict:
    if not _index_file(folder).is_file():
        raise InputError(
            f"{folder} is no model directory (no model_index.json); give one made by `export`"
        )
    index = read_json(_index_file(folder))
    if not isinstance(index.get("_emu_edit"), dict) or not isinstance(index.get("_networks"), dict):
        raise InputError(
            f"{folder} is a diffusers model, not one of this project; `fit` on it, then `export`"
        )
    return index


def _index_file(folder: Path) -> Path:
    return folder / INDEX


def read_json(file: Path) -> dict:
    """Return the JSON object of a file that belongs to a model directory.

    Raises:
        InputError: if it cannot be read or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}, a part of every model directory: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file} holds {type(value).__name__}, needs a JSON object")
    return value


def write_json(file: Path, value: Json) -> None:
    """Write a JSON object for people to read; its folder is made if missing."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _put_in_place(part: Path, target: Path) -> None:
    if not target.exists():
        part.rename(target)
        return
    old = target.parent / f".{target.name}.{os.getpid()}.old"
    target.rename(old)
    part.rename(target)
    shutil.rmtree(old)


def _check_equal(name: str, value: int, other_name: str, other: int) -> None:
    if value != other:
        raise InputError(f"{name} is {value}, but {other_name} is {other}; make them equal")
