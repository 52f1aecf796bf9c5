"""Training data from a web server are, sample by sample, those of the folder it serves."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.edit import EditDataModule
from datamodules.remote import ahead as remote_ahead
from datamodules.remote import fetch as remote_fetch
from datamodules.remote.ahead import FetchAhead, fetch_ahead, retry_metrics
from datamodules.remote.folder import CacheSettings, RemoteFolder, open_folder
from datamodules.remote.node_cache import GIB
from datamodules.shards.manifest import load_manifest
from datamodules.stream.loader import PositionLoader
from datamodules.stream.mixing import DataSet, lanes_of
from datamodules.stream.order import LaneOrder, Order, OrderSpec
from datamodules.stream.reader import PictureDecoder, ShardDataset
from datamodules.stream.transforms import Crop
from emu_edit.batch import Batch
from emu_edit.errors import InputError, ShardError, StorageError
from emu_edit.tasks import SIXTEEN
from tests.datamodules import loopback
from tests.datamodules.loopback import Site, serve
from tests.datamodules.toy_shards import make_folder

COUNTS = {"local": 12, "add": 6}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_fetch, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote_ahead, "STRIDE", 1)  # shards of two samples


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "data"
    make_folder(folder, COUNTS, pairs_per_shard=2)
    with serve(folder) as served:
        yield served


def settings(site: Site, *, shards: float = 100) -> CacheSettings:
    longest = max(entry.bytes for entry in load_manifest(site.folder).entries)
    folder = site.folder.parent / "cache"
    # no failure here is one of time: a loaded machine must not make one of it
    return CacheSettings(str(folder), max_gb=shards * (longest + 2048) / GIB)


def dataset(place: str | Path, cache: CacheSettings | None = None) -> ShardDataset:
    lanes = lanes_of([DataSet("", open_folder(place, cache))])
    tasks = tuple(LaneOrder(lane.name, 8, lane.sizes) for lane in lanes)
    order = Order(OrderSpec(0, tasks, window=2))
    return ShardDataset(
        lanes,
        order=order,
        tasks=SIXTEEN,
        decode=PictureDecoder(Crop(8, seed=0, flip=True)),
    )


def folder_of(samples: ShardDataset) -> RemoteFolder:
    folder = samples._lanes[0].folder
    assert isinstance(folder, RemoteFolder)
    return folder


def batches(samples: ShardDataset, count: int = 24, **options: Any) -> list[Batch]:
    plan = [list(range(i, i + 3)) for i in range(0, count, 3)]
    return list(PositionLoader(samples, plan, **options))


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.key, a.instruction, a.bad) == (b.key, b.instruction, b.bad)
        for name in ("source", "target", "mask", "has_mask", "task", "position"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_over_http_equals_the_local_one(site: Site, workers: int):
    near = batches(dataset(site.folder))
    far = batches(dataset(site.url, settings(site)), num_workers=workers)
    assert_equal(near, far)
    assert max(site.requests.values()) == 1


def test_a_pass_over_a_bad_line_equals_the_local_one_and_counts_retries(site: Site):
    faults = [loopback.drop, loopback.status(503), loopback.flipped, loopback.short, loopback.reset]
    for entry, fault in zip(load_manifest(site.folder).entries, 2 * faults, strict=False):
        site.plan[entry.file] = [fault]
    samples = dataset(site.url, settings(site))
    assert_equal(batches(dataset(site.folder)), batches(samples, num_workers=2))
    assert retry_metrics(samples._lanes) == {"data/retries": 9.0}  # counted in the workers


def test_a_pass_through_a_cache_smaller_than_the_data_equals_the_local_one(site: Site):
    samples = dataset(site.url, settings(site, shards=3))
    assert_equal(batches(dataset(site.folder)), batches(samples))
    cache = folder_of(samples).cache
    taken = sum(p.stat().st_size for p in cache.folder.glob("*/*") if p.is_file())
    assert taken <= cache.max_bytes
    assert max(site.requests.values()) > 1  # the reader let go of shards, and fetched them again


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["forkserver"])
def test_the_way_workers_start_changes_nothing_and_loses_no_count(site: Site, start_method: str):
    site.plan["local-000000.tar"] = [loopback.status(503)]
    samples = dataset(site.url, settings(site))
    far = batches(samples, num_workers=2, start_method=start_method)
    assert_equal(batches(dataset(site.folder)), far)
    assert folder_of(samples).retries == 1


def test_a_copy_sent_to_another_process_reads_on(site: Site):
    samples = dataset(site.url, settings(site))
    assert samples[3].key == pickle.loads(pickle.dumps(samples))[3].key


def test_a_pass_without_the_server_works_from_the_cache(tmp_path: Path):
    folder = tmp_path / "data"
    make_folder(folder, COUNTS, pairs_per_shard=2)
    with serve(folder) as site:
        samples = dataset(site.url, settings(site))
        first = batches(samples)
    assert_equal(first, batches(samples))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_gone_ends_loading_with_one_line(site: Site, workers: int):
    samples = dataset(site.url, settings(site))
    site.always = {e.file: loopback.status(404) for e in load_manifest(site.folder).entries}
    with pytest.raises(StorageError, match=r"\.tar: status 404 \(not found\)") as caught:
        batches(samples, num_workers=workers)
    assert "\n" not in str(caught.value)


def test_a_shard_that_was_replaced_during_training_is_refused(site: Site):
    samples = dataset(site.url, settings(site))
    make_folder(site.folder, {"local": 12, "add": 6}, pairs_per_shard=2, size=24)
    with pytest.raises(ShardError, match=r"of the manifest .*it was replaced or damaged since"):
        batches(samples)


def data_module(train: Any, site: Site) -> EditDataModule:
    data = EditDataModule(
        train, val=site.url, image_size=8, global_batch=4, steps_per_epoch=3, cache=settings(site)
    )
    data.setup("fit")
    return data


@pytest.mark.parametrize("is_mixed", [False, True])
def test_the_data_module_takes_addresses(site: Site, tmp_path: Path, is_mixed: bool):
    make_folder(tmp_path / "more", {"style": 4})
    near: Any = str(site.folder)
    far: Any = site.url
    if is_mixed:
        near, far = ({"a": place, "b": str(tmp_path / "more")} for place in (near, far))
    first, second = data_module(near, site), data_module(far, site)
    assert_equal(list(first.train_dataloader()), list(second.train_dataloader()))
    assert_equal(list(first.val_dataloader()), list(second.val_dataloader()))
    # so a training that began with a plain folder goes on with the address, and back
    assert first.state_dict() == second.state_dict()


def test_a_cache_that_cannot_hold_what_is_mixed_is_refused_at_the_start(site: Site):
    small = settings(site, shards=7)  # of the 6 + 3 there are, 8 at most of a task
    data = EditDataModule(site.url, image_size=8, global_batch=4, cache=small)
    words = r"data\.cache\.max_gb=\S+ is less than .* \(8 of each of 2 tasks\); raise it, or lower"
    with pytest.raises(InputError, match=words):
        data.setup("fit")
    EditDataModule(site.url, image_size=8, global_batch=4, window=3, cache=small).setup("fit")


def test_shards_are_fetched_before_they_are_read(site: Site):
    samples = dataset(site.url, settings(site))
    ahead = FetchAhead(samples._lanes, samples._order)
    ahead.look(0, 48)
    entries = load_manifest(site.folder).entries
    assert {entry.file for entry in entries} <= site.requests.keys()
    batches(samples)
    assert max(site.requests.values()) == 1


def test_what_is_needed_soon_outlives_what_was_opened_later(site: Site):
    samples = dataset(site.url, settings(site))
    folder = folder_of(samples)
    entry = folder.manifest.entries[0]
    os.utime(folder.path(entry), (0, 0))
    FetchAhead(samples._lanes, samples._order).look(0, 48)
    assert folder.path(entry).stat().st_mtime > 0


def test_what_cannot_be_fetched_ahead_is_left_to_the_reader(site: Site):
    samples = dataset(site.url, settings(site))
    site.plan["local-000000.tar"] = [loopback.status(404)]
    FetchAhead(samples._lanes, samples._order).look(0, 48)
    assert_equal(batches(dataset(site.folder)), batches(samples))


def test_workers_look_ahead_and_change_nothing(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_ahead, "STEP", 4)
    samples = dataset(site.url, settings(site))
    ahead = fetch_ahead(samples._lanes, samples._order)
    assert isinstance(ahead, FetchAhead)
    far = batches(samples, num_workers=2, ahead=ahead)
    assert_equal(batches(dataset(site.folder)), far)
    assert max(site.requests.values()) == 1


def test_plain_folders_start_no_thread(tmp_path: Path):
    make_folder(tmp_path / "data", {"local": 4})
    samples = dataset(tmp_path / "data")
    assert fetch_ahead(samples._lanes, samples._order) is None
    assert retry_metrics(samples._lanes) == {}
