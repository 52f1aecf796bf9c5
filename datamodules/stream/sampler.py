"""Deal positions of the global stream to micro-batches; every rank computes its own share.

Optimizer step s trains on g in [s B, (s + 1) B), whatever the layout: micro-step a of rank r takes
the `micro` positions from s B + (a world + r) micro on. This runs in the main process over a
map-style data set; the loader's workers only ever see positions, so they need not know a rank.
Splits that are not even, and settings of the trainer that would change the stream, are refused.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from lightning.pytorch import Trainer
from torch.utils.data import Sampler

from emu_edit.errors import InputError


@dataclass(frozen=True)
class Layout:
    """How one global batch is split: accumulate x world x micro."""

    global_batch: int
    accumulate: int
    world: int

    def __post_init__(self) -> None:
        """Refuse a split that is not even."""
        numbers = (self.global_batch, self.accumulate, self.world)
        if min(numbers) < 1 or self.global_batch % (self.accumulate * self.world):
            raise InputError(
                f"data.global_batch={self.global_batch} cannot be split evenly over {self.world} "
                f"processes x {self.accumulate} accumulated batches; "
                f"{valid_splits(self.global_batch, self.world)}"
            )

    @property
    def micro(self) -> int:
        """The number of samples one process trains on at a time."""
        return self.global_batch // (self.accumulate * self.world)


def valid_splits(global_batch: int, world: int) -> str:
    """Say which worlds or micro-batches would fit, for error messages."""
    if global_batch < 1:
        return "it must be at least 1"
    share, rest = divmod(global_batch, world)
    number = global_batch if rest else share
    fitting = [str(n) for n in range(1, number + 1) if number % n == 0]
    listed = ", ".join(fitting[:24]) + (", ..." if len(fitting) > 24 else "")
    return f"it fits {listed} processes" if rest else f"data.micro_batch may be {listed}"


class GlobalBatchSampler(Sampler[list[int]]):
    """Yield the positions of each micro-batch of one rank, for one virtual epoch.

    Args:
        first: called at the start of every iteration, returns the position of the stream from which
            to go on. A function, because Lightning makes one loader for all epochs.
        steps: optimizer steps in a virtual epoch.
        layout: how a global batch is split.
        rank: which share is ours.
    """

    def __init__(self, first: Callable[[], int], steps: int, layout: Layout, rank: int) -> None:
        if not 0 <= rank < layout.world:
            raise ValueError(f"rank {rank} is outside 0..{layout.world - 1}")
        self._first = first
        self._steps = steps
        self._layout = layout
        self._rank = rank

    def __len__(self) -> int:
        return self._steps * self._layout.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        micro = self._layout.micro
        first = self._first() + self._rank * micro
        for i in range(len(self)):
            # accumulate x world x micro = global_batch: steps and micro-steps are one progression
            g = first + i * self._layout.world * micro
            yield list(range(g, g + micro))


def evaluation_batches(num_samples: int, micro: int, world: int, rank: int) -> list[list[int]]:
    """Return the batches of one rank for one pass over a set: every sample once over all ranks.

    Rank r takes r, r + world, ...; nothing is repeated to fill up. All ranks have the same number
    of batches, because a forward under DDP may wait for the others; so the sizes of the batches
    differ by one, and the largest is `micro` or, with fewer samples than fill the ranks, more.

    Raises:
        InputError: if there are fewer samples than processes.
    """
    if num_samples < world:
        raise InputError(
            f"data.val has {num_samples} samples, needs at least one for each of {world} processes"
        )
    largest_share = -(-num_samples // world)
    num_batches = min(-(-largest_share // micro), num_samples // world)
    share = range(rank, num_samples, world)
    cuts = [i * len(share) // num_batches for i in range(num_batches + 1)]
    return [list(share[a:b]) for a, b in pairwise(cuts)]


def fit_layout(
    global_batch: int, micro_batch: int | None, *, accumulate: int, world: int
) -> Layout:
    """Return how an optimizer step is split.

    Args:
        global_batch: samples per optimizer step.
        micro_batch: samples a process trains on at a time; None takes what the trainer leaves.
        accumulate: the trainer's accumulated batches; 1 unless the user set it.
        world: number of processes.

    Raises:
        InputError: if the batch sizes do not divide, or contradict the trainer.
    """
    if micro_batch is None:
        return Layout(global_batch, accumulate, world)
    needed, rest = divmod(global_batch, world * max(micro_batch, 1))
    if rest or needed < 1 or micro_batch < 1:
        raise InputError(
            f"data.micro_batch={micro_batch} on {world} processes does not divide "
            f"data.global_batch={global_batch}; {valid_splits(global_batch, world)}"
        )
    if accumulate not in {1, needed}:
        raise InputError(
            f"trainer.accumulate_grad_batches={accumulate} contradicts data.global_batch="
            f"{global_batch} = {world} processes x micro_batch {micro_batch} x {needed}; "
            "leave it out"
        )
    return Layout(global_batch, needed, world)


def refuse_trainer(trainer: Trainer, layout: Layout, steps_per_epoch: int) -> None:
    """Refuse settings of the trainer under which the data would not be what was asked for."""
    # Lightning has no public name for this setting
    if layout.world > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise InputError(
            "trainer.use_distributed_sampler must be false: the data module deals samples to the "
            f"{layout.world} processes itself"
        )
    is_dry_run: bool = trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue]
    if trainer.overfit_batches > 0:  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError(
            "trainer.overfit_batches has no effect on a stream; to overfit, give data.train a "
            "folder of few samples"
        )
    if trainer.max_steps != -1 and layout.accumulate > 1 and not is_dry_run:
        raise InputError(
            f"trainer.max_steps={trainer.max_steps} with {layout.accumulate} accumulated batches "
            "cannot be resumed exactly; give trainer.max_epochs, of data.steps_per_epoch each"
        )
    limit, total = trainer.limit_train_batches, steps_per_epoch * layout.accumulate
    num_batches = min(limit, total) if isinstance(limit, int) else int(limit * total)
    if num_batches % layout.accumulate and not is_dry_run:
        raise InputError(
            f"trainer.limit_train_batches={limit} ends after {num_batches} batches, inside an "
            f"optimizer step; give a multiple of {layout.accumulate}"
        )
