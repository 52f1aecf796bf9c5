"""Whether a directory somebody gives may be opened as a model, judged before a library opens it.

Libraries do what the files of a model say: `auto_map` names Python to run, an index names a pickle
to load, an adapter names another model to fetch, a tokenizer rewrites a text as often as it is told
to, and a config may ask for a million layers. So a directory is read here first, as data: which
files it has, how large and how deep its JSON is, which keys and numbers stand in it. What is left
for the libraries are weights in safetensors and configs of a sane size.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from emu_edit.errors import InputError

MANY_FILES = 10_000
MEBI = 2**20
# bytes; the largest tokenizer in use (Gemma) has 33 MiB, an index of a thousand shards 2 MiB
MOST_BYTES = {"tokenizer.json": 64 * MEBI, "vocab.json": 16 * MEBI}
MOST_BYTES_INDEX, MOST_BYTES_JSON = 16 * MEBI, MEBI
MOST_DEPTH = 64  # of brackets in brackets; model configs have 5, tokenizers 8
PICKLED = {".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5"}
# keys with which a config makes a library run code, fetch another model or need another program
FORBIDDEN_KEYS = {
    "auto_map": "names Python code to run",
    "custom_pipelines": "names Python code to run",
    "trust_remote_code": "asks to run Python code",
    "quantization_config": "needs a quantization library, and weights here are plain numbers",
}
FORBIDDEN_FILES = {
    "adapter_config.json": "makes transformers load another model",
    "adapter_model.safetensors": "belongs to another model",
}
CLASSES = {
    "unet": {"UNet2DConditionModel"},
    "transformer": {
        *("FluxTransformer2DModel", "Flux2Transformer2DModel", "QwenImageTransformer2DModel"),
        *("LongCatImageTransformer2DModel", "Flux3Transformer2DModel"),
    },
    "vae": {
        *("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLQwenImage", "PatchCodec"),
    },
    "scheduler": {
        *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler"),
        *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
        *("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
    },
}
LIBRARIES = {"diffusers", "transformers", "emu_edit.models.codec"}
MOST_LAYERS = 256  # of any kind; the largest text encoder in use (T5-XXL) has 24
MOST_NUMBER = 2**24  # larger than any width, vocabulary or count of a network that fits here
LAYERS = re.compile(r"layer|blocks")
MOST_REWRITES = 4  # of a normalizer: each may make a text longer
MOST_LETTERS = 4  # that a normalizer puts in place of what it finds
MOST_ID = 2**31  # of a token
MOST_BYTES_HEADER = 100_000_000  # of safetensors, as the library bounds it
WEIGHT_TYPES = ("F16", "BF16", "F32", "F64")
COUNTED = (
    "position_ids",
    "num_batches_tracked",
    "num_updates",
)  # ends of the names of what is no weight


def judge_directory(folder: Path, *, is_ours: bool = False) -> None:
    """Refuse a directory that could run code, hang or exhaust the memory when it is opened.

    Args:
        folder: a model directory, or a part of one.
        is_ours: `export` wrote it, so pickled weights have no business in it; in a download they
            may lie beside the safetensors that are loaded instead.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    for path in _files(folder):
        if not path.is_file():  # a pipe or device, which may never end
            raise InputError(f"{path} is no plain file, needs one; copy the whole directory again")
        if path.name in FORBIDDEN_FILES:
            raise InputError(
                f"{path} {FORBIDDEN_FILES[path.name]}; remove it if you trust the rest"
            )
        if path.suffix == ".py" or (is_ours and path.suffix.lower() in PICKLED):
            what = "Python" if path.suffix == ".py" else "pickled weights"
            raise InputError(
                f"{path.parent} holds {what} ({path.name}), which can run code; a model is "
                "safetensors and JSON only, convert or remove it"
            )
        if path.suffix == ".json":
            _judge_json(path)
        elif path.suffix == ".safetensors":
            judge_weights(path)


def _files(folder: Path) -> list[Path]:
    """List the files of a directory, also those behind links; what links to itself is bounded."""
    found: list[Path] = []
    for parent, _, names in os.walk(folder, followlinks=True):
        found += [Path(parent, name) for name in names]
        if len(found) > MANY_FILES or parent.count(os.sep) > MOST_DEPTH:
            raise InputError(
                f"{folder} has more than {MANY_FILES} files, or folders in it without end; a model "
                "has neither"
            )
    return sorted(found)


def _judge_json(path: Path) -> None:
    value = read_bounded_json(path)
    for key, inner in _entries(value):
        if key in FORBIDDEN_KEYS and inner not in (None, False):
            raise InputError(
                f"{path}: {key!r} {FORBIDDEN_KEYS[key]}; that is never done, remove it"
            )
    if path.name.endswith(".index.json"):
        _judge_index(path, value)
    elif path.name == "model_index.json":
        _judge_parts(path, value)
    elif path.name in {"config.json", "scheduler_config.json"}:
        _judge_config(path, value)
    elif path.name == "tokenizer.json":
        _judge_tokenizer(path, value)


def read_bounded_json(path: Path) -> object:
    """Read a JSON file of a model, however hostile, in bounded time and memory.

    Raises:
        InputError: if it is too large, too deep, no JSON, or holds a number that is none.
    """
    is_index = path.name.endswith(".index.json")
    most = MOST_BYTES.get(path.name, MOST_BYTES_INDEX if is_index else MOST_BYTES_JSON)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no plain file")
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}, a part of every model directory: {error}") from error
    if len(data) > most:
        raise InputError(f"{path} has more than {most} bytes, too many for a model's JSON")
    return _parsed(path, data)


def _parsed(path: Path, data: bytes) -> object:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}, which is not JSON in UTF-8: {error}") from error
    if _depth(text) > MOST_DEPTH:
        raise InputError(f"{path} has more than {MOST_DEPTH} brackets in brackets")
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except ValueError as error:
        raise InputError(f"cannot read {path}, which is not JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is too large for a number")
    return value


def _depth(text: str) -> int:
    """Count how deep brackets are nested at most, outside strings."""
    deepest = depth = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text):
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _entries(value: object) -> Iterator[tuple[str, object]]:
    """Yield every key of nested JSON with its value; entries of a list have the list's key."""
    rest: list[tuple[str, object]] = [("", value)]
    while rest:
        key, inner = rest.pop()
        yield key, inner
        if isinstance(inner, Mapping):
            rest += inner.items()
        elif isinstance(inner, list):
            rest += [(key, one) for one in inner]


def _judge_index(path: Path, value: object) -> None:
    """Let an index of weight shards name safetensors beside it, and nothing else."""
    shards = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(shards, dict):
        raise InputError(f"{path} has no weight_map, needs the names of safetensors files")
    for name in shards.values():
        plain = isinstance(name, str) and PurePosixPath(name).name == name and "\\" not in name
        if not plain or not name.endswith(".safetensors"):
            raise InputError(f"{path} names {name!r}, needs safetensors files of the same folder")


def _judge_parts(path: Path, value: object) -> None:
    """Let `model_index.json` name classes of the libraries a model is made of."""
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, needs a JSON object")
    for part, kind in value.items():
        if part.startswith("_") or not isinstance(kind, list) or kind == [None, None]:
            continue
        known = CLASSES.get(part)
        is_named = len(kind) == 2 and all(isinstance(name, str) for name in kind)
        if not is_named or (kind[0] not in LIBRARIES and part in {*CLASSES, "text_encoder"}):
            raise InputError(f"{path}: {part} is {kind!r}, needs a class of {sorted(LIBRARIES)}")
        if known is not None and kind[1] not in known:
            raise InputError(f"{path}: {part} is a {kind[1]!r}, needs one of {sorted(known)}")


def _judge_config(path: Path, value: object) -> None:
    """Refuse a config whose numbers no network has: it would be built before weights are read."""
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, needs a JSON object")
    known = CLASSES.get(path.parent.name)
    name = value.get("_class_name")
    if known is not None and name is not None and str(name) not in known:
        raise InputError(f"{path} is of a {name!r}, needs one of {sorted(known)}")
    for key, inner in _entries(value):
        if isinstance(inner, bool) or not isinstance(inner, int | float):
            continue
        most = MOST_LAYERS if LAYERS.search(key) and isinstance(inner, int) else MOST_NUMBER
        if abs(inner) > (MOST_ID if key.endswith("_id") else most):
            raise InputError(f"{path}: {key} is {inner!r}, needs a number up to {most}")


def _judge_tokenizer(path: Path, value: object) -> None:
    """Refuse a tokenizer that makes a text grow without bound before it is counted, or panics."""
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, needs a JSON object")
    for _, step in _entries(value.get("post_processor")):
        _judge_template(path, step)
    model = value.get("model")
    if isinstance(model, dict) and model.get("merges") and model.get("continuing_subword_prefix"):
        raise InputError(f"{path}: merges with a continuing_subword_prefix are not taken")
    rewrites = [one for _, one in _entries(value.get("normalizer")) if isinstance(one, Mapping)]
    rewrites = [one for one in rewrites if str(one.get("type")) in {"Replace", "Prepend"}]
    if len(rewrites) > MOST_REWRITES:
        raise InputError(
            f"{path}: its normalizer rewrites a text {len(rewrites)} times, at most "
            f"{MOST_REWRITES} are taken"
        )
    for step in rewrites:
        content = step.get("content", step.get("prepend", ""))
        if not isinstance(content, str) or len(content) > MOST_LETTERS:
            raise InputError(
                f"{path}: its normalizer puts {str(content)[:20]!r} into a text, more than "
                f"{MOST_LETTERS} letters at a time"
            )


def _judge_template(path: Path, step: object) -> None:
    """Refuse a template that names a token it does not list: tokenizers panics at it."""
    listed = step.get("special_tokens") if isinstance(step, Mapping) else None
    if not isinstance(listed, Mapping):
        return
    named = [inner for key, inner in _entries(step) if key == "SpecialToken"]
    lost = {str(one.get("id")) for one in named if isinstance(one, Mapping)} - {*listed}
    if lost:
        raise InputError(f"{path}: its template names {min(lost)!r}, which it does not list")


def judge_weights(path: Path) -> None:
    """Refuse a safetensors file whose tensors are not plain numbers."""
    for name, entry in read_header(path).items():
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        if not name.endswith(COUNTED) and kind not in WEIGHT_TYPES:
            raise InputError(
                f"{path}: {name} is of type {kind!r}, needs one of {', '.join(WEIGHT_TYPES)}; "
                "convert the weights to float32"
            )


def read_header(path: Path) -> dict[str, Any]:
    """Return what a safetensors file says of its tensors, by name; of them nothing is read.

    Raises:
        InputError: if the header is not whole.

    Source: the format, https://github.com/huggingface/safetensors: 8 bytes of length, a header in
    JSON, then the numbers.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(path.stat().st_size, MOST_BYTES_HEADER):
            raise InputError(
                f"cannot read {path}, which is no safetensors file or not all of it (a header of "
                f"{length} bytes); get it again"
            )
        header = _parsed(path, file.read(length))
    if not isinstance(header, dict):
        raise InputError(f"{path} has a header of {type(header).__name__}, needs a JSON object")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}
