"""The adapter that makes a picture model a video model, as a directory beside it: `temporal/`.

The picture model's files stay byte for byte what they are. The adapter means something on the base
it was trained on and on no other, so it names that base by hash and is refused elsewhere.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.files import write_json
from emu_edit.models.directory import new_directory, read_json
from emu_edit.models.fingerprints import base_fingerprint
from emu_edit.models.inflate import Base, TemporalAdapter, unet_of
from emu_edit.models.learned_task import HASH, SHOWN
from emu_edit.models.sources import load_tensors
from emu_edit.models.temporal import TemporalSpec
from emu_edit.models.trust import judge_directory

RECORD, WEIGHTS = "temporal.json", "temporal.safetensors"
VERSION = 1


def save_temporal(adapter: TemporalAdapter, path: str | Path) -> None:
    """Write an adapter's directory, whole or not at all; one that exists is replaced.

    Args:
        adapter: on the base it was trained on; weights keep their precision.
        path: usually `temporal` in the model directory of its base.

    Raises:
        InputError: if `path` is a file or another directory that is not empty.
    """
    tensors = {name: value.cpu().contiguous() for name, value in adapter.state_dict().items()}
    with new_directory(path, RECORD, what="temporal adapter") as folder:
        save_file(tensors, folder / WEIGHTS)
        record = {
            "version": VERSION,
            "base": base_fingerprint(adapter.base),
            "parameters": sum(value.numel() for value in tensors.values()),
            "spec": adapter.spec.to_dict(),
        }
        write_json(folder / RECORD, record)


def load_temporal(path: str | Path, base: Base) -> TemporalAdapter:
    """Put a saved adapter on its base, in float32; the base is untouched if anything is wrong.

    Args:
        path: directory written by `save_temporal`.
        base: the picture model it was trained on, on any device.

    Raises:
        InputError: if it is no such directory, belongs to another base, or is damaged.
    """
    folder = Path(path).expanduser()
    if not (folder / RECORD).is_file():
        raise InputError(f"{folder} is no temporal adapter (no {RECORD}); give a folder that has")
    judge_directory(folder, is_ours=True)
    spec = _read_spec(folder / RECORD, base)
    try:
        with torch.device("meta"):  # takes neither memory nor time
            adapter = TemporalAdapter(base, spec)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    tensors = load_tensors(folder / WEIGHTS)
    _check_shapes(adapter.state_dict(), tensors, folder / WEIGHTS)
    adapter.load_state_dict({n: value.float() for n, value in tensors.items()}, assign=True)
    adapter.to(unet_of(base).device).eval().attach()
    return adapter


def _read_spec(file: Path, base: Base) -> TemporalSpec:
    record = read_json(file)
    if record.get("version") != VERSION:
        raise InputError(
            f"{file} has version {str(record.get('version'))[:20]!r}, this program reads {VERSION}"
        )
    named = record.get("base")
    if not isinstance(named, str) or not re.fullmatch(HASH, named):
        raise InputError(f"{file}: base is {str(named)[:20]!r}, needs 64 hexadecimal digits")
    if (found := base_fingerprint(base)) != named:
        raise InputError(
            f"{file.parent} was trained on the base {named[:SHOWN]}, this one is {found[:SHOWN]}; "
            "give the adapter of this model"
        )
    spec = record.get("spec")
    if not isinstance(spec, dict):
        raise InputError(f"{file}: spec is no JSON object; copy the folder again")
    return TemporalSpec.from_dict(spec, where=str(file))


def _check_shapes(wanted: dict[str, Tensor], tensors: dict[str, Tensor], file: Path) -> None:
    for name in sorted({*wanted, *tensors}):
        found, needed = (
            tuple(all_of[name].shape) if name in all_of else "nothing"
            for all_of in (tensors, wanted)
        )
        if found != needed:
            raise InputError(
                f"{file}: {name} is {found}, needs {needed}; its {RECORD} belongs to another file"
            )
