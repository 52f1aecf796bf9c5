"""The pairs of a new task under Lightning; the batches are those of `invert`, step for step."""

from collections.abc import Callable, Iterator
from pathlib import Path

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.fewshot import CROPS, MAX_PAIRS, FewShotSource, read_few_shot
from emu_edit.batch import EditBatch, EditSample
from emu_edit.errors import InputError
from emu_edit.training.few_shot import FewShotPair, batch_at, check_batches, split, views


class FewShotData(LightningDataModule):
    """Feed the few pairs of a new task, and hold some out when there are enough.

    Args:
        data: a folder of shards or of pairs, or a .jsonl file.
        task: name of the new task, needed where the data are of several tasks.
        instruction: what asks for it, for pairs that say nothing themselves.
        pairs: take so many, drawn by the seed; none takes all.
        max_pairs: more than so many are refused, unless `pairs` says how many.
        image_size: side of the square pictures are cut and resampled to: the base's.
        crops: squares of a picture that is none itself.
        flip: also learn from mirrored pairs.
        held_out: share of the pairs that the vector is judged by, from 5 pairs on.
        batch_size: samples per optimizer step.
        steps_per_epoch: optimizer steps in a virtual epoch; the held-out pairs are measured after
            each.
        seed: of draw, split and order.
    """

    def __init__(
        self,
        data: str,
        task: str = "",
        instruction: str = "",
        pairs: int | None = None,
        max_pairs: int = MAX_PAIRS,
        image_size: int = 64,
        crops: int = CROPS,
        flip: bool = False,
        held_out: float = 0.2,
        batch_size: int = 8,
        steps_per_epoch: int = 25,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("steps_per_epoch", steps_per_epoch)):
            if value < 1:
                raise InputError(f"data.{name}={value} must be at least 1")
        self.source = FewShotSource(Path(data), task, instruction, pairs, max_pairs, seed)
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self._image_size, self._crops = image_size, crops
        self._flip, self._held_out = flip, held_out
        self.train_pairs: list[FewShotPair] = []
        self.held_out_pairs: list[FewShotPair] = []
        self.train_samples: list[EditSample] = []

    def setup(self, stage: str) -> None:
        """Read the pairs and part them.

        Raises:
            InputError: if they cannot be used, or training is on several devices.
        """
        del stage
        pairs = read_few_shot(self.source, image_size=self._image_size, crops=self._crops)
        self.train_pairs, self.held_out_pairs = split(pairs, self._held_out, seed=self.seed)
        self.train_samples = views(self.train_pairs, flip=self._flip)
        if self.trainer is not None:
            self._fit_trainer(self.trainer)

    def _fit_trainer(self, trainer: Trainer) -> None:
        if trainer.world_size > 1 or trainer.accumulate_grad_batches > 1:
            raise InputError(
                f"one vector is learnt on one device, without accumulation, not on "
                f"{trainer.world_size} by {trainer.accumulate_grad_batches}; set trainer.devices "
                "and trainer.accumulate_grad_batches to 1 and raise data.batch_size instead"
            )
        if not self.held_out_pairs:
            trainer.limit_val_batches = 0

    def train_dataloader(self) -> DataLoader:
        """Return the loader of one virtual epoch, which goes on where training stands."""

        def first() -> int:
            return 0 if self.trainer is None else self.trainer.global_step

        steps = _Steps(first, self.steps_per_epoch)
        batches = _Batches(self.train_samples, self.batch_size, seed=self.seed)
        return DataLoader(batches, batch_size=None, sampler=steps)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of the held-out pairs, the same noise each time."""
        return DataLoader(check_batches(views(self.held_out_pairs)), batch_size=None)  # type: ignore[arg-type]


class _Batches(Dataset[EditBatch]):
    """The batch of each step."""

    def __init__(self, samples: list[EditSample], size: int, *, seed: int) -> None:
        self._samples, self._size, self._seed = samples, size, seed

    def __getitem__(self, step: int) -> EditBatch:
        return batch_at(self._samples, step, self._size, seed=self._seed)


class _Steps(Sampler[int]):
    """The numbers of an epoch's steps, from the present one on."""

    def __init__(self, first: Callable[[], int], count: int) -> None:
        self._first, self._count = first, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        # asked with the first step: Lightning makes iterators while it still resumes
        first = self._first()
        yield from range(first, first + self._count)
