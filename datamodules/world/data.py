"""WorldData: the procedural world as a data module; it writes its shards the first time it is used.

The default data of every recipe: nothing is downloaded. Training pairs are of the split "train",
validation pairs of the split "heldout": new sentences and new combinations of colour and shape.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datamodules.edit import EditDataModule
from datamodules.shards.manifest import MANIFEST, read_manifest
from datamodules.stream.mixing import check_weights
from datamodules.stream.order import quotas
from datamodules.stream.sampler import refuse_trainer
from datamodules.world.photographs import Photos
from datamodules.world.write import (
    Extras,
    World,
    captions_made_by,
    write_captions,
    write_world,
)
from emu_edit.errors import InputError
from emu_edit.tasks import CAPTION, SIXTEEN
from emu_edit.terminal import step_bar

logger = logging.getLogger(__name__)

WORLD_SEED = 0  # of the pairs; the seed of the data module is that of their order
VAL_SHARE = 40  # one validation pair for so many training pairs,
VAL_PAIRS = (32, 1280)  # but at least and at most so many


class WorldData(EditDataModule):
    """Feed pairs of the procedural world.

    Args:
        folder: where the shards are kept, in `train/` and `val/`; written when they are missing.
        pairs: number of training pairs.
        noop_pairs: how many pairs that ask for what already holds are written with each of the
            tasks local, remove and texture, beside `pairs`.
        hard_pairs: how many more pairs of the kinds that are learnt last are written with each of
            the tasks local, texture, text, style and color; which kinds, see `HARD`.
        photos: photographs for backgrounds, and to edit: a folder, `installed` for those that come
            with packages, or a list of such. One in five is kept for validation.
        photo_share: share of the scenes before a photograph, and of the edits of whole pictures
            that are of one.
        paraphrased: ask for the training edits in many more ways (`phrasings.PARAPHRASES`).
        by_kind: keep the kinds of edit of each task apart, so that they can be drawn by weights of
            their own (`callbacks.mixture`).
        flat: one or two plain figures on a plain backdrop, as models of `WorldCaptions` draw them.
        image_size: side of the pictures.
        global_batch: samples per optimizer step, over all processes and accumulated batches.
        micro_batch: samples a process trains on at a time; accumulation follows from it.
        steps_per_epoch: optimizer steps in a virtual epoch.
        weights: how often each task is drawn, relative to the others; by default equally.
        noops: for each task, the share of its training pairs shown as already edited.
        num_workers: loader processes; changes speed only.
        seed: of the order of the pairs.
        window: number of shards of a task whose samples are mixed.
        allow_change: go on from a checkpoint although the data have changed since.
    """

    def __init__(
        self,
        folder: str = "data/world",
        pairs: int = 24_000,
        noop_pairs: int = 0,
        hard_pairs: int = 0,
        photos: list[str] | str | None = None,
        photo_share: float = 0.5,
        paraphrased: bool = False,
        by_kind: bool = False,
        flat: bool = False,
        image_size: int = 64,
        global_batch: int = 32,
        micro_batch: int | None = None,
        steps_per_epoch: int = 100,
        weights: dict[str, float] | None = None,
        noops: dict[str, float] | None = None,
        num_workers: int = 0,
        seed: int = 0,
        window: int = 8,
        allow_change: bool = False,
    ) -> None:
        super().__init__(
            train=str(Path(folder) / "train"),
            val=str(Path(folder) / "val"),
            image_size=image_size,
            global_batch=global_batch,
            micro_batch=micro_batch,
            steps_per_epoch=steps_per_epoch,
            weights=weights,
            noops=noops,
            num_workers=num_workers,
            seed=seed,
            window=window,
            allow_change=allow_change,
        )
        self.train_folder = Path(folder) / "train"
        self._pairs = pairs
        self._extras = Extras(
            noops=noop_pairs,
            hard=hard_pairs,
            paraphrased=paraphrased,
            by_kind=by_kind,
            flat=flat,
        )
        self.photos = photos
        self._photo_share = photo_share
        self._size = image_size

    def prepare_data(self) -> None:
        """Write the shards that are missing; one process of a machine does it for all.

        Raises:
            InputError: if the folder holds another world than the one asked for, or batch sizes,
                weights and trainer do not go together; nothing is written then.
        """
        self._check_before_writing()
        learn, test = None, None
        if self.photos is not None:
            learn, test = Photos(self.photos, self._photo_share).split()
        fewest, most = VAL_PAIRS
        val_pairs = min(max(self._pairs // VAL_SHARE, fewest), most)
        self._write(self.train_folder, self._pairs, "train", learn, self._extras)
        if self.val_folder is not None:
            plain = Extras(by_kind=self._extras.by_kind, flat=self._extras.flat)
            self._write(Path(self.val_folder), val_pairs, "heldout", test, plain)

    def _write(
        self, folder: Path, pairs: int, split: str, photos: Photos | None, extras: Extras
    ) -> None:
        if (folder / MANIFEST).exists():
            wanted = World(pairs, WORLD_SEED, self._size, split, photos, extras).made_by()
            absent = dict.fromkeys([*asdict(extras), "hard_kinds"])
            _refuse_another(folder, {**absent, **wanted})
            return
        logger.info("writing %d %s pairs of the world to %s", pairs, split, folder)
        with step_bar(f"writing {split} pairs", "pairs") as progress:
            write_world(
                folder,
                pairs,
                seed=WORLD_SEED,
                size=self._size,
                split=split,
                photos=photos,
                extras=extras,
                progress=progress,
            )

    def _check_before_writing(self) -> None:
        """Refuse now what `setup` would refuse once minutes of writing are over."""
        trainer = self.trainer
        layout = self.fit_layout(1 if trainer is None else trainer.world_size)
        if trainer is not None:
            refuse_trainer(trainer, layout, self.steps_per_epoch)
        if self.weights is not None:
            check_weights(self.weights, list(SIXTEEN.names), self.train_folder)
            quotas(self.weights)


class WorldCaptions(EditDataModule):
    """Feed pictures of the procedural world with their captions, to learn to draw.

    Args:
        folder: where the shards are kept, in `train/` and `val/`; written when they are missing.
        pictures: number of training pictures.
        flat: one or two plain figures on a plain backdrop; else all that the world has.
        image_size: side of the pictures.
        global_batch: samples per optimizer step, over all processes and accumulated batches.
        **others: as of `EditDataModule`.
    """

    def __init__(
        self,
        folder: str = "world/captions",
        pictures: int = 60_000,
        flat: bool = True,
        image_size: int = 32,
        global_batch: int = 32,
        **others: Any,  # as of `ClipDataModule`
    ) -> None:
        train = Path(folder) / "train"
        super().__init__(
            train=str(train),
            val=str(Path(folder) / "val"),
            image_size=image_size,
            global_batch=global_batch,
            tasks=[CAPTION],
            **others,
        )
        fewest, most = VAL_PAIRS
        self._parts = {
            train: (pictures, "train"),
            Path(folder) / "val": (min(max(pictures // VAL_SHARE, fewest), most), "heldout"),
        }
        self._size, self._flat = image_size, flat

    def prepare_data(self) -> None:
        """Write the shards that are missing; one process of a machine does it for all.

        Raises:
            InputError: if the folder holds other pictures than those asked for.
        """
        for folder, (count, split) in self._parts.items():
            if (folder / MANIFEST).exists():
                wanted = captions_made_by(count, WORLD_SEED, self._size, split, self._flat)
                _refuse_another(folder, wanted)
                continue
            with step_bar(f"writing {split} captions", "pictures") as progress:
                write_captions(
                    folder,
                    count,
                    seed=WORLD_SEED,
                    size=self._size,
                    split=split,
                    flat=self._flat,
                    progress=progress,
                )


def _refuse_another(folder: Path, wanted: dict[str, object]) -> None:
    found = read_manifest(folder).made_by
    for name, value in wanted.items():
        if found.get(name) != value:
            raise InputError(
                f"{folder} was made with {name}={found.get(name)!r}, needed is {value!r}; give "
                "another data.folder, delete this one, or ask for what it holds"
            )
