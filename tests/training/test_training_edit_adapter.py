"""Edit adapters: a picture model that draws learns to edit, and stays what it is, bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from emu_edit.diffusion.guidance import Guidance
from emu_edit.editing.editor import Editor
from emu_edit.editing.generate import load_generator
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.images import to_uint8
from emu_edit.models.captioned_text import CaptionedText, apart
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.edit_adapter import EditAdapterDenoiser
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.surgery import channels_last
from emu_edit.text_rules import parted, with_caption
from emu_edit.training.draws import Phase
from emu_edit.training.edit_adapter_module import EditAdapterModule
from emu_edit.training.export import export_model
from emu_edit.training.optim import OptimizerSettings
from tests.training.stage import (
    SIZE,
    TASKS,
    TRAINER_WARNINGS,
    Squares,
    make_batch,
    make_module,
    make_trainer,
)
from tests.training.video_stage import write_base

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]
ASKED = ["make the red square blue", "add a dot"]
SHOWN = ["a blue square", "a square and a dot on grey"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model of captions."""
    return write_base(tmp_path_factory.mktemp("base") / "model")


def adapter(base: Path, **more: object) -> EditAdapterModule:
    """Put an untrained adapter beside a picture model; the same weights every time."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        return EditAdapterModule(
            str(base),
            tasks=TASKS,
            task_dim=6,
            optimizer=OptimizerSettings(lr=1e-3, warmup_steps=0),
            **more,  # pyright: ignore[reportArgumentType]
        )


def inputs(module: EditAdapterModule) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    denoiser = module.networks.denoiser
    generator = torch.Generator().manual_seed(3)
    z_t, z_source = torch.randn(2, 2, denoiser.latent_channels, 4, 4, generator=generator)
    texts = [with_caption(*both) for both in zip(ASKED, SHOWN, strict=True)]
    text = module.networks.text_encoder(texts)
    cond = Conditioning(text, z_source, torch.randn(2, denoiser.task_dim, generator=generator))
    return z_t, torch.tensor([10, 900]), cond


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ours", "stable_diffusion"])
def test_untrained_it_is_the_picture_model_told_the_caption(
    kind: str, base: Path, stable_diffusion: Path
) -> None:
    path = base if kind == "ours" else stable_diffusion
    module = adapter(path).eval()
    z_t, t, cond = inputs(module)
    drawer = load_generator(path, "cpu").networks
    told = Conditioning(
        drawer.text_encoder(SHOWN),
        torch.zeros_like(cond.z_source),
        drawer.task_vectors(["caption"]).expand(2, -1),
    )
    # a padded token more than the other text is all that may differ, and it is masked
    wide = apart(cond.text)[1]
    assert torch.equal(wide.tokens[:, : told.text.tokens.shape[1]], told.text.tokens)
    expected = channels_last(drawer.denoiser)(z_t, t, replace(told, text=wide))
    assert torch.equal(module.networks.denoiser(z_t, t, cond), expected)


@torch.no_grad()
def test_the_adapter_hears_instruction_source_and_task_and_not_the_padding(base: Path) -> None:
    module = adapter(base).eval()
    denoiser = module.networks.denoiser
    assert isinstance(denoiser, EditAdapterDenoiser)
    for parameter in denoiser.control.parameters():  # as if it had learnt
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator()))
    z_t, t, cond = inputs(module)
    usual = denoiser(z_t, t, cond)
    other = module.networks.text_encoder([with_caption("dig", SHOWN[0]), ASKED[1]])
    length = cond.text.mask.shape[1]
    assert other.mask.shape[1] == length
    for changed in (
        replace(cond, z_source=-cond.z_source),
        replace(cond, v_task=-cond.v_task),
        replace(cond, text=other),
    ):
        assert not torch.allclose(denoiser(z_t, t, changed), usual)
    garbage = torch.where(cond.text.mask[..., None], cond.text.tokens, 7.0)
    padded = replace(cond, text=TextFeatures(garbage, cond.text.mask))
    assert not bool(cond.text.mask.all())
    assert_close(denoiser(z_t, t, padded), usual)


def test_two_texts_travel_as_one_and_come_apart(base: Path) -> None:
    inner = load_generator(base, "cpu").networks.text_encoder
    both = CaptionedText(inner)
    texts = [with_caption(ASKED[0], SHOWN[0]), ASKED[1]]
    with torch.no_grad():
        instruction, caption = apart(both(texts))
        alone = inner([*ASKED, SHOWN[0], ""])
    assert torch.equal(instruction.tokens, alone.tokens[:2])
    assert torch.equal(caption.tokens, alone.tokens[2:])
    assert torch.equal(caption.mask, alone.mask[2:])
    assert parted(texts[0]) == (ASKED[0], SHOWN[0])
    assert parted(texts[1]) == (ASKED[1], "")
    count = inner.limit.count
    assert both.limit.count(texts[0]) == max(count(ASKED[0]), count(SHOWN[0]))


def test_captions_are_told_as_often_as_asked(base: Path) -> None:
    batch = make_batch(range(64))
    batch = replace(batch, target_caption=tuple(f"square {i}" for i in range(64)))
    for share in (0.0, 0.25, 1.0):
        drawn = adapter(base, captioned=share).drawn(batch, Phase.train)
        told = [parted(text) for text in drawn.batch.instruction]
        assert [instruction for instruction, _ in told] == list(batch.instruction)
        captions = {i: caption for i, (_, caption) in enumerate(told) if caption}
        assert captions == {i: f"square {i}" for i in captions}
        assert abs(len(captions) / 64 - share) < 0.12  # 2.2 deviations of 64 draws at 1/4


def test_it_learns_and_the_picture_model_keeps_its_bytes(base: Path, tmp_path: Path) -> None:
    module = adapter(
        base,
        dropout=DropoutRates(0.0, 0.0, 0.0, 0.0),
        editor=EditorSettings(SIZE, Guidance(1.0, 1.0)),
    )
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    assert names
    assert all(".control." in name or ".task_embedding." in name for name in names)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert set(before) == names
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, Squares(steps=4))
    after = module.state_dict()
    moved = {name for name in names if not torch.equal(before[name], after[name])}
    assert {n for n in names if "controlnet_down_blocks" in n} <= moved
    export_model(module, tmp_path / "model", ema=None)
    kept = sorted(p.relative_to(base) for p in base.rglob("*") if p.is_file())
    assert kept
    for file in kept:
        assert (tmp_path / "model" / "base" / file).read_bytes() == (base / file).read_bytes()

    picture = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
    editor = Editor.from_pretrained(tmp_path / "model", "cpu")
    edited = editor.edit(picture, "add a dot => a dot", task="add", seed=4)
    module.eval()
    assert torch.equal(
        module.make_editor().edit(picture, "add a dot => a dot", task="add", seed=4), edited
    )
    editor.save_pretrained(tmp_path / "again")
    again = Editor.from_pretrained(tmp_path / "again", "cpu")
    assert torch.equal(again.edit(picture, "add a dot => a dot", task="add", seed=4), edited)
    assert not torch.equal(again.edit(picture, "add a dot", task="add", seed=4), edited)


def test_it_learns_through_a_picture_model_that_knows_nothing(base: Path) -> None:
    module = adapter(
        base, dropout=DropoutRates(0.0, 0.0, 0.0, 0.0), captioned=0.0, timestep_shift=50.0
    )
    batch = make_batch(range(2))
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(60):
        drawn = module.drawn(replace(batch, position=batch.position + 10 * step), Phase.train)
        loss = module.step(drawn, dropout=module.dropout)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_gradient_checkpointing_changes_no_gradient(base: Path) -> None:
    batch = make_batch(range(2))
    found = []
    for checkpointing in (False, True):
        module = adapter(base, gradient_checkpointing=checkpointing)
        with torch.no_grad():
            for name, parameter in module.networks.denoiser.named_parameters():
                if "controlnet_" in name:
                    parameter.fill_(0.02)
        module.step(module.drawn(batch, Phase.train), dropout=None)["loss"].backward()
        found.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient, msg=name)


def test_bad_input_is_refused_in_a_line(base: Path, tmp_path: Path) -> None:
    editing = tmp_path / "editing"
    make_module().make_editor().save_pretrained(editing)
    with pytest.raises(InputError, match="was not trained to draw"):
        adapter(editing)
    with pytest.raises(InputError, match=r"model.captioned=2.0 is a share"):
        adapter(base, captioned=2.0)
    adapter(base).make_editor().save_pretrained(tmp_path / "model")
    other = tmp_path / "other"
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(9)
        make_module(tasks=["caption"], weights_seed=9).make_editor().save_pretrained(other)
    module = adapter(base)
    checkpoint: dict = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    with pytest.raises(InputError, match="are for the picture model"):
        adapter(other).on_load_checkpoint(checkpoint)


@torch.no_grad()
def test_pixels_of_training_and_editing_agree(base: Path) -> None:
    module = adapter(base).eval()
    drawn = module.drawn(make_batch(range(2)), Phase.validate)
    z_0, cond, _ = module.encoder(drawn)
    shown = to_uint8(module.networks.codec.decode(z_0))
    assert torch.equal(shown, make_batch(range(2)).target)
    assert torch.equal(
        cond.z_source, module.networks.codec.encode(module.networks.codec.decode(cond.z_source))
    )
