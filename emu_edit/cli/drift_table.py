"""The table of a drift benchmark, for a terminal and for Markdown."""

from collections.abc import Mapping, Sequence

from emu_edit.metrics.drift import DriftPoint

HEADER = ("turn", "L1 outside", "with", "PSNR", "with", "untouched", "with", "success", "with")


def drift_table(
    without: Sequence[DriftPoint], kept: Sequence[DriftPoint], summary: Mapping[str, float | None]
) -> str:
    """Return one row per turn, each number without and with threshold, and what it comes to.

    Args:
        without: the curve without threshold.
        kept: the curve with threshold.
        summary: `error_ratio` and its ends `error_ratio_low` and `_high`, `outside_l1_*` and
            `success_*` with * in "without", "with".
    """
    rows = [HEADER, tuple("-" * len(name) for name in HEADER)]
    rows += [_row(a, b) for a, b in zip(without, kept, strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = [
        f"| {' | '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    return "\n".join([*lines, "", *_conclusion(without[-1].turn, summary)])


def _row(without: DriftPoint, kept: DriftPoint) -> tuple[str, ...]:
    return (
        str(without.turn),
        *(f"{point.outside_l1:.4f}" for point in (without, kept)),
        *(_decibels(point.outside_psnr) for point in (without, kept)),
        *(f"{point.kept:.0%}" for point in (without, kept)),
        *(_percent(point.success) for point in (without, kept)),
    )


def _conclusion(turn: int, summary: Mapping[str, float | None]) -> list[str]:
    ratio = summary["error_ratio"]
    low, high = (summary[f"error_ratio_{end}"] for end in ("low", "high"))
    times = "no error is left" if ratio is None else f"{ratio:.1f} times less"
    if low is not None:
        above = "or more" if high is None else f"to {high:.1f}"
        times += f", 95 % interval over sessions: {low:.1f} {above}"
    return [
        f"error outside the edits after turn {turn}: {summary['outside_l1_without']:.4f} without, "
        f"{summary['outside_l1_with']:.4f} with threshold ({times})",
        f"success inside, all edits: {_percent(summary['success_without'])} without, "
        f"{_percent(summary['success_with'])} with threshold",
    ]


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
