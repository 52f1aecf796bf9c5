"""What a refactor must keep: the numbers of every verb, hashed, from one tree of the program.

    python -m benchmarks.same_numbers TREE -o DIR      (about 5 minutes on 2 cores)
    python -m benchmarks.same_numbers --compare OLD/numbers.json NEW/numbers.json

The program is run as a user runs it, `python -m emu_edit`, with TREE (a checkout of any commit) on
its path, so that one check serves commits whose modules lie elsewhere: 20 steps of `smoke` and of
`tiny`, a run that stopped half way and went on, a model directory, task inversion, edits of ten
pictures and in turns, the world benchmark, drift, shards and a cache of them. Only what is the same
every time is hashed: weights and pixels, JSON without times and paths. `--compare` exits with 1
where two trees differ.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

SHORT = ("--score_pairs", "0", "--no_predictor")
# of JSON: what differs from run to run or from machine to machine
VOLATILE = {
    "seconds",
    "versions",
    "model",
    "device",
    "created",
    "program",
    "version",
    "edits_per_second",
}


def run(tree: Path, folder: Path, *arguments: str) -> None:
    """Run `python -m emu_edit` of `tree` in `folder`."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, "-m", "emu_edit", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(arguments)}: exit status {done.returncode}\n{done.stderr[-3000:]}"
        )


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Hash names, types, shapes and values of tensors."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def flat(value: object, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a nested checkpoint with its path."""
    if isinstance(value, torch.Tensor):
        yield prefix, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}/{key}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from flat(inner, f"{prefix}/{place}")


def of_run(folder: Path) -> str:
    """Hash weights, optimizer and averages of a run's newest checkpoint."""
    newest = max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    checkpoint = torch.load(newest, weights_only=True)
    kept = {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "callbacks")}
    return digest(dict(flat(kept)))


def of_model(folder: Path) -> str:
    """Hash the weights of a model directory, or of one task's file."""
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.safetensors"))
    return digest({f"{path.name}/{k}": v for path in files for k, v in load_file(path).items()})


def of_pictures(folder: Path) -> str:
    """Hash the pixels of all pictures of a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as picture:
            total.update(path.name.encode() + picture.convert("RGB").tobytes())
    return total.hexdigest()[:16]


def stable(value: object) -> object:
    """Drop from JSON what is not a result."""
    if isinstance(value, dict):
        return {key: stable(inner) for key, inner in value.items() if key not in VOLATILE}
    return [stable(inner) for inner in value] if isinstance(value, list) else value


def of_json(path: Path) -> str:
    """Hash a JSON file without times, versions and paths."""
    text = json.dumps(stable(json.loads(path.read_text("utf-8"))), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_shards(folder: Path) -> str:
    """Hash the members of all tars of a folder, and their names."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                inside = shard.extractfile(member)
                total.update(member.name.encode() + (inside.read() if inside else b""))
    return total.hexdigest()[:16]


def unpack_sources(shards: Path, folder: Path, count: int) -> None:
    """Write the first `count` source pictures of a shard folder as files."""
    folder.mkdir()
    for path in sorted(shards.rglob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                inside = shard.extractfile(member)
                if "source" in member.name and inside and len(list(folder.iterdir())) < count:
                    (folder / member.name.replace("/", "-")).write_bytes(inside.read())


def measure(tree: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run every verb of `tree` in `folder`; yield what each gave."""

    def emu_edit(*arguments: str) -> None:
        run(tree, folder, *arguments)

    steps = ("--data.steps_per_epoch", "20", "--trainer.max_epochs", "1", *SHORT)
    emu_edit("fit", "--config", "smoke", "--run", "smoke", *steps)
    yield "smoke, 20 steps: checkpoint", of_run(folder / "smoke")
    emu_edit("fit", "--config", "tiny", "--run", "tiny", "--data.pairs", "640", *steps)
    yield "tiny, 20 steps: checkpoint", of_run(folder / "tiny")
    yield "tiny: exported model", of_model(folder / "tiny" / "model")
    half = ("fit", "--config", "smoke", "--run", "resumed", "--data.steps_per_epoch", "10", *SHORT)
    emu_edit(*half, "--trainer.max_epochs", "1")
    emu_edit(*half, "--trainer.max_epochs", "2", "--resume", "auto")
    yield "smoke, resumed at 10 of 20: checkpoint", of_run(folder / "resumed")
    emu_edit("shards", "world", "pairs", "--pairs", "32", "--seed", "7")
    yield "shards world, 32 pairs", of_shards(folder / "pairs")
    emu_edit("shards", "cache", "pairs", "-o", "cached", "--model", "smoke")
    yield "shards cache", of_shards(folder / "cached")

    released = ("--model", "released")
    unpack_sources(folder / "pairs", folder / "pictures", 10)
    emu_edit("edit", "pictures", "make it night", "-o", "night", "--seed", "3", *released)
    yield "edit, ten pictures", of_pictures(folder / "night")
    first = str(sorted((folder / "pictures").iterdir())[0])
    turns = ("make it night", "remove the red circle", "draw the depth map")
    emu_edit("edit", first, *turns, "-o", "turns", "--steps", "3", *released)
    yield "edit, three turns", of_pictures(folder / "turns")
    emu_edit("shards", "world", "new", "--new-task", "contour", "--pairs", "6")
    task = ("--task", "contour", "--data", "new", "--steps", "4", "-o", "contour.safetensors")
    emu_edit("invert", *task, *released)
    yield "invert, 4 steps: task file", of_model(folder / "contour.safetensors")
    learned = ("draw the contours", "--task", "contour.safetensors", "-o", "contours")
    emu_edit("edit", "pictures", *learned, *released)
    yield "edit with the new task", of_pictures(folder / "contours")

    emu_edit("evaluate", "released", "--pairs", "10", "-o", "world")
    yield "evaluate --benchmark world --pairs 10", of_json(folder / "world" / "results.json")
    emu_edit("evaluate", "released", "--drift", "--sessions", "3", "-o", "drift")
    yield "evaluate --drift --sessions 3", of_json(folder / "drift" / "drift.json")


def compare(old: Path, new: Path) -> int:
    """Print both sides' hashes in one table; 1 if any differ."""
    before, after = json.loads(old.read_text()), json.loads(new.read_text())
    for name in before | after:
        a, b = before.get(name, "-"), after.get(name, "-")
        sys.stdout.write(f"| {name} | {a} | {b} | {'equal' if a == b else 'DIFFERENT'} |\n")
    return 0 if before == after else 1


def main() -> int:
    """Measure one tree, or compare what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("tree", type=Path, nargs="?", help="a checkout of the program")
    parser.add_argument("-o", "--output", type=Path, help="an empty folder to work in")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"))
    options = parser.parse_args()
    if options.compare:
        return compare(*options.compare)
    if options.tree is None or options.output is None:
        parser.error("give a TREE and -o DIR, or --compare OLD NEW")
    options.output.mkdir(parents=True)
    numbers = {}
    for name, value in measure(options.tree.resolve(), options.output.resolve()):
        numbers[name] = value
        sys.stdout.write(f"{name}: {value}\n")
        sys.stdout.flush()
        (options.output / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
