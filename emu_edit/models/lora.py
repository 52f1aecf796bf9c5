"""Low-rank adapters of a frozen network, in the file that stock pipelines of diffusers load.

The frozen network may be held in 8 bits. Source: Hu et al. 2021, arXiv:2106.09685, through peft, as
diffusers does it; Dettmers et al. 2023, arXiv:2305.14314, of adapters on a quantised base, through
torchao.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from emu_edit.errors import InputError
from emu_edit.models.sources import refusing
from emu_edit.models.surgery import freeze

QUANTISED = ("int8", "float8")
ADAPTER = "default"  # its name in peft
FILE = "pytorch_lora_weights.safetensors"  # where stock pipelines look for it


def quantise(net: nn.Module, kind: str) -> None:
    """Hold the weights of a network's linear layers in 8 bits, each row with its own scale.

    They are brought back to the network's precision where they are used: memory is saved, not time.

    Args:
        net: a frozen network in bfloat16.
        kind: int8, or float8 (e4m3).

    Raises:
        InputError: if torchao is not installed, or cannot do it.
    """
    try:
        from torchao import quantization  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"denoiser.weights: {kind} needs the package torchao; pip install 'emu-edit[quantised]'"
        ) from error
    by_name = {
        "int8": quantization.Int8WeightOnlyConfig,
        "float8": quantization.Float8WeightOnlyConfig,
    }
    with refusing(f"denoiser.weights: {kind}"):
        quantization.quantize_(net, by_name[kind]())


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
    """Leave unsaid that adapters of 8-bit weights cannot be merged into them: nobody does here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
        yield


def _train_adapters(net: nn.Module) -> None:
    for name, parameter in net.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
