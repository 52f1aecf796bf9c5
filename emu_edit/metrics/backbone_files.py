"""Where a benchmark's backbone lies: a directory, the hub's cache, or the hub.

Its weights are model.safetensors, else pytorch_model.bin, since some of the pinned backbones are
published in no other file. An editor's own parts are never read from such a file
(`models.sources`); here torch's weights-only reader opens it, which runs no code.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError

from huggingface_hub import snapshot_download

from emu_edit.errors import InputError
from emu_edit.models.sources import first_line

Needed = tuple[tuple[str, ...], ...]  # of each inner tuple, one file must be there

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there
DINO_FILES: Needed = (("config.json",), WEIGHTS)
TOKENIZER_FILES: Needed = (("tokenizer.json", "vocab.json"),)
CLIP_FILES: Needed = (*DINO_FILES, *TOKENIZER_FILES)
SMALL_FILES = ["config.json", "tokenizer*.json", "special_tokens_map.json", "vocab.json", "*.txt"]


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn whatever a library says of a damaged weight file into one line.

    Raises:
        InputError: if it cannot be read, or holds more than weights.
    """
    try:
        yield
    except UnpicklingError as error:  # whose own message advises to run what is in the file
        raise InputError(
            f"cannot load {file}: it is damaged, or holds more than weights, which is never run; "
            "download it again"
        ) from error
    except Exception as error:  # of a file that is broken in its own way
        raise InputError(
            f"cannot load {file}: {first_line(error)}; if damaged, download it again"
        ) from error


def local_folder(name_or_path: str | Path, needed: Needed) -> Path:
    """Find the local directory of a backbone, fetching it from the hub if need be.

    Args:
        name_or_path: a directory, or a hub name `owner/name`.
        needed: the files it must have.

    Raises:
        InputError: if it is neither, cannot be fetched, or lacks a file.
    """
    local = Path(name_or_path).expanduser()
    name = str(name_or_path)
    if local.is_dir():
        folder = local
    elif isinstance(name_or_path, str) and name.count("/") == 1 and not name.startswith((".", "/")):
        folder = _from_hub(name, needed)
    else:
        raise InputError(
            f"no directory {name!r}, and it is no hub name; a backbone needs a model directory or "
            "owner/name"
        )
    if missing := _missing(folder, needed):
        raise InputError(
            f"{folder} has no {' or '.join(missing[0])}, needs a whole backbone; "
            "copy or download all of its files"
        )
    return folder


def _from_hub(name: str, needed: Needed) -> Path:
    """Find the snapshot among the hub's downloads, or download it."""
    for weights in WEIGHTS:
        with suppress(OSError, ValueError):  # not there
            folder = _snapshot(name, weights, local_files_only=True)
            if not _missing(folder, needed):
                return folder
    try:
        folder = _snapshot(name, WEIGHTS[0], local_files_only=False)
        if _missing(folder, needed):
            folder = _snapshot(name, WEIGHTS[1], local_files_only=False)
    except Exception as error:  # the HTTP library beneath changes, and with it the errors
        place = name.replace("/", "--")
        raise InputError(
            f"cannot get the backbone {name} from the hub: {first_line(error)}; where there is "
            f"network: hf download {name} --local-dir BACKBONES/{place}, then --backbones BACKBONES"
        ) from error
    return folder


def _snapshot(name: str, weights: str, *, local_files_only: bool) -> Path:
    patterns = [*SMALL_FILES, weights]
    return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only))


def _missing(folder: Path, needed: Needed) -> Needed:
    return tuple(names for names in needed if not any((folder / name).is_file() for name in names))


def weight_file(folder: Path) -> Path:
    """Choose the file that is loaded: safetensors wherever there is one."""
    return next(folder / name for name in WEIGHTS if (folder / name).is_file())
