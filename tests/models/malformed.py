"""Malformed model directories, made from a good one: each a name and what is done to a copy."""

import copy
import json
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Damage = Callable[[Path], None]  # done to a copy of a good directory
Place = tuple[str | int, ...]  # keys and indices that lead to a value of a JSON file

GONE = object()  # in place of a value: it is left out
DEEP: list[Any] = []
for _ in range(40):
    DEEP = [DEEP]
VALUES: dict[str, Any] = {
    **{"gone": GONE, "null": None, "text": "text", "empty": "", "zero": 0, "minus": -1},
    **{"half": 0.5, "many": 10**6, "huge": 10**400, "true": True, "list": [], "dict": {}},
    **{"nulls": [None, None, None], "texts": ["a", "b", "c"], "dicts": [{}], "deep": DEEP},
}
FEW = 4  # of a long list or a vocabulary, as many are changed
RAW: dict[str, bytes] = {
    **{"empty": b"", "open": b"{", "list": b"[]", "null": b"null", "number": b"3", "text": b'"a"'},
    **{"nan": b'{"a": NaN}', "latin": b'{"a": "\xe9"}', "twice": b"{}{}", "nothing": b"{}"},
    **{"deep": b"[" * 10**5, "zeros": bytes(100), "digits": b'{"a": ' + b"9" * 10**5 + b"}"},
}


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Yield the way to every value of a JSON file, to few of what it has many of."""
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    else:
        return
    for key, one in inner if len(inner) < 100 else inner[:FEW]:
        yield (*at, key)
        yield from places(one, (*at, key))


def put(file: Path, place: Place, value: Any) -> None:
    """Write another value into a JSON file."""
    whole = json.loads(file.read_text())
    inner = whole
    for key in place[:-1]:
        inner = inner[key]
    if value is GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = copy.deepcopy(value)
    file.unlink()
    file.write_text(json.dumps(whole))


def rewrite(file: Path, data: bytes) -> None:
    """Give a file other bytes; a hard link to a good one is not written through."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def json_damages(root: Path) -> Iterator[tuple[str, Damage]]:
    """Each value of each JSON file, replaced by each of `VALUES`."""
    for file in sorted(root.rglob("*.json")):
        name = file.relative_to(root)
        for place in places(json.loads(file.read_text())):
            way = ".".join(map(str, place))
            for kind, value in VALUES.items():
                yield f"{name}:{way}={kind}", partial(_put, name, place, value)


def _put(name: Path, place: Place, value: Any, folder: Path) -> None:
    put(folder / name, place, value)


def file_damages(root: Path) -> Iterator[tuple[str, Damage]]:
    """Each file replaced by bytes that are none of its kind, by nothing, or by no file."""
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        name = file.relative_to(root)
        for kind, data in RAW.items():
            yield f"{name}<-{kind}", partial(_raw, name, data)
        yield f"{name} gone", lambda folder, name=name: (folder / name).unlink()
        yield f"{name} cut", partial(_raw, name, file.read_bytes()[: file.stat().st_size // 2])
        for kind, make in (("a folder", Path.mkdir), ("a pipe", os.mkfifo), ("a loop", _loop)):
            yield f"{name} is {kind}", partial(_replace, name, make)


def _raw(name: Path, data: bytes, folder: Path) -> None:
    rewrite(folder / name, data)


def _replace(name: Path, make: Callable[[Path], None], folder: Path) -> None:
    (folder / name).unlink()
    make(folder / name)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _cast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda value: value.to(dtype)


def _with(number: float) -> Callable[[Tensor], Tensor]:
    def change(value: Tensor) -> Tensor:
        changed = value.clone()
        changed.view(-1)[0] = number
        return changed

    return change


TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "int64": _cast(torch.int64),
    "bool": _cast(torch.bool),
    "float16": _cast(torch.float16),
    "float64": _cast(torch.float64),
    "bfloat16": _cast(torch.bfloat16),
    "float8": _cast(torch.float8_e4m3fn),
    "complex": _cast(torch.complex64),
    "nan": _with(float("nan")),
    "inf": _with(float("inf")),
    "scalar": lambda value: value.flatten()[0].clone(),
    "flat": lambda value: value.flatten().clone(),
    "deeper": lambda value: value[None].clone(),
    "shorter": lambda value: value[:-1].clone(),
    "longer": lambda value: torch.cat([value, value]),
    "none": lambda value: value[:0].clone(),
}


def weight_damages(root: Path) -> Iterator[tuple[str, Damage]]:
    """Of each weights file some tensors changed, left out or added, and its header spoilt."""
    for file in sorted(root.rglob("*.safetensors")):
        name = file.relative_to(root)
        names = sorted(load_file(file))
        for tensor in sorted({names[0], names[len(names) // 2], names[-1]}):
            for kind, change in TENSORS.items():
                yield f"{name}:{tensor} {kind}", partial(_change, name, tensor, change)
            yield f"{name}:{tensor} gone", partial(_change, name, tensor, None)
        yield f"{name} with more", partial(_change, name, "one.more", lambda _: torch.ones(3))
        yield f"{name} without tensors", lambda folder, name=name: _save({}, folder / name)
        for kind, header in headers(file).items():
            yield f"{name} header {kind}", partial(_raw, name, header)


def _change(
    name: Path, tensor: str, change: Callable[[Tensor], Tensor] | None, folder: Path
) -> None:
    tensors = load_file(folder / name)
    old = tensors.pop(tensor, torch.ones(1))
    _save(tensors if change is None else {**tensors, tensor: change(old)}, folder / name)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


def headers(file: Path) -> dict[str, bytes]:
    """Spoil the header of a safetensors file in each way that its format allows."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    first = next(name for name in header if name != "__metadata__")

    def changed(entry: str, value: Any) -> bytes:
        text = json.dumps({**header, first: {**header[first], entry: value}}).encode()
        return struct.pack("<Q", len(text)) + text + body

    return {
        "of 2^60 bytes": struct.pack("<Q", 2**60) + data[8:],
        "of no bytes": struct.pack("<Q", 0) + data[8:],
        "that is a list": struct.pack("<Q", 2) + b"[]" + body,
        "of another dtype": changed("dtype", "X9"),
        "with dtype null": changed("dtype", None),
        "with a huge shape": changed("shape", [2**40, 2**40]),
        "with a negative shape": changed("shape", [-1]),
        "with shape text": changed("shape", "text"),
        "with offsets beyond": changed("data_offsets", [0, 2**50]),
        "with offsets swapped": changed("data_offsets", [8, 0]),
        "with offsets null": changed("data_offsets", None),
        "of format tf": _with_metadata(header, {"format": "tf"}, body),
        "of metadata list": _with_metadata(header, [], body),
        "without metadata": _with_metadata(header, None, body),
    }


def _with_metadata(header: dict[str, Any], metadata: Any, body: bytes) -> bytes:
    rest = {name: entry for name, entry in header.items() if name != "__metadata__"}
    whole = rest if metadata is None else {"__metadata__": metadata, **rest}
    text = json.dumps(whole).encode()
    return struct.pack("<Q", len(text)) + text + body


EVIL = "raise SystemExit('Python of a model was run')\n"


def extra_damages() -> Iterator[tuple[str, Damage]]:
    """Add what could run code, redirect or never end beside good files of the text encoder."""
    config = Path("text_encoder", "config.json")
    yield "Python", lambda folder: rewrite(folder / "text_encoder" / "evil.py", EVIL.encode())
    yield "auto_map", partial(_put, config, ("auto_map",), {"AutoConfig": "evil.Config"})
    yield "trust_remote_code", partial(_put, config, ("trust_remote_code",), True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        yield name, partial(_raw, Path("text_encoder", name), b"{}")
    for shard in ("evil.bin", "../evil.safetensors", "/evil.safetensors"):
        index = json.dumps({"weight_map": {"a": shard}}).encode()
        yield shard, partial(_raw, Path("text_encoder", "model.safetensors.index.json"), index)
    yield "a pipe", lambda folder: os.mkfifo(folder / "text_encoder" / "more.safetensors")
    yield "a loop of folders", lambda folder: (folder / "text_encoder" / "in").symlink_to(folder)
    yield "Python behind a link", _behind_a_link


def _behind_a_link(folder: Path) -> None:
    place = folder.with_name(f"{folder.name}-elsewhere")
    (folder / "text_encoder").rename(place)
    (folder / "text_encoder").symlink_to(place)
    (place / "evil.py").write_text(EVIL)
