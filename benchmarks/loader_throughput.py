"""What the data plane costs: reading against plain tars, the order function, and a resume.

    python -m benchmarks.loader_throughput [--size 256] [--pairs 512] [--folder DIR] [--json FILE]

Three promises. Batches come at least at 0.95 of the speed at which a plain loop over the same tars
reads and decodes them (tarfile, Pillow, json, no check of anything, in the order of the files),
one process each, in turn, so that a machine that is busy for a while slows both. Pictures are of
the world, which decode very fast, and with the detail of photographs. The order function takes less
than 1 % of a training step of the tiny model. And to go on from a checkpoint takes as long after
10^11 steps as after the first.
"""

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser as ConfigParser
from PIL import Image
from torch import Tensor, nn

from datamodules.edit import EditDataModule
from datamodules.shards.manifest import read_manifest, write_manifest
from datamodules.shards.writer import PairRecord, write_task_shards
from datamodules.stream.order import LaneOrder, Order, OrderSpec, quotas
from datamodules.world.write import write_world
from emu_edit.batch import EditBatch, EditSample
from emu_edit.randomness import keyed_generator
from emu_edit.terminal import step_bar
from emu_edit.training.draws import Phase
from emu_edit.training.module import EditModule
from emu_edit.training.optim import adamw

READING_PROMISE = 0.95  # of the plain loop's speed, at least
ORDER_PROMISE = 0.01  # of a training step, at most
RESUME_PROMISE = 2.0  # times the first sample's, at most: machines are not that quiet
BATCH = 16
POSITIONS = (1, 10**6, 10**11)  # optimizer steps done
MODEL = Path(__file__).parent.parent / "configs" / "model" / "tiny.yaml"


@dataclass(frozen=True)
class Measurement:
    """One promise: the number, its 10th and 90th percentile, and whether it was kept."""

    name: str
    value: float
    low: float
    high: float
    promise: str
    is_kept: bool
    detail: str


def main() -> int:
    """Measure and print the three; exit status 1 if one is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="shards to read (default: written, of two kinds)"
    )
    parser.add_argument("--size", type=int, default=256, help="side in pixels (default 256)")
    parser.add_argument("--pairs", type=int, default=512, help="pairs to write (default 512)")
    parser.add_argument("--turns", type=int, default=9, help="passes of each kind (default 9)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(1)  # decoding uses one anyway, and the model's step should not hide it
    with tempfile.TemporaryDirectory() as made:
        if options.folder is None:
            folders = write_folders(Path(made), options.pairs, options.size)
        else:
            folders = {"given": options.folder}
        measurements = [
            *(measure_reading(n, f, options.size, options.turns) for n, f in folders.items()),
            measure_order(options.turns),
            measure_resume(next(iter(folders.values())), options.turns),
        ]
    for one in measurements:
        sys.stdout.write(
            f"{one.name:<28}{one.value:8.4f}  ({one.low:.4f} to {one.high:.4f})  promised "
            f"{one.promise}: {'kept' if one.is_kept else 'NOT KEPT'}; {one.detail}\n"
        )
    if options.json is not None:
        rows = [asdict(one) for one in measurements]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(one.is_kept for one in measurements) else 1


def write_folders(folder: Path, pairs: int, size: int) -> dict[str, Path]:
    """Write pairs of the world, and of one task with pictures as rich in detail as photographs."""
    world, photos = folder / "world", folder / "photos"
    with step_bar("writing", "pairs") as on_step:
        write_world(world, pairs, seed=0, size=size, progress=on_step)
        records = (_photo_pair(i, size) for i in range(pairs))
        write_manifest(photos, write_task_shards(photos, "global", records), made_by={})
    return {"world": world, "photos": photos}


def _photo_pair(i: int, size: int) -> PairRecord:
    source, target = (_photo_like(2 * i + side, size) for side in range(2))
    return PairRecord(f"k{i}", source, target, f"do number {i}", "global")


def _photo_like(i: int, size: int) -> np.ndarray:
    """Return smooth colours with grain: noise at every scale, the finest weakest."""
    rng = keyed_generator(0, "photo", i)
    total = np.full((size, size, 3), 128.0)
    for cells, strength in ((4, 60), (16, 30), (64, 12), (size, 4)):
        noise = rng.normal(0, strength, (cells, cells, 3)).clip(-127, 127) + 128
        layer = Image.fromarray(noise.astype(np.uint8)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        total += np.asarray(layer, dtype=float) - 128
    return total.clip(0, 255).astype(np.uint8)


def measure_reading(name: str, folder: Path, size: int, turns: int) -> Measurement:
    """Compare passes over a folder: our batches, and the plain loop."""
    total = read_manifest(folder).num_samples // BATCH * BATCH
    ours, plain = our_batches(folder, size, total), plain_batches(folder, total)
    times: list[tuple[float, float]] = []
    with step_bar("reading", "turns") as on_step:
        for turn in range(-1, turns):  # the first fills the page cache
            if turn % 2:
                second, first = _pass(plain, total), _pass(ours, total)
            else:
                first, second = _pass(ours, total), _pass(plain, total)
            if turn >= 0:
                times.append((first, second))
                on_step(turn + 1, turns)
    ratios = [of_plain / of_ours for of_ours, of_plain in times]
    low, *_, high = quantiles(ratios, n=10)
    rates = [total / median(column) for column in zip(*times, strict=True)]
    detail = f"{rates[0]:.0f} pairs/s against {rates[1]:.0f} of the plain loop, {size} px"
    value, promise = median(ratios), f"at least {READING_PROMISE}"
    return Measurement(
        f"reading, {name}", value, low, high, promise, value >= READING_PROMISE, detail
    )


def our_batches(folder: Path, size: int, total: int) -> Callable[[], Iterator[Tensor]]:
    """Return what makes a pass of our loader."""
    steps = total // BATCH
    data = EditDataModule(str(folder), image_size=size, global_batch=BATCH, steps_per_epoch=steps)
    data.setup("fit")
    loader = data.train_dataloader()

    def batches() -> Iterator[Tensor]:
        for batch in loader:
            yield batch.source
            yield batch.target

    return batches


def plain_batches(folder: Path, total: int) -> Callable[[], Iterator[Tensor]]:
    """Return what makes a pass of the plain loop: every member, as the files have them."""
    files = [folder / entry.file for entry in read_manifest(folder).entries]

    def batches() -> Iterator[Tensor]:
        held: dict[str, list[Tensor]] = {"source": [], "target": []}
        count = 0
        for name, content in _members(files):
            role = name.split(".")[1]
            if role == "json":
                json.loads(content)
                continue
            picture = Image.open(io.BytesIO(content)).convert("L" if role == "mask" else "RGB")
            pixels = torch.from_numpy(np.array(picture))
            if role == "mask":
                continue
            held[role].append(pixels.permute(2, 0, 1))
            if len(held["source"]) == len(held["target"]) == BATCH:
                yield from (torch.stack(pictures) for pictures in held.values())
                held = {"source": [], "target": []}
                count += BATCH
                if count == total:
                    return

    return batches


def _members(files: list[Path]) -> Iterator[tuple[str, bytes]]:
    for file in files:
        with tarfile.open(file, "r:") as tar:
            for info in tar:
                member = tar.extractfile(info)
                if member is not None:
                    yield info.name, member.read()


def _pass(batches: Callable[[], Iterator[Tensor]], total: int) -> float:
    start = time.perf_counter()
    pictures = sum(len(batch) for batch in batches())
    seconds = time.perf_counter() - start
    if pictures != 2 * total:
        raise RuntimeError(f"a pass read {pictures} pictures, needs {2 * total}")
    return seconds


def measure_order(turns: int) -> Measurement:
    """Compare the order of a batch, of 16 tasks with 1000 shards each, and a training step."""
    weights = {f"task{t}": 1.0 + t % 3 for t in range(16)}
    in_period = quotas(weights)
    lanes = tuple(LaneOrder(name, in_period[name], (1000,) * 1000) for name in weights)
    order, step = Order(OrderSpec(0, lanes)), _training_step()
    step()
    shares, orders, steps = [], [], []
    with step_bar("ordering", "turns") as on_step:
        for turn in range(turns):
            first = turn * 400 * BATCH
            start = time.perf_counter()
            for g in range(first, first + 400 * BATCH):
                order(g)
            middle = time.perf_counter()
            step()
            orders.append((middle - start) / 400)
            steps.append(time.perf_counter() - middle)
            shares.append(orders[-1] / steps[-1])
            on_step(turn + 1, turns)
    low, *_, high = quantiles(shares, n=10)
    detail = (
        f"{1e6 * median(orders) / BATCH:.0f} us a sample, new epochs included; step of the tiny "
        f"model {1000 * median(steps):.0f} ms at batch {BATCH}, 64 px"
    )
    value, promise = median(shares), f"at most {ORDER_PROMISE}"
    return Measurement("order of a step", value, low, high, promise, value <= ORDER_PROMISE, detail)


def _training_step() -> Callable[[], None]:
    """Return what makes an optimizer step of the tiny model on noise."""
    parser = ConfigParser()
    parser.add_subclass_arguments(EditModule, "model")
    config = parser.parse_object({"model": yaml.safe_load(MODEL.read_text())})
    module: EditModule = parser.instantiate(config)["model"]
    pictures = torch.randint(0, 256, (2, BATCH, 3, 64, 64), dtype=torch.uint8)
    text = "make the red circle blue"
    samples = [
        EditSample(
            key=str(i),
            source=pictures[0, i],
            target=pictures[1, i],
            instruction=text,
            task=i,
            position=i,
        )
        for i in range(BATCH)
    ]
    batch = EditBatch.collate(samples)
    optimizer = adamw(module, module.optimizer_settings)

    def step() -> None:
        drawn = module.drawn(batch, Phase.train)
        optimizer.zero_grad()
        module.step(drawn, dropout=module.dropout)["loss"].backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return step


def measure_resume(folder: Path, turns: int) -> Measurement:
    """Compare the time from a checkpoint's data state to its first batch, near and far."""
    state = _loaded(folder).state_dict()
    times: dict[int, list[float]] = {steps: [] for steps in POSITIONS}
    with step_bar("resuming", "turns") as on_step:
        for turn in range(-1, turns):
            for steps in POSITIONS:
                data = _loaded(folder)
                start = time.perf_counter()
                data.load_state_dict({**state, "consumed": steps * BATCH})
                batch = next(iter(data.train_dataloader()))
                seconds = time.perf_counter() - start
                if int(batch.position[0]) != steps * BATCH:
                    raise RuntimeError("the first batch is not the one that is due")
                if turn >= 0:
                    times[steps].append(seconds)
            on_step(turn + 2, turns + 1)
    medians = {steps: median(taken) for steps, taken in times.items()}
    ratios = [far / near for near, far in zip(times[1], times[POSITIONS[-1]], strict=True)]
    low, *_, high = quantiles(ratios, n=10)
    listed = ", ".join(f"{1000 * taken:.1f} ms after {n:.0e}" for n, taken in medians.items())
    value, promise = median(ratios), f"at most {RESUME_PROMISE}"
    detail = f"{listed} steps of {BATCH}"
    return Measurement(
        "resume, far / near", value, low, high, promise, value <= RESUME_PROMISE, detail
    )


def _loaded(folder: Path) -> EditDataModule:
    data = EditDataModule(str(folder), image_size=64, global_batch=BATCH, steps_per_epoch=1)
    data.setup("fit")
    return data


if __name__ == "__main__":
    sys.exit(main())
