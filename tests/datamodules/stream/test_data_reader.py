import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.remote.folder import open_folder
from datamodules.shards.index import index_shard, save_index
from datamodules.shards.manifest import ShardEntry, write_manifest
from datamodules.shards.writer import write_task_shards
from datamodules.stream.loader import PositionLoader
from datamodules.stream.mixing import DataSet, Lane, lanes_of
from datamodules.stream.order import LaneOrder, Order, OrderSpec, Position
from datamodules.stream.reader import IN_ORDER, InOrder, PictureDecoder, ShardDataset
from datamodules.stream.transforms import Crop, Noops, Wordings
from emu_edit.batch import Batch
from emu_edit.errors import BadSampleError, InputError, ShardError
from emu_edit.files import sha256_of
from emu_edit.tasks import SIXTEEN
from tests.datamodules.toy_shards import SIZE, make_folder, png, records, sample, write_tar

COUNTS = {"local": 6, "add": 3}


def lanes_in(folder: Path) -> list[Lane]:
    return lanes_of([DataSet("", open_folder(folder))])


def in_order(folder: Path, *, crop: Crop | None = None) -> ShardDataset:
    lanes = lanes_in(folder)
    order = InOrder([lane.sizes for lane in lanes])
    return ShardDataset(
        lanes, order=order, tasks=SIXTEEN, decode=PictureDecoder(crop or Crop(SIZE))
    )


def shuffled(folder: Path) -> ShardDataset:
    lanes = lanes_in(folder)
    tasks = tuple(LaneOrder(lane.name, 8, lane.sizes) for lane in lanes)
    return ShardDataset(
        lanes,
        order=Order(OrderSpec(0, tasks, window=2)),
        tasks=SIXTEEN,
        decode=PictureDecoder(Crop(8, seed=0, flip=True)),
    )


def folder_of(folder: Path, members: list[tuple[str, bytes]], samples: int = 1) -> Path:
    """Make a shard folder around a tar that the writer would not write."""
    path = write_tar(folder / "local-000000.tar", members)
    save_index(path, index_shard(path, task="local"))
    entry = ShardEntry("local", path.name, path.stat().st_size, sha256_of(path), samples)
    write_manifest(folder, [entry], made_by={})
    return folder


def test_a_sample_comes_back_as_it_was_written(tmp_path: Path):
    make_folder(tmp_path, COUNTS)
    written = [record for task, count in COUNTS.items() for record in records(task, count)]
    data = in_order(tmp_path)
    for index, record in enumerate(written):
        found = data[index]
        assert found.source is not None
        np.testing.assert_array_equal(found.source.permute(1, 2, 0).numpy(), record.source)
        np.testing.assert_array_equal(found.target.permute(1, 2, 0).numpy(), record.target)
        assert found.key == record.key
        assert found.instruction == record.instruction
        assert found.task == SIXTEEN.index(record.task)
        assert (found.source_caption, found.target_caption) == (
            record.source_caption,
            record.target_caption,
        )
        assert found.position == index
        assert (found.mask is None) == (record.mask is None)
        if record.mask is not None and found.mask is not None:
            np.testing.assert_array_equal(found.mask.numpy(), record.mask)


@given(sizes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_evaluation_order_goes_through_everything_once(sizes: list[list[int]]):
    order = InOrder(sizes)
    expected = [
        Position(t, 0, s, i)
        for t, shards in enumerate(sizes)
        for s, n in enumerate(shards)
        for i in range(n)
    ]
    assert [order(i) for i in range(len(order))] == expected
    with pytest.raises(IndexError, match="is outside"):
        order(len(order))


def test_an_epoch_of_the_shuffled_stream_reads_every_sample_once(tmp_path: Path):
    make_folder(tmp_path, COUNTS)
    data = shuffled(tmp_path)
    # quotas are equal: of the first 24 positions, 12 are of each task
    keys = Counter(data[g].key for g in range(24))
    assert {key: n for key, n in keys.items() if key.startswith("local")} == {
        record.key: 2 for record in records("local", 6)
    }
    assert {key: n for key, n in keys.items() if key.startswith("add")} == {
        record.key: 4 for record in records("add", 3)
    }


def test_more_shards_than_may_be_open_are_read(tmp_path: Path):
    count = IN_ORDER + 5
    make_folder(tmp_path, {"local": count}, pairs_per_shard=1, size=8)
    data = in_order(tmp_path, crop=Crop(8))
    assert [data[i].key for i in [*range(count), 0]] == [
        *(record.key for record in records("local", count)),
        "local_00000",
    ]


BAD = {
    "undecodable": (sample("k1", source=b"hello"), "sample 'k1': source: is no picture"),
    "empty": (sample("k1", target=b""), "sample 'k1': target: is empty"),
    "truncated": (sample("k1", target=png()[:-30]), "sample 'k1': target: cannot be decoded"),
    "sizes": (
        sample("k1", target=png((SIZE, 32))),
        "sample 'k1': .* differ in size .source 16x16, target 32x16",
    ),
    "mask size": (sample("k1", mask=png((8, 8))), r"differ in size .*mask 8x8"),
    "too thin": (sample("k1", source=png((8, 400)), target=png((8, 400))), "sides may differ by"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_refused_with_shard_and_key(tmp_path: Path, name: str):
    members, reason = BAD[name]
    data = in_order(folder_of(tmp_path, members))
    with pytest.raises(BadSampleError, match=rf"^local-000000\.tar: .*{reason}"):
        data[0]


def test_bytes_that_changed_after_the_start_are_refused(tmp_path: Path):
    make_folder(tmp_path, COUNTS)
    data = in_order(tmp_path)
    path = tmp_path / "local-000000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ShardError, match="source of sample 'local_00000' changed since"):
        data[0]


def test_a_shard_that_became_shorter_after_the_start_is_refused(tmp_path: Path):
    make_folder(tmp_path, COUNTS)
    data = in_order(tmp_path)
    (tmp_path / "local-000000.tar").write_bytes(b"")
    with pytest.raises(ShardError, match="json of sample 'local_00000' changed since"):
        data[0]


def test_a_shard_that_vanished_after_the_start_is_refused(tmp_path: Path):
    make_folder(tmp_path, COUNTS)
    data = in_order(tmp_path)
    (tmp_path / "local-000000.tar").unlink()
    with pytest.raises(ShardError, match="cannot be read"):
        data[0]


def batches_of(folder: Path, workers: int, start_method: str | None = None) -> list[Batch]:
    plan = [list(range(i, i + 3)) for i in range(0, 12, 3)]
    return list(
        PositionLoader(shuffled(folder), plan, num_workers=workers, start_method=start_method)
    )


def assert_equal_batches(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.key, a.instruction) == (b.key, b.instruction)
        for name in ("source", "target", "mask", "has_mask", "task", "position"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_workers_change_nothing(tmp_path: Path):
    make_folder(tmp_path, COUNTS)
    assert_equal_batches(batches_of(tmp_path, 0), batches_of(tmp_path, 2))


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn"])
def test_the_way_workers_start_changes_nothing(tmp_path: Path, start_method: str):
    make_folder(tmp_path, COUNTS)
    found = batches_of(tmp_path, 2, start_method)
    assert_equal_batches(batches_of(tmp_path, 0), found)


def test_a_pickled_data_set_opens_its_own_files(tmp_path: Path):
    make_folder(tmp_path, COUNTS)
    data = in_order(tmp_path)
    there, here = pickle.loads(pickle.dumps(data))[4], data[4]
    assert here.source is not None
    assert torch.equal(there.source, here.source)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_ends_loading_with_one_line(tmp_path: Path, workers: int):
    folder = folder_of(tmp_path, [*sample("a"), *sample("b", source=b"hello")], samples=2)
    loader = PositionLoader(in_order(folder), [[0], [1]], num_workers=workers)
    batches = iter(loader)
    assert next(batches).key == ("a",)
    with pytest.raises(BadSampleError, match=r"^local-000000.tar: sample 'b'") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


def picture(height: int, width: int) -> torch.Tensor:
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(0, 256, (3, height, width), dtype=np.uint8))


def test_a_picture_of_the_training_size_is_left_as_it_is():
    source = picture(16, 16)
    found, _, mask = Crop(16, seed=3)(source, source, None, 5)
    assert torch.equal(found, source)
    assert mask is None


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16), (16, 17), (8, 8), (64, 48)])
def test_source_target_and_mask_are_cut_alike(seed: int | None, height: int, width: int):
    source = picture(height, width)
    mask = source[0] > 128
    for position in range(8):
        crop = Crop(16, seed=seed, flip=True)
        a, b, m = crop(source, source, mask, position)
        assert a.shape == b.shape == (3, 16, 16)
        assert m is not None
        assert m.shape == (16, 16)
        assert torch.equal(a, b)
        if min(height, width) == 16:
            assert torch.equal(m, a[0] > 128)


def test_training_cuts_anywhere_and_evaluation_in_the_middle():
    columns = torch.arange(20, dtype=torch.uint8).expand(3, 16, 20).contiguous()
    crop = Crop(16, seed=0)
    lefts = {int(crop(columns, columns, None, g)[0][0, 0, 0]) for g in range(100)}
    assert lefts == set(range(5))
    middle = Crop(16)(columns, columns, None, 0)[0]
    assert int(middle[0, 0, 0]) == 2


def test_flips_happen_to_half_of_the_samples_and_only_when_asked():
    columns = torch.arange(16, dtype=torch.uint8).expand(3, 16, 16).contiguous()

    def is_mirrored(crop: Crop, g: int) -> bool:
        return int(crop(columns, columns, None, g)[0][0, 0, 0]) == 15

    count = sum(is_mirrored(Crop(16, seed=0, flip=True), g) for g in range(200))
    assert abs(count - 100) < 43  # 6 standard deviations
    assert not any(is_mirrored(Crop(16, seed=0), g) for g in range(20))


def test_crops_depend_on_seed_and_position_only():
    source = picture(16, 48)
    crop = Crop(16, seed=1, flip=True)
    first = [crop(source, source, None, g)[0] for g in range(10)]
    again = [Crop(16, seed=1, flip=True)(source, source, None, g)[0] for g in range(10)]
    other = [Crop(16, seed=2, flip=True)(source, source, None, g)[0] for g in range(10)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_mask_keeps_every_pixel_that_may_change():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[37, 5] = True
    source = picture(64, 64)
    small = Crop(16)(source, source, mask, 0)[2]
    assert small is not None
    assert small.nonzero().tolist() == [[9, 1]]


def test_a_size_no_network_can_use_is_refused():
    with pytest.raises(InputError, match=r"data\.image_size=4 must be at least 8"):
        Crop(4)


def test_a_no_op_shows_the_target_as_source_and_may_change_nothing(tmp_path: Path):
    make_folder(tmp_path, {"local": 4})
    order = InOrder([[4]])
    plain, repeated = (
        ShardDataset(
            lanes_in(tmp_path),
            order=order,
            tasks=SIXTEEN,
            decode=PictureDecoder(Crop(SIZE)),
            noops=Noops({"local": rate}),
        )
        for rate in (0.0, 1.0)
    )
    for g in range(4):
        was, now = plain[g], repeated[g]
        assert was.source is not None
        assert now.source is not None
        assert torch.equal(now.source, was.target)
        assert torch.equal(now.target, was.target)
        assert now.source_caption == now.target_caption == was.target_caption
        assert (now.instruction, now.key, now.task) == (was.instruction, was.key, was.task)
        assert (now.mask is None) == (was.mask is None)
        assert now.mask is None or not now.mask.any()
        assert not torch.equal(was.source, was.target)


def test_no_ops_come_as_often_as_asked_for_their_task_and_depend_on_position_and_seed_only():
    noops = Noops({"local": 0.25, "add": 1.0}, seed=3)
    local = [noops("local", g) for g in range(2000)]
    assert 420 < sum(local) < 580  # 500 expected, standard deviation 19
    assert local == [Noops({"local": 0.25}, seed=3)("local", g) for g in range(2000)]
    assert local != [Noops({"local": 0.25}, seed=4)("local", g) for g in range(2000)]
    assert all(noops("add", g) for g in range(20))
    assert not any(noops("depth", g) for g in range(20))


@pytest.mark.slow
def test_every_wording_is_drawn_as_often_in_training_and_the_first_in_evaluation(tmp_path: Path):
    pairs = list(records("local", 2))
    pairs[0] = replace(pairs[0], extra={"instruction_alt": [" in other  words", "in others"]})
    write_manifest(tmp_path, write_task_shards(tmp_path, "local", pairs), made_by={})
    lanes = lanes_in(tmp_path)
    assert in_order(tmp_path)[0].instruction == "do local number 0"

    def drawn(seed: int) -> list[str]:
        data = ShardDataset(
            lanes,
            order=lambda position: Position(0, 0, 0, position % 2),
            tasks=SIXTEEN,
            decode=PictureDecoder(Crop(SIZE)),
            wordings=Wordings(seed),
        )
        return [data[position].instruction for position in range(1200)]

    texts = drawn(1)
    assert set(texts[1::2]) == {"do local number 1"}
    counts = Counter(texts[::2])
    assert set(counts) == {"do local number 0", "in other words", "in others"}
    assert all(150 < count < 250 for count in counts.values())  # 200 expected, deviation 12
    assert texts == drawn(1) != drawn(2)
