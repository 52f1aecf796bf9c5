"""The model directory that networks are saved to and loaded from.

The directory has diffusers' layout: `model_index.json`, `unet/` or `transformer/`, `vae/`,
`text_encoder/`, `tokenizer/`, `scheduler/`, each loadable by diffusers or transformers alone, and
beside them `tasks/`: the names, the table and the two task maps, and in `tasks/learned/` a file for
each task that was learnt by inversion. A model of adapters has their one file instead of networks,
and its index says where the base's are. Safetensors only.
"""

from collections.abc import Callable
from pathlib import Path

import diffusers
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, device

from emu_edit.errors import InputError
from emu_edit.files import write_json
from emu_edit.models.captioned_text import CaptionedText
from emu_edit.models.chat_text import ChatText
from emu_edit.models.codec import KLCodec, PackedCodec, PatchCodec
from emu_edit.models.directory import INDEX, new_directory, read_index, read_json
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.edit_adapter import BASE, EditAdapterDenoiser
from emu_edit.models.flux_text import Flux3Text, MistralText
from emu_edit.models.interfaces import Denoiser, ImageCodec, TextEncoder
from emu_edit.models.longcat_text import LongCatText
from emu_edit.models.lora import QUANTISED
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.pooled_text import FluxText, SDXLText
from emu_edit.models.sources import check_safetensors, load_tensors
from emu_edit.models.surgery import learns
from emu_edit.models.task_files import (
    TASKS_JSON,
    append_learned,
    read_base_tasks,
    refuse_to_lose,
    write_learned,
)
from emu_edit.models.text import ModelText, TransformersText
from emu_edit.models.trust import judge_directory
from emu_edit.models.unet import TASK_FILE, PretrainedUNetDenoiser, UNetDenoiser
from emu_edit.models.vision_text import VisionText
from emu_edit.tasks import CAPTION, TaskTable

TABLE = "table"
BASE_PARTS = ("transformer", "text_encoder", "vae")
MOST_TOKENS = 2**17  # of a text
MOST_GUIDANCE = 1000.0  # that a network is told


def save_networks(
    networks: EditNetworks,
    path: str | Path,
    *,
    scheduler_config: dict[str, object],
    settings: dict[str, object],
    also: Callable[[Path], None] | None = None,
    writes_layers: bool = False,
) -> None:
    """Write a model directory; one that exists is replaced when it is a model directory too.

    Args:
        networks: what to save; weights keep their precision.
        path: the directory to make.
        scheduler_config: for `scheduler/scheduler_config.json`, in diffusers' words.
        settings: everything else an editor needs to know, kept in `model_index.json` under
            "_emu_edit".
        also: called with the directory before it appears under its name, to write more parts.
        writes_layers: whether temporal layers are among those.

    Raises:
        InputError: if `path` is a file or a directory of something else, or holds learned tasks
            that `networks` has not.
    """
    refuse_to_lose(Path(path).expanduser(), networks.learned, writes_layers=writes_layers)
    with new_directory(path, INDEX, what="model directory") as part:
        _write_parts(networks, part, scheduler_config, settings)
        if also is not None:
            also(part)


def load_networks(
    path: str | Path, device: device | str = "cpu", *, tasks: TaskTable | None = None
) -> tuple[EditNetworks, dict[str, object], dict[str, object]]:
    """Load a model directory: networks (eval mode, on `device`), scheduler config and settings.

    What was frozen in training is frozen, the rest is not: torch picks other kernels for frozen
    weights, and the last bits of the output would differ from the training module's.

    Args:
        path: directory written by `save_networks`.
        device: where to put the networks.
        tasks: when given, the table the model must have; its learned tasks are then left out.

    Raises:
        InputError: if it is no model directory, lacks a part, holds pickled weights, has another
            task table, or a task in it was learnt with another model.
    """
    folder = Path(path).expanduser()
    index = read_index(folder)
    judge_directory(folder, is_ours=True)
    table, names = _read_tasks(folder, tasks)
    task_embedding = TaskEmbedding(*table.shape)
    task_embedding.table.data.copy_(table)
    try:
        networks = EditNetworks(
            *_read_networks(folder, index["_networks"], task_embedding.dim),
            task_embedding=task_embedding,
            tasks=names,
        )
    except InputError as error:  # of parts that do not fit together
        line = str(error)
        raise InputError(line if str(folder) in line else f"{folder}: {line}") from error
    if tasks is None:
        append_learned(networks, folder)
    scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
    return networks.eval().to(device), scheduler_config, index["_emu_edit"]


def load_drawing(folder: Path) -> EditNetworks:
    """Load the networks of a picture model that draws: ours, or a Stable Diffusion's as they are.

    Raises:
        InputError: if it edits and was not trained to draw, or a part is missing or of another
            kind.
    """
    if not is_plain(folder):
        return check_draws(load_networks(folder)[0], folder)
    judge_directory(folder)
    return EditNetworks(
        PretrainedUNetDenoiser(str(folder), task_dim=1),
        TransformersText(str(folder)),
        KLCodec(str(folder)),
        task_embedding=TaskEmbedding(1, 1),
        tasks=TaskTable((CAPTION,)),
    ).eval()


def check_draws(networks: EditNetworks, where: str | Path) -> EditNetworks:
    """Return networks that were trained to draw.

    Raises:
        InputError: if they only edit.
    """
    if CAPTION not in networks.tasks.names:
        raise InputError(
            f"{where} edits pictures and was not trained to draw; give a run of 'emu-edit fit "
            "--config text_to_image', or a Stable Diffusion directory"
        )
    return networks


def is_plain(folder: Path) -> bool:
    """Whether a directory is a model in diffusers' layout that is not of this project."""
    index = folder / INDEX
    return (folder / "unet").is_dir() and not (index.is_file() and "_emu_edit" in read_json(index))


def _read_networks(
    folder: Path, encoding: dict[str, object], task_dim: int
) -> tuple[Denoiser, TextEncoder, ImageCodec]:
    if "weights" in encoding:
        return _read_transformer(folder, encoding, task_dim)
    if (folder / BASE).is_dir():
        base = load_drawing(folder / BASE)
        denoiser = EditAdapterDenoiser.load(folder, base, task_dim)
        return denoiser, CaptionedText(base.text_encoder), base.codec
    for name in ("unet", "text_encoder"):
        check_safetensors(folder / name, name)
    return (
        PretrainedUNetDenoiser(str(folder), task_dim=task_dim),
        _read_text(str(folder), encoding, folder),
        _read_codec(folder, scale_condition=_flag(encoding, "scale_condition", folder)),
    )


def _read_transformer(
    folder: Path, encoding: dict[str, object], task_dim: int
) -> tuple[Denoiser, TextEncoder, ImageCodec]:
    weights = encoding.get("weights")
    if weights not in ("float32", "bfloat16", *QUANTISED):
        raise InputError(f"{folder / INDEX}: weights is {weights!r}, which is no precision of ours")
    guidance = encoding.get("guidance", 1.0)
    if not isinstance(guidance, float) or not abs(guidance) < MOST_GUIDANCE:
        raise InputError(f"{folder / INDEX}: guidance is {guidance!r}, needs a number")
    base = encoding.get("base")
    parts = dict.fromkeys(BASE_PARTS, str(folder)) if base is None else _base_parts(base, folder)
    configs = encoding.get("configs", {})
    if not isinstance(configs, dict) or not all(isinstance(each, str) for each in configs.values()):
        raise InputError(f"{folder / INDEX}: configs is {configs!r}, needs directories by part")
    denoiser = DiTDenoiser(
        parts["transformer"],
        task_dim,
        guidance=guidance,
        weights="float32" if weights == "float32" else "bfloat16",
        config=configs.get("transformer"),
    )
    if base is not None:
        denoiser.take_adapters(folder, str(weights))
    text = _read_text(parts["text_encoder"], encoding, folder)
    return denoiser, text, PackedCodec(parts["vae"], configs.get("vae"))


def _read_text(path: str, encoding: dict[str, object], folder: Path) -> TextEncoder:
    kind, most = encoding.get("text", "TransformersText"), _max_tokens(encoding, folder)
    match kind:
        case "TransformersText":
            return TransformersText(
                path,
                attend_padding=_flag(encoding, "attend_padding", folder),
                trainable=_flag(encoding, "trainable_text", folder),
                max_tokens=most,
            )
        case "ChatText":
            return ChatText(path, _layers(encoding, folder), most)
        case "Flux3Text":
            return Flux3Text(path, _layers(encoding, folder), most)
        case "MistralText":
            return MistralText(path, _layers(encoding, folder), most)
        case "FluxText":
            return FluxText(path, most)
        case "SDXLText":
            return SDXLText(path)
        case "VisionText":
            return VisionText(path, most)
        case "LongCatText":
            return LongCatText(path, most)
        case _:
            raise InputError(
                f"{folder / INDEX}: text is {kind!r}, which is no text encoder of ours"
            )


def _base_parts(base: object, folder: Path) -> dict[str, str]:
    if not isinstance(base, dict) or not all(isinstance(base.get(n), str) for n in BASE_PARTS):
        raise InputError(f"{folder / INDEX}: base is {base!r}, needs where {BASE_PARTS} are")
    return base


def _layers(encoding: dict[str, object], folder: Path) -> list[int]:
    value = encoding.get("layers")
    if not isinstance(value, list) or not all(type(layer) is int for layer in value):
        raise InputError(f"{folder / INDEX}: layers is {value!r}, needs a list of numbers")
    return value


def _flag(encoding: dict[str, object], name: str, folder: Path) -> bool:
    value = encoding.get(name)
    if not isinstance(value, bool):
        raise InputError(f"{folder / INDEX}: {name} is {value!r}, needs true or false")
    return value


def _max_tokens(encoding: dict[str, object], folder: Path) -> int:
    value = encoding.get("max_tokens")
    if type(value) is not int or not 1 <= value <= MOST_TOKENS:
        raise InputError(
            f"{folder / INDEX}: max_tokens is {value!r}, needs a number of 1 to {MOST_TOKENS}"
        )
    return value


def _write_parts(
    networks: EditNetworks,
    folder: Path,
    scheduler_config: dict[str, object],
    settings: dict[str, object],
) -> None:
    denoiser = networks.denoiser
    if not isinstance(denoiser, UNetDenoiser | DiTDenoiser | EditAdapterDenoiser):
        raise InputError(
            "a model directory holds a UNetDenoiser, a DiTDenoiser or an EditAdapterDenoiser, got "
            f"a {type(denoiser).__name__}"
        )
    denoiser.write(folder)
    parts = _write_others(networks, folder)
    for name in ("scheduler", "tasks"):
        (folder / name).mkdir()
    scheduler = {"_class_name": "DDIMScheduler", **scheduler_config}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(
        folder / TASKS_JSON,
        {"names": list(networks.base_tasks.names), "dim": networks.task_embedding.dim},
    )
    tensors = {TABLE: networks.base_table().detach(), **denoiser.maps()}
    save_file(
        {name: value.cpu().contiguous() for name, value in tensors.items()}, folder / TASK_FILE
    )
    write_learned(networks, folder)
    write_json(
        folder / INDEX,
        {
            "_class_name": "EmuEditPipeline",
            "_diffusers_version": diffusers.__version__,
            **parts,
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "_networks": _encoding(networks),
            "_emu_edit": settings,
        },
    )


def _write_others(networks: EditNetworks, folder: Path) -> dict[str, list[str]]:
    """Write text encoder and codec, unless the base has them; return the parts of the index."""
    denoiser, text, codec = networks.denoiser, networks.text_encoder, networks.codec
    if isinstance(denoiser, DiTDenoiser) and denoiser.has_adapters:
        return {}
    network = getattr(denoiser, denoiser.part)
    if isinstance(denoiser, EditAdapterDenoiser):
        return {denoiser.part: ["diffusers", type(network).__name__]}
    if not isinstance(text, ModelText | ChatText | FluxText | SDXLText | VisionText):
        raise InputError(
            "a model directory holds a text encoder of transformers, got a " + type(text).__name__
        )
    return {
        denoiser.part: ["diffusers", type(network).__name__],
        "vae": _write_codec(codec, folder / "vae"),
        **{part: ["transformers", name] for part, name in text.write(folder).items()},
    }


def _encoding(networks: EditNetworks) -> dict[str, object]:
    """Return what is to be known to build the networks again."""
    denoiser, text, codec = networks.denoiser, networks.text_encoder, networks.codec
    encoding: dict[str, object] = {"max_tokens": text.max_tokens}
    if isinstance(text, ModelText):
        encoding |= {"attend_padding": text.attend_padding, "trainable_text": learns(text)}
    else:
        encoding["text"] = type(text).__name__
    if isinstance(denoiser, EditAdapterDenoiser):
        return encoding
    if not isinstance(denoiser, DiTDenoiser):
        return encoding | {"scale_condition": isinstance(codec, KLCodec) and codec.scale_condition}
    encoding["weights"] = denoiser.weights
    if denoiser.guidance is not None:
        encoding["guidance"] = denoiser.guidance
    if isinstance(text, ChatText):
        encoding["layers"] = text.layers
    if denoiser.has_adapters:
        assert isinstance(codec, PackedCodec)
        assert isinstance(text, ChatText | FluxText | VisionText)
        sources = (denoiser.source, text.source, codec.source)
        named = {n: source.in_full() for n, source in zip(BASE_PARTS, sources, strict=True)}
        encoding["base"] = {part: str(place) for part, place in named.items()}
        if configs := {part: place.root for part, place in named.items() if place.file}:
            encoding["configs"] = configs  # of single files
    return encoding


def _write_codec(codec: ImageCodec, folder: Path) -> list[str]:
    match codec:
        case KLCodec() | PackedCodec():
            codec.vae.save_pretrained(folder, safe_serialization=True)
            return ["diffusers", type(codec.vae).__name__]
        case PatchCodec():
            folder.mkdir()
            numbers = {"patch": codec.patch, "shift": codec.shift, "scale": codec.scale}
            write_json(folder / "config.json", {"_class_name": "PatchCodec", **numbers})
            return ["emu_edit.models.codec", "PatchCodec"]
        case _:
            raise InputError(
                f"a model directory holds an autoencoder or patches, got a {type(codec).__name__}"
            )


def _read_codec(folder: Path, *, scale_condition: bool) -> ImageCodec:
    config = read_json(folder / "vae" / "config.json")
    if config.get("_class_name") != "PatchCodec":
        return KLCodec(str(folder), scale_condition=scale_condition)
    try:
        return PatchCodec(
            patch=int(config["patch"]), shift=float(config["shift"]), scale=float(config["scale"])
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{folder}/vae/config.json lacks a number of the PatchCodec: {error}"
        ) from error


def _read_tasks(folder: Path, expected: TaskTable | None) -> tuple[Float[Tensor, "n k"], TaskTable]:
    tasks = read_base_tasks(folder)
    if expected is not None and tasks != expected:
        raise InputError(
            f"{folder} has another task table: {', '.join(tasks.names)}; "
            f"needed: {', '.join(expected.names)}"
        )
    tensors = load_tensors(folder / TASK_FILE)
    if TABLE not in tensors:
        raise InputError(f"{folder / TASK_FILE} lacks the task table; export the model again")
    table = tensors[TABLE]
    if table.ndim != 2 or len(table) != len(tasks):
        raise InputError(
            f"{folder / TASK_FILE} has a table of shape {tuple(table.shape)}, "
            f"tasks.json names {len(tasks)} tasks; the two files belong to different models"
        )
    return table, tasks
