"""Write what a benchmark found: results.json, items.jsonl and table.md.

results.json holds everything the numbers depend on: the protocol in full, the hashes of networks,
model and every picture, settings and versions. An item in several tables (a session of one turn) is
one line of items.jsonl that names them all.
"""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from datamodules.evaluation_sets.items import Benchmark, Item
from emu_edit.errors import installed_version
from emu_edit.evaluation.edits import item_line
from emu_edit.evaluation.figures import ITEMS, MODEL, RESULTS, metric, noun_of
from emu_edit.evaluation.outputs import Inputs, Output
from emu_edit.evaluation.score import CAPTIONS_NEEDED, Scores, Values
from emu_edit.evaluation.sets import distance_table, world_notes
from emu_edit.files import write_json, write_text
from emu_edit.metrics.intervals import bootstrap_mean
from emu_edit.metrics.protocols import METRICS, Protocol
from emu_edit.terminal import markdown_table, plural

FORMAT = 1
TABLE = "table.md"
PACKAGES = ("torch", "transformers", "pillow", "numpy")

Cells = dict[str, dict[str, float | int | None]]  # by metric


@dataclass(frozen=True)
class Work:
    """What is to be scored: the items of a benchmark, by a protocol.

    Attributes:
        protocol: how.
        benchmark: the items, those alone that count.
        possible: how many are scored without --limit.
        filtered: keys of those that the protocol leaves out.
    """

    protocol: Protocol
    benchmark: Benchmark
    possible: int
    filtered: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Describe what a folder of results depends on, whoever edits."""
        benchmark = self.benchmark
        names = {"benchmark": benchmark.name, "split": benchmark.split}
        return {**names, "protocol": self.protocol.name}


@dataclass(frozen=True)
class Submission:
    """Edited pictures and where they are from.

    Attributes:
        outputs: by key.
        model: name, kind and hash.
        settings: of the editor; empty for a folder of pictures.
    """

    outputs: Mapping[str, Output]
    model: Mapping[str, str]
    settings: Mapping[str, object]


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found, and what it depends on.

    Attributes:
        work: what was to be scored.
        submission: what was scored.
        backbones: hash of each network's weights by name.
        inputs: the hashes of the benchmark's pictures.
        scores: by editor and key.
        device: that the networks were on.
        seconds: how long it took.
    """

    work: Work
    submission: Submission
    backbones: Mapping[str, str]
    inputs: Inputs
    scores: Scores
    device: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Lay out results.json."""
        benchmark, protocol, failed = self.work.benchmark, self.work.protocol, self.failed()
        resampled = list(self.scores.resampled)
        return {
            "format": FORMAT,
            "benchmark": benchmark.name,
            "protocol": asdict(protocol),
            "backbones": dict(self.backbones),
            "data": {
                "name": benchmark.folder,
                "split": benchmark.split,
                "items": len(benchmark.scored()),
                "of": self.work.possible,
                "sha256": self.inputs.sha256,
            },
            "model": dict(self.submission.model),
            "settings": dict(self.submission.settings),
            "versions": versions(),
            "device": self.device,
            "directions": {
                name: "up" if METRICS[name].is_up else "down" for name in protocol.metrics
            },
            "blocks": {
                name: {"items": len(keys), "rows": self._rows(set(keys))}
                for name, keys in benchmark.blocks.items()
            },
            "failed": [output.failure for output in failed],
            "filtered": list(self.work.filtered),
            "resampled": {"count": len(resampled), "keys": resampled},
            "truncated_captions": self.scores.cut_captions,
            "unmended_captions": self.scores.unmended_captions,
            "seconds": round(self.seconds, 1),
            "inputs": self.inputs.lines(),
        }

    def item_lines(self) -> list[dict[str, Any]]:
        """Lay out the lines of items.jsonl, of items that are in a table."""
        blocks = {name: set(keys) for name, keys in self.work.benchmark.blocks.items()}
        return [
            {
                **item_line(item, self.submission.outputs[item.key]),
                "block": [name for name, keys in blocks.items() if item.key in keys],
                "scores": self.scores.rows[MODEL][item.key],
            }
            for item in self.work.benchmark.scored()
        ]

    def failed(self) -> list[Output]:
        """List what failed; a turn in between that nobody gave us did not fail."""
        scored = {item.key for item in self.work.benchmark.scored()}
        found = [self.submission.outputs[item.key] for item in self.work.benchmark.items]
        return [
            output
            for output in found
            if output.reason is not None and (output.key in scored or output.seed is not None)
        ]

    def _rows(self, keys: set[str]) -> dict[str, dict[str, object]]:
        items = [item for item in self.work.benchmark.items if item.key in keys]
        return rows_of(items, self.scores.rows, self.work.protocol.metrics)


def rows_of(
    items: Sequence[Item], scores: Mapping[str, Mapping[str, Values]], metrics: Sequence[str]
) -> dict[str, dict[str, object]]:
    """Average the scores of each editor over all items, and by task and turn where there are any.

    Args:
        items: of one table.
        scores: values by metric, of each editor and key.
        metrics: what is averaged.
    """
    has_tasks = any(item.task for item in items)
    has_turns = any(item.turn > 1 for item in items)
    parts = {
        "by_task": _grouped(items, lambda item: item.task) if has_tasks else {},
        "by_turn": _grouped(items, lambda item: item.turn) if has_turns else {},
    }
    return {
        editor: {
            "all": cells(items, values, metrics),
            **{
                kind: {name: cells(part, values, metrics) for name, part in group.items()}
                for kind, group in parts.items()
            },
        }
        for editor, values in scores.items()
    }


def _grouped(items: Sequence[Item], key: Callable[[Item], str | int]) -> dict[str, list[Item]]:
    """Sort items into groups of one key, in the order of the keys."""
    return {str(name): list(group) for name, group in groupby(sorted(items, key=key), key)}


def cells(items: Sequence[Item], values: Mapping[str, Values], metrics: Sequence[str]) -> Cells:
    """Average each metric over the items that have it; turns of a session are drawn together."""
    averages: Cells = {}
    for name in metrics:
        defined = {
            item.key: value for item in items if (value := values[item.key][name]) is not None
        }
        groups = [item.session for item in items if item.key in defined]
        mean, low, high = (
            bootstrap_mean(list(defined.values()), groups=groups) if defined else (None, None, None)
        )
        counts = {"n": len(defined), "undefined": len(items) - len(defined)}
        averages[name] = {"mean": mean, "low": low, "high": high, **counts}
    return averages


def versions() -> dict[str, str]:
    """Name the versions of what computes the numbers."""
    return {
        "emu-edit": installed_version(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        **({"ftfy": version("ftfy")} if find_spec("ftfy") else {}),
    }


def write_evaluation(
    folder: Path, results: Mapping[str, Any], items: Sequence[Mapping[str, Any]], table: str
) -> None:
    """Write results.json, items.jsonl and table.md, each whole or not at all."""
    write_json(folder / RESULTS, results)
    write_text(folder / ITEMS, "\n".join(json.dumps(item, ensure_ascii=False) for item in items))
    write_text(folder / TABLE, table)


def table_of(results: Mapping[str, Any]) -> str:
    """Write the tables of results.json as Markdown that also reads well as plain text."""
    protocol, data = results["protocol"], results["data"]
    split = f", {data['split']}" if data["split"] else ""
    parts = [f"# {results['model']['name']}, {results['benchmark']}{split}, {protocol['name']}"]
    noun = noun_of(results)
    for name, block in results["blocks"].items():
        title = f"{name}: " if noun == "edit" else ""
        parts += [
            f"## {title}{plural(block['items'], noun)}",
            _block_table(block, protocol["metrics"], noun),
        ]
    if distances := results.get("distances"):
        parts += ["## as sets", distance_table(distances, "editor")]
    parts.append("\n".join(_notes(results)))
    return "\n\n".join(parts)


def _block_table(block: Mapping[str, Any], metrics: Sequence[str], noun: str) -> str:
    head = ["", f"{noun}s", *(str(metric(name)) for name in metrics)]
    model = block["rows"][MODEL]
    turns = {f"turn {turn}": row for turn, row in model["by_turn"].items()}
    tasks = {name or "(no task)": row for name, row in model["by_task"].items()}
    whole = {name: row["all"] for name, row in block["rows"].items()}
    body = [_line(name, row, metrics) for name, row in {**tasks, **turns, **whole}.items()]
    return markdown_table(head, body)


def _line(name: str, row: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    first = row[metrics[0]]
    return [name, str(first["n"] + first["undefined"]), *(_cell(row[metric]) for metric in metrics)]


def _cell(cell: Mapping[str, Any]) -> str:
    if cell["mean"] is None:
        return "-"
    # "to", since a minus sign beside a dash cannot be read
    return f"{cell['mean']:.4f} ({cell['low']:.4f} to {cell['high']:.4f})"


def _notes(results: Mapping[str, Any]) -> list[str]:
    """Say what a reader must know besides, one sentence a line."""
    data, resampled = results["data"], results["resampled"]["count"]
    notes = ["In brackets the 95 % bootstrap interval (turns of a session are drawn together)."]
    if data["items"] < data["of"]:
        notes.append(
            f"Only {data['items']} of {plural(data['of'], noun_of(results))}: not comparable to "
            "other rows."
        )
    notes += failed_note(results["failed"], results.get("failed_as", "not edited"))
    notes += _undefined_notes(results)
    if results.get("distances"):
        notes += world_notes(results)
    if results["filtered"]:
        notes.append(f"{plural(len(results['filtered']), 'edit')} left out: wrong captions.")
    if resampled:
        notes.append(
            f"{plural(resampled, 'result')} of another size, resampled "
            f"({results['protocol']['resize_filter']}) for L1 and L2."
        )
    if results["truncated_captions"]:
        notes.append(f"{plural(results['truncated_captions'], 'caption')} cut to what CLIP reads.")
    if unmended := results["unmended_captions"]:
        notes.append(
            f"{plural(unmended, 'caption')} with other letters than ASCII read as written: ftfy, "
            "with which the protocol mends broken encodings, is not installed (pip install ftfy)."
        )
    return notes


def _undefined_notes(results: Mapping[str, Any]) -> list[str]:
    """Name each metric that some edits of the model do not have."""
    notes: list[str] = []
    for block_name, block in results["blocks"].items():
        for name, cell in block["rows"][MODEL]["all"].items():
            if cell["undefined"]:
                where = f" of {block_name}" if len(results["blocks"]) > 1 else ""
                why = (
                    "whose captions are missing or do not differ"
                    if name in CAPTIONS_NEEDED
                    else "which have nothing of it"
                )
                notes.append(
                    f"{metric(name).label} is not defined for "
                    f"{plural(cell['undefined'], noun_of(results))}{where}, {why}; its mean is "
                    "over the others."
                )
    return notes


def failed_note(failed: Sequence[Mapping[str, Any]], counted_as: str = "not edited") -> list[str]:
    """Count the edits that failed and name the first; nothing if none did."""
    if not failed:
        return []
    first, count = failed[0], "count" if len(failed) > 1 else "counts"
    return [
        f"{len(failed)} failed and {count} as {counted_as}, first {first['key']}: "
        f"{first['reason']}."
    ]
