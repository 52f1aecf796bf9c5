"""Emu Video: `EditModule`'s own step on clips; the temporal layers alone learn, and are kept."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from einops import rearrange
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.testing import assert_close

from callbacks.ema import Ema
from emu_edit.batch import ClipBatch, EditBatch, EditSample
from emu_edit.diffusion.guidance import Guidance, guided
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.animate import animate, load_animator
from emu_edit.editing.editor import Editor
from emu_edit.editing.generate import draw_pictures, load_generator
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.images import to_uint8
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.temporal import TemporalSpec
from emu_edit.tasks import CAPTION
from emu_edit.training.draws import Phase
from emu_edit.training.export import export_model
from emu_edit.training.video_module import VideoModule
from tests.training.stage import TRAINER_WARNINGS, make_module, make_trainer
from tests.training.video_stage import (
    FRAMES,
    SIZE,
    SPEC,
    Clips,
    make_clip,
    make_clips,
    module,
    write_base,
)

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]
NEVER = DropoutRates(0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model of captions."""
    return write_base(tmp_path_factory.mktemp("base") / "model")


class StopAfterAnEpoch(Callback):
    """Ends a training after two steps."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        trainer.should_stop = True


def frames_as_pictures(batch: ClipBatch) -> EditBatch:
    samples = [
        EditSample(key=key, instruction=text, task=0, source=None, target=frame)
        for key, text, clip in zip(batch.key, batch.instruction, batch.target, strict=True)
        for frame in clip
    ]
    return EditBatch.collate(samples)


@torch.no_grad()
def test_at_the_start_the_loss_is_the_picture_models_own_on_every_frame(base: Path) -> None:
    ours = module(base)
    batch = make_clips(range(2))
    drawn = ours.drawn(batch, Phase.train)
    found = ours.step(drawn, dropout=None)
    pictures = make_module(prediction=ours.prediction, tasks=[CAPTION])
    pictures.networks.load_state_dict(load_generator(base).networks.state_dict())
    per_frame = replace(
        pictures.drawn(frames_as_pictures(batch), Phase.train),
        u=drawn.u.repeat_interleave(FRAMES, 0),
        eps=rearrange(drawn.eps, "b (f c) h w -> (b f) c h w", f=FRAMES),
        eps_posterior=rearrange(drawn.eps_posterior, "b (f c) h w -> (b f) c h w", f=FRAMES),
    )
    expected = pictures.step(per_frame, dropout=None)["error"].unflatten(0, (2, FRAMES)).mean(1)
    assert found["t"].shape == (2,)  # one step for all frames of a clip
    assert_close(found["error"], expected, rtol=1e-5, atol=1e-6)


def test_only_the_temporal_layers_learn_and_are_in_the_checkpoint(
    base: Path, tmp_path: Path
) -> None:
    ours = module(base)
    before = {name: value.clone() for name, value in ours.networks.state_dict().items()}
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(ours, Clips())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    layers = {n for n, p in ours.named_parameters() if p.requires_grad}
    assert {*state["state_dict"]} == layers
    assert all(name.startswith("networks.denoiser.adapter.") for name in layers)
    changed = {
        name
        for name, value in ours.networks.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed
    assert {f"networks.{name}" for name in changed} <= layers


def test_spatial_layers_that_learn_make_another_picture_model_with_its_layers(
    base: Path, tmp_path: Path
) -> None:
    ours = module(base, spatial=True)
    before = {name: value.clone() for name, value in ours.networks.state_dict().items()}
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(ours, Clips())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    kept = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    unet = [name for name in before if name.startswith("denoiser.base.unet.")]
    assert {f"networks.{name}" for name in unet} <= {*kept}
    assert any(not torch.equal(kept[f"networks.{name}"], before[name]) for name in unet)
    text = [name for name in before if name.startswith("text_encoder.")]
    assert all(torch.equal(ours.networks.state_dict()[name], before[name]) for name in text)
    again = module(base, spatial=True)
    again.on_load_checkpoint(torch.load(tmp_path / "a.ckpt", weights_only=True))
    again.load_state_dict(kept, strict=False)
    export_model(again.eval(), tmp_path / "model", ema=None)
    animator = load_animator(load_generator(tmp_path / "model"), tmp_path / "model")
    picture = make_clip(0).target[0]
    made, own = (animate(one, picture, "a square") for one in (animator, ours.eval().animator()))
    assert difference(made, own) < 0.1


def test_a_training_that_was_stopped_ends_as_one_that_was_not(base: Path, tmp_path: Path) -> None:
    whole, first, second = (module(base) for _ in range(3))
    averages = [Ema(0.5) for _ in range(3)]
    make_trainer(tmp_path, averages[0], max_epochs=2).fit(whole, Clips())
    # the cosine knows the end, so the first half is told of it, too
    stopped = make_trainer(tmp_path, averages[1], StopAfterAnEpoch(), max_epochs=2)
    stopped.fit(first, Clips())
    assert stopped.global_step == 2
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    going_on = make_trainer(tmp_path, averages[2], max_epochs=2)
    going_on.fit(second, Clips(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert going_on.global_step == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert averages[0].average is not None
    assert averages[2].average is not None
    for name, value in averages[0].average.items():
        assert torch.equal(averages[2].average[name], value), name


def test_a_checkpoint_of_another_picture_model_is_refused(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    drawing = make_module(prediction=Prediction.z0, tasks=[CAPTION], weights_seed=7)
    drawing.make_editor().save_pretrained(other)
    state: dict = {"state_dict": {}}
    module(base).on_save_checkpoint(state)
    with pytest.raises(InputError, match=r"layers are for the picture model .* give the model it"):
        module(other).on_load_checkpoint(state)


def test_the_two_scales_are_the_papers_and_cost_no_more_than_they_need(base: Path) -> None:
    # z~ = z(0) + w_i (z(I) - z(0)) + w_p (z(I, p) - z(I)), worked by hand
    nothing, picture, both = torch.tensor([1.0, 10.0, 100.0])
    w_i, w_p = 2.0, 7.5
    stacked = torch.stack([both, picture, nothing])[:, None, None, None]
    predict = guided(lambda _z, _t: stacked, Guidance(text=w_p, image=w_i))
    found = predict(torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64))
    assert found.item() == 1 + 2 * (10 - 1) + 7.5 * (100 - 10)
    # and the branches are those: a video denoiser is told picture and text, picture, nothing
    told: list[tuple[bool, bool]] = []
    animator = moved(module(base)).animator()
    denoiser = animator.video.networks.denoiser

    def look(_module: object, _inputs: tuple, named: dict) -> None:
        cond = named["cond"]
        same = [bool(torch.equal(row, cond.text.tokens[-1])) for row in cond.text.tokens]
        told.extend(zip(cond.z_source.flatten(1).any(1).tolist(), same, strict=True))

    denoiser.register_forward_pre_hook(look, with_kwargs=True)
    settings = EditorSettings(SIZE, Guidance(text=w_p, image=w_i), num_steps=1)
    animate(animator, make_clip(0).target[0], "a square", settings=settings)
    assert told == [(True, False), (True, True), (False, True)]


def moved(ours: VideoModule) -> VideoModule:
    """Give the layers weights as if they had been trained."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in ours.networks.denoiser.named_parameters():
        if name.startswith("adapter."):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return ours.eval()


def difference(a: Tensor, b: Tensor) -> float:
    return (a.int() - b.int()).abs().float().mean().item()


def test_a_video_depends_on_picture_caption_and_seed_alone(base: Path) -> None:
    animator = moved(module(base)).animator()
    picture = make_clip(0).target[0]
    video = animate(animator, picture, "a square", seed=3)
    assert video.shape == (FRAMES, 3, SIZE, SIZE)
    assert video.dtype == torch.uint8
    assert torch.equal(animate(animator, picture, "a square", seed=3), video)
    for other in (
        animate(animator, picture, "a square", seed=4),
        animate(animator, picture, "a circle", seed=3),
        animate(animator, 255 - picture, "a square", seed=3),
    ):
        assert difference(other, video) > 0.1
    assert animate(animator, picture[:, :13], "a square", frames=2).shape == (2, 3, 13, SIZE)


def test_a_longer_video_goes_on_from_the_last_frame_of_each_window(base: Path) -> None:
    animator = moved(module(base)).animator()
    codec, given = animator.video.networks.codec, []

    def look(_module: object, _inputs: tuple, named: dict) -> None:
        given.append(codec.decode(named["cond"].z_source[:, : codec.latent_channels]))

    animator.video.networks.denoiser.register_forward_pre_hook(look, with_kwargs=True)
    picture, told = make_clip(0).target[0], []
    settings = EditorSettings(SIZE, Guidance(1.0, 1.0), num_steps=1)
    draw = partial(animate, animator, picture, "a square", seed=3, settings=settings)
    video = draw(frames=6, on_step=lambda done, of: told.append((done, of)))  # 3 + 2 + 1 of 2
    assert video.shape == (6, 3, SIZE, SIZE)
    assert told == [(1, 3), (2, 3), (3, 3)]
    beginnings = to_uint8(torch.cat(given))
    for beginning, frame in zip(beginnings, (picture, video[2], video[4]), strict=True):
        assert difference(beginning, frame) < 0.5
    assert torch.equal(draw(frames=3), video[:3])
    assert torch.equal(draw(frames=5), video[:5])


def test_untrained_layers_draw_every_frame_as_a_picture(base: Path) -> None:
    animator = module(base).eval().animator()
    settings = replace(animator.video.settings, guidance=Guidance(2.0, 1.0))
    picture = make_clip(0).target[0]
    video = animate(animator, picture, "a square", seed=3, settings=settings)
    for other in (255 - picture, picture):  # it is not told of the first frame yet
        again = animate(animator, other, "a square", seed=3, settings=settings)
        assert difference(again, video) < 0.1
    assert difference(video[0], video[1]) > 1  # each from noise of its own


@pytest.mark.slow
def test_after_training_the_given_frame_reaches_the_result(base: Path) -> None:
    ours = module(base, dropout=NEVER)
    batch = make_clips(range(3))  # three colours, one caption: the first frame alone tells which
    batch = replace(batch, instruction=("a square",) * 3)
    optimizer = torch.optim.Adam([p for p in ours.parameters() if p.requires_grad], lr=3e-3)
    for step in range(80):
        drawn = ours.drawn(replace(batch, position=batch.position + 3 * step), Phase.train)
        drawn = replace(drawn, u=torch.full_like(drawn.u, 0.999))  # noise says nothing
        optimizer.zero_grad()
        ours.step(drawn, dropout=ours.dropout)["loss"].backward()
        optimizer.step()
    animator = ours.eval().animator()
    settings = replace(animator.video.settings, guidance=Guidance(1.0, 1.0), num_steps=1)
    for i in range(3):
        made = animate(animator, batch.target[i, 0], "a square", settings=settings)
        errors = [difference(made, batch.target[j]) for j in range(3)]
        assert errors.index(min(errors)) == i, errors


def test_an_exported_model_draws_the_modules_videos_and_the_bases_pictures(
    base: Path, tmp_path: Path
) -> None:
    ours = moved(module(base))
    export_model(ours, tmp_path / "model", ema=None)
    drawer = load_generator(tmp_path / "model")
    animator = load_animator(drawer, tmp_path / "model")
    picture = make_clip(0).target[0]
    assert (animator.frames, animator.rate) == (FRAMES, 8)
    assert animator.video.settings == ours.editor_settings
    made = animate(animator, picture, "a square", seed=1)
    assert (
        made.int() - animate(ours.animator(), picture, "a square", seed=1).int()
    ).abs().max() <= 1
    pictures = [draw_pictures(e, ["a square"], [1]) for e in (drawer, load_generator(base))]
    assert difference(*pictures) < 0.1
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "model" / weights).read_bytes() == (base / weights).read_bytes()


def test_a_stable_diffusion_becomes_a_video_model(stable_diffusion: Path, tmp_path: Path) -> None:
    layers = TemporalSpec(head_dim=4, mlp_ratio=0)
    ours = VideoModule(str(stable_diffusion), layers, frames=FRAMES)
    drawn = ours.drawn(make_clips(range(2)), Phase.train)
    ours.step(drawn, dropout=ours.dropout)["loss"].backward()
    assert all(p.grad is not None for p in ours.parameters() if p.requires_grad)
    _, cond, _ = ours.encoder(drawn)
    given = cond.z_source.unflatten(1, (FRAMES, -1))
    assert given[:, 0].any()  # in the units of noisy latents, so that zeros stay zeros
    assert not given[:, 1:].any()
    export_model(moved(ours), tmp_path / "model", ema=None)
    animator = load_animator(load_generator(tmp_path / "model"), tmp_path / "model")
    settings = replace(ours.editor_settings, num_steps=2)
    made, own = (
        animate(one, make_clip(0).target[0], "a square", settings=settings)
        for one in (animator, ours.animator())
    )
    assert difference(made, own) < 0.1


def test_direct_text_to_video_takes_no_picture(base: Path) -> None:
    ours = VideoModule(str(base), replace(SPEC, picture_condition=False), frames=FRAMES)
    animator = moved(ours).animator()
    picture = make_clip(0).target[0]
    settings = replace(animator.video.settings, guidance=Guidance(2.0, 1.0))
    videos = [
        animate(animator, one, "a square", settings=settings) for one in (picture, 255 - picture)
    ]
    assert torch.equal(*videos)


def test_data_that_are_no_captioned_clips_are_refused(base: Path) -> None:
    ours, clips = module(base), make_clips(range(1))
    edited = replace(clips, has_source=torch.tensor([True]))
    for batch in (frames_as_pictures(clips), edited):
        with pytest.raises(InputError, match="trains on clips with captions"):
            ours.drawn(batch, Phase.train)
    with pytest.raises(InputError, match=r"data\.frames=2 and model\.frames=3 must be equal"):
        ours.drawn(ClipBatch.collate([make_clip(0, frames=2)]), Phase.train)


def test_models_and_numbers_that_cannot_be_are_refused(base: Path, model: Path) -> None:
    with pytest.raises(InputError, match="was not trained to draw; give a run of"):
        VideoModule(str(model), SPEC)
    with pytest.raises(InputError, match=r"model\.frames=0 and model\.rate=8"):
        VideoModule(str(base), SPEC, frames=0)
    direct = VideoModule(str(base), replace(SPEC, picture_condition=False), frames=FRAMES)
    with pytest.raises(InputError, match="frames=4: this model was trained on clips of 3 and tak"):
        animate(direct.animator(), make_clip(0).target[0], "a", frames=4)
    with pytest.raises(InputError, match="frames=0 of a video must be 1 to 4096"):
        animate(module(base).animator(), make_clip(0).target[0], "a", frames=0)
    with pytest.raises(InputError, match="draws pictures and no videos"):
        load_animator(Editor.from_pretrained(base), base)
