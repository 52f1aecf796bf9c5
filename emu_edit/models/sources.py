"""Where a pretrained part lies: a local directory, or a name on the Hugging Face hub.

A local path may be a whole model directory (`unet/`, `vae/`, `text_encoder/`, ... inside) or the
directory of one part. A hub name is `owner/name` for a repository that is one part,
`owner/name/folder` for a part of a pipeline. Pickled weights (.bin, .ckpt, .pt) can run code when
loaded; they are refused, never opened.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from transformers.utils import logging

from emu_edit.errors import InputError

PICKLED = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


@dataclass(frozen=True)
class PartSource:
    """What `from_pretrained` wants: a root and a folder in it ("" = the root)."""

    root: str
    subfolder: str = ""

    def __str__(self) -> str:
        return f"{self.root}/{self.subfolder}" if self.subfolder else self.root


def find_part(path: str | Path, part: str) -> PartSource:
    """Find `part` ("unet", "vae" or "text_encoder") under a local path or a hub name.

    Raises:
        InputError: if the path is neither, lacks the part, or holds pickled weights only.
    """
    local = Path(path).expanduser()
    if local.is_file():
        raise InputError(
            f"{local} is a file, needs a model directory in diffusers layout; "
            "export the checkpoint first"
        )
    if not local.is_dir():
        return _on_hub(str(path), part)
    folder = local / part if (local / part).is_dir() else local
    check_safetensors(folder, part)
    return PartSource(str(local), "" if folder == local else part)


def check_safetensors(folder: Path, part: str) -> None:
    """Refuse a folder that is no part of a model or whose weights are pickled."""
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} has no config.json, needs the {part} of a model in diffusers layout"
        )
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    if pickled:
        raise InputError(
            f"{folder} holds pickled weights ({pickled[0]}), which can run code; "
            "they are never loaded, convert them to safetensors"
        )
    raise InputError(
        f"{folder} holds no *.safetensors, needs the weights of the {part}; "
        "copy the whole directory"
    )


AnyModel = TypeVar("AnyModel", bound=ModelMixin)


def load_diffusers(kind: type[AnyModel], source: PartSource) -> AnyModel:
    """Load a diffusers model from safetensors, in float32.

    Raises:
        InputError: if it cannot be read or lacks weights.
    """
    try:
        loaded = kind.from_pretrained(
            source.root,
            subfolder=source.subfolder or None,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        message = f"cannot load {kind.__name__} from {source}: {first_line(error)}"
        raise InputError(message) from error
    model, info = cast("tuple[AnyModel, dict[str, list[str]]]", loaded)
    refuse_missing(info["missing_keys"], source)
    return model


def refuse_missing(keys: Iterable[str], source: PartSource) -> None:
    """Refuse weights that a file lacks: libraries fill them with random numbers and go on."""
    missing = sorted(keys)
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} weights, e.g. {missing[0]}; "
            "its config.json and its weights belong to different models"
        )


def first_line(error: Exception) -> str:
    """Return what an error says, cut to one line for a message of our own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars off the terminal: the parts of a model load in a second."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _on_hub(name: str, part: str) -> PartSource:
    pieces = name.split("/")
    if len(pieces) not in {2, 3} or not all(pieces) or pieces[0] in {".", "..", "~"}:
        raise InputError(
            f"no directory {name!r}, and it is no hub name; "
            f"the {part} needs a model directory, owner/name, or owner/name/folder"
        )
    return PartSource("/".join(pieces[:2]), "/".join(pieces[2:]))
