"""What a person sees in a terminal: progress (how far, how fast, how long still) and tables.

Progress goes to standard error and is gone when the work is done; a table is plain text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@contextmanager
def step_bar(what: str, unit: str = "steps") -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar and yield the function that moves it: `on_step(done, total)`.

    While the total is None, the bar shows that something is done and how fast.
    """
    from rich.console import Console

    with live_bar(Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, status="…")

        def on_step(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)
            if (speed := bar.tasks[0].speed) is not None:
                bar.update(task, status=f"{speed:.1f} {unit}/s")

        yield on_step


def live_bar(console: "Console", *, transient: bool = False) -> "Progress":
    """Return a bar with count, time left and a `status` field; nothing where there's no terminal.

    A log file wants lines, not bars. With `transient` the bar is gone when the work is done.
    """
    # here, because the help pages of the command line draw tables and must be instant
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )


def aligned(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Give columns of equal width to the rows of a table.

    Args:
        rows: the head first, if there is one; all of one length.
        numbers: columns from the second on are numbers, which end at one place.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths, numbers=numbers)).rstrip() for row in rows]


def markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False
) -> str:
    """Write a Markdown table that reads well as plain text, too.

    Args:
        head: titles of the columns.
        rows: as long as the head; a bar in a cell, which would end it, becomes a slash.
        numbers: columns from the second on are numbers, which end at one place.
    """
    cells = [[cell.replace("|", "/") for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(_padded(row, widths, numbers=numbers))} |" for row in cells)


def _padded(row: Sequence[str], widths: Sequence[int], *, numbers: bool) -> list[str]:
    return [
        cell.rjust(width) if numbers and column > 0 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
