"""EditDataModule: shard folders -> batches under Lightning, exact over restarts and layouts.

Training reads an endless stream in "virtual epochs" of `steps_per_epoch` optimizer steps. The whole
state is one integer, the samples trained on, plus a fingerprint of the data; it lives here and not
on the loader, which Lightning does not restore at the end of an epoch. Train with
`trainer.max_epochs`: with `max_steps` and accumulation Lightning 2.6 resumes wrongly at epoch ends.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Int64
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from datamodules.buckets import bucket_batches, sort_by_bucket
from datamodules.encoded.reader import evaluation_decoder, training_decoder
from datamodules.remote.ahead import fetch_ahead, refuse_small_cache, retry_metrics
from datamodules.remote.folder import CacheSettings, open_folder
from datamodules.stream.counts import LaneCount, lane_metrics, lane_table, repeated_often
from datamodules.stream.course import Course
from datamodules.stream.limits import LongTexts, TextRule, refuse_unknown_tasks
from datamodules.stream.loader import PositionLoader
from datamodules.stream.mixing import (
    DataSet,
    Lane,
    Mixture,
    check_named,
    groups_of,
    mixture_of,
    named_folders,
    where_of,
)
from datamodules.stream.order import Order, Position
from datamodules.stream.reader import Decode, InOrder, ShardDataset, refuse_long_texts
from datamodules.stream.resume import BUCKETS, FollowTraining, StreamState, restore_progress
from datamodules.stream.sampler import (
    GlobalBatchSampler,
    Layout,
    fit_layout,
    refuse_trainer,
)
from datamodules.stream.transforms import Crop, Noops, Substitutes, Wordings
from emu_edit.batch import Batch
from emu_edit.errors import InputError
from emu_edit.tasks import SIXTEEN, TaskTable

logger = logging.getLogger(__name__)

NOT_SET_UP = "call setup() before asking for a loader"
HASHED_BELOW = 2 * 2**30  # bytes; hashing less takes seconds. `shards check` hashes any amount


class EditDataModule(LightningDataModule):
    """Feed pairs from shard folders.

    Args:
        train: folder of training shards or its address, or several as NAME: FOLDER.
        val: folder or address of validation shards, each sample once and in order; `test` uses it,
            too. Training goes on without.
        image_size: side of the square pictures are cut and resampled to.
        buckets: let pictures keep their shape, with about as many pixels: of `shards convert
            --by-shape`. Sides are multiples of image_size / 8; all of a step are of one size.
        global_batch: samples per optimizer step, over all processes and accumulated batches.
        micro_batch: samples a process trains on at a time; accumulation follows from it. By
            default what `trainer.accumulate_grad_batches` leaves.
        steps_per_epoch: optimizer steps in a virtual epoch.
        weights: how often each task is drawn, relative to the others; those left out are not
            trained on. By default all equally. With several folders a task's draws are shared out
            by their numbers of samples; NAME/TASK weighs one task of one folder.
        num_workers: loader processes, for each of training and validation; changes speed only.
        seed: of the order, the crops, and the samples that take the place of bad ones.
        window: number of shards of a task whose samples are mixed.
        flip: mirror half of the training pairs; wrong for instructions that name left or right.
        noops: for each task, the share of its training pairs that are shown as already edited
            (source = target), so that the model learns to leave alone; by default none.
        tasks: the model's task table, in the order of its embedding; by default the sixteen.
        allow_change: go on from a checkpoint although the data have changed since.
        long_texts: what becomes of instructions longer than the text encoder takes: `truncate`
            keeps the words that fit, `skip` takes another sample, `refuse` stops.
        loader_timeout: seconds without a batch after which training ends; 0 waits for ever.
        val_pairs: of `val`, measured in training at most, from all over it; `validate` takes all.
        cache: where shards from addresses (`https://`, `s3://`, ...) are kept; how long to try.
    """

    def __init__(
        self,
        train: dict[str, str] | str,
        val: str | None = None,
        image_size: int = 64,
        buckets: bool = False,
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
        long_texts: LongTexts = LongTexts.truncate,
        loader_timeout: float = 600.0,
        cache: CacheSettings | None = None,
        val_pairs: int = 2048,
    ) -> None:
        super().__init__()
        least = {"steps_per_epoch": 1, "num_workers": 0, "loader_timeout": 0, "val_pairs": 1}
        given = (steps_per_epoch, num_workers, loader_timeout, val_pairs)
        for (name, smallest), value in zip(least.items(), given, strict=True):
            if not value >= smallest:
                raise InputError(f"data.{name}={value} must be at least {smallest}")
        self.train_folders = named_folders(train)
        self.val_folder = val
        self.global_batch = global_batch
        self.steps_per_epoch = steps_per_epoch
        self.table = SIXTEEN if tasks is None else TaskTable(tuple(tasks))
        self._micro_batch = micro_batch
        self.weights = weights
        self._num_workers = num_workers
        self._seed = seed
        self._window = window
        self._crop = Crop(image_size, seed=seed, flip=flip, buckets={} if buckets else None)
        self._noops = Noops(noops or {}, seed)
        self._val_crop = Crop(image_size, buckets={} if buckets else None)
        self._allow_change = allow_change
        self._texts = TextRule(None, long_texts)
        self._substitutes: Substitutes | None = None
        self._loader_timeout = loader_timeout
        self._cache, self._val_pairs = cache, val_pairs
        self._layout = Layout(global_batch=1, accumulate=1, world=1)
        self._rank = 0
        self._course: Course | None = None
        self._val: list[Lane] | None = None
        self._is_warned = False  # of lanes that are gone through very often
        self._num_pending = 0  # micro-batches trained since the last optimizer step

    @property
    def consumed(self) -> int:
        """The number of samples trained on, counted at optimizer steps."""
        return 0 if self._course is None else self._course.consumed

    def setup(self, stage: str) -> None:
        """Read the manifests and fit the layout to the trainer.

        Raises:
            InputError: if folders, tasks, weights, batch sizes or the trainer do not go together,
                or there is nothing to evaluate on; or the data are not for the trainer's model.
        """
        trainer = self.trainer
        self._texts = self._texts.fit(trainer, self.table, self._crop)
        self._rank = 0 if trainer is None else trainer.global_rank
        self._layout = self.fit_layout(1 if trainer is None else trainer.world_size)
        # a broken pair of validation must not end a training either
        self._substitutes = Substitutes(self._seed) if stage == "fit" else None
        if stage == "fit":
            data_sets = [self._read(folder, name) for name, folder in self.train_folders.items()]
            self._crop, lanes = sort_by_bucket(
                data_sets, self._crop, least=self.global_batch, weights=self.weights
            )
            mixture = self._mix(lanes)
            if self._course is None:
                self._course = Course(mixture, seed=self._seed, window=self._window)
            self._course.mixture = mixture
            if trainer is not None:
                self._attach(trainer)
        elif self.val_folder is None:
            raise InputError("data.val is not set; give it the folder of the shards to evaluate on")
        held_out = [] if self.val_folder is None else [self._read(self.val_folder)]
        world = self._layout.world
        self._val_crop, self._val = sort_by_bucket(held_out, self._val_crop, least=world)

    def train_dataloader(self) -> PositionLoader:
        """Return the loader of one virtual epoch, which goes on where training stands."""
        course = self._set_up()
        lanes, order = course.mixture.lanes, Order(course.spec)
        samples = self.samples(lanes, order, is_training=True)
        batches = GlobalBatchSampler(
            self._next_position, self.steps_per_epoch, self._layout, self._rank
        )
        return PositionLoader(
            samples,
            batches,
            num_workers=self._num_workers,
            timeout=self._loader_timeout,
            ahead=fetch_ahead(lanes, order),
            stretch=course.stretch,
        )

    def val_dataloader(self) -> PositionLoader:
        """Return the loader of the validation folder: each sample at most once, in order.

        It has no batches where training goes without such a folder.
        """
        if self._val is None:
            raise RuntimeError(NOT_SET_UP)
        order = InOrder([lane.sizes for lane in self._val])
        samples = self.samples(self._val, order, is_training=False)
        layout, most = self._layout, None if self._substitutes is None else self._val_pairs
        batches = bucket_batches(self._val, layout.micro, layout.world, self._rank, most)
        return PositionLoader(
            samples, batches, num_workers=self._num_workers, timeout=self._loader_timeout
        )

    def test_dataloader(self) -> PositionLoader:
        """Return the loader of the validation folder."""
        return self.val_dataloader()

    def samples(
        self, lanes: Sequence[Lane], order: Callable[[int], Position], *, is_training: bool
    ) -> ShardDataset:
        """Return the samples of some lanes as training, or as evaluation is to see them."""
        return ShardDataset(
            lanes,
            order=order,
            tasks=self.table,
            decode=self.decoder(lanes, is_training=is_training),
            noops=self._noops if is_training else None,
            wordings=Wordings(self._seed) if is_training else None,
            substitutes=self._substitutes,
            texts=self._texts,
        )

    def decoder(self, lanes: Sequence[Lane], *, is_training: bool) -> Decode:
        """Return what makes a sample of the members of a shard."""
        make = training_decoder if is_training else evaluation_decoder
        return make(lanes, self._crop if is_training else self._val_crop)

    def settings(self) -> dict[str, Any]:
        """Return what else decides which samples there are, for the fingerprint of the data."""
        steps = {"global_batch": self.global_batch, "steps_per_epoch": self.steps_per_epoch}
        pictures = {"image_size": self._crop.image_size, "flip": self._crop.flip}
        rule, noops = self._texts.long_texts, dict(self._noops.rates)
        # absent by default, as in checkpoints of versions that had none
        texts = {} if rule is LongTexts.truncate else {"long_texts": rule.name}
        buckets = {} if self._crop.buckets is None else {BUCKETS: True}
        return {**steps, **pictures, **({"noops": noops} if noops else {}), **texts, **buckets}

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands, as primitives."""
        if self._course is None:
            return {}
        return self._course.state(self._layout.accumulate, self.settings()).to_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint ended. Evaluation ignores the state.

        Raises:
            InputError: if the data are not those of the checkpoint.
        """
        if self._course is not None:
            state = StreamState.from_dict(state_dict)
            self._course.restore(state, self.settings(), allow_change=self._allow_change)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Check that the batch about to be trained on is the one that is due."""
        if self.trainer is None or not self.trainer.training:
            return batch
        micro = self._layout.micro
        due = self.consumed + (self._num_pending * self._layout.world + self._rank) * micro
        found = int(batch.position[0])
        if found != due:
            raise RuntimeError(f"a batch starts at position {found} of the stream, due is {due}")
        return batch

    def restored(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Fit Lightning's counters of micro-batches to the present accumulation.

        Raises:
            InputError: if the virtual epoch has become shorter than what was trained of it.
        """
        del trainer
        if (state := checkpoint.get(type(self).__qualname__)) is not None:
            restore_progress(checkpoint, state, self._layout.accumulate, self.steps_per_epoch)

    def started(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare the position of the data with the number of optimizer steps.

        Raises:
            InputError: if the checkpoint had no state of this data module.
        """
        if module.automatic_optimization and not self._is_in_step(trainer):
            raise InputError(
                f"the checkpoint has {trainer.global_step} optimizer steps but its data state "
                f"({type(self).__name__}) says {self.consumed // self.global_batch}; resume "
                "with the kind of data module that wrote it, or start a new run from the weights"
            )
        steps = trainer.estimated_stepping_batches  # infinite without an end
        if steps != float("inf"):
            self._warn_of_repeats(trainer, int(steps) * self.global_batch, until="by its end")

    def trained(self, trainer: Trainer, module: LightningModule) -> None:
        """Count a micro-batch; at the end of an optimizer step, move on."""
        self._num_pending += 1
        if self._num_pending < self._layout.accumulate:
            return
        self._num_pending = 0
        self._set_up().consumed += self.global_batch
        if module.automatic_optimization and not self._is_in_step(trainer):
            raise RuntimeError(
                f"after {self.consumed} samples there should be "
                f"{self.consumed // self.global_batch} optimizer steps, Lightning counts "
                f"{trainer.global_step}; something else changes the accumulation"
            )

    def wanted_shares(self) -> dict[str, float]:
        """Return the share of the draws of each group (`task` or `task:kind`), as configured."""
        return self._set_up().mixture.shares()

    def held_out_groups(self) -> tuple[tuple[str, ...], Int64[Tensor, " n"]]:
        """Return the groups in validation, and which of them each of its positions is of."""
        return groups_of(self._val or [])

    def steer(self, shares: Mapping[str, float]) -> None:
        """Let the groups have these shares of the draws, summing to 1, from the next epoch on.

        To be called on all processes with the same shares, after the last step of an epoch.
        """
        self._set_up().steer(shares)

    def lane_counts(self) -> list[LaneCount]:
        """Return how often each lane was drawn so far."""
        return self._set_up().count()

    def epoch_ended(self, trainer: Trainer) -> None:
        """Log what the mixture has come to, `data/share/<lane>` and `data/epochs/<lane>`.

        With data from elsewhere also `data/retries`, fetches that rank 0 had to try again.
        """
        self._warn_of_repeats(trainer, self.consumed, until="so far")
        if trainer.loggers:
            lanes = self._set_up().mixture.lanes
            values = lane_metrics(self.lane_counts()) | retry_metrics(lanes)
            for log in trainer.loggers:
                log.log_metrics(values, step=trainer.global_step)

    def ended(self, trainer: Trainer) -> None:
        """Show the realised mixture of several data sets."""
        if trainer.is_global_zero and len(self.train_folders) > 1:
            logger.info("trained on\n%s", lane_table(self.lane_counts()))

    def _warn_of_repeats(self, trainer: Trainer, position: int, *, until: str) -> None:
        if self._is_warned or not trainer.is_global_zero:
            return
        warning = repeated_often(self._set_up().count(position), until=until)
        self._is_warned = bool(warning)
        if warning:
            logger.warning("%s", warning)

    def _is_in_step(self, trainer: Trainer) -> bool:
        return trainer.global_step * self.global_batch == self.consumed

    def _next_position(self) -> int:
        self._num_pending = 0
        return self.consumed

    def _set_up(self) -> Course:
        if self._course is None:
            raise RuntimeError(NOT_SET_UP)
        return self._course

    def _read(self, location: str, name: str = "") -> DataSet:
        """Open a folder of shards: the one place where this is done."""
        folder = open_folder(location, self._cache)
        refuse_unknown_tasks(folder, self.table)
        if sum(entry.bytes for entry in folder.manifest.entries) < HASHED_BELOW:
            folder.verify_hashes()
            if self._texts.long_texts is LongTexts.refuse:  # now rather than at some late step
                refuse_long_texts(folder, self._texts)
        return DataSet(name, folder)

    def _mix(self, lanes: list[Lane]) -> Mixture:
        tasks = list(dict.fromkeys(lane.task for lane in lanes))
        check_named(self._noops.rates, tasks, where_of(lanes), setting="data.noops")
        mixture = mixture_of(lanes, self.weights, self.global_batch)
        # refuses a window now rather than at the first batch
        mixture.spec(seed=self._seed, window=self._window)
        refuse_small_cache(mixture.lanes, self._window)
        return mixture

    def fit_layout(self, world: int) -> Layout:
        """Return how an optimizer step is split over `world` processes.

        Raises:
            InputError: if the batch sizes do not divide.
        """
        given = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return fit_layout(self.global_batch, self._micro_batch, accumulate=given, world=world)

    def _attach(self, trainer: Trainer) -> None:
        """Check the trainer's settings, set its accumulation, and follow its training."""
        refuse_trainer(trainer, self._layout, self.steps_per_epoch)
        trainer.accumulate_grad_batches = self._layout.accumulate
        if self.val_folder is None:
            trainer.limit_val_batches = 0
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        others = [c for c in callbacks if not isinstance(c, FollowTraining)]
        callbacks[:] = [FollowTraining(self), *others]
