"""A cache that does not fit is refused in one line; writing one is safe to interrupt and repeat."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from datamodules.checks.folders import check_folder
from datamodules.edit import EditDataModule
from datamodules.encoded.encoder import CacheEncoder
from datamodules.encoded.reader import NULL_TEXT
from datamodules.encoded.writer import WORK, EncodingSettings
from datamodules.shards.index import index_shard, save_index
from datamodules.shards.manifest import ShardEntry, load_manifest, write_manifest
from datamodules.shards.writer import write_task_shards
from datamodules.stream.limits import LongTexts, TextRule
from emu_edit.batch import Batch, EncodedBatch, EncodedSample
from emu_edit.errors import BadDataError, InputError, ShardError
from emu_edit.files import sha256_of
from emu_edit.models.codec import PatchCodec
from emu_edit.training.module import EditModule
from tests.datamodules.cached_stage import batches, cache, losses, make_module, steps, tiny_text
from tests.datamodules.toy_shards import make_folder, records, sample, text, write_tar

COUNTS = {"local": 7, "add": 5}


@pytest.fixture(scope="module")
def module() -> EditModule:
    return make_module()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    make_folder(tmp_path / "pictures", COUNTS)
    return tmp_path / "pictures"


@pytest.fixture
def cached(pictures: Path, tmp_path: Path, module: EditModule) -> Path:
    cache(module, pictures, tmp_path / "cache")
    return tmp_path / "cache"


def test_another_codec_is_refused(cached):
    other = make_module(PatchCodec(scale=3.0))
    with pytest.raises(InputError, match=r"latents of the codec [0-9a-f]{12}, model\.codec is"):
        losses(other, batches(cached))


def test_another_text_encoder_is_refused(cached):
    other = make_module(text=tiny_text(is_frozen=True, seed=5))
    with pytest.raises(InputError, match=r"features of the text encoder .* shards cache"):
        losses(other, batches(cached))


def test_kept_text_is_refused_by_a_text_encoder_that_learns(cached):
    other = make_module(text=tiny_text(is_frozen=False))
    with pytest.raises(InputError, match="would learn to make otherwise; freeze it"):
        losses(other, batches(cached))


def test_a_text_encoder_frozen_later_reads_a_cache_without_text(pictures, tmp_path):
    cache(make_module(text=tiny_text(is_frozen=False)), pictures, tmp_path / "cache")
    frozen = make_module()
    plain, latents = steps(frozen, batches(pictures)), steps(frozen, batches(tmp_path / "cache"))
    for a, b in zip(plain, latents, strict=True):
        torch.testing.assert_close(a["loss"], b["loss"], rtol=1e-5, atol=1e-5)


def test_another_image_size_a_flip_and_buckets_are_refused(cached):
    with pytest.raises(InputError, match=r"image_size=32, but .* was cached at 16; set"):
        batches(cached, image_size=32)
    with pytest.raises(InputError, match=r"data\.flip: true needs pictures"):
        batches(cached, flip=True)
    with pytest.raises(InputError, match=r"buckets: true needs pictures, and .* squares; set"):
        batches(cached, buckets=True)


def test_changed_pictures_are_refused_and_absent_ones_are_not_asked_for(pictures, cached):
    make_folder(pictures, COUNTS | {"add": 4})
    with pytest.raises(ShardError, match=r"where add-00000\d\.tar has changed since"):
        batches(cached)
    shutil.rmtree(pictures)
    assert len(batches(cached)) == 3


def test_pictures_and_latents_do_not_mix(pictures, cached):
    make_folder(pictures.parent / "more", {"local": 3, "depth": 2})
    data = EditDataModule({"old": str(cached), "new": str(pictures.parent / "more")}, image_size=16)
    data.setup("fit")
    with pytest.raises(InputError, match=r"caches beside folders of pictures .*more"):
        data.train_dataloader()


def mixed_keys(first: Path, second: Path) -> list[tuple[str, ...]]:
    data = EditDataModule({"a": str(first), "b": str(second)}, image_size=16, steps_per_epoch=2)
    data.setup("fit")
    return [batch.key for batch in data.train_dataloader()]


def test_caches_of_two_data_sets_mix_and_those_of_two_codecs_do_not(
    pictures, cached, module, tmp_path
):
    make_folder(tmp_path / "more", {"local": 3, "depth": 2}, size=32)
    cache(module, tmp_path / "more", tmp_path / "same")
    cache(make_module(PatchCodec(scale=3.0)), tmp_path / "more", tmp_path / "other")
    assert mixed_keys(cached, tmp_path / "same") == mixed_keys(pictures, tmp_path / "more")
    data = EditDataModule({"a": str(cached), "b": str(tmp_path / "other")}, image_size=16)
    data.setup("fit")
    with pytest.raises(InputError, match="were cached with other networks or another size"):
        data.train_dataloader()


def test_a_cache_is_no_validation_set(pictures, cached):
    data = EditDataModule(str(pictures), val=str(cached), image_size=16)
    data.setup("fit")
    with pytest.raises(InputError, match="is a cache and has no pictures to edit"):
        data.val_dataloader()


@pytest.mark.parametrize("damage", [bytes.upper, lambda _: b""])
def test_a_changed_null_text_is_refused(damage, cached):
    path = cached / NULL_TEXT
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ShardError, match=f"{NULL_TEXT} changed since the cache was written"):
        batches(cached)


@pytest.mark.parametrize("header", [[], {}, {"image_size": "16"}, None])
def test_a_damaged_header_is_refused(header, cached):
    path = cached / "manifest.json"
    content = json.loads(path.read_text())
    if header is None:
        content["made_by"]["cache"]["codec"] = 3
    else:
        content["made_by"]["cache"] = header
    path.write_text(json.dumps(content))
    with pytest.raises(ShardError, match="what it says of its cache is damaged"):
        batches(cached)


def test_flipped_bytes_are_found(cached):
    entry = load_manifest(cached).entries[0]
    data = bytearray((cached / entry.file).read_bytes())
    index = index_shard(cached / entry.file, task=entry.task)
    data[int(index["offset"][0][1]) + 400] ^= 1
    (cached / entry.file).write_bytes(bytes(data))
    with pytest.raises(ShardError, match=r"changed since the manifest was written"):
        batches(cached)


def test_members_that_are_no_latents_are_bad_samples(cached):
    """A folder whose hashes are right and whose content is not: written by something else."""
    members = sample("odd", source=save({"mean": torch.zeros(2, 2, 2)}), target=save({}))
    names = {"odd.source.png": "odd.source.safetensors", "odd.target.png": "odd.target.safetensors"}
    path = write_tar(cached / "local-000000.tar", [(names.get(n, n), d) for n, d in members])
    save_index(path, index_shard(path, task="local"))
    content = json.loads((cached / "manifest.json").read_text())
    entry = ShardEntry("local", path.name, path.stat().st_size, sha256_of(path), 1)
    write_manifest(cached, [entry], made_by=content["made_by"])
    with pytest.raises(InputError, match=r"no sample of a cache"):
        batches(cached, global_batch=1, steps_per_epoch=1)


class StoppedError(Exception):
    """The power goes."""


def test_an_interrupted_cache_is_completed_with_what_was_there(
    pictures, cached, module, tmp_path, monkeypatch
):
    again = tmp_path / "again"
    encode, calls = CacheEncoder.__call__, []  # batches of 3: 2 + 1 of local, then 2 + 1 of add

    def stop_at_the_fifth(self, pairs, task):
        calls.append(task)
        if len(calls) == 5:
            raise StoppedError
        return encode(self, pairs, task)

    with monkeypatch.context() as patch:
        patch.setattr(CacheEncoder, "__call__", stop_at_the_fifth)
        with pytest.raises(StoppedError):
            cache(module, pictures, again)
    whole = sorted(path.name for path in again.glob("*.tar"))
    assert whole == ["local-000000.tar", "local-000001.tar"]
    assert not (again / "manifest.json").exists()
    assert not list(again.glob(".*"))  # no halves
    times = {name: (again / name).stat().st_mtime_ns for name in whole}
    report = cache(module, pictures, again)
    assert report.kept == 2
    assert {name: (again / name).stat().st_mtime_ns for name in whole} == times
    assert report.manifest.entries == load_manifest(cached).entries


def test_a_damaged_shard_is_written_again(pictures, cached, module):
    before = load_manifest(cached)
    path = cached / "local-000001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    report = cache(module, pictures, cached)
    assert report.kept == len(before.entries) - 1
    assert report.manifest == before


def test_a_folder_of_something_else_is_not_written_into(pictures, cached, module, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="exists and is no cache; give a new folder"):
        cache(module, pictures, tmp_path / "mine")
    with pytest.raises(InputError, match="made with another dtype; give a new folder"):
        cache(module, pictures, cached, dtype="float16")
    with pytest.raises(InputError, match="made with another image_size"):
        cache(module, pictures, cached, image_size=8)
    with pytest.raises(InputError, match="made with another codec; give"):
        cache(make_module(PatchCodec(scale=3.0)), pictures, cached)
    with pytest.raises(InputError, match="is a cache already"):
        cache(module, cached, tmp_path / "new")
    (cached / WORK).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        cache(module, pictures, cached)


def test_settings_that_make_no_cache_are_refused(pictures, module, tmp_path):
    with pytest.raises(InputError, match=r"'float61' is none of .* Did you mean 'float16'"):
        EncodingSettings(16, dtype="float61")
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        EncodingSettings(16, batch_size=0)
    with pytest.raises(InputError, match="image size 18 is no multiple of 4"):
        cache(module, pictures, tmp_path / "new", image_size=18)


def test_numbers_too_large_for_the_precision_are_refused(pictures, tmp_path):
    loud = make_module(PatchCodec(scale=1e6))
    with pytest.raises(InputError, match=r"local_00000: its mean is not finite in torch\.float16"):
        cache(loud, pictures, tmp_path / "new", dtype="float16")


def test_a_broken_pair_keeps_its_place_and_gets_the_same_substitute(module, tmp_path):
    members = [m for i in range(6) for m in sample(f"k{i}")]
    members += sample("k6", source=b"no picture")
    folder = tmp_path / "pictures"
    folder.mkdir()
    path = write_tar(folder / "local-000000.tar", members)
    save_index(path, index_shard(path, task="local"))
    entry = ShardEntry("local", path.name, path.stat().st_size, sha256_of(path), 7)
    write_manifest(folder, [entry], made_by={})
    report = cache(module, folder, tmp_path / "cache")
    assert len(report.broken) == 1
    assert "1 pairs cannot be used and are marked: k6 (source" in report.summary()
    plain, latents = batches(folder), batches(tmp_path / "cache")
    assert [b.key for b in plain] == [b.key for b in latents]
    bad, marked = ([bad for b in of for bad in b.bad] for of in (plain, latents))
    assert {(b.position, b.key, b.kind) for b in bad} == {
        (b.position, b.key, b.kind) for b in marked
    }
    assert {b.kind for b in marked} == {"source_unreadable"}
    assert "could not be used when it was cached (source" in marked[0].reason


LONG = " ".join(f"word {i}," for i in range(60))


@pytest.mark.parametrize("rule", list(LongTexts))
def test_a_long_instruction_is_cut_marked_or_refused_by_name(rule, module, tmp_path):
    pairs = list(records("local", 6))
    pairs[2] = replace(pairs[2], instruction=LONG)
    pairs[4] = replace(pairs[4], extra={"instruction_alt": [LONG, "in other words"]})
    folder, output = tmp_path / "pictures", tmp_path / "cache"
    folder.mkdir()
    write_manifest(folder, write_task_shards(folder, "local", pairs), made_by={})
    if rule is LongTexts.refuse:
        with pytest.raises(
            BadDataError, match=r"sample 'local_00002': the instruction has \d+ tok"
        ):
            cache(module, folder, output, long_texts=rule)
        return
    report = cache(module, folder, output, long_texts=rule)
    told = {
        LongTexts.truncate: "2 instructions are longer than the text encoder takes and were cut",
        LongTexts.skip: r"1 pairs cannot be used and are marked: local_00002 (the instruction has",
    }
    assert told[rule] in report.summary()
    with pytest.raises(InputError, match="is a cache made with another long_texts"):
        cache(module, folder, output, long_texts=LongTexts.refuse)
    rows = zip(fitted_batches(folder, module, rule), batches(output), strict=True)
    for plain, latent in rows:
        assert (plain.key, plain.instruction) == (latent.key, latent.instruction)
        assert [(b.position, b.kind) for b in plain.bad] == [
            (b.position, b.kind) for b in latent.bad
        ]


def fitted_batches(folder: Path, module: EditModule, rule: LongTexts) -> list[Batch]:
    """Return the batches of pictures, their instructions fitted to the module's text encoder."""
    rule_of_model = TextRule(module.networks.text_encoder.limit, rule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextRule, "fit", lambda *_: rule_of_model)
        return batches(folder)


def test_latents_that_could_not_be_stacked_are_a_bad_sample(cached, pictures):
    (entry, *others) = load_manifest(cached).entries
    tensors = {"mean": torch.zeros(48, 4, 4)}
    wrong = {
        "another size": {"mean": torch.zeros(48, 3, 3)},
        "no latents": {"mean": torch.zeros(4)},
        "features of another width": {
            "mean": torch.zeros(48, 4, 4),
            "tokens": torch.zeros(8, 3),
            "mask": torch.ones(8, dtype=torch.bool),
        },
    }
    del pictures
    members = [
        (f"k{i}.{role}.safetensors", save(source if role == "source" else tensors))
        for i, source in enumerate(wrong.values())
        for role in ("source", "target")
    ]
    members += [(f"k{i}.json", text()) for i in range(len(wrong))]
    path = write_tar(cached / entry.file, sorted(members))
    save_index(path, index_shard(path, task=entry.task))
    entry = replace(entry, bytes=path.stat().st_size, sha256=sha256_of(path), samples=len(wrong))
    write_manifest(cached, [entry, *others], made_by=load_manifest(cached).made_by)
    messages = [problem.message for problem in check_folder(cached).errors]
    assert [message for message in messages if "is no sample of a cache" not in message] == []
    assert len(messages) == len(wrong)


def test_samples_of_two_codecs_cannot_be_one_batch(cached):
    (batch, *_) = batches(cached, global_batch=2)
    assert isinstance(batch, EncodedBatch)
    one = EncodedSample(
        key="a",
        instruction="b",
        task=0,
        source=batch.source[0],
        target=batch.target[0],
        target_std=batch.target_std[0],
        text=None,
        codec=batch.codec,
    )
    with pytest.raises(ValueError, match="latents of one codec"):
        EncodedBatch.collate([one, replace(one, codec="other")])
