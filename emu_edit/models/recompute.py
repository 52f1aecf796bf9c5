"""Gradient checkpointing of diffusers whose recomputation sees what the first run saw.

The backward pass runs a layer again when the call that a context was set for is over, perhaps in a
thread of autograd's.
"""

from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class _Remembering:
    """The usual checkpointing, in a copy of the context; a compiler traces the recomputation."""

    usual: Callable[..., Tensor]

    def __call__(self, layer: Callable[..., Tensor], *inputs: object) -> Tensor:
        if torch.compiler.is_compiling():
            return self.usual(layer, *inputs)
        return self.usual(_InContext(layer, copy_context()), *inputs)


@dataclass(frozen=True)
class _InContext:
    layer: Callable[..., Tensor]
    context: Context

    def __call__(self, *inputs: object) -> Tensor:
        return self.context.run(self.layer, *inputs)


def remember_in(base: nn.Module) -> None:
    """Let gradient checkpointing, wherever diffusers has it on, remember the context of a call."""
    for module in base.modules():
        usual = vars(module).get("_gradient_checkpointing_func")
        if usual is not None and not isinstance(usual, _Remembering):
            vars(module)["_gradient_checkpointing_func"] = _Remembering(usual)
