"""The DataLoader of this project: positions in, EditBatch out, errors in one line.

An exception in a worker process normally arrives as its text with the worker's traceback around
it. Errors a user can cause are shown as one line here, so they travel as values and are raised in
the main process.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from emu_edit.batch import EditBatch, EditSample
from emu_edit.errors import InputError


class _ErrorsAsValues(Dataset[EditSample]):
    def __init__(self, samples: Dataset[EditSample]) -> None:
        self._samples = samples

    def __getitem__(self, position: int) -> EditSample:
        return self._samples[position]

    def __getitems__(self, positions: list[int]) -> list[EditSample] | InputError:
        """Read one micro-batch; torch's loader prefers this method when there is one."""
        try:
            return [self._samples[position] for position in positions]
        except InputError as error:
            return error


def _collate(samples: list[EditSample] | InputError) -> EditBatch | InputError:
    return samples if isinstance(samples, InputError) else EditBatch.collate(samples)


class PositionLoader(DataLoader[EditSample]):
    """Load micro-batches of positions, in order, whatever the number of workers.

    `state_dict` and `load_state_dict` tell Lightning that resuming mid-epoch is taken care of; the
    state itself is in the data module, because Lightning does not restore a loader's in all cases.
    """

    def __init__(
        self,
        samples: Dataset[EditSample],
        batches: Iterable[list[int]],
        *,
        num_workers: int = 0,
        start_method: str | None = None,
    ) -> None:
        super().__init__(
            _ErrorsAsValues(samples),
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            multiprocessing_context=start_method,
        )

    def __iter__(self) -> Iterator[EditBatch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # workers start now, not at the first batch
        return _raising(super().__iter__())

    def state_dict(self) -> dict[str, object]:
        """Return nothing: the position is in the data module's state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Take nothing."""


def _raising(batches: Iterator[Any]) -> Iterator[EditBatch]:
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch
