"""The cells of a study made by one process or several, in one folder.

Who learns a lesson holds a lock on a file of its name. The lock is the kernel's, so that of a
process that died is free at once, and what it had not finished is made by the next.
"""

import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from benchmarks.inversion.cells import (
    Cell,
    LessonStart,
    OldTasks,
    OnStep,
    Study,
    read_cell,
    run_cell,
)
from emu_edit.files import write_json
from emu_edit.terminal import step_bar


def make_cells(cells: Sequence[Cell], study: Study, folder: Path) -> int:
    """Make the cells that are not in the folder, one line of print for each.

    Returns:
        How many are still missing: those that other processes are making.
    """
    missing = missing_of(cells, study, folder)
    if not missing:
        return 0
    maker = _Maker(missing, study, folder)
    # lessons that another process let go of unfinished are come back to
    while maker.round():
        pass
    return len(missing_of(cells, study, folder))


def missing_of(cells: Sequence[Cell], study: Study, folder: Path) -> list[Cell]:
    """Return the cells that are not in the folder."""
    return [cell for cell in cells if read_cell(folder / cell.file, study) is None]


class _Maker:
    """Makes cells, and tells how far all processes are."""

    def __init__(self, cells: list[Cell], study: Study, folder: Path) -> None:
        self.cells, self.study, self.folder = cells, study, folder
        self.old = OldTasks.of(study)
        self.total = sum(map(study.budget, cells))

    def round(self) -> bool:
        """Make what no other process is making; return whether there was something."""
        done_some = False
        with step_bar("few-shot study") as on_step:
            for lesson, group in groupby(self.cells, lambda cell: cell.lesson):
                with claimed(self.folder / f".{lesson}.lock") as is_ours:
                    todo = missing_of(list(group), self.study, self.folder) if is_ours else []
                    begun = None
                    for cell in todo:
                        begun = begun or LessonStart.of(cell, self.study)
                        self._make(cell, begun, on_step)
                        done_some = True
        return done_some

    def _make(self, cell: Cell, begun: LessonStart, on_step: OnStep) -> None:
        left = missing_of(self.cells, self.study, self.folder)
        before = self.total - sum(map(self.study.budget, left))

        def told(done: int, _of: int) -> None:
            on_step(before + done, self.total)

        made = run_cell(cell, self.study, self.old, begun, told)
        write_json(self.folder / cell.file, made)
        number = len(self.cells) - len(left) + 1
        sys.stderr.write(f"{number}/{len(self.cells)} {line_of(made)}\n")


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a lock on a file for a while; yields False if another process has it."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            # who opened it before it went locks a file without a name, and finds nothing to do
            path.unlink(missing_ok=True)


def line_of(cell: dict) -> str:
    """Return a cell in a line."""
    what, new, old = cell["cell"], cell["new"], cell["old"]
    return (
        f"{what['task']:10s} {what['method']:9s} {what['pairs']:5d} pairs, seed {what['seed']}: "
        f"error/copy {new['error']:.3f}, success {100 * new['success']:3.0f} %, old tasks "
        f"{100 * old['success_change']:+.1f} points ({100 * old['identical']:.0f} % the same "
        f"bits), step {cell['best_step']} of {cell['steps']}, {cell['seconds']:.0f} s"
    )
