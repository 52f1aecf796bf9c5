"""Pictures that keep their shape, from sorted shards to steps of one size."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.buckets import bucket_batches, buckets_of
from datamodules.clip import ClipDataModule
from datamodules.edit import EditDataModule
from datamodules.shards.clips import ClipRecord
from datamodules.shards.folder import LocalFolder
from datamodules.shards.manifest import Manifest, ShardEntry, write_manifest
from datamodules.shards.shapes import SHAPES, shape_of, sides_of
from datamodules.shards.writer import PairRecord, ShardWriter
from datamodules.stream.mixing import FINE_PERIOD, DataSet, lanes_of, mixture_of
from datamodules.stream.transforms import Crop
from datamodules.world.write import write_world
from emu_edit.batch import Batch, EditBatch
from emu_edit.errors import InputError
from tests.datamodules.toy import SaveEverything, Toy, fit, make_trainer
from tests.datamodules.toy_shards import make_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 asks torch 2.13 in a way that has a successor
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

BATCH, STEPS = 4, 3
WIDE, TALL, EVEN = (14, 20), (20, 14), (16, 16)  # heights and widths of 10x7, 7x10, 8x8 at 16
Make = Callable[..., EditDataModule]


def write(folder: Path, sizes: list[tuple[int, int]], task: str = "local") -> None:
    """Write pairs of these heights and widths, sorted by shape."""
    with ShardWriter(folder, pairs_per_shard=3, by_shape=True) as writer:
        for i, (height, width) in enumerate(sizes):
            rng = np.random.default_rng([i, height])
            source = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            name = ("local", "add")[i % 2] if task == "both" else task
            writer.add(PairRecord(f"p{i}", source, 255 - source, f"do {i}", name))
    write_manifest(folder, writer.entries, made_by={})


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes the data module of a folder with pictures of three shapes."""
    write(tmp_path / "train", [WIDE] * 12 + [TALL] * 5 + [EVEN] * 11, "both")
    write(tmp_path / "val", [WIDE] * 3 + [EVEN] * 2)

    def make_data(**options: Any) -> EditDataModule:
        usual: dict[str, Any] = {"global_batch": BATCH, "steps_per_epoch": STEPS, "window": 2}
        folders = {"train": str(tmp_path / "train"), "val": str(tmp_path / "val")}
        return EditDataModule(**{**usual, **folders, "image_size": 16, "buckets": True, **options})

    return make_data


class Sizes(Toy):
    """Remembers how large the pictures of each batch are."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []
        self.evaluated_sizes: list[tuple[int, ...]] = []

    def training_step(self, batch: EditBatch, batch_idx: int) -> torch.Tensor:
        assert batch.source.shape == batch.target.shape
        self.sizes.append(tuple(batch.source.shape[-2:]))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        self.evaluated_sizes.append(tuple(batch.source.shape[-2:]))
        super().validation_step(batch, batch_idx)


def fit_sizes(data: EditDataModule) -> Sizes:
    toy = Sizes()
    make_trainer(max_epochs=2).fit(toy, datamodule=data)
    return toy


def batches_of(data: EditDataModule) -> list[Batch]:
    data.setup("fit")
    return list(data.train_dataloader())


def test_every_step_is_of_one_size_and_all_sizes_come(make: Make):
    toy = fit_sizes(make(micro_batch=2, steps_per_epoch=6))
    assert set(toy.sizes) == {WIDE, TALL, EVEN}
    assert toy.sizes[0::2] == toy.sizes[1::2]  # two micro-batches to a step
    assert [g for batch in toy.seen for g in batch] == list(range(12 * BATCH))


def test_pictures_of_a_bucket_come_as_they_are_and_each_with_its_own_target(make: Make):
    for batch in batches_of(make()):
        assert isinstance(batch, EditBatch)
        for i, key in enumerate(batch.key):
            size = tuple(batch.source.shape[-2:])
            rng = np.random.default_rng([int(key[1:]), size[0]])
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            assert torch.equal(batch.source[i], torch.from_numpy(pixels).movedim(-1, 0))
            assert torch.equal(batch.target[i], 255 - batch.source[i])


def test_workers_change_nothing(make: Make):
    alone, helped = batches_of(make(micro_batch=2)), batches_of(make(micro_batch=2, num_workers=2))
    for one, other in zip(alone, helped, strict=True):
        assert one.key == other.key
        assert torch.equal(one.target, other.target)


def by_step(toy: Toy) -> list[list[int]]:
    flat = [g for batch in toy.seen for g in batch]
    return [flat[i : i + BATCH] for i in range(0, len(flat), BATCH)]


def test_every_resume_is_bit_equal_and_another_layout_sees_the_same(make: Make, tmp_path: Path):
    whole = fit(make(micro_batch=2), SaveEverything(tmp_path / "out"))
    for name in ("step-1", "step-2", "epoch-0", "step-4"):
        file = tmp_path / "out" / f"{name}.ckpt"
        steps = torch.load(file, weights_only=True)["global_step"]
        toy = fit(make(micro_batch=2), ckpt=file)
        assert by_step(toy) == by_step(whole)[steps:]
        assert toy.weights() == whole.weights()
        other = fit(make(micro_batch=1), ckpt=file)
        assert by_step(other) == by_step(whole)[steps:]
        torch.testing.assert_close(other.weights(), whole.weights(), rtol=1e-12, atol=0)


def test_buckets_in_the_middle_of_a_training_need_leave_and_lanes_go_on(make: Make, tmp_path: Path):
    fit(make(), SaveEverything(tmp_path / "out"))
    file = tmp_path / "out" / "step-4.ckpt"
    with pytest.raises(InputError, match=r"other data: buckets was True, is None; .*allow_change"):
        fit(make(buckets=False), ckpt=file)
    squares = fit(make(buckets=False, allow_change=True), ckpt=file)
    assert by_step(squares)[0] == list(range(4 * BATCH, 5 * BATCH))
    changed = make(allow_change=True, weights={"local": 3.0, "add": 1.0})
    toy = fit(changed, ckpt=file)
    assert by_step(toy) == [list(range(s * BATCH, (s + 1) * BATCH)) for s in range(4, 2 * STEPS)]
    before = {count.name: count.drawn for count in make_course(make, 4 * BATCH)}
    state = changed.state_dict()
    assert state["start"] == 4 * BATCH
    assert state["drawn"] == before


def make_course(make: Make, position: int) -> list[Any]:
    data = make()
    data.setup("fit")
    assert data._course is not None
    return data._course.count(position)


def test_validation_meets_each_picture_once_in_batches_of_one_size(make: Make):
    toy = Sizes()
    make_trainer().validate(toy, datamodule=make(micro_batch=2), verbose=False)
    assert toy.evaluated_sizes == [WIDE, WIDE, EVEN]
    assert sorted(g for batch in toy.evaluated for g in batch) == list(range(5))


@given(
    counts=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20)), min_size=1, max_size=6),
    micro=st.integers(1, 5),
    world=st.integers(1, 4),
)
def test_all_ranks_evaluate_in_equally_many_batches_of_one_bucket(
    counts: list[tuple[str, int]], micro: int, world: int
):
    entries = [ShardEntry(f"t{i}", f"{i}.tar", 1, str(i), n) for i, (_, n) in enumerate(counts)]
    lanes = [
        replace(lane, bucket=bucket)
        for lane, (bucket, _) in zip(lanes_of([nowhere(entries)]), counts, strict=True)
    ]
    of_position = [lane.bucket for lane in lanes for _ in range(lane.num_samples)]
    if min(Counter(of_position).values()) < world:
        with pytest.raises(InputError, match="needs at least one for each of"):
            bucket_batches(lanes, micro, world, 0)
        return
    ranks = [bucket_batches(lanes, micro, world, rank) for rank in range(world)]
    seen = sorted(g for batches in ranks for batch in batches for g in batch)
    assert seen == list(range(len(of_position)))
    assert len({len(batches) for batches in ranks}) == 1
    fewer = [
        bucket_batches(lanes, micro, world, rank, len(seen) // 2 or 1) for rank in range(world)
    ]
    assert len({len(batches) for batches in fewer}) == 1
    few = sorted(g for batches in fewer for batch in batches for g in batch)
    assert len(few) == len(set(few)) <= len(seen) // 2 + len(lanes) * (world + 1)
    assert {of_position[g] for g in few} == set(of_position)
    for batch in (batch for batches in ranks for batch in batches):
        assert len({of_position[g] for g in batch}) == 1


def nowhere(entries: list[ShardEntry]) -> DataSet:
    return DataSet("", LocalFolder(Path("nowhere"), Manifest(tuple(entries), {})))


def shards_of(counts: dict[str, int]) -> list[ShardEntry]:
    """Return a shard that is nowhere of each shape."""
    return [ShardEntry("local", f"{s}.tar", 1, s, n, shape=s) for s, n in counts.items()]


def test_shapes_of_which_there_are_hardly_any_join_the_nearest_bucket():
    counts = {"8x8": 1000, "10x7": 500, "11x6": 15, "5x13": 3, "7x9": 40}
    found = buckets_of(shards_of(counts), least=32)
    assert set(found) == set(SHAPES)
    assert {found[shape] for shape in counts} == {"8x8", "10x7", "7x9"}
    assert (found["11x6"], found["5x13"], found["9x7"]) == ("10x7", "7x9", "10x7")
    # one in a hundred of very many
    many = {shape: count * 1000 for shape, count in counts.items()}
    assert set(buckets_of(shards_of(many), least=32).values()) == {
        "8x8",
        "10x7",
        "7x9",
    }
    # all rare: the commonest
    assert set(buckets_of(shards_of(counts), least=10**6).values()) == {"8x8"}


def test_tasks_that_are_not_drawn_have_no_say_in_the_buckets(make: Make, tmp_path: Path):
    with ShardWriter(tmp_path / "two", by_shape=True) as writer:
        for i in range(16):
            size, task = (WIDE, "add") if i < 8 else (EVEN, "local")
            pixels = np.full((*size, 3), i, dtype=np.uint8)
            writer.add(PairRecord(f"p{i}", pixels, 255 - pixels, "do", task))
        pixels = np.zeros((*WIDE, 3), dtype=np.uint8)
        writer.add(PairRecord("lonely", pixels, 255 - pixels, "do", "local"))
    write_manifest(tmp_path / "two", writer.entries, made_by={})
    both = make(train=str(tmp_path / "two"))
    assert {tuple(batch.target.shape[-2:]) for batch in batches_of(both)} == {WIDE, EVEN}
    one = make(train=str(tmp_path / "two"), weights={"local": 1.0})
    assert {tuple(batch.target.shape[-2:]) for batch in batches_of(one)} == {EVEN}


def test_the_world_says_that_its_pictures_are_squares(make: Make, tmp_path: Path):
    manifest = write_world(tmp_path / "world", 16, size=16, workers=1)
    assert {entry.shape for entry in manifest.entries} == {"8x8"}
    assert manifest.entries[0].file == "local-000000.tar"
    data = make(train=str(tmp_path / "world"), val=None)
    assert {tuple(batch.target.shape[-2:]) for batch in batches_of(data)} == {EVEN}


def test_lanes_have_the_shares_they_would_have_without_buckets():
    counts = {"8x8": 700, "10x7": 290, "7x9": 10}
    buckets = {shape: shape for shape in SHAPES}
    lanes = lanes_of([nowhere(shards_of(counts))], buckets)
    assert [lane.name for lane in lanes] == [f"local@{shape}" for shape in counts]
    assert {lane.group for lane in lanes} == {"local"}
    mixture = mixture_of(lanes, None, step=8)
    assert sum(mixture.quotas) == FINE_PERIOD
    for lane, quota in zip(lanes, mixture.quotas, strict=True):
        assert abs(quota / FINE_PERIOD - counts[lane.bucket] / 1000) <= 1 / FINE_PERIOD
    assert sum(mixture.steered({"local": 1.0}).values()) == FINE_PERIOD


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_picture_of_the_size_of_its_bucket_is_not_resampled(shape: str, seed: int | None):
    height, width = sides_of(shape, 64)
    source = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    mask = source[0] > 100
    crop = Crop(64, seed=seed, buckets={shape: shape})
    found = crop(source, 255 - source, mask, 5, shape_of(height, width))
    assert torch.equal(found[0], source)
    assert torch.equal(found[1], 255 - source)
    assert found[2] is not None
    assert torch.equal(found[2], mask)


@pytest.mark.parametrize("size", [(37, 91), (91, 37), (50, 50), (8, 8), (128, 192), (40, 41)])
@pytest.mark.parametrize("shape", SHAPES)
def test_source_target_and_mask_go_the_same_way_to_any_bucket(shape: str, size: tuple[int, int]):
    source = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    crop = Crop(32, seed=1, flip=True, buckets={"8x8": shape})
    for position in range(4):
        mask = source[0] > 128
        a, b, m = crop(source, source, mask, position, "8x8")
        assert tuple(a.shape[-2:]) == sides_of(shape, 32)
        assert torch.equal(a, b)
        assert m is not None
        assert m.shape == a.shape[-2:]


def test_only_the_side_that_is_too_long_is_cut_and_nothing_is_squeezed():
    # 4:3 in 9x7 keeps all rows; what is seen is a rectangle of the picture's own pixels
    columns = torch.arange(96, dtype=torch.uint8).expand(3, 72, 96).contiguous()
    crop = Crop(64, buckets={"9x7": "9x7"})
    seen = crop.at(columns, columns, None, size=(72, 93), place=1.0)[0]
    assert torch.equal(seen, columns[..., 3:])
    found = crop(columns, columns, None, 0, "9x7")[0]
    assert found.shape == (3, 56, 72)
    # 93 of 96 columns, from the middle, on 72: neighbours differ by 93 / 72 levels
    steps = (found[0, 0, 1:].double() - found[0, 0, :-1].double())[4:-4]
    assert abs(float(steps.mean()) - 93 / 72) < 0.02
    assert abs(float(found[0, 0].double().mean()) - (2 + 92 / 2)) < 0.5


def test_shards_that_are_not_sorted_are_refused(make: Make, tmp_path: Path):
    make_folder(tmp_path / "old", {"local": 8})
    message = r"old: local-000000\.tar does not say of which shape .*convert again with --by-shape"
    with pytest.raises(InputError, match=message):
        make(train=str(tmp_path / "old")).setup("fit")
    with pytest.raises(InputError, match=message):
        make(val=str(tmp_path / "old")).setup("validate")
    make(train=str(tmp_path / "old"), val=None, buckets=False).setup("fit")


def test_sorted_shards_train_without_buckets_as_ever(make: Make):
    batches = batches_of(make(buckets=False))
    assert {tuple(batch.target.shape[-2:]) for batch in batches} == {EVEN}


def test_sides_that_are_no_whole_eighths_are_refused(make: Make):
    with pytest.raises(InputError, match=r"image_size=20 is no multiple of 8; the sides of data"):
        make(image_size=20)


def test_clips_keep_the_shape_of_their_frames(tmp_path: Path):
    wide = np.broadcast_to(np.arange(20, dtype=np.uint8)[None, :, None], (3 * 14, 20, 3)).copy()
    with ShardWriter(tmp_path, by_shape=True) as writer:
        for i in range(4):
            strip = wide + np.uint8(i)
            writer.add(ClipRecord(f"c{i}", strip, strip, "do", "local", frames=3, rate=8))
    write_manifest(tmp_path, writer.entries, made_by={})
    data = ClipDataModule(
        str(tmp_path), frames=2, image_size=16, buckets=True, global_batch=2, steps_per_epoch=2
    )
    for batch in batches_of(data):
        assert batch.target.shape == (2, 2, 3, 14, 20)
        assert torch.equal(batch.target[0, 0, 0, 0], batch.target[0, 0, 0, 0, 0] + torch.arange(20))


@pytest.mark.slow
def test_two_processes_meet_in_the_buckets_one_process_has(make: Make, tmp_path: Path):
    whole = fit(make(micro_batch=4))
    out = tmp_path / "out"
    subprocess.run(
        [sys.executable, "-m", "tests.datamodules.two_processes", str(tmp_path), str(out), "16"],
        check=True,
        capture_output=True,
        timeout=600,
    )
    first, second = (json.loads((out / f"rank-{r}.json").read_text()) for r in range(2))
    assert first["weights"] == second["weights"]
    torch.testing.assert_close(tuple(first["weights"]), whole.weights(), rtol=1e-12, atol=0)
    toy = fit(make(micro_batch=2), ckpt=out / "step-2.ckpt")
    assert by_step(toy) == by_step(whole)[2:]
    torch.testing.assert_close(toy.weights(), whole.weights(), rtol=1e-12, atol=0)


def test_a_part_of_a_set_is_spread_over_it_and_lacks_no_kind():
    entries = [ShardEntry(f"t{i}", f"{i}.tar", 1, str(i), n) for i, n in enumerate((60, 30, 10, 1))]
    lanes = lanes_of([nowhere(entries)])
    (taken,) = bucket_batches(lanes, 101, 1, 0, 10)
    assert taken == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert bucket_batches(lanes, 101, 1, 0, 101) == bucket_batches(lanes, 101, 1, 0)
