"""`evaluate --compare`: published rows below one's own, under a heading per protocol.

A published row stands beside ours only where benchmark, protocol, split and number of edits are the
same; everything else is printed too, each protocol apart and marked "not comparable". Rows are in
the order of their names: nothing is ranked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu_edit.evaluation.figures import MODEL, Block, blocks_of, metric
from emu_edit.metrics.published import PACKAGED, PublishedRow, load_published
from emu_edit.terminal import markdown_table, plural

OWN = "this run"
DIGITS = 3  # at least: JSON drops the zeros a paper prints at the end


@dataclass(frozen=True)
class Group:
    """Published rows of one benchmark, protocol and split.

    Attributes:
        protocol: as the rows name it.
        split: of the benchmark; "" where the source does not say.
        why_not: why these rows cannot be compared with this run; "" where they can.
        own: the run's own scores, only where they can.
        rows: by name.
    """

    protocol: str
    split: str
    why_not: str
    own: Mapping[str, float | None]
    rows: tuple[PublishedRow, ...]

    @property
    def title(self) -> str:
        """Name what the rows share."""
        return f"protocol {self.protocol}, {self.split or 'split not stated'}"

    @property
    def state(self) -> str:
        """Say whether the rows can be compared with this run."""
        return f"not comparable: {self.why_not}" if self.why_not else "same benchmark and protocol"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that some row has, in the order of the fullest one."""
        fullest = sorted(self.rows, key=lambda row: -len(row.values))
        return tuple(dict.fromkeys(name for row in fullest for name in row.values))


def compare(results: Mapping[str, Any], published: Iterable[PublishedRow]) -> tuple[Group, ...]:
    """Group the published rows of the run's benchmark, comparable ones first."""
    groups: dict[tuple[str, str, str], list[PublishedRow]] = {}
    for row in published:
        if row.benchmark == results["benchmark"]:
            key = (row.protocol, row.split, why_not(results, row))
            groups.setdefault(key, []).append(row)
    found = [
        Group(
            protocol,
            split,
            why,
            {} if why else _own(results, split),
            tuple(sorted(rows, key=lambda row: row.model.casefold())),
        )
        for (protocol, split, why), rows in groups.items()
    ]
    own = results["protocol"]["name"]
    return tuple(sorted(found, key=lambda group: (bool(group.why_not), group.protocol != own)))


def why_not(results: Mapping[str, Any], row: PublishedRow) -> str:
    """Say why a published row of the same benchmark cannot be compared with a run, "" if it can."""
    protocol, data = results["protocol"]["name"], results["data"]
    if row.protocol != protocol:
        return f"this run follows {protocol}"
    block = _block(results, row.split)
    if block is None:
        return f"this run has no {row.split or 'split of that kind'}"
    if data["items"] < data["of"]:
        return f"this run scored only {data['items']} of {plural(data['of'], 'edit')}"
    if row.items is not None and row.items != block.items:
        return f"this run scored {plural(block.items, 'edit')}, the source {row.items}"
    return ""


def compare_table(results: Mapping[str, Any], published: Path | None) -> str:
    """Write the comparison as Markdown that also reads well as plain text, "" without a row.

    Args:
        results: what results.json holds.
        published: file of published rows; None means the packaged one.

    Raises:
        InputError: if the file cannot be used.
    """
    rows = load_published(PACKAGED if published is None else published)
    return "\n\n".join(group_text(group) for group in compare(results, rows))


def group_text(group: Group) -> str:
    """Write one group as a heading and a table."""
    head = ["model", *(str(metric(name)) for name in group.metrics), "source"]
    lines = [[OWN, *numbers(group, group.own), ""]] if group.own else []
    for row in group.rows:
        source = f"{row.source} ({row.note})" if row.note else row.source
        lines.append([row.model, *numbers(group, row.values), source])
    return f"## Published, {group.title} ({group.state})\n\n{markdown_table(head, lines)}"


def _block(results: Mapping[str, Any], split: str) -> Block | None:
    """Find the run's block that a published split belongs to."""
    blocks = {block.name: block for block in blocks_of(results)}
    if split in blocks:
        return blocks[split]
    is_same = split == results["data"]["split"]  # the split of a benchmark of single edits
    return next(iter(blocks.values())) if is_same and len(blocks) == 1 else None


def _own(results: Mapping[str, Any], split: str) -> dict[str, float | None]:
    block = _block(results, split)
    figures = {} if block is None else block.rows[MODEL].all
    return {name: figure.mean for name, figure in figures.items()}


def numbers(group: Group, values: Mapping[str, float | None]) -> list[str]:
    """Write a row's scores as texts, in the order of the group's metrics; "-" where unknown.

    All with the digits that the sources print: more would look more exact than they are.
    """
    printed = [f"{value:.6g}" for row in group.rows for value in row.values.values()]
    digits = max(DIGITS, *(len(text.partition(".")[2]) for text in printed))
    found = [values.get(name) for name in group.metrics]
    return ["-" if value is None else f"{value:.{digits}f}" for value in found]
