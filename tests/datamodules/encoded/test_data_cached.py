"""Training from a cache is training from the pictures, without the encoders' time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.testing import assert_close

from datamodules.edit import EditDataModule
from datamodules.encoded.reader import CacheHeader
from datamodules.encoded.writer import EncodingSettings, write_cache
from datamodules.remote.folder import CacheSettings, open_folder
from datamodules.shards.manifest import load_manifest, write_manifest
from datamodules.shards.writer import PairRecord, write_task_shards
from emu_edit.batch import Batch, EncodedBatch
from emu_edit.images import to_float
from emu_edit.models.codec import PatchCodec
from emu_edit.models.interfaces import ImageCodec
from emu_edit.training.draws import Phase
from emu_edit.training.module import EditModule
from tests.datamodules.cached_stage import (
    batches,
    cache,
    kl_codec,
    losses,
    make_module,
    steps,
    tiny_text,
)
from tests.datamodules.loopback import serve
from tests.datamodules.toy import make_trainer
from tests.datamodules.toy_shards import make_folder, records

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 asks torch 2.13 in a way that has a successor
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

COUNTS = {"local": 9, "add": 6, "depth": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    make_folder(folder, COUNTS)
    return folder


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> EditModule:
    """A model with an autoencoder and a frozen text encoder."""
    return make_module(kl_codec(tmp_path_factory.mktemp("vae")))


@pytest.fixture(scope="module")
def cached(pictures: Path, module: EditModule) -> Path:
    """The cache of the pictures, in float32."""
    cache(module, pictures, pictures.parent / "cache")
    return pictures.parent / "cache"


def codec_of(name: str, folder: Path) -> ImageCodec:
    return PatchCodec() if name == "patches" else kl_codec(folder, scale_condition=True)


def assert_same_training(module: EditModule, a: list[Batch], b: list[Batch]) -> None:
    for left, right in zip(steps(module, a), steps(module, b), strict=True):
        assert torch.equal(left["t"], right["t"])
        for name in ("error", "loss"):
            assert_close(left[name], right[name], rtol=1e-5, atol=1e-5)


def test_a_cache_gives_the_losses_of_the_pictures(module, pictures, cached):
    plain, latents = batches(pictures), batches(cached)
    assert isinstance(latents[0], EncodedBatch)
    assert latents[0].text is not None
    assert_same_training(module, plain, latents)


@pytest.mark.parametrize("name", ["patches", "kl"])
def test_a_text_encoder_that_learns_stays_live_and_gets_its_gradients(name, pictures, tmp_path):
    module = make_module(codec_of(name, tmp_path), tiny_text(is_frozen=False))
    cache(module, pictures, tmp_path / "cache")
    plain, latents = batches(pictures), batches(tmp_path / "cache")
    assert isinstance(latents[0], EncodedBatch)
    assert latents[0].text is None
    assert_same_training(module, plain, latents)
    module.step(module.drawn(latents[0], Phase.train), dropout=None)["loss"].backward()
    assert all(p.grad is not None for p in module.networks.text_encoder.parameters())


def test_a_cache_has_the_shards_keys_and_order_of_its_pictures(pictures, cached):
    for a, b in zip(load_manifest(pictures).entries, load_manifest(cached).entries, strict=True):
        assert (a.task, a.file, a.samples) == (b.task, b.file, b.samples)
    noops = {"local": 0.5}
    for plain, latents in zip(
        batches(pictures, noops=noops), batches(cached, noops=noops), strict=True
    ):
        assert plain.key == latents.key
        assert plain.instruction == latents.instruction
        assert plain.source_caption == latents.source_caption
        for name in ("position", "task", "has_mask"):
            assert torch.equal(getattr(plain, name), getattr(latents, name))
        rows = plain.has_mask
        assert torch.equal(plain.mask[rows], latents.mask[rows])


def test_every_latent_is_that_of_its_own_picture_with_workers_too(module, pictures, cached):
    codec = module.networks.codec
    for plain, latents in zip(
        batches(pictures, num_workers=2), batches(cached, num_workers=2), strict=True
    ):
        assert isinstance(latents, EncodedBatch)
        mean, std = codec.posterior(to_float(plain.target))
        assert_close(latents.target, mean, rtol=1e-5, atol=1e-5)
        assert_close(latents.target_std, std, rtol=1e-5, atol=1e-5)
        source = codec.as_condition(latents.source)
        expected = codec.encode_condition(to_float(plain.source))
        assert_close(source, expected, rtol=1e-5, atol=1e-5)
        # a pair in the place of another would be far away
        assert (mean - mean.roll(1, dims=0)).abs().amax(dim=(1, 2, 3)).min() > 0.1


def test_pairs_shown_as_already_edited_are_so_in_latents(module, pictures, cached):
    noops = {"local": 1.0, "add": 1.0, "depth": 1.0}
    plain, latents = batches(pictures, noops=noops), batches(cached, noops=noops)
    assert isinstance(latents[0], EncodedBatch)
    assert torch.equal(latents[0].source, latents[0].target)
    assert_same_training(module, plain, latents)


def test_the_posterior_is_sampled_afresh_at_every_position(module, cached):
    """10 epochs of one task: the draws of a sample have the cached mean and deviation."""
    of = batches(cached, weights={"depth": 1.0}, global_batch=40, steps_per_epoch=10)
    draws, keys, first = [], [], of[0]
    assert isinstance(first, EncodedBatch)
    with torch.no_grad():
        for batch in of:
            z_0, _, _ = module.encoder(module.drawn(batch, Phase.train))
            draws.append(z_0)
            keys += batch.key
    rows = torch.tensor([key == of[0].key[0] for key in keys])
    z = torch.cat(draws)[rows]
    assert len(z) == 200
    noise = (z - first.target[0]) / first.target_std[0]
    assert abs(noise.mean().item()) < 0.02  # 200 x 256 normal numbers
    assert abs(noise.std().item() - 1) < 0.02


def test_dropout_is_live_and_draws_the_null_text(module, cached):
    (batch, *_) = batches(cached, global_batch=64)
    drawn = module.drawn(batch, Phase.train)
    seen = []
    handle = module.networks.denoiser.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["cond"]), with_kwargs=True
    )
    with torch.no_grad():
        module.step(drawn, dropout=module.dropout)
        _, cond, null = module.encoder(drawn)
        live_null = module.networks.encode_text([])[1]
    handle.remove()
    real = int(live_null.mask.sum())
    assert_close(null.tokens[0, :real], live_null.tokens[0, :real])
    dropped = (seen[0].text.tokens != cond.text.tokens).flatten(1).any(1)
    r = drawn.u[:, 1]
    rates = module.dropout
    in_both = (r >= rates.text + rates.image) & (r < rates.text + rates.image + rates.both)
    assert torch.equal(dropped, (r < rates.text) | in_both)
    assert 0 < dropped.sum() < len(dropped)


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_the_halves_are_half_the_size_and_round_once(
    dtype, step, module, pictures, cached, tmp_path
):
    report = cache(module, pictures, tmp_path / "cache", dtype=dtype)
    size = sum(entry.bytes for entry in load_manifest(cached).entries)
    assert sum(entry.bytes for entry in report.manifest.entries) < 0.8 * size  # tar headers stay
    full, half = batches(cached)[0], batches(tmp_path / "cache")[0]
    for name in ("source", "target", "target_std"):
        assert_close(getattr(half, name), getattr(full, name), rtol=step, atol=1e-6)
        assert not torch.equal(getattr(half, name), getattr(full, name))
    loss, of_half = losses(module, batches(cached)), losses(module, batches(tmp_path / "cache"))
    assert_close(of_half, loss, rtol=4 * step, atol=0)


def test_larger_pictures_and_their_masks_are_resampled_as_in_training(module, tmp_path):
    make_folder(tmp_path / "pictures", {"local": 4}, size=32)
    report = cache(module, tmp_path / "pictures", tmp_path / "cache")
    assert report.cut == 0
    plain, latents = (batches(tmp_path / name)[0] for name in ("pictures", "cache"))
    assert_same_training(module, [plain], [latents])
    rows = plain.has_mask
    assert rows.any()
    assert torch.equal(plain.mask[rows], latents.mask[rows])


def test_of_wide_pictures_the_centre_is_kept_and_said(module, tmp_path):
    source = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    pair = PairRecord("wide", source, 255 - source, "invert", "local")
    entries = write_task_shards(tmp_path / "pictures", "local", [pair])
    write_manifest(tmp_path / "pictures", entries, made_by={})
    report = cache(module, tmp_path / "pictures", tmp_path / "cache")
    assert report.cut == 1
    assert "1 pairs are not square: only their centre is in the cache" in report.summary()
    (batch,) = batches(tmp_path / "cache", global_batch=1, steps_per_epoch=1)
    assert isinstance(batch, EncodedBatch)
    centre = torch.from_numpy(source).permute(2, 0, 1)[None, :, :, 4:20]
    mean, _ = module.networks.codec.posterior(to_float(centre))
    assert_close(batch.source, mean, rtol=1e-5, atol=1e-5)


def test_the_manifest_says_what_the_cache_is_of(pictures, cached):
    header = CacheHeader.of(load_manifest(cached), cached)
    assert header is not None
    assert header.image_size == 16
    assert header.folder == str(pictures)
    assert header.shards == {e.file: e.sha256 for e in load_manifest(pictures).entries}
    assert CacheHeader.of(load_manifest(pictures), pictures) is None
    assert np.unique(list(header.shards.values())).size == len(header.shards)


def test_texts_of_any_length_are_padded_as_live_ones(module, tmp_path):
    texts = [
        "go",
        "make the sky behind the three tall houses on the left a little darker",
        "a" * 30,
    ]
    pairs = [
        replace(pair, instruction=text)
        for pair, text in zip(records("local", 3), texts, strict=True)
    ]
    entries = write_task_shards(tmp_path / "pictures", "local", pairs)
    write_manifest(tmp_path / "pictures", entries, made_by={})
    cache(module, tmp_path / "pictures", tmp_path / "cache", batch_size=1)
    (batch,) = batches(tmp_path / "cache", global_batch=3, steps_per_epoch=1)
    with torch.no_grad():
        live, live_null = module.networks.encode_text(batch.instruction)
        _, cond, null = module.encoder(module.drawn(batch, Phase.train))
    for kept, expected in ((cond.text, live), (null, live_null)):
        assert torch.equal(kept.mask, expected.mask)
        assert_close(kept.tokens[kept.mask], expected.tokens[expected.mask], rtol=1e-5, atol=1e-5)
    assert len({int(row.sum()) for row in live.mask}) == 3


def test_every_wording_of_an_instruction_is_cached_and_drawn_as_from_the_pictures(module, tmp_path):
    pairs = [
        replace(pair, extra={"instruction_alt": [f"say it {n} times" for n in range(i)]})
        for i, pair in enumerate(records("local", 3))
    ]
    entries = write_task_shards(tmp_path / "pictures", "local", pairs)
    write_manifest(tmp_path / "pictures", entries, made_by={})
    cache(module, tmp_path / "pictures", tmp_path / "cache", batch_size=2)
    plain, latents = (
        batches(tmp_path / name, global_batch=12, steps_per_epoch=2)
        for name in ("pictures", "cache")
    )
    texts = [text for batch in latents for text in batch.instruction]
    assert texts == [text for batch in plain for text in batch.instruction]
    assert set(texts) == {
        *(f"do local number {i}" for i in range(3)),
        "say it 0 times",
        "say it 1 times",
    }
    assert_same_training(module, plain, latents)


def test_a_cache_is_read_from_a_server_and_written_from_one(module, pictures, cached, tmp_path):
    node = CacheSettings(str(tmp_path / "node"))
    with serve(cached) as site:
        remote = batches(site.url, cache=node)
    for a, b in zip(batches(cached), remote, strict=True):
        assert a.key == b.key
        assert isinstance(a, EncodedBatch)
        assert isinstance(b, EncodedBatch)
        assert torch.equal(a.target, b.target)
    with serve(pictures) as site:
        folder = open_folder(site.url, node)
        write_cache(folder, tmp_path / "cache", module.networks, EncodingSettings(16, batch_size=3))
    assert load_manifest(tmp_path / "cache").entries == load_manifest(cached).entries


class Losses(Callback):
    """Note the loss of every training step, and save a checkpoint at the first epoch's end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del trainer, pl_module, batch, batch_idx
        self.seen.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device`")
@pytest.mark.filterwarnings("ignore:Found .* module\\(s\\) in eval mode at the start of training")
def test_training_runs_on_a_cache_and_resumes_on_it(pictures, tmp_path):
    """It loses what training on pictures loses, and goes on from an epoch's end as if unbroken."""
    cache(make_module(), pictures, tmp_path / "cache")

    def trained(folder: Path, ckpt: Path | None = None) -> list[float]:
        losses = Losses(tmp_path / f"{folder.name}.ckpt")
        data = EditDataModule(str(folder), image_size=16, global_batch=4, steps_per_epoch=2)
        trainer = make_trainer(losses, max_epochs=2, accumulate_grad_batches=2)
        start = None if ckpt is None else str(ckpt)
        trainer.fit(make_module(), datamodule=data, ckpt_path=start, weights_only=True)
        return losses.seen

    plain, latents = trained(pictures), trained(tmp_path / "cache")
    assert len(plain) == 8
    assert plain[:2] == pytest.approx(latents[:2], rel=1e-5, abs=1e-5)
    assert plain == pytest.approx(latents, rel=1e-3)  # AdamW enlarges last bits
    assert trained(tmp_path / "cache", tmp_path / "cache.ckpt") == latents[4:]
