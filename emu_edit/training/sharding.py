"""Training whole a network that no device holds whole: FSDP2, `--trainer.strategy fsdp2`.

Of each weight of the denoiser's network, of its gradient, of what the optimizer remembers of it and
of its average, a rank keeps its part along the first axis (a `DTensor`). A block's weights are
gathered where it computes, and given up again. What is small stays whole on every rank (the task
table, the maps, a text encoder that learns) and so does what is frozen; FSDP2 does not know of
them, so their gradients are averaged here. A checkpoint is that of any other training: one file of
whole tensors, with which one process or any number of ranks goes on.
Source: Zhao et al. 2023, arXiv:2304.11277 (FSDP), in the form of torch's `fully_shard`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from emu_edit.errors import InputError
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.interfaces import Denoiser

NAME = "fsdp2"  # of the strategy, for `trainer.strategy`
ELSE = "give --trainer.strategy ddp"


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 over all ranks, with the checkpoints of any other training.

    Lightning 2.6 restores an optimizer's memory by the order of the module's weights. An optimizer
    of two groups, as ours, numbers it group by group, so on other ranks it would reach other
    weights. Here it is gathered and cut by what it belongs to; files go through the CheckpointIO.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Restore where other strategies do: before the optimizer is built."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Leave it to Lightning to ask for the optimizer's memory."""
        return True

    def setup_environment(self) -> None:
        """Connect the ranks; `fit --resume` asks for it before there is a module."""
        if self.lightning_module is None:
            self._setup_distributed()
            return
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Build the optimizer, and give all ranks the same of what is whole on each.

        Raises:
            InputError: if the module is none that can be sharded.
        """
        assert self.lightning_module is not None
        if not any(isinstance(p, DTensor) for p in self.lightning_module.parameters()):
            kind = type(self.lightning_module).__name__
            raise InputError(
                f"trainer.strategy={NAME} is for the denoiser of an EditModule, got {kind}; {ELSE}"
            )
        # weights that are gathered first in inference mode could not be trained afterwards
        for loop in (
            trainer.fit_loop.epoch_loop.val_loop,
            trainer.validate_loop,
            trainer.test_loop,
        ):
            loop.inference_mode = False
        super().setup(trainer)
        send_to_all(p for p in self.lightning_module.parameters() if p.requires_grad)

    def post_backward(self, closure_loss: Tensor) -> None:  # noqa: ARG002
        """Average the gradients that FSDP2 does not know of."""
        assert self.lightning_module is not None
        average_gradients(self.lightning_module.parameters())

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's weights, whole, on rank 0; nothing elsewhere."""
        assert self.lightning_module is not None
        return gathered(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's parts of whole weights."""
        assert self.lightning_module is not None
        own, given = self.lightning_module.state_dict(), checkpoint["state_dict"]
        parts = {name: part_like(tensor, own[name]) for name, tensor in given.items()}
        self.lightning_module.load_state_dict(parts, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return what an optimizer remembers as one process would, whole, on rank 0."""
        state: Any = super(ModelParallelStrategy, self).optimizer_state(optimizer)
        return {**state, "state": {i: gathered(memory) for i, memory in state["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's parts of what optimizers remembered."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = chain.from_iterable(group["params"] for group in optimizer.param_groups)
            numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
            for number, weight in zip(numbers, weights, strict=False):  # torch compares how many
                memory = state["state"].get(number, {})
                for name, value in memory.items():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        memory[name] = part_like(value, weight)
        super(ModelParallelStrategy, self).load_optimizer_state_dict(checkpoint)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict:
        """Read a file through the CheckpointIO."""
        return super(ModelParallelStrategy, self).load_checkpoint(
            checkpoint_path, weights_only=weights_only
        )


StrategyRegistry.register(NAME, ShardedStrategy, "FSDP2 for full fine-tuning of an EditModule")


def shard(denoiser: Denoiser, trainer: Trainer) -> None:
    """Leave each rank its part of the network of a denoiser, as rank 0 has it; once.

    Raises:
        InputError: if it is not trained whole, or not in a way that FSDP2 can train it.
    """
    network = network_of(denoiser)
    if isinstance(network, FSDPModule):
        return
    compiled = any(part._compiled_call_impl is not None for part in denoiser.modules())
    _refuse(network, trainer, is_compiled=compiled)
    assert isinstance(trainer.strategy, ShardedStrategy)
    # gathered weights are cast, not each use of them: autocast would keep what it has cast, and
    # with it the whole network
    cast = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
    is_mixed = trainer.precision == "bf16-mixed"
    policy = MixedPrecisionPolicy(**(cast if is_mixed else {}), cast_forward_inputs=False)
    for unit in [*blocks_of(network), network]:
        unit.to(trainer.strategy.root_device)
        for parameter in unit.parameters():
            if not isinstance(parameter, DTensor):  # FSDP2 takes no other order, as channels-last
                parameter.data = parameter.data.contiguous()
        send_to_all(unit.parameters())
        send_to_all(unit.buffers())
        mesh = trainer.strategy.device_mesh["data_parallel"]
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy)


def blocks_of(network: ModelMixin) -> list[nn.Module]:
    """Return what is gathered one by one: a transformer's blocks, a U-Net's two kinds."""
    names = {*(network._repeated_blocks or ()), ResnetBlock2D.__name__}
    return [module for module in network.modules() if type(module).__name__ in names]


def network_of(denoiser: Denoiser) -> ModelMixin:
    """Return the network of a denoiser that is trained whole; its maps are beside it.

    Raises:
        InputError: for all others.
    """
    if isinstance(denoiser, DiTDenoiser) and denoiser.family.window is not None:
        raise InputError(
            f"trainer.strategy={NAME}: {denoiser.family.name} computes as often as its batch has "
            f"lengths of text, and all devices must as often; {ELSE}"
        )
    network = dict(denoiser.named_children()).get(denoiser.part)
    if isinstance(network, ModelMixin) and all(p.requires_grad for p in denoiser.parameters()):
        return network
    raise InputError(
        f"trainer.strategy={NAME} is for a denoiser of pictures that is trained whole; of this one "
        f"most is frozen (LoRA, or layers for videos), and would only be copied about: {ELSE}, and "
        "where that takes too much memory --model.denoiser.weights int8"
    )


def _refuse(network: ModelMixin, trainer: Trainer, *, is_compiled: bool) -> None:
    if not isinstance(trainer.strategy, ShardedStrategy):
        raise InputError(
            "trainer.strategy: Lightning's ModelParallelStrategy does not average what is whole on "
            f"every rank, and mixes up what optimizers remember; give --trainer.strategy {NAME}"
        )
    if trainer.precision in {"16-mixed", "16-true"}:
        raise InputError(
            f"trainer.strategy={NAME} does not scale losses, as trainer.precision="
            f"{trainer.precision} needs it; set bf16-mixed"
        )
    if is_compiled:
        raise InputError(f"model.compile does not go with trainer.strategy={NAME}; set it to false")
    kinds = {parameter.dtype for parameter in network.parameters()}
    if len(kinds) > 1:
        raise InputError(
            f"trainer.strategy={NAME} needs weights of one precision, the denoiser's network has "
            f"{' and '.join(sorted(map(str, kinds)))}; set model.denoiser.weights float32"
        )


@torch.no_grad()
def send_to_all(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors that are whole with those of rank 0."""
    for tensor in tensors:
        if not isinstance(tensor, DTensor):
            dist.broadcast(tensor.data, src=0)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of weights that are whole on every rank; one exchange.

    Those accumulated before are equal on all ranks already, so that their mean is what they are.
    """
    whole = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in whole]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
    dist.all_reduce(flat)
    for parameter, mean in zip(whole, flat.split([p.numel() for p in whole]), strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(mean.view_as(parameter))


def local(tensor: Tensor) -> Tensor:
    """Return what this rank has of a tensor, in the same memory; without gradients."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return of a whole tensor what this rank has of `like`, on its device."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor.to(like.device)
    whole = tensor.contiguous()  # as parts are; a fused step goes through memory as it lies
    part = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()  # it was a view, which would keep the whole


def gathered(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors whole on rank 0, and nothing elsewhere; all ranks must call it.

    Where none of them is in parts, they are returned as they are, on every rank.
    """
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return dict(tensors)
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if dist.get_rank() == 0:
            whole[name] = full
    return whole


def total_norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the norm of all gradients together, those in parts counted over all ranks."""
    parts = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    if not parts:
        return get_total_norm(gradients, foreach=True)
    square = get_total_norm(parts, foreach=True).float().square()
    dist.all_reduce(square)
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    return (square + get_total_norm(whole, foreach=True).float().square()).sqrt()


def clip_by_norm(parameters: Iterable[Tensor], most: float, norm: Float[Tensor, ""]) -> None:
    """Shorten gradients of the norm `norm` to the norm `most`, if they are longer."""
    kinds: dict[bool, list[Tensor]] = {}  # torch's fast operations mix none with parts
    for parameter in parameters:
        kinds.setdefault(isinstance(parameter, DTensor), []).append(parameter)
    for kind in kinds.values():
        clip_grads_with_norm_(kind, most, norm, foreach=True)
