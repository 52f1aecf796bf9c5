"""Low-rank adapters of a frozen network, in the file that stock pipelines of diffusers load.

The frozen network may be held in 8 or 4 bits. Source: Hu et al. 2021, arXiv:2106.09685, through
peft, as diffusers does it; Dettmers et al. 2023, arXiv:2305.14314, of adapters on a quantised base,
through torchao (int8, float8) and bitsandbytes (nf4).
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from emu_edit.errors import InputError
from emu_edit.models.sources import refusing
from emu_edit.models.surgery import freeze

PACKAGES = {"int8": "torchao", "float8": "torchao", "nf4": "bitsandbytes"}  # that do it
QUANTISED = tuple(PACKAGES)
ADAPTER = "default"  # its name in peft
FILE = "pytorch_lora_weights.safetensors"  # where stock pipelines look for it


def quantise(net: Any, kind: str) -> None:
    """Hold the weights of a network's linear layers in 8 or 4 bits.

    They are brought back to the network's precision where they are used: memory is saved, not time.
    Each row has its own scale; of nf4 each 64 weights, and the scales themselves are in 8 bits.

    Args:
        net: a frozen network in bfloat16.
        kind: int8, float8 (e4m3), or nf4 (Dettmers et al., section 3).

    Raises:
        InputError: if the package for it is not installed, or cannot do it here.
    """
    try:
        package = import_module(PACKAGES[kind])
    except ImportError as error:
        raise InputError(
            f"denoiser.weights: {kind} needs the package {PACKAGES[kind]}; "
            "pip install 'emu-edit[quantised]'"
        ) from error
    with refusing(f"denoiser.weights: {kind}"):
        if kind == "nf4":
            _to_nf4(net, package)
        else:
            by_name = {"int8": "Int8WeightOnlyConfig", "float8": "Float8WeightOnlyConfig"}
            methods = package.quantization
            methods.quantize_(net, getattr(methods, by_name[kind])())


def _to_nf4(net: Any, package: Any) -> None:
    """Put layers of bitsandbytes in place of linear ones; they compute in bfloat16."""
    parents = [(one, *child) for one in net.modules() for child in one.named_children()]
    for parent, name, layer in parents:
        if isinstance(layer, nn.Linear):
            rows, columns = layer.weight.shape
            held = package.nn.Linear4bit(
                columns, rows, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta"
            )
            held.weight = package.nn.Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4"
            )
            held.bias = layer.bias
            setattr(parent, name, held.to(layer.weight.device))  # which is what packs them
    net.is_loaded_in_4bit = True  # peft asks


def spared_bytes(net: nn.Module, kind: str) -> int:
    """Return how many bytes `quantise` will save of a network that has shapes only.

    A row in 8 bits has a float32 scale (int8 a zero point, too). In nf4 two weights are a byte, 64
    have a scale of a byte, 256 scales a float32, and a layer has tables of 16 and 256 numbers and a
    mean, in float32.
    """
    spared = 0
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            weights, rows = layer.weight.numel(), len(layer.weight)
            scales = ceil(weights / 64)
            held = {
                "int8": weights + 5 * rows,
                "float8": weights + 4 * rows,
                "nf4": ceil(weights / 2) + scales + 4 * (ceil(scales / 256) + 16 + 256 + 1),
            }
            spared += layer.weight.nbytes - held[kind]
    return spared


def add_lora(net: Any, targets: Sequence[str], rank: int, alpha: float | None = None) -> None:
    """Freeze a network of diffusers and hang adapters on it, which alone are trained, in float32.

    W' = W + alpha / rank B A, with A drawn and B zero at the start: step 0 equals the base.

    Args:
        net: the network.
        targets: names, or ends of names, of the linear layers to adapt.
        rank: of A and B, at least 1.
        alpha: above 0; none means `rank`.

    Raises:
        InputError: if a number is out of its range, no layer has such a name, or peft is not
            installed.
    """
    if rank < 1 or not (alpha is None or alpha > 0):
        raise InputError(
            f"denoiser.lora_rank must be at least 1 and lora_alpha above 0, got {rank} and {alpha}"
        )
    try:
        from peft import LoraConfig  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "denoiser.lora_rank needs the package peft; pip install 'emu-edit[lora]'"
        ) from error
    freeze(net)
    layers = [
        name
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear) and any(f".{name}".endswith(f".{end}") for end in targets)
    ]
    if not layers:
        raise InputError(
            f"denoiser.lora_targets: no linear layer of {type(net).__name__} has a name that ends "
            f"with {', '.join(targets)}"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,  # pyright: ignore[reportArgumentType]
        target_modules=layers,
        init_lora_weights="gaussian",
    )
    with _no_merging():
        net.add_adapter(config, ADAPTER)
    _train_adapters(net)


def write_lora(net: Any, folder: Path, prefix: str = "transformer") -> None:
    """Write the adapters under the keys of stock pipelines, with alpha in the file's metadata.

    `prefix` is what the pipeline calls the network: transformer or unet.
    """
    from diffusers.loaders.lora_base import LoraBaseMixin  # slow to import, like peft itself
    from peft.utils import get_peft_model_state_dict  # pyright: ignore[reportMissingImports]

    layers: dict[str, nn.Module | Tensor] = {**get_peft_model_state_dict(net, adapter_name=ADAPTER)}
    LoraBaseMixin._save_lora_weights(
        folder,
        weight_name=FILE,
        lora_layers={prefix: layers},
        lora_metadata={prefix: net.peft_config[ADAPTER].to_dict()},
    )


def read_lora(net: Any, folder: Path, prefix: str = "transformer") -> None:
    """Freeze a network and hang the adapters of `write_lora` on it.

    Raises:
        InputError: if peft is not installed or the file does not fit.
    """
    freeze(net)
    with refusing(f"cannot read {folder / FILE}"), _no_merging():
        from peft.utils import set_peft_model_state_dict  # pyright: ignore[reportMissingImports]

        net.load_lora_adapter(
            str(folder),
            prefix=prefix,
            weight_name=FILE,
            adapter_name=ADAPTER,
            local_files_only=True,
        )
        _train_adapters(net)
        # diffusers has rounded them to the network's precision
        exact = {n.removeprefix(f"{prefix}."): w for n, w in load_file(folder / FILE).items()}
        set_peft_model_state_dict(net, exact, adapter_name=ADAPTER)


@contextmanager
def _no_merging() -> Iterator[None]:
    """Leave unsaid that adapters cannot be merged into quantised weights: nobody does here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
        yield


def _train_adapters(net: nn.Module) -> None:
    for name, parameter in net.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
