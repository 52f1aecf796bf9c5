"""Errors of a training in one line a user can act on: a wrong config, no memory, a lost process.

jsonargparse complains about a config or a flag with every type it tried; a person needs the key,
the innermost reason, and the name they probably meant. torch has a class of its own for
accelerators without memory, and a plain RuntimeError for the CPU and for libraries that could not
set up their workspace, so its message is searched. A process that is killed reports nothing; the
others learn of it by a connection that breaks, which torch calls an error of the network.
"""

import inspect
import re
import signal
import time
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib import import_module
from itertools import takewhile
from typing import Any, get_args

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from emu_edit.errors import ExitStatus, InputError, closest
from emu_edit.training.checkpoint_io import in_words

UNKNOWN_KEY = re.compile(r"(?:accept option|Option) '([^']+)'|unrecognized arguments: --([^\s=]+)")
CLASS_PATH = re.compile(r"given class_path '([^']+)'")
TRIED = ("Does not validate", "- Does not validate", "Subtypes:", "Errors:", "Given value type")
PARSER_KEY = re.compile(r'Parser key "([^"]+)"')


def one_line(message: str, known: Iterable[str]) -> str:
    """Return the key, the innermost reason and the nearest known name in one line.

    Args:
        message: of jsonargparse, over many lines.
        known: dotted names of all options of the command.
    """
    keys = ".".join(dict.fromkeys(PARSER_KEY.findall(message)))
    place = f"{keys}: " if keys else ""
    hint = _hint(message, known)
    return f"{place}{_reason(message.splitlines())}.{hint} See --help-all or --print_config"


def _reason(lines: list[str]) -> str:
    """Return the innermost complaint, without the list of types that were tried."""
    where = ""
    problems = [i for i, line in enumerate(lines) if "Problem with given class_path" in line]
    if problems:
        head, *rest = lines[problems[-1] :]
        where = " ".join(f"(in {path})" for path in CLASS_PATH.findall(head))
        lines = list(
            takewhile(lambda line: not line.strip() or _indent(line) > _indent(head), rest)
        )
    reasons = [_plain(line) for line in lines if not line.strip().startswith(TRIED)]
    return " ".join([", ".join(dict.fromkeys(filter(None, reasons))), where]).strip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _plain(line: str) -> str:
    """Strip what only repeats: bullets, the key, and how Python writes a class."""
    line = PARSER_KEY.sub("", line).strip().strip("-: ")
    line = re.sub(r"<(?:class|enum) '([\w.]+)'>", r"\1", line)
    return "" if "NoneType" in line else line.rstrip(".")


def _hint(message: str, known: Iterable[str]) -> str:
    """Suggest the known name nearest to an unknown key."""
    unknown = UNKNOWN_KEY.search(message)
    if unknown is None:
        return ""
    name = (unknown[1] or unknown[2]).rpartition(".")[2]
    last_parts = {option.rpartition(".")[2] for option in known}
    classes = [_parameters(path) for path in CLASS_PATH.findall(message)]
    return closest(name, sorted(last_parts.union(*classes)))


def _parameters(class_path: str) -> set[str]:
    """Return the names a class takes, and those of the records among its parameters."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):  # a misspelt class has no names to suggest
        return set()
    names = set()
    for parameter in inspect.signature(found).parameters.values():
        names.add(parameter.name)
        names.update(_fields(parameter.annotation))
    return names


def _fields(annotation: Any) -> set[str]:
    records = [kind for kind in (annotation, *get_args(annotation)) if is_dataclass(kind)]
    return {field.name for record in records for field in fields(record)}


_NO_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator: can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED"
)
_ASKED = re.compile(r"ried to allocate ([\d.]+) (bytes|[KMGT]iB)")


class OutOfMemoryError(InputError):
    """The pictures of a step do not fit into the memory of the device."""

    status = ExitStatus.out_of_memory


def out_of_memory(
    error: Exception,
    trainer: Trainer,
    *,
    global_batch: int | None,
    batch_size: int | None,
    image_size: int | None,
    can_plan: bool = False,
) -> OutOfMemoryError | None:
    """Word an error of training or measuring; None if it is about something else.

    Args:
        error: what the trainer raised.
        trainer: whose step it was.
        global_batch: pictures of an optimizer step, over all devices; None if the data module has
            a batch of its own for each device.
        batch_size: pictures on one device where there is no global batch.
        image_size: side of the pictures in pixels.
        can_plan: whether `fit --plan` can count this training.
    """
    is_ours = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )
    if not is_ours:
        return None
    found = _ASKED.search(str(error))
    asked = "" if found is None else f" ({_amount(*found.groups())} were asked for)"
    if global_batch is None:
        micro, advice = batch_size, "lower data.batch_size or data.image_size"
    else:
        micro, advice = _micro_batch(global_batch, trainer)
    advice += "; the same command with --plan tells what fits" if can_plan else ""
    pictures = "" if image_size is None else f" of {image_size}x{image_size} pixels"
    return OutOfMemoryError(
        f"no memory was left on {trainer.strategy.root_device} at optimizer step "
        f"{trainer.global_step}, with {micro} pictures{pictures} at a time{asked}; {advice}"
    )


def _micro_batch(global_batch: int, trainer: Trainer) -> tuple[int, str]:
    """Return how many pictures one device has at a time, and what would make it fewer."""
    micro = global_batch // (trainer.world_size * trainer.accumulate_grad_batches)
    if micro == 1:
        return 1, "lower data.image_size, or set trainer.precision: bf16-mixed"
    return micro, (
        f"set data.micro_batch below {micro}, which leaves optimizer steps as they are, or lower "
        "data.image_size"
    )


def _amount(number: str, unit: str) -> str:
    return in_words(int(number)) if unit == "bytes" else f"{number} {unit}"


_NOT_LOGGED = "Early stopping conditioned on metric"  # of a callback that waits for another number

# the first two are gloo's words, the last NCCL's for ncclRemoteError
_BROKEN_LINE = re.compile(
    r"Connection reset by peer|Connection closed by peer|remote process exited or there was a"
)
_PATIENCE = 2.0  # seconds until the system tells how a child has ended; the line breaks first


class LostRankError(InputError):
    """Another process of the training has ended without a message, or cannot be reached."""

    status = ExitStatus.storage


def lost_rank(error: Exception, trainer: Trainer) -> LostRankError | None:
    """Word an error of training or measuring; None if it is about something else.

    Args:
        error: what the trainer raised.
        trainer: whose step it was.
    """
    if not isinstance(error, RuntimeError) or trainer.world_size == 1:
        return None
    if (found := _BROKEN_LINE.search(str(error))) is None:
        return None
    ended = _how_children_ended(trainer) or (
        "another rank has ended or cannot be reached; its own output, above or on its machine, "
        "may tell why"
    )
    return LostRankError(
        f"rank {trainer.global_rank} lost its partners at optimizer step {trainer.global_step} "
        f"({found[0]}): {ended}; start again with --resume auto to go on from the last checkpoint"
    )


def wrong_trainer(error: Exception) -> InputError:
    """Word what Lightning says of a trainer's options or of a launcher's missing variable."""
    if isinstance(error, KeyError):
        return InputError(
            f"trainer: the environment has variables of SLURM but no {error.args[0]}, so srun did "
            "not start this process; begin the command with srun, or unset SLURM_NTASKS to train "
            "without SLURM"
        )
    return InputError(f"trainer: {' '.join(str(error).split())}")


def is_about_the_trainer(error: Exception) -> bool:
    """Tell a wrong set-up from a defect: Lightning has a class for it, and exceptions to that."""
    if isinstance(error, KeyError):
        return str(error.args[0]).startswith("SLURM_")
    return isinstance(error, MisconfigurationException) or str(error).startswith(_NOT_LOGGED)


@contextmanager
def refusals_of_constructors() -> Iterator[None]:
    """Raise what a constructor itself says: jsonargparse hides it under the types it tried.

    Raises:
        InputError: if a constructor refuses its arguments.
    """
    try:
        yield
    except (ArgumentError, TypeError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None


def check_accelerator(name: str) -> None:
    """Refuse a graphics card that this machine does not have.

    Raises:
        InputError: naming the option.
    """
    has_mps = torch.backends.mps.is_available()
    if name in {"gpu", "cuda"} and not (torch.cuda.is_available() or (has_mps and name == "gpu")):
        raise InputError(
            f"trainer.accelerator={name}: torch finds no graphics card on this machine (nvidia-smi "
            "tells whether the driver does); --trainer.accelerator cpu trains without, slowly"
        )


def precision_here(precision: str | int | None, accelerator: str) -> str | int | None:
    """Return the precision to train in: float32 where bfloat16 is asked for and would crawl.

    A CPU without instructions for it computes the convolutions of bf16-mixed ten times slower than
    those of float32 (measured: AVX2). Weights are float32 in both, so checkpoints fit either.
    """
    finds_none = accelerator == "auto" and not torch.accelerator.is_available()
    on_cpu = accelerator == "cpu" or finds_none
    if precision != "bf16-mixed" or not on_cpu or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return precision
    return "32-true"


@contextmanager
def closing_connections() -> Iterator[None]:
    """Close the connections between the processes of a training when it ends, however it ends.

    Lightning 2.6 does so for NCCL alone. A gloo thread that is left when the interpreter goes
    aborts the process ("terminate called without an active exception", status 134), though all is
    done and saved.
    """
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _how_children_ended(trainer: Trainer) -> str | None:
    """Say how a rank that this process has started failed; None if none did."""
    launcher = trainer.strategy.launcher
    children = launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []
    end = time.monotonic() + _PATIENCE
    while children:
        for local_rank, child in enumerate(children, start=1):
            if (status := child.poll()) is not None and status != 0:
                return f"rank {trainer.global_rank + local_rank} {_ending(status)}"
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return None


def _ending(status: int) -> str:
    """Say how a process ended, by the status `Popen.poll` gives."""
    if status > 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    hint = " (the system does this to a process when memory is short)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"
