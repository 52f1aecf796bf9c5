"""How weights are learnt (AdamW, warm-up, half a cosine down to zero), and their running mean.

Weight decay pulls weights towards zero, which makes sense for matrices that multiply; biases, norms
and tables of vectors (tokens, tasks) are left alone. Another optimizer, one whose memory is in
8 bits, say, is named by its class (Dettmers et al. 2022, arXiv:2110.02861). The mean is pure
functions over dictionaries of tensors, which know no callback; frozen parts are never copied,
because with a pretrained text encoder and codec they would be most of the memory.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from emu_edit.errors import InputError, closest
from emu_edit.models.networks import TaskEmbedding
from emu_edit.models.sources import first_line, refusing
from emu_edit.training.sharding import local

TABLES = (nn.Embedding, TaskEmbedding)
MEANS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of each weight, besides its count of steps
BETAS = (0.9, 0.999)
OURS = ("lr", "weight_decay", "betas")  # arguments that are settings


@dataclass(frozen=True)
class OptimizerSettings:
    """How the weights are learnt.

    Attributes:
        lr: peak learning rate, reached at the end of the warm-up.
        weight_decay: of weight matrices and convolutions only.
        betas: decay of AdamW's two running means, and of another optimizer's that has them.
        warmup_steps: optimizer steps over which the rate rises from near 0; 0 starts at the peak.
        kind: where another optimizer's class is, `bitsandbytes.optim.AdamW8bit` say; none means
            torch's AdamW, fused.
        arguments: what that class takes besides, by name.
    """

    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = BETAS
    warmup_steps: int = 500
    kind: str | None = None
    arguments: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse values no optimizer can use, and an optimizer that is not there."""
        if not self.lr > 0:
            raise InputError(f"optimizer.lr must be above 0, got {self.lr!r}")
        if not self.weight_decay >= 0:
            raise InputError(
                f"optimizer.weight_decay must be at least 0, got {self.weight_decay!r}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas must be in [0, 1), got {list(self.betas)}")
        if self.warmup_steps < 0:
            raise InputError(f"optimizer.warmup_steps must be at least 0, got {self.warmup_steps}")
        _check_arguments(self)


def find_optimizer(path: str) -> type[torch.optim.Optimizer]:
    """Return the class of an optimizer by its import path.

    Raises:
        InputError: if its library is not installed, has no such name, or it is no optimizer.
    """
    place, _, name = path.rpartition(".")
    where = f"optimizer.kind={path}"
    if not place:
        raise InputError(f"{where} needs the module of the class: torch.optim.SGD")
    try:
        module = import_module(place)
    except ModuleNotFoundError as error:
        raise InputError(f"{where}: no module {error.name}; install its package") from error
    except Exception as error:
        words = first_line(error)
        raise InputError(f"{where}: {place} cannot be loaded: {words}") from error
    found = getattr(module, name, None)
    if found is None:
        raise InputError(f"{where}: {place} has no {name}.{closest(name, dir(module))}")
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise InputError(f"{where} is no optimizer, which would derive from torch.optim.Optimizer")
    return found


def _check_arguments(settings: OptimizerSettings) -> None:
    """Refuse an optimizer that is not there, and what its constructor does not take."""
    if settings.kind is None:
        if settings.arguments:
            raise InputError("optimizer.arguments need optimizer.kind, the class they are for")
        return
    takes = signature(find_optimizer(settings.kind).__init__).parameters
    takes_any = any(one.kind == Parameter.VAR_KEYWORD for one in takes.values())
    where = f"optimizer.kind={settings.kind}"
    for name in settings.arguments or {}:
        if name in OURS:
            raise InputError(f"optimizer.arguments.{name}: give it as optimizer.{name}")
        if name not in takes and not takes_any:
            raise InputError(f"{where} takes no {name}.{closest(name, list(takes))}")
    if "lr" not in takes:
        raise InputError(f"{where} takes no lr, which warm-up and cosine set")
    if "betas" not in takes and tuple(settings.betas) != BETAS:
        raise InputError(f"{where} takes no betas; leave out optimizer.betas")
    if "weight_decay" not in takes and settings.weight_decay > 0:
        raise InputError(f"{where} takes no weight_decay; set optimizer.weight_decay to 0")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Split the trainable parameters into those that decay and those that don't.

    Decays: everything with two or more axes outside embedding tables. Does not: biases, norms,
    tables. A parameter shared by two modules counts once and does not decay when one of them is a
    table.
    """
    tables = {
        id(p)
        for m in module.modules()
        if isinstance(m, TABLES)
        for p in m.parameters(recurse=False)
    }
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in tables]
    kept = [p for p in trainable if p.ndim < 2 or id(p) in tables]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Build the optimizer of the settings over the trainable parameters of `module`.

    Raises:
        InputError: if nothing in `module` is trainable, or the optimizer's class refuses.
    """
    if settings.kind is None:
        return adamw(module, settings)
    if _is_parted(module):
        raise InputError(
            f"optimizer.kind={settings.kind}: fsdp2 trains with torch's AdamW alone; leave out "
            "model.optimizer.kind, or give --trainer.strategy ddp"
        )
    found = find_optimizer(settings.kind)
    takes = signature(found.__init__).parameters
    told = {name: getattr(settings, name) for name in ("lr", "betas") if name in takes}
    groups = _groups(module, settings)
    if settings.kind.startswith("bitsandbytes."):
        # its first step stores convolutions so, and their sums would round otherwise after resuming
        for parameter in trainable(module).values():
            parameter.data = parameter.data.contiguous()
    with refusing(f"optimizer.kind={settings.kind}"):
        return found(groups, **told, **(settings.arguments or {}))


def _is_parted(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def _groups(module: nn.Module, settings: OptimizerSettings) -> list[dict]:
    groups = parameter_groups(module, settings.weight_decay)
    if not groups:
        raise InputError("nothing to train: every parameter of the model is frozen")
    return groups


class LocalAdamW(torch.optim.AdamW):
    """AdamW of what each rank has of the weights: a step goes weight by weight, wherever they are.

    The fused step takes no weights in parts beside whole ones.
    """

    def _init_group(self, group: dict, *lists: list[Tensor]) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        has_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = map(local, tensors)
        return has_complex


def adamw(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Build AdamW in its fused form over the trainable parameters of `module`.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.

    Raises:
        InputError: if nothing in `module` is trainable.
    """
    groups = _groups(module, settings)
    kind = LocalAdamW if _is_parted(module) else torch.optim.AdamW
    optimizer = kind(groups, lr=settings.lr, betas=settings.betas, fused=True)
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    optimizer.register_load_state_dict_post_hook(partial(_fit_memory, names=names))
    return optimizer


def _fit_memory(optimizer: torch.optim.Optimizer, *, names: Mapping[Tensor, str]) -> None:
    """Refuse running means that are not of their weights; torch only counts the weights.

    Those that lie in memory in another order than their weights (channels-last or not) are laid out
    as these are, because the fused step goes through both as they lie.

    Raises:
        ValueError: as torch does where it counts, naming the weight.
    """
    for parameter, memory in optimizer.state.items():
        shape = tuple(parameter.shape)
        for name in MEANS if memory else ():
            mean = memory.get(name)
            given = tuple(mean.shape) if isinstance(mean, Tensor) else type(mean).__name__
            if given != shape:
                raise ValueError(
                    f"the optimizer's {name} of {names[parameter]} is {given}, needs {shape}"
                )
            if mean.stride() != parameter.stride():
                memory[name] = torch.empty_like(parameter, dtype=mean.dtype).copy_(mean)


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Return the factor of the peak rate that optimizer step `step` (0, 1, …) uses.

    step < warmup:  (step + 1) / (warmup + 1)
    else:           (1 + cos(pi (step - warmup) / (total - warmup))) / 2, and 0 from `total_steps`
    on

    With warmup >= total the peak is never reached. Source: Loshchilov & Hutter 2017,
    arXiv:1608.03983, eq. 5.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def warmup_cosine_schedule(
    optimizer: torch.optim.Optimizer, *, warmup_steps: int, total_steps: int | float
) -> LambdaLR:
    """Attach `warmup_cosine` to an optimizer, stepped once per optimizer step.

    The shape comes from the present configuration, not from a checkpoint: a resumed run with more
    steps gets the longer cosine.

    Raises:
        InputError: if the number of steps is not finite.
    """
    if not math.isfinite(total_steps):
        raise InputError(
            "the learning rate needs to know how long training is, got no limit; "
            "set trainer.max_epochs"
        )
    total = int(total_steps)
    return LambdaLR(
        optimizer, lambda step: warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total)
    )


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
    weights = [local(p.detach()).to(torch.float32) for p in trainable(module).values()]
    # one kernel for all weights; torch's own optimizers and averages are built on it
    torch._foreach_lerp_([*map(local, average.values())], weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


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
