"""EditDataModule: shard folders -> EditBatch under Lightning, exact over restarts and layouts.

Training reads an endless stream in "virtual epochs" of `steps_per_epoch` optimizer steps. The whole
state is one integer, the samples trained on, plus a fingerprint of the data; it lives here and not
on the loader, which Lightning does not restore at the end of an epoch. Train with
`trainer.max_epochs`: with `max_steps` and accumulation Lightning 2.6 resumes wrongly at epoch ends.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from datamodules.loader import PositionLoader
from datamodules.manifest import Manifest, read_manifest, verify_hash
from datamodules.order import Order, OrderSpec, TaskOrder, quotas
from datamodules.reader import InOrder, ShardDataset
from datamodules.resume import (
    Fingerprint,
    FollowTraining,
    StreamState,
    continued,
    data_hash,
    fingerprint_of,
    rescale_progress,
)
from datamodules.sampler import GlobalBatchSampler, Layout, evaluation_batches, valid_splits
from datamodules.transforms import Noops, SquareCrop
from emu_edit.batch import EditBatch
from emu_edit.errors import InputError, closest
from emu_edit.tasks import SIXTEEN, TaskTable

HASHED_BELOW = 2 * 2**30  # bytes; hashing less takes seconds. `shards check` hashes any amount


class EditDataModule(LightningDataModule):
    """Feed pairs from shard folders.

    Args:
        train: folder of training shards.
        val: folder of validation shards, each sample once and in order; also used by `test`.
        image_size: side of the square pictures are cut and resampled to.
        global_batch: samples per optimizer step, over all processes and accumulated batches.
        micro_batch: samples a process trains on at a time; accumulation follows from it. By
            default what `trainer.accumulate_grad_batches` leaves.
        steps_per_epoch: optimizer steps in a virtual epoch.
        weights: how often each task is drawn, relative to the others; tasks left out are not
            trained on. By default all tasks of the folder equally.
        num_workers: loader processes, for each of training and validation; changes speed only.
        seed: of the order and the crops.
        window: number of shards of a task whose samples are mixed.
        flip: mirror half of the training pairs; wrong for instructions that name left or right.
        noops: for each task, the share of its training pairs that are shown as already edited
            (source = target), so that the model learns to leave alone; by default none.
        tasks: the model's task table, in the order of its embedding; by default the sixteen.
        allow_change: go on from a checkpoint although the data have changed since.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        image_size: int = 64,
        global_batch: int = 32,
        micro_batch: int | None = None,
        steps_per_epoch: int = 100,
        weights: dict[str, float] | None = None,
        num_workers: int = 0,
        seed: int = 0,
        window: int = 8,
        flip: bool = False,
        noops: dict[str, float] | None = None,
        tasks: list[str] | None = None,
        allow_change: bool = False,
    ) -> None:
        super().__init__()
        if steps_per_epoch < 1:
            raise InputError(f"data.steps_per_epoch={steps_per_epoch} must be at least 1")
        if num_workers < 0:
            raise InputError(f"data.num_workers={num_workers} must be at least 0")
        self.train_folder = Path(train)
        self.val_folder = None if val is None else Path(val)
        self.global_batch = global_batch
        self.steps_per_epoch = steps_per_epoch
        self.table = SIXTEEN if tasks is None else TaskTable(tuple(tasks))
        self._micro_batch = micro_batch
        self.weights = weights
        self._num_workers = num_workers
        self._seed = seed
        self._window = window
        self._crop = SquareCrop(image_size, seed=seed, flip=flip)
        self._noops = Noops(noops or {}, seed)
        self._val_crop = SquareCrop(image_size)
        self._allow_change = allow_change
        self._layout = Layout(global_batch=1, accumulate=1, world=1)
        self._rank = 0
        self._train: Manifest | None = None
        self._val: Manifest | None = None
        self._start = 0
        self._drawn: dict[str, int] = {}
        self._consumed = 0
        self._num_pending = 0  # micro-batches trained since the last optimizer step

    @property
    def consumed(self) -> int:
        """The number of samples trained on, counted at optimizer steps."""
        return self._consumed

    def setup(self, stage: str) -> None:
        """Read the manifests and fit the layout to the trainer.

        Raises:
            InputError: if folders, tasks, weights, batch sizes or the trainer do not go together.
        """
        trainer = self.trainer
        self._rank = 0 if trainer is None else trainer.global_rank
        self._layout = self.fit_layout(1 if trainer is None else trainer.world_size)
        if stage == "fit":
            self._train = self._read(self.train_folder)
            self._order_spec(self._train)  # refuses weights now rather than at the first batch
            if trainer is not None:
                self._attach(trainer)
        if self.val_folder is not None:
            self._val = self._read(self.val_folder)

    def train_dataloader(self) -> PositionLoader:
        """Return the loader of one virtual epoch, which goes on where training stands."""
        manifest = self._needed(self._train)
        spec = self._order_spec(manifest)
        samples = ShardDataset(
            self.train_folder,
            [manifest.of_task(task.name) for task in spec.tasks],
            order=Order(spec),
            tasks=self.table,
            crop=self._crop,
            noops=self._noops,
        )
        batches = GlobalBatchSampler(
            self._next_position, self.steps_per_epoch, self._layout, self._rank
        )
        return PositionLoader(samples, batches, num_workers=self._num_workers)

    def val_dataloader(self) -> PositionLoader:
        """Return the loader of the validation folder: every sample once, positions 0, 1, 2, ...

        Raises:
            InputError: if there is no such folder. (Training without one does not ask for it.)
        """
        if self.val_folder is None:
            raise InputError("data.val is not set; give it the folder of the shards to evaluate on")
        manifest = self._needed(self._val)
        shards = [manifest.of_task(task) for task in manifest.tasks]
        order = InOrder([[entry.samples for entry in part] for part in shards])
        samples = ShardDataset(
            self.val_folder, shards, order=order, tasks=self.table, crop=self._val_crop
        )
        batches = evaluation_batches(len(order), self._layout.micro, self._layout.world, self._rank)
        return PositionLoader(samples, batches, num_workers=self._num_workers)

    def test_dataloader(self) -> PositionLoader:
        """Return the loader of the validation folder."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands, as primitives."""
        if self._train is None:
            return {}
        return StreamState(
            consumed=self._consumed,
            accumulate=self._layout.accumulate,
            start=self._start,
            drawn=self._drawn,
            fingerprint=self._fingerprint(self._train),
        ).to_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint ended. Evaluation ignores the state.

        Raises:
            InputError: if the data are not those of the checkpoint.
        """
        if self._train is None:
            return
        state = StreamState.from_dict(state_dict)
        self._start, self._drawn = continued(
            state, self._fingerprint(self._train), allow_change=self._allow_change
        )
        self._consumed = state.consumed

    def on_before_batch_transfer(self, batch: EditBatch, dataloader_idx: int) -> EditBatch:
        """Check that the batch about to be trained on is the one that is due."""
        del dataloader_idx
        if self.trainer is not None and self.trainer.training:
            micro = self._layout.micro
            due = self._consumed + (self._num_pending * self._layout.world + self._rank) * micro
            found = int(batch.position[0])
            if found != due:
                raise RuntimeError(
                    f"a batch starts at position {found} of the stream, due is {due}"
                )
        return batch

    def restored(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Fit Lightning's counters of micro-batches to the present accumulation.

        Raises:
            InputError: if the virtual epoch has become shorter than what was trained of it.
        """
        del trainer
        state = checkpoint.get(type(self).__qualname__)
        if state is None:
            return
        rescale_progress(checkpoint, state["accumulate"], self._layout.accumulate)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = progress["current"]["ready"] // self._layout.accumulate
        if done > self.steps_per_epoch:
            raise InputError(
                f"data.steps_per_epoch={self.steps_per_epoch} is less than the {done} steps of its "
                "epoch the checkpoint has; raise it, or take a checkpoint from an epoch's end"
            )

    def started(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare the position of the data with the number of optimizer steps.

        Raises:
            InputError: if the checkpoint had no state of this data module.
        """
        if module.automatic_optimization and not self._is_in_step(trainer):
            raise InputError(
                f"the checkpoint has {trainer.global_step} optimizer steps but its data state "
                f"({type(self).__name__}) says {self._consumed // self.global_batch}; resume "
                "with the kind of data module that wrote it, or start a new run from the weights"
            )

    def trained(self, trainer: Trainer, module: LightningModule) -> None:
        """Count a micro-batch; at the end of an optimizer step, move on."""
        self._num_pending += 1
        if self._num_pending < self._layout.accumulate:
            return
        self._num_pending = 0
        self._consumed += self.global_batch
        if module.automatic_optimization and not self._is_in_step(trainer):
            raise RuntimeError(
                f"after {self._consumed} samples there should be "
                f"{self._consumed // self.global_batch} optimizer steps, Lightning counts "
                f"{trainer.global_step}; something else changes the accumulation"
            )

    def _is_in_step(self, trainer: Trainer) -> bool:
        return trainer.global_step * self.global_batch == self._consumed

    def _next_position(self) -> int:
        self._num_pending = 0
        return self._consumed

    def _needed(self, manifest: Manifest | None) -> Manifest:
        if manifest is None:
            raise RuntimeError("call setup() before asking for a loader")
        return manifest

    def _read(self, folder: Path) -> Manifest:
        manifest = read_manifest(folder)
        for task in manifest.tasks:
            if task not in self.table.names:
                hint = closest(task, list(self.table.names))
                raise InputError(f"{folder} has shards of unknown task {task!r}.{hint}")
        if sum(entry.bytes for entry in manifest.entries) < HASHED_BELOW:
            for entry in manifest.entries:
                verify_hash(folder / entry.file, entry)
        return manifest

    def _order_spec(self, manifest: Manifest) -> OrderSpec:
        check_named(self._noops.rates, manifest.tasks, self.train_folder, setting="data.noops")
        weights = dict.fromkeys(manifest.tasks, 1.0)
        if self.weights is not None:
            check_weights(self.weights, manifest.tasks, self.train_folder)
            weights = {t: self.weights[t] for t in manifest.tasks if t in self.weights}
        return OrderSpec(
            seed=self._seed,
            tasks=tuple(
                TaskOrder(
                    name=task,
                    quota=quota,
                    shard_sizes=tuple(entry.samples for entry in manifest.of_task(task)),
                    drawn=self._drawn.get(task, 0),
                )
                for task, quota in quotas(weights).items()
            ),
            window=self._window,
            start=self._start,
        )

    def _fingerprint(self, manifest: Manifest) -> Fingerprint:
        spec = self._order_spec(manifest)
        data = {task.name: data_hash(manifest.of_task(task.name)) for task in spec.tasks}
        settings = {
            "global_batch": self.global_batch,
            "steps_per_epoch": self.steps_per_epoch,
            "image_size": self._crop.image_size,
            "flip": self._crop.flip,
            # absent without them, as in the checkpoints of before there were any
            **({"noops": dict(self._noops.rates)} if self._noops.rates else {}),
        }
        return fingerprint_of(spec, data, settings)

    def fit_layout(self, world: int) -> Layout:
        """Return how an optimizer step is split over `world` processes.

        Raises:
            InputError: if the batch sizes do not divide.
        """
        given = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        if self._micro_batch is None:
            return Layout(self.global_batch, given, world)
        accumulate, rest = divmod(self.global_batch, world * max(self._micro_batch, 1))
        if rest or accumulate < 1 or self._micro_batch < 1:
            raise InputError(
                f"data.micro_batch={self._micro_batch} on {world} processes does not divide "
                f"data.global_batch={self.global_batch}; {valid_splits(self.global_batch, world)}"
            )
        if given not in {1, accumulate}:
            raise InputError(
                f"trainer.accumulate_grad_batches={given} contradicts data.global_batch="
                f"{self.global_batch} = {world} processes x micro_batch {self._micro_batch} x "
                f"{accumulate}; leave it out"
            )
        return Layout(self.global_batch, accumulate, world)

    def _attach(self, trainer: Trainer) -> None:
        """Check the trainer's settings, set its accumulation, and follow its training."""
        refuse_trainer(trainer, self._layout, self.steps_per_epoch)
        trainer.accumulate_grad_batches = self._layout.accumulate
        if self.val_folder is None:
            trainer.limit_val_batches = 0
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        callbacks[:] = [c for c in callbacks if not isinstance(c, FollowTraining)]
        callbacks.insert(0, FollowTraining(self))


def check_weights(weights: Mapping[str, float], tasks: list[str], folder: Path) -> None:
    """Refuse weights that name unknown tasks, or none.

    Raises:
        InputError: with the nearest name.
    """
    if not weights:
        raise InputError("data.weights is empty; leave it out to draw all tasks equally")
    check_named(weights, tasks, folder, setting="data.weights")


def check_named(
    numbers: Mapping[str, float], tasks: list[str], folder: Path, *, setting: str
) -> None:
    """Refuse numbers for tasks the folder does not have.

    Raises:
        InputError: with the nearest name.
    """
    for task in numbers:
        if task not in tasks:
            raise InputError(
                f"{setting} names task {task!r}, {folder} has {', '.join(tasks)}."
                f"{closest(task, tasks)}"
            )


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
