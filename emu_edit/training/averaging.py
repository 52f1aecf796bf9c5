"""A running mean of the trainable weights, as pure functions over dictionaries of tensors.

Which callback keeps the mean, and when it is used, is not known here. Frozen parts are never
copied: with a pretrained text encoder and codec they would be most of the memory.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from emu_edit.errors import InputError

EMA_STATE_KEY = "emu_edit.ema"
"""The name of the averaged weights in checkpoints: `checkpoint["callbacks"][EMA_STATE_KEY]`."""


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    """Return float32 copies of the trainable parameters, on their devices."""
    return {name: p.detach().to(torch.float32, copy=True) for name, p in trainable(module).items()}


def decay_at(num_updates: int, decay: float) -> float:
    """Return the decay of an update (0, 1, …), small at first so that the start is forgotten.

    min(decay, (1 + n) / (10 + n))

    Source: TensorFlow's `ExponentialMovingAverage(num_updates=…)`, documented formula.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


@torch.no_grad()
def update(average: Mapping[str, Tensor], module: nn.Module, decay: float) -> None:
    """Move the average towards the module's present weights, in place.

    a = decay a + (1 - decay) w
    """
    weights = [p.detach().to(torch.float32) for p in trainable(module).values()]
    # one kernel for all weights; torch's own optimizers and averages are built on it
    torch._foreach_lerp_(list(average.values()), weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


def check_matches(
    average: Mapping[str, Tensor], module: nn.Module, *, what: str = "averaged weights"
) -> None:
    """Refuse averaged weights (or others, `what`) of another model, naming the first difference.

    Raises:
        InputError: if names or shapes differ from the module's trainable parameters.
    """
    shapes = {name: tuple(p.shape) for name, p in trainable(module).items()}
    given = {name: tuple(tensor.shape) for name, tensor in average.items()}
    for name in sorted(shapes.keys() | given.keys()):
        if shapes.get(name) != given.get(name):
            raise InputError(
                f"{what} are of another model: {name} is {given.get(name, 'absent')} in "
                f"the checkpoint, {shapes.get(name, 'absent or frozen')} in the model; use the "
                "config the checkpoint was trained with"
            )


@contextmanager
def with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Lend the module other weights; its own come back bit by bit, also after an exception."""
    check_matches(weights, module)
    parameters = trainable(module)
    own = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        _copy_into(parameters, weights)
        yield
    finally:
        _copy_into(parameters, own)


@torch.no_grad()
def _copy_into(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
