"""Compare the folder of an interrupted training with that of one left alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.kill_test_run import DIARY
from emu_edit.training.checkpoint_io import read_checkpoint

COMPARED = ("state_dict", "optimizer_states", "callbacks", "global_step", "epoch")
DATA = "EditDataModule"
MOST_TOLD = 3  # differences of one kind that are written out

Line = dict[str, Any]


def diary(folder: Path, rank: int) -> list[Line]:
    """Return what a rank has trained on, in the order of time."""
    file = folder / f"{DIARY}-{rank}.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def differences(folder: Path, alone: Path) -> list[str]:
    """Say in words how a training differs from the one left alone; nothing if it does not.

    Both need the same layout.
    """
    return [*_different_keys(folder, alone), *_different_numbers(folder, alone)]


def steps_of(folder: Path) -> dict[int, list[str]]:
    """Return the keys of each optimizer step, of all ranks and micro-batches, sorted.

    Raises:
        ValueError: if a step was made twice with different keys.
    """
    found: dict[int, dict[tuple[int, ...], list[str]]] = {}
    for file in sorted(folder.glob(f"{DIARY}-*.jsonl")):
        for line in diary(folder, int(file.stem.rpartition("-")[2])):
            place = tuple(line["place"])
            known = found.setdefault(line["step"], {}).setdefault(place, line["keys"])
            if known != line["keys"]:
                raise ValueError(f"step {line['step']} had {known}, then {line['keys']}")
    keys: dict[int, list[str]] = {}
    for step, places in found.items():
        of_world: dict[int, list[str]] = {}
        for (world, *_), part in places.items():
            of_world[world] = sorted([*of_world.get(world, []), *part])
        first, *others = of_world.values()
        if any(other != first for other in others):
            raise ValueError(f"step {step} differs between numbers of ranks: {of_world}")
        keys[step] = first
    return dict(sorted(keys.items()))


def gaps(steps: Sequence[int], ends: Sequence[int], saved: Sequence[bool]) -> list[str]:
    """Say where a program that reported a saved end was not gone on with at the very next step.

    Args:
        steps: what rank 0 trained on in all attempts, one entry for each micro-batch.
        ends: the length of `steps` after each attempt.
        saved: whether the attempt ended by reporting that.
    """
    found = []
    for attempt in range(len(ends) - 1):
        begin, end, after = ends[attempt - 1] if attempt else 0, ends[attempt], ends[attempt + 1]
        if not saved[attempt] or begin == end or end == after:
            continue
        if steps[end] != steps[end - 1] + 1:
            found.append(f"saved after step {steps[end - 1]}, went on with step {steps[end]}")
    return found


def _different_keys(folder: Path, alone: Path) -> list[str]:
    found = []
    for file in sorted(alone.glob(f"{DIARY}-*.jsonl")):
        rank = int(file.stem.rpartition("-")[2])
        expected = {(line["step"], *line["place"]): line["keys"] for line in diary(alone, rank)}
        seen = [((line["step"], *line["place"]), line["keys"]) for line in diary(folder, rank)]
        missing = expected.keys() - {place for place, _ in seen}
        found += [f"rank {rank} never trained on {place}" for place in sorted(missing)[:MOST_TOLD]]
        wrong = [(place, keys) for place, keys in seen if expected.get(place) != keys]
        found += [
            f"rank {rank} at {place} had {keys}, not {expected.get(place)}"
            for place, keys in wrong[:MOST_TOLD]
        ]
    return found


def _different_numbers(folder: Path, alone: Path) -> list[str]:
    ours, theirs = (read_checkpoint(path / "checkpoints" / "last.ckpt") for path in (folder, alone))
    parts = [name for name in (*COMPARED, DATA) if not is_equal(ours.get(name), theirs.get(name))]
    return [f"the last checkpoint differs in {name}" for name in parts]


def is_equal(first: Any, second: Any) -> bool:
    """Compare two parts of checkpoints to the last bit; paths of the run's folder do not count."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            is_equal(value, second[name]) for name, value in first.items()
        )
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(
            is_equal(*pair) for pair in zip(first, second, strict=True)
        )
    return first == second
