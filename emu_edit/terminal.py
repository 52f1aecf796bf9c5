"""What a person sees in a terminal: progress (how far, how fast, how long still) and tables.

Progress goes to standard error and is gone when the work is done; a log file gets a line about
every half minute. A table is plain text, whole in a file and as wide as the terminal where there is
one.
"""

import codecs
import io
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

OnStep = Callable[[int, int | None], None]  # called with (done, in all)

LINE_EVERY = 30.0  # seconds between two lines where there is no terminal
PLAIN = "emu_edit.plain"
INSTEAD = {
    **{"…": "...", "·": "-", "\u2013": "-", "—": "-", "²": "^2", "³": "^3", "°": " degrees"},
    **{
        "→": "->",
        "±": "+-",
        "\u00d7": "x",
        "√": "sqrt ",
        "↓": "(down)",
        "↑": "(up)",
        "§": "section ",
    },
}


@contextmanager
def step_bar(what: str, unit: str = "steps") -> Iterator[OnStep]:
    """Show a bar, or lines where there is no terminal, and yield what moves it.

    While the total is None, it shows that something is done and how fast.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with live_bar(console, transient=True) as bar, shown_work(bar, what, unit) as on_step:
        yield on_step


@contextmanager
def shown_work(
    bar: "Progress", what: str, unit: str, line_every: float = LINE_EVERY
) -> Iterator[OnStep]:
    """Show one more work in a bar until the block ends, and yield what moves it.

    Where the bar shows nothing, a line comes every `line_every` seconds, the first so late, too.
    """
    if bar.disable:
        yield _in_lines(bar.console, what, unit, line_every)
        return
    task = bar.add_task(what, total=None, status="…")

    def on_step(done: int, total: int | None) -> None:
        bar.update(task, completed=done, total=total)
        if (speed := bar.tasks[-1].speed) is not None:
            bar.update(task, status=f"{speed:.1f} {unit}/s")

    try:
        yield on_step
    finally:
        bar.remove_task(task)


def _in_lines(console: "Console", what: str, unit: str, every: float) -> OnStep:
    began = shown = time.monotonic()

    def on_step(done: int, total: int | None) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= every:
            shown, elapsed = now, now - began
            left = None if total is None else elapsed * (total - done) / max(done, 1)
            status = f"{done / elapsed:.1f} {unit}/s"
            console.print(progress_line(what, done, total, left, status), soft_wrap=True)

    return on_step


def progress_line(
    what: str, done: int, total: int | float | None, left: float | None, status: str
) -> str:
    """Say in words what a bar shows; `left` are seconds, None where nobody knows."""
    if total is None:
        known = "" if left is None else f"{clock(left)} left · "
        return f"{what} {done} · {known}{status}"
    known = "?" if left is None else clock(left)
    share = 100 * done / max(total, 1)
    return f"{what} {done}/{total:.0f} ({share:.0f} %) · {known} left · {status}"


def live_bar(console: "Console", *, transient: bool = False) -> "Progress":
    """Return a bar with count, time left and a `status` field; nothing where there's no terminal.

    A log file wants lines, not bars. With `transient` the bar is gone when the work is done. A task
    may have a field `limit`, the seconds after which it ends whatever is left.
    """
    # here, because the help pages of the command line draw tables and must be instant
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
    )
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            known = [s for s in (task.time_remaining, task.fields.get("limit")) if s is not None]
            return Text(
                clock(float(min(known))) if known else "-:--:--", style="progress.remaining"
            )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeLeft(),
        TextColumn("{task.fields[status]}"),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss or m:ss; a negative one as 0:00."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# torchao has kernels for cards that are not here, registers its enums in a way torch warns of, and
# has not the tensors that diffusers looks for
CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def speak_plainly() -> None:
    """Let a terminal of ASCII or Latin-1 show other characters for those it lacks.

    Python would end the program in the middle of a help page or a table. Of libraries that warn of
    themselves when somebody imports them, only errors are heard.
    """
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    codecs.register_error(PLAIN, _plain)
    for stream in (sys.stdout, sys.stderr):
        # a test or a notebook may have put something else there
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(INSTEAD.get(character, "?") for character in lacking), error.end


def plural(count: int, noun: str) -> str:
    """Write "1 edit", "1,053 edits"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def terminal_width() -> int | None:
    """Return how many columns standard output shows; None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(text: str, width: int | None) -> str:
    """Narrow a text with Markdown tables to so many columns; None leaves it as it is.

    Sentences are broken at words. A table that is too wide loses what stands in brackets, then
    columns from the right, and says so below it.
    """
    if width is None:
        return text
    lines: list[str] = []
    for is_table, part in groupby(text.split("\n"), key=lambda line: line.startswith("| ")):
        if is_table:
            lines += _narrowed(list(part), width)
        else:
            lines += [piece for line in part for piece in _wrapped(line, width)]
    return "\n".join(lines)


def _narrowed(lines: list[str], width: int) -> list[str]:
    """Lay out a Markdown table again where it is too wide."""
    if len(lines[0]) <= width:
        return lines
    head, _, *rows = ([cell.strip() for cell in line[2:-2].split(" | ")] for line in lines)
    short = [[row[0], *(re.sub(r"(?<=\S) \(.*\)$", "", cell) for cell in row[1:])] for row in rows]
    fits = [
        n
        for n in range(1, len(head) + 1)
        if len(markdown_table(head[:n], [row[:n] for row in short]).split("\n")[0]) <= width
    ]
    kept = max(fits, default=1)
    table = markdown_table(head[:kept], [row[:kept] for row in short])
    missing = [*(["what is in brackets"] if short != rows else []), *head[kept:]]
    note = f"no room here for {', '.join(missing)}: see the written table"
    return [*(line[:width] for line in table.split("\n")), *_wrapped(note, width)]


def aligned(
    rows: Sequence[Sequence[str]], *, numbers: bool = False, width: int | None = None
) -> list[str]:
    """Give columns of equal width to the rows of a table.

    Args:
        rows: the head first, if there is one; all of one length.
        numbers: columns from the second on are numbers, which end at one place.
        width: break the last column, a text, where lines would be longer; None never does.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_padded(row, widths, numbers=numbers)).rstrip() for row in rows]
    if width is None:
        return lines
    indent = min(len("  ".join(" " * w for w in widths[:-1])) + 2, width // 2)
    return [piece for line in lines for piece in _wrapped(line, width, " " * indent)]


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


def _wrapped(line: str, width: int, indent: str = "") -> list[str]:
    """Break a line at words, but not within one; an empty line stays."""
    if len(line) <= width:
        return [line]
    return wrap(
        line,
        width,
        subsequent_indent=indent,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _padded(row: Sequence[str], widths: Sequence[int], *, numbers: bool) -> list[str]:
    return [
        cell.rjust(width) if numbers and column > 0 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
