"""What an edit will take, known before it starts: memory and work are counted, speed is measured.

The networks run once without numbers (torch's fake tensors) at the size of the picture: every
operation and every tensor is there, attention over all cells included, but nothing is computed or
stored. How fast this machine is, a short run at a small size tells.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from weakref import finalize

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from emu_edit.diffusion.windows import tiles
from emu_edit.errors import InputError
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.networks import EditNetworks
from emu_edit.terminal import plural

GIBI = 2**30
LONG = 60.0  # seconds, ours
# Ours: weights times cells below which an edit takes seconds, as counting would
SMALL = 1e11
LONG_ENOUGH = 0.2  # seconds of a run that tell a speed
MOST_CELLS = 2**14  # of the largest run that is timed
# Ours: libraries need room to work in; on the CPU, 64 to 1024 px, it was 1.1 to 1.5 times the count
SLACK = 1.3


@dataclass(frozen=True)
class Forecast:
    """What an edit will take.

    Attributes:
        seconds: from the picture to the result.
        bytes: of memory, on the networks' device, beside the weights.
    """

    seconds: float
    bytes: int

    @property
    def is_long(self) -> bool:
        """Whether a person wants to know beforehand."""
        return self.seconds > LONG

    def __str__(self) -> str:
        hours, minutes = self.seconds / 3600, max(round(self.seconds / 60), 1)
        time = f"{hours:.1f} hours" if hours >= 2 else plural(minutes, "minute")
        return f"about {time} and {gibi(self.bytes)} of memory"

    def refuse_beyond(self, device: torch.device, size: str, trained: int) -> None:
        """Refuse an edit for which a device has not the memory.

        Args:
            device: of the networks.
            size: of the picture, in words.
            trained: side in pixels that is proposed instead.

        Raises:
            InputError: with both numbers.
        """
        free = free_memory(device)
        if free is not None and self.bytes > free:
            raise InputError(
                f"an edit of {size} takes about {gibi(self.bytes)} of memory, here "
                f"{gibi(free)} are free; edit a smaller copy: --size {trained}"
            )


@dataclass(frozen=True)
class Cost:
    """What editing at one size takes, whatever the number of steps.

    Attributes:
        once: seconds of encoding and decoding.
        step: seconds of a step of the sampler.
        bytes: of memory at most, at any moment.
    """

    once: float
    step: float
    bytes: int

    def forecast(self, num_steps: int) -> Forecast:
        """Say what an edit of so many steps takes."""
        return Forecast(self.once + num_steps * self.step, self.bytes)


class Costs:
    """What edits take with these networks, counted and measured once for a size, in about a second.

    Args:
        networks: in eval mode, on their device.
    """

    def __init__(self, networks: EditNetworks) -> None:
        self.networks = networks
        self._known: dict[tuple[int, int, int, int | None, torch.device], Cost] = {}

    def forecast(
        self, cells: tuple[int, int], *, rows: int, num_steps: int, tile: int | None = None
    ) -> Forecast | None:
        """Say what an edit takes; None where it takes about as long as counting would.

        Args:
            cells: height and width of the latent.
            rows: of the batch that the denoiser gets, one for each branch of guidance.
            num_steps: of the sampler.
            tile: side in cells of the tiles that the denoiser gets one by one, if it does.
        """
        height, width = cells
        weights = sum(weight.numel() for weight in self.networks.denoiser.parameters())
        # a convolution's weight meets every cell once at most
        if weights * height * width * rows * num_steps <= SMALL:
            return None
        key = (height, width, rows, tile, self.networks.device)
        if key not in self._known:
            self._known[key] = measure(self.networks, height, width, rows=rows, tile=tile)
        return self._known[key].forecast(num_steps)


def measure(
    networks: EditNetworks, height: int, width: int, *, rows: int, tile: int | None = None
) -> Cost:
    """Count the work and the memory of an edit, and measure the speed.

    Args:
        networks: in eval mode, on their device.
        height: of the latent, in cells.
        width: of the latent, in cells.
        rows: of the batch that the denoiser gets, one for each branch of guidance.
        tile: side in cells of the tiles that the denoiser gets one by one, if it does.
    """
    codec, factor = networks.codec, networks.codec.factor
    picture, latent = (3, height * factor, width * factor), (codec.latent_channels, height, width)
    encode, encode_bytes = _count(lambda: codec.posterior(_zeros(networks, (1, *picture))))
    decode, decode_bytes = _count(lambda: codec.decode(_zeros(networks, (1, *latent))))
    count = 1
    if tile is not None:
        count = len(tiles((height, width), tile))
        height, width = min(height, tile), min(width, tile)
    step, step_bytes = _count(lambda: _step(networks, height, width, rows))
    speed = _speed(networks, height, width, rows)
    peak = max(step_bytes, encode_bytes, decode_bytes)
    return Cost((encode + decode) / speed, count * step / speed, round(peak * SLACK))


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes can still be had on a device; None where nobody says."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    found = [_left_in_group(), _left_in_machine()]
    return min((left for left in found if left is not None), default=None)


def gibi(count: int) -> str:
    """Write bytes for people: 3.2 GiB."""
    return f"{count / GIBI:.1f} GiB"


def stored_in(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that hold a tensor's numbers: several, of one in 8 bits."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from stored_in(getattr(tensor, name))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes that tensors are held in, which may be fewer than their type says."""
    return sum(part.nbytes for tensor in tensors for part in stored_in(tensor))


def _left_in_machine(file: Path = Path("/proc/meminfo")) -> int | None:
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text(file))
    return int(found[1]) * 1024 if found else None


def _left_in_group(
    name: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return what a container or a job of Slurm may still take (control groups, version 2)."""
    folder = root / _text(name).rpartition("::")[2].strip().lstrip("/")
    most, used = (_text(folder / f"memory.{entry}").strip() for entry in ("max", "current"))
    cached = re.search(r"inactive_file (\d+)", _text(folder / "memory.stat"))
    if not most.isdecimal() or not used.isdecimal():  # "max", or no such group
        return None
    return int(most) - int(used) + (int(cached[1]) if cached else 0)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _speed(networks: EditNetworks, height: int, width: int, rows: int) -> float:
    """Measure operations a second, with a step whose sides are doubled until it takes long."""
    h, w = min(8, height), min(8, width)
    seconds = _run(networks, h, w, rows)
    while seconds < LONG_ENOUGH and (h, w) != (height, width) and 4 * h * w * rows <= MOST_CELLS:
        h, w = min(2 * h, height), min(2 * w, width)
        seconds = _run(networks, h, w, rows)
    return _count(lambda: _step(networks, h, w, rows))[0] / seconds


def _run(networks: EditNetworks, height: int, width: int, rows: int) -> float:
    """Time a step, the quickest of three: the first of a size prepares what the others find."""

    def timed() -> float:
        start = perf_counter()
        with torch.no_grad():
            _step(networks, height, width, rows).sum().item()  # waits for an accelerator
        return perf_counter() - start

    return min(timed() for _ in range(3))


def _step(networks: EditNetworks, height: int, width: int, rows: int) -> Tensor:
    denoiser = networks.denoiser
    z = _zeros(networks, (rows, denoiser.latent_channels, height, width))
    length = networks.text_encoder.max_tokens
    mask = torch.ones(rows, length, dtype=torch.bool, device=z.device)
    text = TextFeatures(_zeros(networks, (rows, length, denoiser.text_dim)), mask)
    v_task = _zeros(networks, (rows, denoiser.task_dim))
    steps = torch.zeros(rows, dtype=torch.int64, device=z.device)
    return denoiser(z, steps, Conditioning(text=text, z_source=z, v_task=v_task))


def _zeros(networks: EditNetworks, shape: tuple[int, ...]) -> Tensor:
    weight = next(networks.denoiser.parameters())
    return torch.zeros(shape, device=weight.device, dtype=weight.dtype)


def _count(run: Callable[[], object]) -> tuple[int, int]:
    """Count the operations of a run, and the bytes of its tensors at any moment at most."""
    counter = FlopCounterMode(
        display=False,
        # torch counts attention on accelerators only
        custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention},
    )
    live = LiveBytes()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), counter, live:
        run()
    return counter.get_total_flops(), live.most


def _attention(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: object, **__: object
) -> int:
    return sdpa_flop_count(query, key, value)


class LiveBytes(TorchDispatchMode):
    """Adds up the tensors that operations make, as long as each lives."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation and look at what it made."""
        made = func(*args, **({} if kwargs is None else kwargs))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        self.most = max(self.most, self.now)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known[storage] = True
            self.now += storage.nbytes()
            finalize(storage, self._give_up, storage.nbytes()).atexit = False

    def _give_up(self, count: int) -> None:
        self.now -= count
