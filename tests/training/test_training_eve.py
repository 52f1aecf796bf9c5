"""EVE: one student, two teachers in the same weights, and an alignment that only LoRA learns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Callback
from torch import Tensor
from torch.testing import assert_close

from callbacks.finite import Finite
from emu_edit.batch import ClipBatch
from emu_edit.diffusion.distillation import k_bin_times
from emu_edit.editing.editor import Editor
from emu_edit.editing.eve import VideoStack
from emu_edit.errors import InputError
from emu_edit.models.eve import EveDenoiser, Mode, placed
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.unet import UNetDenoiser
from emu_edit.training.draws import Phase
from emu_edit.training.eve_module import EveModule
from emu_edit.training.export import export_model
from emu_edit.training.teachers import Distillation
from tests.training.eve_stage import Edits, eve, make_edit, write_parts
from tests.training.stage import TRAINER_WARNINGS, make_trainer
from tests.training.test_training_video import StopAfterAnEpoch
from tests.training.video_stage import FRAMES, module, write_base

pytest.importorskip("peft")
pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An edit adapter and temporal layers on one base."""
    return write_parts(tmp_path_factory.mktemp("eve"))


def told(student: EveModule, rows: int = 2) -> tuple[EveDenoiser, Tensor, Tensor, Conditioning]:
    """Return what a call takes: frames in noise, times, and everything given."""
    denoiser = student.networks.denoiser
    assert isinstance(denoiser, EveDenoiser)
    generator = torch.Generator().manual_seed(8)
    batch = ClipBatch.collate([make_edit(i) for i in range(rows)])
    drawn = student.drawn(batch, Phase.train)
    z, cond, _ = student.encoder(drawn)
    frames = z.unflatten(1, (FRAMES, -1))
    cond = replace(cond, z_source=placed(frames[:, :1] / 2, frames))
    z_t = torch.randn(z.shape, generator=generator)
    return denoiser, z_t, torch.tensor([100, 900])[:rows], cond


@torch.no_grad()
def test_a_student_that_learnt_nothing_is_all_plugged_together(parts: tuple[Path, Path]) -> None:
    denoiser, z_t, t, cond = told(eve(parts).eval())
    plugged = denoiser(z_t, t, cond, Mode.plugged)
    assert torch.equal(denoiser(z_t, t, cond, Mode.student), plugged)
    teachers = [denoiser(z_t, t, cond, mode) for mode in (Mode.edit_teacher, Mode.video_teacher)]
    assert not any(torch.allclose(each, plugged) for each in teachers)
    # with one adapter off the student is the other teacher
    for name, parameter in denoiser.editor.control.named_parameters():
        if "controlnet_" in name:
            parameter.zero_()
    assert torch.equal(denoiser(z_t, t, cond, Mode.student), teachers[1])


@torch.no_grad()
def test_the_teacher_of_edits_is_the_editor_frame_by_frame(parts: tuple[Path, Path]) -> None:
    student = eve(parts).eval()
    denoiser, z_t, t, cond = told(student)
    editor = Editor.from_pretrained(parts[0], "cpu").networks
    source = cond.z_source.chunk(2, dim=1)[1]
    frames = [each.unflatten(1, (FRAMES, -1)) for each in (z_t, source)]
    alone = [
        editor.denoiser(frames[0][:, f], t, replace(cond, z_source=frames[1][:, f]))
        for f in range(FRAMES)
    ]
    found = denoiser(z_t, t, cond, Mode.edit_teacher)
    assert_close(found, torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_lora_is_of_the_student_and_never_of_temporal_layers(
    parts: tuple[Path, Path],
) -> None:
    student = eve(parts).eval()
    denoiser, z_t, t, cond = told(student)
    before = {mode: denoiser(z_t, t, cond, mode) for mode in Mode}
    learning = {n for n, p in student.networks.named_parameters() if p.requires_grad}
    assert learning
    assert all(".base.unet." in name and ".lora_" in name for name in learning)
    for name, parameter in student.networks.named_parameters():
        if ".lora_B" in name:
            parameter.fill_(0.3)
    for mode in Mode:
        same = torch.equal(denoiser(z_t, t, cond, mode), before[mode])
        assert same == (mode is not Mode.student)


def test_modes_and_checkpointing_give_the_same_gradients(parts: tuple[Path, Path]) -> None:
    found = []
    for checkpointing in (False, True):
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(4)
            student = EveModule(
                str(parts[0]), str(parts[1]), rank=2, gradient_checkpointing=checkpointing
            )
        with torch.no_grad():
            for name, parameter in student.networks.named_parameters():
                if ".lora_B" in name:
                    parameter.fill_(0.05)
        denoiser, z_t, t, cond = told(student)
        output = denoiser(z_t, t, cond, Mode.student)
        with torch.no_grad():  # another mode between forward and backward
            denoiser(z_t, t, cond, Mode.edit_teacher)
        output.square().mean().backward()
        named = dict(student.networks.named_parameters())
        found.append({name: p.grad for name, p in named.items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(".lora_" in name for name in found[0])
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient, msg=name)


def test_gradients_go_through_all_steps_of_a_generation(parts: tuple[Path, Path]) -> None:
    student = eve(parts)
    _, z_t, _, cond = told(student)
    sizes = []
    for steps in (1, 3):
        times = k_bin_times([0.5] * steps, student.schedule.num_steps)
        made = student._generated(cond, z_t, [*times])
        gradients = torch.autograd.grad(
            made.square().mean(),
            [p for n, p in student.networks.named_parameters() if ".lora_B" in n],
        )
        sizes.append(gradients)
    assert any(not torch.allclose(a, b) for a, b in zip(*sizes, strict=True))


def fit(student: EveModule, folder: Path, *callbacks: Callback, **more: object) -> EveModule:
    """Train for two epochs of two steps, and keep a checkpoint."""
    trainer = make_trainer(folder, Finite(), *callbacks, max_epochs=2, gradient_clip_val=1.0)
    trainer.fit(student, Edits(), weights_only=True, **more)  # pyright: ignore[reportArgumentType]
    trainer.save_checkpoint(folder / "last.ckpt")
    assert trainer.global_step == 2 * trainer.current_epoch  # the judges' steps are not counted
    return student


def test_it_learns_and_goes_on_to_the_same_bits(parts: tuple[Path, Path], tmp_path: Path) -> None:
    whole = fit(eve(parts, judged_from=1), tmp_path / "whole")
    first = fit(eve(parts, judged_from=1), tmp_path / "first", StopAfterAnEpoch())
    assert first.teachers.kept
    checkpoint = str(tmp_path / "first" / "last.ckpt")
    again = fit(eve(parts, judged_from=1), tmp_path / "again", ckpt_path=checkpoint)
    start = eve(parts, judged_from=1).state_dict()
    states = [each.state_dict() for each in (whole, again)]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
    moved = {name for name, value in start.items() if not torch.equal(states[0][name], value)}
    assert any("judges." in name for name in moved)
    assert any(".lora_B" in name for name in moved)
    saved = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    assert all(".lora_" in name or name.startswith("judges.") for name in saved["state_dict"])


def test_scores_alone_leave_the_judges_alone(parts: tuple[Path, Path], tmp_path: Path) -> None:
    student = eve(parts, judged_from=100)
    before = {n: p.clone() for n, p in student.judges.named_parameters()}
    fit(student, tmp_path, StopAfterAnEpoch())
    assert all(torch.equal(p, before[n]) for n, p in student.judges.named_parameters())


def test_a_model_of_videos_is_written_and_read(parts: tuple[Path, Path], tmp_path: Path) -> None:
    student = eve(parts)
    with torch.no_grad():
        for name, parameter in student.networks.named_parameters():
            if ".lora_B" in name:
                parameter.fill_(0.1)
    student.eval()
    clip = make_edit(1)
    drawn = student.draw_clip(clip, 5)
    export_model(student, tmp_path / "model", ema=None)
    for part in ("base", "controlnet", "temporal", "lora", "tasks"):
        assert (tmp_path / "model" / part).is_dir()
    for file in (parts[1] / "temporal").iterdir():
        assert (tmp_path / "model" / "temporal" / file.name).read_bytes() == file.read_bytes()
    stack = VideoStack.from_pretrained(tmp_path / "model", "cpu")
    assert stack.usual_mode is Mode.student
    again = eve(parts)
    again.stack = stack
    again.networks.denoiser = stack.denoiser
    assert torch.equal(again.draw_clip(clip, 5), drawn)
    assert not torch.equal(eve(parts).eval().draw_clip(clip, 5), drawn)
    plugged = VideoStack.join(Editor.from_pretrained(parts[0], "cpu"), parts[1] / "temporal", "it")
    assert plugged.usual_mode is Mode.plugged


def test_bad_input_is_refused_in_a_line(parts: tuple[Path, Path], tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(77)
        other = write_base(tmp_path / "other")
        changed = module(other)
    with torch.no_grad():
        base = changed.drawer.networks.denoiser
        assert isinstance(base, UNetDenoiser)
        base.unet.conv_in.weight.add_(1)
    changed.eval().save_model(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="was trained on the base"):
        eve((parts[0], tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="edits with a PretrainedUNetDenoiser"):
        eve((tmp_path / "other", parts[1]))
    student = eve(parts)
    with pytest.raises(InputError, match=rf"data.frames={FRAMES + 1}, and the temporal layers"):
        student.drawn(ClipBatch.collate([make_edit(0, FRAMES + 1)]), Phase.train)
    silent = replace(make_edit(0), target_caption="")
    with pytest.raises(InputError, match="has no caption of what comes out"):
        student.drawn(ClipBatch.collate([silent]), Phase.train)
    with pytest.raises(InputError, match="no linear layer"), torch.random.fork_rng():
        EveModule(str(parts[0]), str(parts[1]), targets=["temporal"])
    with pytest.raises(InputError, match="there is no DINO at"):
        eve(parts, dino=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"distillation.steps=0 must be at least 1"):
        Distillation(steps=0)


def test_judges_see_through_dino(parts: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=5, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    student = eve(parts, dino=str(tmp_path / "dino"), judged_from=0)
    assert len(student.judges.edits) == 4
    frames = torch.zeros(2, student.networks.denoiser.latent_channels, 4, 4, requires_grad=True)
    text = student.networks.text_encoder(["a", "b"])
    said = student.judges.of_edits(frames.detach(), text, frames)
    assert said.shape == (2 * 4,)
    (gradient,) = torch.autograd.grad(said.sum(), frames)
    assert bool((gradient != 0).any())
    assert not any(p.requires_grad for p in student.judges.features.parameters())
    videos = frames[None].expand(3, -1, -1, -1, -1)
    said = student.judges.of_videos(videos, student.networks.text_encoder(["a"] * 3))
    assert said.shape == (3 * 4,)
