import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch

from datamodules.edit import EditDataModule
from datamodules.remote.folder import open_folder
from datamodules.stream import reader
from datamodules.stream.loader import LoaderError, PositionLoader
from datamodules.stream.mixing import DataSet, lanes_of
from datamodules.stream.order import LaneOrder, Order, OrderSpec, Position
from datamodules.stream.reader import PictureDecoder, ShardDataset
from datamodules.stream.transforms import ATTEMPTS_NEARBY, MAX_ATTEMPTS, Crop, Substitutes
from emu_edit.batch import Batch
from emu_edit.errors import BadDataError, BadImageError, BadSampleError, ShardError
from emu_edit.tasks import SIXTEEN
from tests.datamodules.bad_shards import spoil
from tests.datamodules.toy_shards import make_folder

COUNTS = {"local": 10, "add": 6}
FROZEN = [(1, 0), (1, 0), (1, 1), (1, 2), (1, 0), (1, 3), (0, 2), (0, 6)]
FAULTS = {"local_00003": "source", "add_00001": "mask", "add_00004": "target"}


def stream(folder: Path, substitutes: Substitutes | None) -> ShardDataset:
    lanes = lanes_of([DataSet("", open_folder(folder))])
    tasks = tuple(LaneOrder(lane.name, 8, lane.sizes) for lane in lanes)
    order = Order(OrderSpec(0, tasks, window=2))
    return ShardDataset(
        lanes,
        order=order,
        tasks=SIXTEEN,
        decode=PictureDecoder(Crop(16)),
        substitutes=substitutes,
    )


def assert_equal(first: Batch, second: Batch) -> None:
    assert (first.key, first.instruction, first.bad) == (second.key, second.instruction, second.bad)
    for name in ("source", "target", "mask", "has_mask", "task", "position"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_a_substitute_is_a_function_of_seed_position_and_attempt():
    where, sizes = Position(2, 5, shard=1, sample=3), (7, 4, 9)

    def drawn(seed: int) -> list[Position]:
        substitutes = Substitutes(seed)
        return [
            substitutes(where, sizes, position=g, attempt=attempt)
            for g in range(50)
            for attempt in range(1, MAX_ATTEMPTS + 1)
        ]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert {(place.lane, place.epoch) for place in drawn(0)} == {(2, 5)}
    # frozen: a resumed training must find the substitutes it had with an older version
    assert [(place.shard, place.sample) for place in drawn(0)[:8]] == FROZEN


def test_the_first_substitutes_are_other_samples_of_the_same_shard():
    where, sizes = Position(0, 0, shard=1, sample=3), (7, 4, 9)
    nearby = Counter(
        Substitutes(0)(where, sizes, position=g, attempt=attempt)
        for g in range(300)
        for attempt in range(1, ATTEMPTS_NEARBY + 1)
    )
    assert {place.shard for place in nearby} == {1}
    assert {place.sample for place in nearby} == {0, 1, 2}
    assert min(nearby.values()) > 300  # of 1200, a third each; standard deviation 16


def test_later_substitutes_come_from_all_shards_and_so_do_those_of_a_shard_of_one():
    where, sizes = Position(0, 0, shard=1, sample=0), (3, 1, 2)
    for attempts in (range(1, ATTEMPTS_NEARBY + 1), range(ATTEMPTS_NEARBY + 1, MAX_ATTEMPTS + 1)):
        places = Counter(
            Substitutes(0)(where, sizes, position=g, attempt=attempt)[2:]
            for g in range(300)
            for attempt in attempts
        )
        assert set(places) == {(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)}
        assert min(places.values()) > 130  # of 1200, a sixth each; standard deviation 13


def test_another_sample_of_the_task_takes_the_place_of_a_bad_one_and_names_it(tmp_path: Path):
    make_folder(tmp_path, COUNTS)
    before = [stream(tmp_path, None)[g] for g in range(64)]
    spoil(tmp_path, FAULTS)
    data = stream(tmp_path, Substitutes(0))
    found = [data[g] for g in range(64)]
    for old, new in zip(before, found, strict=True):
        assert (new.position, new.task) == (old.position, old.task)
        assert new.key not in FAULTS
        if old.key not in FAULTS:
            assert new.key == old.key
            assert new.bad == ()
            assert new.source is not None
            assert old.source is not None
            assert torch.equal(new.source, old.source)
            continue
        assert new.bad[0].key == old.key
        assert {bad.position for bad in new.bad} == {old.position}
    assert {bad.key for sample in found for bad in sample.bad} == FAULTS.keys()


def test_a_record_says_what_was_bad_and_where(tmp_path: Path):
    make_folder(tmp_path, COUNTS)
    spoil(tmp_path, FAULTS)
    data = stream(tmp_path, Substitutes(0))
    bad = {bad.key: bad for g in range(64) for bad in data[g].bad}
    record = bad["local_00003"]
    assert (record.task, record.index, record.samples) == ("local", 3, 4)
    assert record.shard == str(tmp_path / "local-000000.tar")
    assert record.kind == "source_unreadable"
    assert (
        record.reason
        == "source: is no picture, needs a JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF picture"
    )
    assert {key: record.kind for key, record in bad.items()} == {
        key: f"{role}_unreadable" for key, role in FAULTS.items()
    }


def test_a_text_that_says_nothing_usable_is_a_bad_sample(tmp_path: Path):
    make_folder(tmp_path, {"local": 4})
    spoil(tmp_path, {"local_00002": "json"})
    data = stream(tmp_path, Substitutes(0))
    bad = {(bad.key, bad.kind) for g in range(8) for bad in data[g].bad}
    assert bad == {("local_00002", "text_unusable")}
    with pytest.raises(BadSampleError, match="'local_00002': its json cannot be parsed"):
        [stream(tmp_path, None)[g] for g in range(8)]


def test_without_bad_samples_substitution_changes_nothing(tmp_path: Path):
    make_folder(tmp_path, COUNTS)
    plan = [list(range(i, i + 4)) for i in range(0, 48, 4)]
    with_them = PositionLoader(stream(tmp_path, Substitutes(0)), plan)
    for one, other in zip(with_them, PositionLoader(stream(tmp_path, None), plan), strict=True):
        assert_equal(one, other)
        assert one.bad == ()


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_samples_reach_the_main_process_from_any_number_of_workers(
    tmp_path: Path, workers: int
):
    make_folder(tmp_path, COUNTS)
    spoil(tmp_path, FAULTS)
    plan = [list(range(i, i + 4)) for i in range(0, 48, 4)]
    alone = list(PositionLoader(stream(tmp_path, Substitutes(0)), plan))
    found = list(PositionLoader(stream(tmp_path, Substitutes(0)), plan, num_workers=workers))
    for one, other in zip(alone, found, strict=True):
        assert_equal(one, other)
    assert {bad.key for batch in found for bad in batch.bad} == FAULTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_the_way_workers_start_changes_no_substitute(tmp_path: Path, start_method: str):
    make_folder(tmp_path, COUNTS)
    spoil(tmp_path, FAULTS)
    plan = [list(range(i, i + 4)) for i in range(0, 24, 4)]
    data = stream(tmp_path, Substitutes(0))
    there = PositionLoader(data, plan, num_workers=2, start_method=start_method)
    for one, other in zip(PositionLoader(data, plan), there, strict=True):
        assert_equal(one, other)


def test_a_task_without_a_usable_sample_is_refused_after_eight_attempts(tmp_path: Path):
    make_folder(tmp_path, {"local": 4, "add": 4})
    spoil(tmp_path, {f"add_{i:05d}": "target" for i in range(4)})
    data = stream(tmp_path, Substitutes(0))
    with pytest.raises(
        BadDataError, match=r"position \d of the stream: 9 samples of add in a row cannot be used"
    ):
        [data[g] for g in range(4)]


def test_nothing_takes_the_place_of_a_shard_that_cannot_be_trusted(tmp_path: Path):
    make_folder(tmp_path, {"local": 4})
    data = stream(tmp_path, Substitutes(0))
    path = tmp_path / "local-000000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ShardError, match="changed since the shard was indexed"):
        [data[g] for g in range(4)]


@pytest.mark.parametrize("workers", [0, 1])
def test_no_memory_is_a_fault_of_the_machine_and_not_of_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
):
    make_folder(tmp_path, {"local": 4})

    def exhausted(_: bytes, where: str) -> torch.Tensor:
        raise BadImageError(f"{where}: cannot be decoded") from MemoryError()

    monkeypatch.setattr(reader, "decode_rgb", exhausted)
    loader = PositionLoader(stream(tmp_path, Substitutes(0)), [[0]], num_workers=workers)
    with pytest.raises(LoaderError, match=r"no memory was left .*lower data\.num_workers"):
        next(iter(loader))


def test_training_substitutes_and_evaluation_stops(tmp_path: Path):
    make_folder(tmp_path, COUNTS)
    spoil(tmp_path, FAULTS)
    data = EditDataModule(
        str(tmp_path), str(tmp_path), image_size=16, global_batch=8, steps_per_epoch=4
    )
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert {bad.key for batch in batches for bad in batch.bad} == FAULTS.keys()
    # a training measures another in its place, numbers to report are of what they say
    assert {bad.key for batch in data.val_dataloader() for bad in batch.bad} == FAULTS.keys()
    data.setup("validate")
    with pytest.raises(BadSampleError, match="sample 'local_00003': source: is no picture"):
        list(data.val_dataloader())


def test_a_bad_sample_keeps_its_kind_on_the_way_between_processes():
    error = pickle.loads(pickle.dumps(BadSampleError("a.tar: sample 'k': no", "sizes_differ")))
    assert (str(error), error.kind) == ("a.tar: sample 'k': no", "sizes_differ")
