"""LoRA of a transformer: nothing at step 0, only it is kept, and stock pipelines load it."""

import re
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import QwenImageEditPlusPipeline
from lightning.pytorch.plugins.precision import Precision
from safetensors import safe_open
from safetensors.torch import load_file

from emu_edit.diffusion.flow import FlowSchedule
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.cost import bytes_of
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.models.chat_text import ChatText
from emu_edit.models.codec import PackedCodec
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.interfaces import Conditioning, TextEncoder, TextFeatures
from emu_edit.models.lora import FILE, PACKAGES, QUANTISED
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.pooled_text import FluxText
from emu_edit.models.vision_text import VisionText
from emu_edit.tasks import SIXTEEN
from emu_edit.training.memory import count
from emu_edit.training.module import EditModule
from emu_edit.training.optim import OptimizerSettings
from tests.datamodules.toy import SaveEverything
from tests.models.tiny_published import LAYERS, write_klein, write_kontext, write_qwen
from tests.training.stage import TRAINER_WARNINGS, Squares, make_trainer

pytest.importorskip("peft", reason="LoRA needs the extra `lora`")
pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]

RANK, ALPHA = 2, 8.0


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("klein") / "model"
    write_klein(folder)
    return folder


def make_module(
    base: Path, text: TextEncoder | None = None, *, weights: Any = "float32", **options: Any
) -> EditModule:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return EditModule(
            DiTDenoiser(str(base), 8, lora_rank=RANK, lora_alpha=ALPHA, weights=weights),
            ChatText(str(base), list(LAYERS)) if text is None else text,
            PackedCodec(str(base)),
            tasks=["local", "add", "style"],
            prediction=Prediction.flow,
            optimizer=OptimizerSettings(lr=1e-2, warmup_steps=0),
            **options,
        )


def drawn(b: int = 2) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(0)
    z_t, z_source = (torch.randn(b, 8, 4, 6, generator=generator) for _ in range(2))
    tokens = torch.randn(b, 12, 48, generator=generator)
    text = TextFeatures(tokens, torch.ones(b, 12, dtype=torch.bool))
    return z_t, torch.full((b,), 400.0), Conditioning(text, z_source, torch.ones(b, 8))


def test_step_0_is_the_base_and_only_adapters_and_maps_learn(klein):
    base = DiTDenoiser(str(klein), 8).eval()
    z_t, t, cond = drawn()
    module = make_module(klein)
    with torch.no_grad():
        assert torch.equal(module.networks.denoiser(z_t, t, cond), base(z_t, t, cond))
    learning = {name for name, p in module.named_parameters() if p.requires_grad}
    assert learning == set(module.state_dict())
    assert all(".lora_" in n or ".task_" in n for n in learning)
    adapted = {name.split(".lora_")[0] for name in learning if ".lora_" in name}
    # of the joint block q, k, v and out of both streams; of the single one its two fused layers
    ends = sorted(name.removeprefix("networks.denoiser.transformer.") for name in adapted)
    assert ends == [
        "single_transformer_blocks.0.attn.to_out",
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
        *(f"transformer_blocks.0.attn.{name}" for name in ("to_k", "to_out.0", "to_q", "to_v")),
    ]


def test_a_stopped_training_ends_as_one_that_was_not(klein, tmp_path):
    whole = make_module(klein)
    trainer = make_trainer(tmp_path, SaveEverything(tmp_path), max_epochs=2)
    trainer.fit(whole, datamodule=Squares(steps=2))
    again = make_module(klein)
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(again, datamodule=Squares(steps=2), ckpt_path=str(tmp_path / "epoch-0.ckpt"))
    ours, theirs = again.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    untouched = DiTDenoiser(str(klein), 8).transformer.state_dict()
    denoiser = whole.networks.denoiser
    assert isinstance(denoiser, DiTDenoiser)
    for name, weight in denoiser.transformer.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(weight, untouched[name.replace(".base_layer", "")])


@pytest.fixture(scope="module")
def trained(klein: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[EditModule, Path]:
    """A module after a few steps, and the model directory made of it."""
    folder = tmp_path_factory.mktemp("trained")
    module = make_module(klein)
    make_trainer(folder).fit(module, datamodule=Squares(steps=4))
    module.eval().save_model(folder / "model")
    return module, folder / "model"


def test_stock_diffusers_loads_the_file_and_gives_the_same_with_alpha_other_than_rank(
    klein, trained
):
    module, folder = trained
    with safe_open(folder / FILE, "pt") as file:
        assert all(key.startswith("transformer.") for key in file.keys())  # noqa: SIM118
        assert "lora_alpha" in str(file.metadata())
    z_t, t, cond = drawn()
    without_task = replace(cond, v_task=torch.zeros_like(cond.v_task))
    denoiser = deepcopy(module.networks.denoiser)
    # what the maps add for no task is their biases, which training has moved
    for linear in (denoiser.task_to_tokens, denoiser.task_to_time):
        torch.nn.init.zeros_(linear.bias)
    pipeline = Flux2KleinPipeline.from_pretrained(klein)
    pipeline.load_lora_weights(str(folder), weight_name=FILE)
    stock = DiTDenoiser(str(klein), 8).eval()
    before = stock(z_t, t, without_task)
    stock.transformer = pipeline.transformer
    with torch.no_grad():
        theirs, ours = stock(z_t, t, without_task), denoiser(z_t, t, without_task)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, before)


def test_the_model_directory_is_small_and_edits_like_the_module(trained):
    module, folder = trained
    assert not list(folder.glob("*/*model*.safetensors"))  # the base stays where it is
    editor = Editor.from_pretrained(folder, "cpu")
    pixels = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    settings = replace(editor.settings, num_steps=2)
    results = [
        one.edit_batch(pixels, ["make it red"], ["add"], [3], settings=settings)
        for one in (editor, module.make_editor())
    ]
    # the module's autoencoder is channels-last, which may move the last grey level
    assert (results[0].int() - results[1].int()).abs().max() <= 1
    # and once more: a directory made of a directory
    editor.save_pretrained(folder.parent / "copy")
    theirs, ours = (load_file(place / FILE) for place in (folder, folder.parent / "copy"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize("kind", QUANTISED)
def test_adapters_learn_on_a_quantised_base_and_come_back_on_it(kind, klein, tmp_path):
    pytest.importorskip(PACKAGES[kind], reason="such weights need the extra `quantised`")
    module, plain = make_module(klein, weights=kind), make_module(klein, weights="bfloat16")
    z_t, t, cond = drawn()
    with torch.no_grad():
        ours, near = (one.networks.denoiser(z_t, t, cond) for one in (module, plain))
    assert 0 < (ours - near).abs().max() < (1.0 if kind == "nf4" else 0.2) * near.std()
    assert module.state_dict().keys() == plain.state_dict().keys()
    make_trainer(tmp_path).fit(module, datamodule=Squares(steps=2))
    module.eval().save_model(tmp_path / "model")
    again = Editor.from_pretrained(tmp_path / "model", "cpu")
    assert model_hash(again.networks) == model_hash(module.networks)
    with torch.no_grad():
        ours, theirs = (n.denoiser(z_t, t, cond) for n in (module.networks, again.networks))
    assert torch.equal(ours, theirs)
    with pytest.raises(InputError, match=f"weights: {kind} is for a frozen network; give"):
        DiTDenoiser(str(klein), weights=kind)


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_bytes_of_a_quantised_base_are_known_before_it_is_loaded(kind, klein):
    pytest.importorskip(PACKAGES[kind], reason="such weights need the extra `quantised`")
    with torch.device("meta"):
        planned = DiTDenoiser(str(klein), lora_rank=RANK, weights=kind)
    real = DiTDenoiser(str(klein), lora_rank=RANK, weights=kind)
    frozen = [one for one in real.parameters() if not one.requires_grad]
    packed: Any = [one for one in frozen if hasattr(one, "quant_state")]
    tables = [one.quant_state.as_dict(packed=False) for one in packed]
    held = bytes_of(frozen) + sum(
        value.nbytes if isinstance(value, torch.Tensor) else 4 * (name == "nested_offset")
        for table in tables
        for name, value in table.items()
    )
    as_typed = sum(one.nbytes for one in planned.parameters() if not one.requires_grad)
    assert planned.spared > 0
    assert as_typed - planned.spared == held


def test_a_quantised_base_is_counted_so_by_the_plan(klein):
    plans = []
    kinds: Any = ("bfloat16", *QUANTISED)
    for kind in kinds:
        with torch.device("meta"):
            denoiser = DiTDenoiser(str(klein), 8, lora_rank=RANK, weights=kind)
            slots = ChatText(str(klein), list(LAYERS), 64), PackedCodec(str(klein))
        module = EditModule(denoiser, *slots, prediction=Prediction.flow)
        cpu = torch.device("cpu")
        plans.append(count(module, pictures=1, side=8, precision=Precision(), device=cpu))
        part = next(one for one in plans[-1].parts if not one.is_trained)
        assert (
            part.bytes
            == sum(p.nbytes for p in denoiser.parameters() if not p.requires_grad) - denoiser.spared
        )
    whole, int8, float8, nf4 = (plan.fixed for plan in plans)
    assert whole > int8 > float8 > nf4


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_base_cannot_be_quantised_without_the_package(kind, klein, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)
    words = f"weights: {kind} needs the package {PACKAGES[kind]}; pip install 'emu-edit"
    with pytest.raises(InputError, match=re.escape(words)):
        DiTDenoiser(str(klein), lora_rank=RANK, weights=kind)


def test_adapters_of_a_qwen_are_kept_with_its_text_encoder_and_loaded_by_its_pipeline(tmp_path):
    base = tmp_path / "base"
    write_qwen(base)
    module = make_module(
        base,
        VisionText(str(base)),
        dropout=DropoutRates(text=0.3, image=0.0, both=0.0),
        editor=EditorSettings(image_size=16, num_steps=2, guidance=Guidance(4.0, 1.0)),
    )
    make_trainer(tmp_path).fit(module, datamodule=Squares(steps=2))
    module.eval().save_model(tmp_path / "model")
    editor = Editor.from_pretrained(tmp_path / "model", "cpu")
    assert isinstance(editor.networks.text_encoder, VisionText)
    pixels = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    edited, expected = (
        one.edit_batch(pixels, ["make it red"], ["add"], [3])
        for one in (editor, module.make_editor())
    )
    assert torch.equal(edited, expected)
    pipeline: Any = QwenImageEditPlusPipeline.from_pretrained(base, processor=None)
    pipeline.load_lora_weights(str(tmp_path / "model"), weight_name=FILE)
    denoiser: Any = module.networks.denoiser
    stock, ours = (one.transformer.state_dict() for one in (pipeline, denoiser))
    adapters = {name: value for name, value in ours.items() if ".lora_B." in name}
    assert len(adapters) == 2 * 4
    for name, value in adapters.items():
        assert torch.equal(stock[name.replace(".default.", ".default_0.")], value)
        assert value.any()


def test_a_whole_kontext_is_written_for_its_own_pipeline_and_keeps_its_guidance(tmp_path):
    write_kontext(tmp_path / "base")
    base = str(tmp_path / "base")
    denoiser = DiTDenoiser(base, 8, guidance=2.5)
    networks = EditNetworks(
        denoiser,
        FluxText(base),
        PackedCodec(base),
        task_embedding=TaskEmbedding(16, 8),
        tasks=SIXTEEN,
    )
    torch.nn.init.normal_(denoiser.transformer.proj_out.bias)  # as training would
    settings = EditorSettings(image_size=16, num_steps=2, guidance=Guidance(1.0, 1.0))
    editor = Editor(
        networks.eval(),
        schedule=FlowSchedule(),
        prediction=Prediction.flow,
        settings=settings,
    )
    editor.save_pretrained(tmp_path / "model")
    again = Editor.from_pretrained(tmp_path / "model", "cpu")
    assert again.networks.denoiser.guidance == 2.5
    pixels = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    both = [one.edit_batch(pixels, ["make it red"], ["add"], [3]) for one in (editor, again)]
    assert torch.equal(*both)
    pipeline: Any = FluxKontextPipeline.from_pretrained(tmp_path / "model")
    stock, ours = pipeline.transformer.state_dict(), denoiser.transformer.state_dict()
    assert all(torch.equal(stock[name], ours[name]) for name in ours)


def test_what_cannot_be_adapted_is_refused(klein):
    with pytest.raises(InputError, match="lora_rank must be at least 1 and lora_alpha above 0"):
        DiTDenoiser(str(klein), lora_rank=2, lora_alpha=0.0)
    with pytest.raises(InputError, match=r"lora_targets: no linear layer .* ends with to_z"):
        DiTDenoiser(str(klein), lora_rank=2, lora_targets=["to_z"])
