"""`fit --plan`: the memory a training would take on each device, and whether so much is free.

Networks are built on torch's meta device, so that they have shapes and no numbers; of pretrained
parts only the configs are read, and nothing is written. `emu_edit.training.memory` does the
counting.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import Namespace
from lightning.pytorch.plugins.precision import (
    DoublePrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
)

from callbacks.ema import Ema
from datamodules.stream.sampler import Layout, fit_layout
from emu_edit.editing.cost import SLACK, free_memory, gibi
from emu_edit.errors import ExitStatus, InputError
from emu_edit.models.interfaces import Denoiser, ImageCodec, TextEncoder
from emu_edit.runs.failures import refusals_of_constructors
from emu_edit.runs.options import TrainOptions, planned
from emu_edit.runs.trainer_cli import UntrainedCLI, quiet
from emu_edit.training.edit_adapter_module import EditAdapterModule
from emu_edit.training.eve_module import EveModule
from emu_edit.training.inversion_module import InversionModule
from emu_edit.training.memory import MemoryPlan, count
from emu_edit.training.sharding import NAME as SHARDED
from emu_edit.training.video_module import VideoModule

# Measured (2 CPU cores, glibc, 64 and 128 px, 16 and 32 pictures): 1.4 to 1.5 times the count, with
# gradient checkpointing, where all is small, 2.0; what is freed is not all used again. With
# MALLOC_MMAP_THRESHOLD_=65536, which gives all of it back, within 4 % of the count itself.
SLACK_CPU = 1.5
SHORT_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
SHARDING = ("fsdp", "deepspeed", "modelparallel")  # in the names of strategies
WHOLE = (
    EditAdapterModule,
    EveModule,
    VideoModule,
    InversionModule,
)  # their picture model is loaded with them

Slot = TypeVar("Slot", Denoiser, TextEncoder, ImageCodec)


@dataclass(frozen=True)
class Place:
    """Where a training is to run.

    Attributes:
        device: of the kind it is to run on; the CPU where this machine has none of the kind.
        missing: whether it has none.
        indices: of the devices on each machine.
        machines: how many.
    """

    device: torch.device
    missing: bool
    indices: tuple[int, ...]
    machines: int

    @staticmethod
    def of(trainer: Namespace) -> "Place":
        """Read the trainer's options; `auto` means what this machine has."""
        name, given = str(trainer.accelerator), trainer.devices
        has_any = torch.accelerator.is_available()
        is_cpu = name == "cpu" or (name == "auto" and not has_any)
        here = torch.accelerator.current_accelerator() if has_any and not is_cpu else None
        most = 1 if here is None else torch.accelerator.device_count()
        match given if isinstance(given, list) else str(given).split(","):
            case ["auto" | "-1"]:
                indices = range(most)
            case [str(number)] if number.isdecimal():
                indices = range(int(number))
            case named:
                indices = [int(index) for index in named if index != ""]
        missing = here is None and not is_cpu
        device = here or torch.device("cpu")
        return Place(device, missing, tuple(indices), int(trainer.num_nodes))

    @property
    def world(self) -> int:
        """How many devices there are in all."""
        return len(self.indices) * self.machines

    @property
    def name(self) -> str:
        """What the devices are, for a line."""
        kind = "accelerator" if self.missing else self.device.type
        return f"{self.world} x {kind}"

    @property
    def slack(self) -> float:
        """How many times its activations a process takes there."""
        return SLACK_CPU if self.device.type == "cpu" and not self.missing else SLACK

    def free(self) -> int | None:
        """Return the bytes that each device can still have here; None where nobody says."""
        if self.missing:
            return None
        if self.device.type == "cpu":
            found = free_memory(self.device)
            return None if found is None else found // len(self.indices)
        here = [index for index in self.indices if index < torch.accelerator.device_count()]
        found = [free_memory(torch.device(self.device.type, index)) for index in here]
        return min((one for one in found if one is not None), default=None)


class PlannedCLI(UntrainedCLI):
    """The module of a config, its networks without numbers; data and trainer stay options."""

    def instantiate_classes(self) -> None:
        """Build the module.

        Raises:
            InputError: if it is none of an EditModule's own networks, or a part cannot be found.
        """
        self.section = self._for_this_run(self.config.clone()).fit
        model = self.section.model
        if model.class_path in {f"{kind.__module__}.{kind.__name__}" for kind in WHOLE}:
            raise InputError(
                f"--plan is for trainings of an EditModule; {model.class_path} begins with a whole "
                "model, which would have to be loaded"
            )
        model.init_args.compile = False  # compiled, it is the same training
        for slot in (Denoiser, TextEncoder, ImageCodec):
            self.parser.add_instantiator(_without_numbers, slot)
        with refusals_of_constructors():
            self.model = self._parser("fit").instantiate_classes(Namespace(model=model))["model"]


def _without_numbers(kind: Callable[..., Slot], *args: Any, **kwargs: Any) -> Slot:
    with torch.device("meta"):
        return kind(*args, **kwargs)


def run_plan(options: TrainOptions) -> int:
    """Print what the training would take on each device, and whether it is there.

    Returns:
        The exit status: 0 where it fits, or where nobody says how much is free; else 71.

    Raises:
        InputError: for anything wrong in options or config.
    """
    with quiet():
        cli = PlannedCLI(planned(options).to_arguments(), Path("run"))
    trainer, place = cli.section.trainer, Place.of(cli.section.trainer)
    strategy = str(trainer.strategy).lower()
    if strategy != SHARDED and any(name in strategy for name in SHARDING):
        raise InputError(
            f"--plan counts a whole copy of the model on each device, and trainer.strategy="
            f"{trainer.strategy} parts it; plan without it, where all takes more, or with {SHARDED}"
        )
    layout, side = _sizes(cli.section, place)
    with quiet():
        plan = count(
            cli.model,
            pictures=layout.micro,
            side=side,
            precision=precision_of(trainer.precision, place.device),
            device=place.device,
            slack=place.slack,
            has_average=_has_average(trainer.callbacks),
            has_buckets=strategy != SHARDED and (layout.world > 1 or "ddp" in strategy),
            shards=layout.world if strategy == SHARDED else 1,
        )
    fits, verdict = judged(plan, place, layout, side)
    sys.stdout.write(
        f"on each of {place.name}: {layout.micro} pictures of {side}x{side} pixels at a time, "
        f"{_precision_name(trainer.precision)}\n{plan}\n{verdict}\n"
    )
    return ExitStatus.done if fits else ExitStatus.out_of_memory


def precision_of(given: str | int | None, device: torch.device) -> Precision:
    """Return Lightning's plugin for a trainer's precision; float16 takes what bfloat16 takes.

    Raises:
        InputError: for one that needs another library.
    """
    match _precision_name(given):
        case "32-true":
            return Precision()
        case "16-mixed" | "bf16-mixed":
            return MixedPrecision("bf16-mixed", device.type)
        case "16-true" | "bf16-true":
            return HalfPrecision("bf16-true")
        case "64-true":
            return DoublePrecision()
        case other:
            raise InputError(
                f"--plan does not know trainer.precision={other}; it counts "
                f"{', '.join(SHORT_PRECISIONS.values())}, 16-true and bf16-true"
            )


def _precision_name(given: str | int | None) -> str:
    return "32-true" if given is None else SHORT_PRECISIONS.get(str(given), str(given))


def _has_average(callbacks: list[Namespace] | None) -> bool:
    path = f"{Ema.__module__}.{Ema.__name__}"
    return any(callback.class_path == path for callback in callbacks or [])


def _sizes(section: Namespace, place: Place) -> tuple[Layout, int]:
    """Return how a batch is split, and the side of a picture."""
    data, accumulate = section.data, section.trainer.accumulate_grad_batches
    values = {} if data is None else vars(data.init_args)
    for name in ("global_batch", "image_size"):
        if not isinstance(values.get(name), int):
            kind = "no data" if data is None else data.class_path
            raise InputError(f"--plan needs a data.{name}, and the config has {kind}, without one")
    layout = fit_layout(
        values["global_batch"],
        values.get("micro_batch"),
        accumulate=accumulate,
        world=place.world,
    )
    return layout, values["image_size"]


def judged(plan: MemoryPlan, place: Place, layout: Layout, side: int) -> tuple[bool, str]:
    """Say in one line whether it fits; if not, what to lower."""
    name, states = plan.optimizer
    needed, free = gibi(plan.total()), place.free()
    if states is None:
        needed = f"at least {needed} (what {name} remembers is not counted)"
    if place.missing:
        return True, (
            f"needs {needed} on each device, counted as a CPU computes; this machine has no such "
            "device, so whether it fits is not known"
        )
    if free is None:
        return True, f"needs {needed} on each device; how much is free there nobody says"
    if plan.total() <= free:
        fits = "may fit" if states is None else "fits"
        return True, f"{fits}: {needed} of the {gibi(free)} that are free"
    share = layout.global_batch // layout.world
    fitting = [
        fewer
        for fewer in range(1, layout.micro)
        if share % fewer == 0 and plan.total(fewer / layout.micro) <= free
    ]
    if fitting:
        advice = f"data.micro_batch to {fitting[-1]}, which leaves optimizer steps as they are"
    elif plan.fixed < free:
        advice = (
            f"data.image_size, now {side}, and data.micro_batch to 1; or set "
            "model.denoiser.gradient_checkpointing true"
        )
    else:
        advice = (
            f"the {gibi(plan.fixed)} without any picture: a smaller model, trainer.precision "
            "bf16-true, or no callbacks.ema.Ema"
        )
    return False, f"does not fit: {needed}, and {gibi(free)} are free; lower {advice}"
