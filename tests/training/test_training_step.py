# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import re
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Callback
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks.ema import Ema
from callbacks.finite import Finite
from callbacks.task_loss import TaskLoss
from callbacks.throughput import Throughput
from emu_edit.batch import ClipBatch, ClipSample
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.diffusion.weighting import Weighting
from emu_edit.errors import InputError
from emu_edit.images import to_float
from emu_edit.models.codec import KLCodec, PatchCodec
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.fingerprints import codec_fingerprint
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.surgery import channels_last, freeze
from emu_edit.models.tiny import TinyText
from emu_edit.training.draws import Phase
from emu_edit.training.encoder import BatchEncoder
from emu_edit.training.module import EditModule
from emu_edit.training.objective import Objective
from emu_edit.training.optim import copy_of
from tests.training.stage import (
    TASKS,
    TRAINER_WARNINGS,
    Squares,
    make_batch,
    make_module,
    make_trainer,
    train_step,
)

pytestmark = [pytest.mark.filterwarnings(warning) for warning in TRAINER_WARNINGS]

NO_DROPOUT = DropoutRates(text=0.0, image=0.0, both=0.0, task=0.0)


class Blurry(PatchCodec):
    """A codec that is unsure by half a unit about everything."""

    def posterior(self, images):
        mean, _ = super().posterior(images)
        return mean, torch.full_like(mean, 0.5)


def errors(module: EditModule, positions: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return train_step(module, make_batch(positions))["error"]


def test_a_samples_error_does_not_depend_on_what_it_is_batched_with():
    module = make_module()
    together = errors(module, [0, 1, 2, 3, 4, 5])
    apart = torch.cat([
        errors(module, [5, 4]),
        errors(module, [3]),
        errors(module, [2, 1, 0]),
    ]).flip(0)
    assert_close(together, apart, rtol=1e-4, atol=1e-5)  # float32 sums in another order
    assert len(set(together.tolist())) == 6


def test_the_same_position_meets_the_same_numbers_and_another_seed_or_phase_meets_others():
    module = make_module()
    batch = make_batch([3, 4])
    first, again = module.drawn(batch, Phase.train), module.drawn(batch, Phase.train)
    assert torch.equal(first.eps, again.eps)
    assert torch.equal(first.u, again.u)
    for other in (module.drawn(batch, Phase.validate), module.drawn(batch, Phase.test)):
        assert not torch.equal(first.eps, other.eps)
        assert not torch.equal(first.u, other.u)
    module.seed = 1
    assert not torch.equal(first.eps, module.drawn(batch, Phase.train).eps)


def test_a_drawn_batch_has_all_fields_and_moves_with_its_numbers():
    module = make_module()
    batch = make_batch([3, 4])
    drawn = module.drawn(batch, Phase.train)
    assert drawn.batch.key == batch.key
    assert torch.equal(drawn.batch.target, batch.target)
    moved = drawn.to("cpu", non_blocking=True)
    assert torch.equal(moved.eps, drawn.eps)


def test_the_loss_is_the_weighted_error_of_the_predicted_change():
    module = make_module(dropout=NO_DROPOUT)
    module.objective = Objective(Weighting.one_plus_min_snr)
    drawn = module.drawn(make_batch([0, 1, 2]), Phase.train)
    batch = drawn.batch
    assert isinstance(module.schedule, NoiseSchedule)
    with torch.no_grad():
        output = module.step(drawn, dropout=module.dropout)
        codec = module.networks.codec
        z_0, z_source = codec.encode(to_float(batch.target)), codec.encode(to_float(batch.source))
        t = (drawn.u[:, 0] * 1000).long()
        alpha, sigma = (
            table[t].float()[:, None, None, None]
            for table in (module.schedule.alpha, module.schedule.sigma)
        )
        text, _ = module.networks.encode_text(list(batch.instruction))
        cond = Conditioning(
            text=text, z_source=z_source, v_task=module.networks.task_embedding(batch.task)
        )
        z_0_hat = z_source + module.networks.denoiser(alpha * z_0 + sigma * drawn.eps, t, cond)
        error = (z_0_hat - z_0).square().mean((1, 2, 3))
        weight = 1 + module.schedule.snr[t].float().clamp(max=5)
    assert torch.equal(output["t"], t)
    assert_close(output["error"], error)
    assert_close(output["loss"], (weight * error).mean())


def test_dropout_withholds_everything_in_training_and_nothing_in_validation():
    module = make_module(dropout=DropoutRates(text=0.0, image=0.0, both=1.0, task=1.0))
    seen: list[Conditioning] = []
    module.networks.denoiser.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["cond"]), with_kwargs=True
    )
    batch = make_batch([0, 1])
    _, _, null_text = module.encoder(module.drawn(batch, Phase.train))
    with torch.no_grad():
        train_step(module, batch)
        module.step(module.drawn(batch, Phase.validate), dropout=None)
    dropped, full = seen
    assert not dropped.z_source.any()
    assert not dropped.v_task.any()
    assert_close(dropped.text.tokens, null_text.tokens.expand(2, -1, -1))
    assert full.z_source.any()
    assert full.v_task.any()
    assert not torch.equal(full.text.tokens[0], null_text.tokens[0])


def test_targets_are_sampled_from_the_posterior_with_noise_of_their_own_and_sources_are_not():
    module = make_module()
    sharp = BatchEncoder(module.networks)
    batch = module.drawn(make_batch([0, 1]), Phase.train)
    z_mean, cond_mean, _ = sharp(batch)
    module.networks.codec = Blurry()
    z_0, cond, _ = BatchEncoder(module.networks)(batch)
    assert_close(z_0 - z_mean, 0.5 * batch.eps_posterior)
    assert_close(cond.z_source, cond_mean.z_source)
    assert not torch.equal(batch.eps_posterior, batch.eps)


def test_the_codec_is_frozen_and_only_the_denoiser_is_in_train_mode():
    networks = make_module().networks
    assert networks.denoiser.training
    assert not networks.text_encoder.training
    assert not networks.codec.training
    assert any(p.requires_grad for p in networks.text_encoder.parameters())


def test_a_text_encoder_that_comes_frozen_stays_out_of_training_and_of_the_state():
    module = make_module()
    frozen = EditModule(
        denoiser=module.networks.denoiser,
        text_encoder=freeze(TinyText(dim=16, num_layers=1, num_heads=2)),
        codec=PatchCodec(),
        tasks=TASKS,
        prediction=Prediction.change,
    )
    assert [name for name in module.state_dict() if ".text_encoder." in name]
    assert [name for name in frozen.state_dict() if ".text_encoder." in name] == []
    assert [name for name in frozen.state_dict() if ".denoiser." in name]


def test_eps_with_a_noise_only_last_step_is_refused():
    with pytest.raises(
        InputError, match=re.escape("set model.prediction: v, or model.zero_terminal_snr: false")
    ):
        make_module(prediction=Prediction.eps)


def test_gradients_reach_every_weight_that_learns():
    module = make_module(dropout=NO_DROPOUT)
    # the task maps start at zero; from any other value the table gets a gradient too
    with torch.no_grad():
        module.networks.denoiser.get_parameter("task_to_time.weight").add_(0.1)
    batch = make_batch([0, 1, 2])
    train_step(module, replace(batch, task=torch.tensor([0, 1, 2])))["loss"].backward()
    without = [
        n
        for n, p in module.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert without == []


class Seen(TorchDispatchMode):
    """Note every operation whose name begins with one of these."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().removeprefix("aten::").startswith(self.names):
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


# every operation that reads a value back from the device
WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique")


def test_the_step_reads_nothing_back_from_the_device(monkeypatch):
    module = make_module()
    batch = module.drawn(make_batch([0, 1]), Phase.train)
    # the text encoder of transformers has habits of its own, and other tests
    features = module.networks.encode_text(list(batch.batch.instruction))
    monkeypatch.setattr(module.networks, "encode_text", lambda *_, **__: features)
    with Seen(*WAITS) as waits:
        module.step(batch, dropout=module.dropout)["loss"].backward()
    assert waits.seen == []
    with Seen(*WAITS) as waits:
        batch.u.sum().item()
    assert len(waits.seen) == 1


class Copies(TorchFunctionMode):
    """Note what copies a tensor out of torch; on the CPU that is no operation."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in {torch.Tensor.tolist, torch.Tensor.numpy}:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class StepsSeen(Callback):
    """Note the operations of each training step, from the batch on its device to the callbacks."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.modes = ExitStack()
        self.steps: list[list[str]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        mode = self.modes.enter_context(Seen(*self.names))
        self.modes.enter_context(Copies(mode.seen))
        self.steps.append(mode.seen)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.modes.close()


def make_frozen(*, attend_padding: bool = False, weights_seed: int = 0) -> EditModule:
    module = make_module(weights_seed=weights_seed)
    encoder = freeze(module.networks.text_encoder)
    assert isinstance(encoder, TinyText)
    encoder.attend_padding = attend_padding  # True: as the CLIPs of Stable Diffusion
    return module


def train_watched(folder: Path, *names: str, callbacks: list[Callback], **settings) -> StepsSeen:
    steps = StepsSeen(*names)
    trainer = make_trainer(
        folder, *callbacks, steps, gradient_clip_val=1.0, log_every_n_steps=50, **settings
    )
    trainer.fit(make_frozen(attend_padding=True), datamodule=Squares(steps=4))
    return steps


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_whole_training_step_waits_for_the_device_once_and_that_is_the_gate(tmp_path, precision):
    watched = partial(train_watched, tmp_path, *WAITS, precision=precision)
    kept: list[Callback] = [Ema(), TaskLoss(), Throughput()]
    assert watched(callbacks=kept).steps == [[], [], [], []]
    assert watched(callbacks=[Finite(), *kept]).steps == [["aten::_local_scalar_dense"]] * 4
    with Copies([]) as copies:
        torch.ones(2).tolist()
    assert copies.seen == ["tolist"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gate_and_clipping_share_one_gradient_norm(tmp_path, precision):
    steps = train_watched(tmp_path, "_foreach_norm", callbacks=[Finite()], precision=precision)
    assert steps.steps == [["aten::_foreach_norm.Scalar"]] * 4


def test_the_shared_norm_clips_as_lightning_does(tmp_path, monkeypatch):
    def weights(callbacks: list[Callback]) -> list[torch.Tensor]:
        module = make_module()
        trainer = make_trainer(
            tmp_path, *callbacks, gradient_clip_val=0.01, accumulate_grad_batches=2
        )
        trainer.fit(module, datamodule=Squares(steps=4))
        return list(copy_of(module).values())

    ours = weights([Finite()])
    monkeypatch.delattr(EditModule, "configure_gradient_clipping")
    for given, expected in zip(ours, weights([]), strict=True):
        assert torch.equal(given, expected)


def test_the_empty_text_is_encoded_once_while_the_encoder_is_frozen(monkeypatch):
    module, learning = make_frozen(), make_module()
    encoder, asked = module.networks.text_encoder, []
    encode = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda texts: asked.append([*texts]) or encode(texts))
    drawn = [module.drawn(make_batch([i, i + 1]), Phase.train) for i in range(3)]
    with torch.inference_mode():  # as validation comes first, say
        module.step(drawn[0], dropout=None)
    for each in drawn:
        module.step(each, dropout=module.dropout)["loss"].backward()
        _, cond, null = module.encoder(each)
        _, expected_cond, expected = learning.encoder(each)
        assert_close(null.tokens[expected.mask], expected.tokens[expected.mask])
        assert torch.equal(null.mask, expected.mask)
        assert_close(cond.text.tokens, expected_cond.text.tokens)
    assert asked.count([""]) == 1
    assert not any("" in texts for texts in asked if len(texts) > 1)


def test_the_kept_empty_text_follows_weights_and_precision():
    module = make_frozen(attend_padding=True)
    other = make_frozen(attend_padding=True, weights_seed=1)
    drawn = module.drawn(make_batch([0, 1]), Phase.train)

    def null() -> torch.Tensor:
        return module.encoder(drawn)[2].tokens[:, :1].detach()

    first = null()
    module.networks.text_encoder.load_state_dict(other.networks.text_encoder.state_dict())
    assert torch.equal(null(), other.encoder(drawn)[2].tokens[:, :1])
    assert not torch.equal(null(), first)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = null()
    assert not torch.equal(mixed.float(), null())
    module.networks.text_encoder.to(torch.float64)
    assert null().dtype == torch.float64
    module.networks.text_encoder.to("meta")
    assert null().device.type == "meta"


def test_the_frozen_codec_is_channels_last_and_its_fingerprint_and_latents_stay(stable_diffusion):
    codec, images = KLCodec(str(stable_diffusion)), torch.rand(2, 3, 32, 32) * 2 - 1
    before, latents = codec_fingerprint(codec), codec.encode(images)
    channels_last(codec)
    assert codec.vae.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert codec_fingerprint(codec) == before
    assert_close(codec.encode(images), latents, rtol=0, atol=1e-5)


def test_a_module_of_pictures_refuses_clips():
    clip = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    sample = ClipSample(key="k", instruction="i", task=0, source=clip, target=clip, rate=8.0)
    module = make_module()
    drawn = module.drawn(ClipBatch.collate([sample]), Phase.train)
    with pytest.raises(InputError, match="trains on pictures and the data are clips"):
        module.encoder(drawn)
