"""Where a benchmark's backbone lies: a directory, the hub's cache, or the hub.

Its weights are model.safetensors, else pytorch_model.bin, the file as which some of the pinned
backbones are published and passed on. `sources` refuses those; here nothing else may be to be had,
and they are opened by torch's weights-only reader alone, which runs no code.
"""

from contextlib import suppress
from pathlib import Path

from huggingface_hub import snapshot_download

from emu_edit.errors import InputError
from emu_edit.models.sources import first_line

Needed = tuple[tuple[str, ...], ...]  # of each inner tuple, one file must be there

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there
DINO_FILES: Needed = (("config.json",), WEIGHTS)
CLIP_FILES: Needed = (*DINO_FILES, ("tokenizer.json", "vocab.json"))
SMALL_FILES = ["config.json", "tokenizer*.json", "special_tokens_map.json", "vocab.json", "*.txt"]


def local_folder(name_or_path: str | Path, needed: Needed) -> Path:
    """Return the local directory of a backbone, fetching it from the hub if need be.

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
    for choices in needed:
        if not any((folder / choice).is_file() for choice in choices):
            raise InputError(
                f"{folder} has no {' or '.join(choices)}, needs a whole backbone; "
                "copy or download all of its files"
            )
    return folder


def _from_hub(name: str, needed: Needed) -> Path:
    """Return the snapshot in the hub's cache, complete already or after a download."""
    for weights in WEIGHTS:
        with suppress(OSError, ValueError):  # not there
            folder = _snapshot(name, weights, local_files_only=True)
            if _is_complete(folder, needed):
                return folder
    try:
        folder = _snapshot(name, WEIGHTS[0], local_files_only=False)
        if not _is_complete(folder, needed):
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


def _is_complete(folder: Path, needed: Needed) -> bool:
    return all(any((folder / choice).is_file() for choice in choices) for choices in needed)


def weight_file(folder: Path) -> Path:
    """Return the file that is loaded: safetensors wherever there is one."""
    return next(folder / name for name in WEIGHTS if (folder / name).is_file())
