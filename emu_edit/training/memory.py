"""The memory a training takes on one device, counted without computing or storing anything.

One micro-batch goes forward and backward through the networks as fake tensors, which have a shape
and a type and no numbers, and the optimizer takes a step: every tensor of the training is there,
attention and gradient checkpointing as they are. (Another optimizer than AdamW steps for one real
weight of each shape.) What autograd keeps for the backward pass is
counted where it keeps it (`saved_tensors_hooks`), what lives beside it at the worst moment by
`LiveBytes`. Not counted: loader processes, pictures in pinned memory, validation.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from emu_edit.batch import EditBatch
from emu_edit.editing.cost import GIBI, LiveBytes, bytes_of
from emu_edit.training.draws import DrawnBatch
from emu_edit.training.module import EditModule
from emu_edit.training.optim import adamw, make_optimizer, trainable
from emu_edit.training.sharding import blocks_of, network_of

Result = TypeVar("Result")


# Of a sharded network lie whole on a device at worst: what is outside of blocks, a block and the
# next, and the gradients of one, twice while they are exchanged. Read in FSDP2, not measured.
BLOCKS_GATHERED = 4


@dataclass(frozen=True)
class Part:
    """The weights of a network that learn, or those that do not: how many, and their bytes here."""

    name: str
    is_trained: bool
    weights: int
    bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """What a training takes on one device, in bytes.

    Attributes:
        parts: the weights.
        gradients: of the weights that learn.
        optimizer: what it remembers of them, by its class; None where that cannot be told.
        average: the copy of `callbacks.ema.Ema`.
        buckets: in which ranks exchange gradients.
        kept: by autograd, of one micro-batch, for the backward pass.
        work: beside that at the worst moment, recomputed activations included.
        slack: how many times `kept` and `work` a process takes.
        gathered: of a sharded network, what is whole at a time.
    """

    parts: tuple[Part, ...]
    gradients: int
    optimizer: tuple[str, int | None]
    average: int
    buckets: int
    kept: int
    work: int
    slack: float
    gathered: int = 0

    @property
    def fixed(self) -> int:
        """What it takes whatever the batch."""
        weights = sum(part.bytes for part in self.parts)
        of_weights = self.gradients + (self.optimizer[1] or 0) + self.average
        return weights + of_weights + self.buckets + self.gathered

    @property
    def room(self) -> int:
        """What libraries and allocators take beside what they are asked for."""
        return round((self.slack - 1) * (self.kept + self.work))

    def total(self, share: float = 1.0) -> int:
        """What it takes with `share` of the micro-batch."""
        return self.fixed + round(share * (self.kept + self.work + self.room))

    def __str__(self) -> str:
        rows = [
            (
                f"{part.name}, {'trained' if part.is_trained else 'frozen'}",
                f"{part.weights:,}",
                part.bytes,
            )
            for part in self.parts
        ]
        name, states = self.optimizer
        rows += [
            ("gradients", "", self.gradients),
            (f"optimizer ({name})", *(("not counted", 0) if states is None else ("", states))),
            ("average of the weights (Ema)", "", self.average),
            ("exchange of gradients (ddp)", "", self.buckets),
            ("blocks gathered (fsdp2)", "", self.gathered),
            ("kept for the backward pass", "", self.kept),
            ("at work beside it", "", self.work),
            ("room for libraries, allocator", "", self.room),
            ("in all", "", self.total()),
        ]
        lines = [
            f"{what:<30}{count:>15}{size / GIBI:>10.3f}"
            for what, count, size in rows
            if size or count
        ]
        return "\n".join([f"{'':<30}{'weights':>15}{'GiB':>10}", *lines])


def count(
    module: EditModule,
    *,
    pictures: int,
    side: int,
    precision: Precision,
    device: torch.device,
    slack: float = 1.0,
    has_average: bool = False,
    has_buckets: bool = False,
    shards: int = 1,
) -> MemoryPlan:
    """Count what training a module takes, without computing anything.

    Args:
        module: whose weights may be on the meta device; they are none afterwards.
        pictures: of a micro-batch.
        side: of a picture, in pixels.
        precision: the trainer's.
        device: of the kind that is to train.
        slack: how many times its activations a process takes.
        has_average: whether a float32 copy of the trained weights is kept.
        has_buckets: whether ranks exchange gradients, for which each has a second copy.
        shards: among how many devices the denoiser's network is parted.

    Raises:
        InputError: if it is to be parted and cannot be.
    """
    networks = module.networks
    named = {
        "denoiser": networks.denoiser,
        "text encoder": networks.text_encoder,
        "codec": networks.codec,
        "task table": networks.task_embedding,
    }
    precision.convert_module(module)
    parted = nn.ModuleList([network_of(networks.denoiser)] if shards > 1 else [])

    def here(sizes: Mapping[Tensor, int]) -> int:
        cut = set(parted.parameters())
        return sum(-(-size // shards) if one in cut else size for one, size in sizes.items())

    spared = {"denoiser": networks.denoiser.spared}
    parts = tuple(
        part
        for name, network in named.items()
        for part in _parts(name, network, spared.get(name, 0), here)
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fake(module, device)
        batch = longest_batch(module, pictures, side).to(device)
        learning = trainable(module).values()
        gradients = here({p: p.nbytes for p in learning})
        average = here({p: 4 * p.numel() for p in learning})
        kind, memory = module.optimizer_settings.kind, None
        if kind is None:
            memory = here(_remembered(adamw(module, module.optimizer_settings)))
        if shards > 1 and isinstance(precision, MixedPrecision):
            _fake(parted, device, torch.bfloat16)  # as blocks are gathered
        kept, most = _run(module, batch, precision)
    if kind is not None:
        memory = _states_of_others(module, device)
    return MemoryPlan(
        parts,
        gradients,
        ((kind or "AdamW").rpartition(".")[2], memory),
        average=average if has_average else 0,
        buckets=gradients if has_buckets else 0,
        kept=kept,
        work=most - kept,
        slack=slack,
        gathered=sum(_gathered(network) for network in parted),
    )


def _states_of_others(module: EditModule, device: torch.device) -> int | None:
    """Return what an optimizer of a library remembers; None where it cannot make a step here.

    Its kernels may want numbers, so it makes a step for one weight of each shape, all zeros.
    """
    shapes = Counter((tuple(p.shape), p.dtype) for p in trainable(module).values())
    total = 0
    for (shape, dtype), count in shapes.items():
        weight = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
        optimizer = make_optimizer(nn.ParameterList([weight]), module.optimizer_settings)
        try:
            with torch.compiler.set_stance("force_eager"):  # torchao's step compiles itself
                total += count * sum(_remembered(optimizer).values())
        except Exception:  # noqa: BLE001  what a library says that lacks a device is its own
            return None
    return total


def _remembered(optimizer: torch.optim.Optimizer) -> dict[Tensor, int]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return {
        weight: bytes_of(value for value in state.values() if isinstance(value, Tensor))
        for weight, state in optimizer.state.items()
    }


def _gathered(network: nn.Module) -> int:
    assert isinstance(network, ModelMixin)
    whole = sum(p.nbytes for p in network.parameters())
    blocks = [sum(p.nbytes for p in block.parameters()) for block in blocks_of(network)]
    return whole - sum(blocks) + BLOCKS_GATHERED * max(blocks, default=0)


def _parts(
    name: str, network: nn.Module, spared: int, here: Callable[[Mapping[Tensor, int]], int]
) -> Iterator[Part]:
    """Yield what learns and what does not; of that a network may be held in `spared` bytes less."""
    for is_trained in (True, False):
        weights = [one for one in network.parameters() if one.requires_grad == is_trained]
        if weights:
            size = here({w: bytes_of([w]) for w in weights}) - (0 if is_trained else spared)
            yield Part(name, is_trained, sum(w.numel() for w in weights), size)


def _fake(module: nn.Module, device: torch.device, weights: torch.dtype | None = None) -> None:
    """Put fake tensors in place of all weights and buffers; what is shared stays shared."""
    seen: dict[Tensor, Tensor] = {}
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, old in own.items():
                if old is None:
                    continue
                if old not in seen:
                    is_weight = isinstance(old, nn.Parameter)
                    kind = weights if is_weight else None
                    new = torch.empty_like(old, device=device, dtype=kind)
                    seen[old] = nn.Parameter(new, old.requires_grad) if is_weight else new
                own[name] = seen[old]  # pyright: ignore[reportArgumentType]


def _run(module: EditModule, batch: DrawnBatch, precision: Precision) -> tuple[int, int]:
    """Go forward and backward; return the bytes that are kept between, and that live at most.

    Gradients are counted elsewhere, and so are given up at once.
    """
    for parameter in trainable(module).values():
        parameter.register_post_accumulate_grad_hook(_give_up)
    with LiveBytes() as live:
        with precision.forward_context():
            output, kept = kept_for_backward(
                module, lambda: module.step(batch, dropout=module.dropout)
            )
        output["loss"].backward()
    return kept, live.most


def _give_up(parameter: Tensor) -> None:
    parameter.grad = None


def longest_batch(module: EditModule, pictures: int, side: int) -> DrawnBatch:
    """Return a black batch of instructions as long as the text encoder takes."""
    text, codec = module.networks.text_encoder, module.networks.codec
    picture = torch.zeros(pictures, 3, side, side, dtype=torch.uint8)
    each = torch.zeros(pictures, dtype=torch.int64)
    batch = EditBatch(
        key=("",) * pictures,
        instruction=(text.limit.cut("a " * text.max_tokens),) * pictures,
        task=each,
        mask=picture[:, 0] == 0,
        has_mask=each == 0,
        source_caption=("",) * pictures,
        target_caption=("",) * pictures,
        position=each,
        source=picture,
        has_source=each == 0,
        target=picture,
    )
    cells = side // codec.factor
    eps = torch.zeros(pictures, codec.latent_channels, cells, cells)
    return DrawnBatch(batch, u=torch.zeros(pictures, 3), eps=eps, eps_posterior=eps)


def kept_for_backward(module: nn.Module, run: Callable[[], Result]) -> tuple[Result, int]:
    """Run, and return the bytes beside the weights that autograd keeps of it, each once."""
    weights = {*map(_storage, [*module.parameters(), *module.buffers()])}
    kept: dict[int, Tensor] = {}  # alive until all are counted, so that no place is used twice

    def pack(tensor: Tensor) -> Tensor:
        if (place := _storage(tensor)) not in weights:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    kept.clear()  # autograd keeps `pack` as long as what was packed
    return result, size


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
