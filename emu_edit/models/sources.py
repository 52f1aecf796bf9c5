"""Where a pretrained part lies: a local directory, or a name on the Hugging Face hub.

A local path may be a whole model directory (`unet/`, `vae/`, `text_encoder/`, ... inside) or the
directory of one part, or a single file of the weights' authors, of which a local model directory
tells the config. A hub name is `owner/name` for a repository that is one part,
`owner/name/folder` for a part of a pipeline. Pickled weights (.bin, .ckpt, .pt) can run code when
loaded; they are refused, never opened. Under `torch.device("meta")` a part is built as its config
says, without numbers, and its weights are neither read nor fetched.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import TypeVar, cast, get_args, get_origin
from urllib.parse import urlsplit

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.import_utils import is_accelerate_available
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import logging

from emu_edit.diffusion.prediction import TrainedAs
from emu_edit.errors import InputError, StorageError
from emu_edit.models.directory import INDEX, read_json
from emu_edit.models.single_file import find_config, load_single
from emu_edit.models.trust import PICKLED, judge_directory, read_header


@dataclass(frozen=True)
class PartSource:
    """What `from_pretrained` wants: a root and a folder in it ("" = the root).

    With `file` the weights are in that one, and root and folder have the config only.
    """

    root: str
    subfolder: str = ""
    file: str = ""

    def __str__(self) -> str:
        if self.file:
            return self.file
        return f"{self.root}/{self.subfolder}" if self.subfolder else self.root

    def in_full(self) -> "PartSource":
        """Return it with local paths in full, to be found from another folder, too."""
        root, file = (
            str(Path(path).absolute()) if path and Path(path).exists() else path
            for path in (self.root, self.file)
        )
        return PartSource(root, self.subfolder, file)


def find_part(path: str | Path, part: str, config: str | None = None) -> PartSource:
    """Find `part` ("unet", "vae" or "text_encoder") under a local path or a hub name.

    Args:
        path: model directory, directory of the part, hub name, or a single safetensors file.
        part: its name.
        config: for a single file, a local directory that has the part's config.json.

    Raises:
        InputError: if the path is neither, lacks the part, holds pickled weights only, or is
            refused by `judge_directory`; or if a single file has no config, or others have one.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return PartSource(*find_config(local, part, config), str(local))
    if config is not None:
        raise InputError(
            f"config={config!r} is for a single file, and {path} is none; leave it out"
        )
    if not local.is_dir():
        return _on_hub(str(path), part)
    folder = local / part if (local / part).is_dir() else local
    judge_directory(folder)
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


def reach(source: PartSource) -> None:
    """Find out within seconds whether the hub answers, where a part has to come from there.

    The hub's client tries for a minute and then calls the file missing, as if the name were wrong.

    Raises:
        StorageError: if it does not: a job that tries again later may succeed.
    """
    known = Path(source.root).is_dir() or constants.HF_HUB_OFFLINE
    config = f"{source.subfolder}/config.json" if source.subfolder else "config.json"
    if known or isinstance(try_to_load_from_cache(source.root, config), str):
        return
    address = urlsplit(constants.ENDPOINT)
    if any(os.environ.get(name) for name in PROXIES):  # which names and routes are its business
        return
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
    except OSError as error:
        raise StorageError(
            f"cannot get {source}: no network to {address.hostname} ({error.strerror or error}), "
            "and it is not in the cache; try again later, or give the model as a local folder"
        ) from error


PATIENCE = 5.0  # seconds
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
SCHEDULER = "scheduler/scheduler_config.json"  # of a model directory


def find_training(source: PartSource) -> TrainedAs:
    """Read what a part was trained for: the scheduler config of its model, on this disk or the hub.

    Raises:
        InputError: if the file cannot be read as a JSON object.
    """
    root = Path(source.root)
    if not root.is_dir():
        where = f"{source.root}/{SCHEDULER}"
        try:
            file = Path(hf_hub_download(source.root, SCHEDULER))
        except (OSError, ValueError):  # the part itself was found, so the model has no such file
            return TrainedAs(where, {})
        return TrainedAs(where, read_json(file))
    model = root if source.subfolder or (root / SCHEDULER).is_file() else root.absolute().parent
    if not (model / SCHEDULER).is_file():
        return TrainedAs(str(model / SCHEDULER), {})
    config = read_json(model / SCHEDULER)
    ours = read_json(model / INDEX).get("_emu_edit") if (model / INDEX).is_file() else None
    if isinstance(ours, dict) and "prediction" in ours:  # it tells `change` from `z0`
        config = {**config, "prediction_type": ours["prediction"]}
    return TrainedAs(str(model / SCHEDULER), config)


SMALL = 10**6  # weights a library may add that no file has
PANIC = "PanicException"  # of libraries written in Rust; no Exception, and its class is not public

AnyModel = TypeVar("AnyModel", bound=ModelMixin)


def has_shapes_only() -> bool:
    """Whether networks built now are to have no numbers: inside `torch.device("meta")`."""
    return torch.get_default_device().type == "meta"


class _AnyNetwork(ConfigMixin):
    config_name = "config.json"


def config_of(source: PartSource) -> dict[str, object]:
    """Return the config of a network of diffusers, on this disk or the hub.

    Raises:
        InputError: if it cannot be had.
    """
    reach(source)
    with refusing(f"cannot read the config of {source}"):
        config = _AnyNetwork.load_config(source.root, subfolder=source.subfolder or None)
    return cast("dict[str, object]", config)


def load_diffusers(
    kind: type[AnyModel], source: PartSource, precision: torch.dtype = torch.float32
) -> AnyModel:
    """Load a diffusers model from safetensors, in float32 or another precision.

    Raises:
        InputError: if it cannot be read or lacks weights.
    """
    reach(source)
    # some hold a few weights in float32 whatever the precision, which diffusers only does so
    is_mixed = kind._keep_in_fp32_modules is not None
    if (is_mixed or source.file) and not is_accelerate_available():
        raise InputError(f"{source} needs the package accelerate; pip install 'emu-edit[lora]'")
    with refusing(f"cannot load {kind.__name__} from {source}"):
        if has_shapes_only():
            # its own `to` warns of precisions that only matter for numbers
            return cast("AnyModel", nn.Module.to(_untrained(kind, source).eval(), precision))
        refuse_larger(lambda: _untrained(kind, source), source)
        if source.file:
            model = load_single(kind, source.file, source.root, source.subfolder, precision)
            refuse_non_finite(model.named_parameters(), source.file)
            return model
        loaded = kind.from_pretrained(
            source.root,
            subfolder=source.subfolder or None,
            use_safetensors=True,
            low_cpu_mem_usage=is_mixed,
            output_loading_info=True,
            torch_dtype=precision,
        )
    model, info = cast("tuple[AnyModel, dict[str, list[str]]]", loaded)
    refuse_missing(info["missing_keys"], source)
    refuse_non_finite(model.named_parameters(), str(source))
    return model


def _untrained(kind: type[ModelMixin], source: PartSource) -> nn.Module:
    assert issubclass(kind, ConfigMixin)  # as every network of diffusers
    config = kind.load_config(source.root, subfolder=source.subfolder or None)
    config = cast("dict[str, object]", config)
    for name, parameter in signature(kind.__init__).parameters.items():
        if name in config and not _is_of_type(config[name], parameter):
            raise InputError(
                f"config.json: {name} is {config[name]!r}, needs {parameter.annotation}"
            )
    return cast("nn.Module", kind.from_config(config))


def _is_of_type(value: object, parameter: Parameter) -> bool:
    """Whether JSON's value is of a type that the parameter is annotated with.

    A number may be whole for a float, and a switch may be null, as in configs of old converters.
    """
    allowed = {*_types(parameter.annotation), type(parameter.default)}
    allowed |= {int} if float in allowed else set()
    allowed |= {type(None)} if bool in allowed else set()
    leaves = [value]
    while any(isinstance(leaf, list) for leaf in leaves):
        if not {tuple, list} & allowed:
            return False
        leaves = [one for leaf in leaves for one in (leaf if isinstance(leaf, list) else [leaf])]
    return all(type(leaf) in allowed for leaf in leaves)


def _types(annotation: object) -> set[object]:
    """Take an annotation apart: `int | tuple[str, ...]` is int, tuple and str."""
    inner = (one for argument in get_args(annotation) for one in _types(argument))
    return {get_origin(annotation) or annotation, *inner}


def refuse_larger(build: Callable[[], nn.Module], source: PartSource) -> None:
    """Refuse a config that asks for a far larger network than its weights are for.

    The network is built without memory; one on the hub is taken as it is.

    Raises:
        InputError: with both numbers.
    """
    folder = Path(source.root, source.subfolder)
    if not folder.is_dir():
        return
    files = [Path(source.file)] if source.file else folder.glob("*.safetensors")
    stored = sum(file.stat().st_size for file in files)
    with torch.device("meta"):
        asked = sum(parameter.numel() for parameter in build().parameters())
    if asked > stored + SMALL:  # a weight takes at least a byte
        raise InputError(
            f"{folder}: config.json asks for {asked:.2g} weights, its files have {stored:.2g} "
            "bytes; they belong to different models"
        )


def refuse_non_finite(named: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Refuse weights that are not numbers: every picture of theirs would be black.

    Raises:
        InputError: naming the first.
    """
    for name, value in named:
        if not value.isfinite().all():
            raise InputError(f"{where}: {name} holds values that are not numbers; get it again")


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file of ours.

    Raises:
        InputError: if it is missing or damaged, or holds what are no numbers.
    """
    with refusing(f"cannot read {file}, get it again"):
        if has_shapes_only():
            return {name: torch.empty(entry["shape"]) for name, entry in read_header(file).items()}
        tensors = load_file(file)
    refuse_non_finite(tensors.items(), str(file))
    return tensors


def refuse_unrunnable(run: Callable[[], Tensor], where: str) -> None:
    """Refuse a network that is built but cannot run, by running it once on its smallest input.

    One of shapes only is taken as it is: some libraries look at numbers while they run.

    Raises:
        InputError: if it fails, or gives what are no numbers.
    """
    if has_shapes_only():
        return
    with refusing(f"{where}: its configs make a network that cannot run"), torch.no_grad():
        output = run()
    if not output.isfinite().all():
        raise InputError(f"{where}: the network's output is not numbers; get the model again")


def refuse_missing(keys: Iterable[str], source: PartSource) -> None:
    """Refuse weights that a file lacks: libraries fill them with random numbers and go on."""
    missing = sorted(keys)
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} weights, e.g. {missing[0]}; "
            "its config.json and its weights belong to different models"
        )


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Refuse what a library fails at: what it raises for files that do not fit is anything.

    Raises:
        InputError: with `what` and the first line of what the library says.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise InputError(f"{what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
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
