"""Progress bars: how far, how fast, how long still; on stderr, gone when done.

Tables as plain text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.text import Text


class RateColumn(TextColumn):
    """Steps per second."""

    def __init__(self, unit: str) -> None:
        super().__init__("")
        self.unit = unit

    def render(self, task: RichTask) -> Text:
        """Return the rate, or dots while nothing is known."""
        speed = task.finished_speed or task.speed
        return Text("…" if speed is None else f"{speed:.1f} {self.unit}/s")


@contextmanager
def step_bar(what: str, unit: str = "steps") -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar and yield the function that moves it: `on_step(done, total)`.

    While the total is None, the bar shows that something is done and how fast.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    is_shown = console.is_terminal  # a log file wants lines, not bars
    with Progress(*columns, console=console, transient=True, disable=not is_shown) as progress:
        task = progress.add_task(what, total=None)

        def on_step(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

        yield on_step


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
