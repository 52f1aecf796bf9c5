"""How optimizer steps fit the trainer: the split of a global batch, and settings to refuse."""

from lightning.pytorch import Trainer

from datamodules.sampler import Layout, valid_splits
from emu_edit.errors import InputError


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
    """Refuse settings of the trainer under which the data would not be what was asked for.

    Raises:
        InputError: naming the setting and what to put there.
    """
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
