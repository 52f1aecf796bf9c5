"""Training with a text encoder that sees the source picture: what it is shown, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import QwenImageEditPlusPipeline
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from emu_edit.batch import EncodedBatch, EncodedText
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.images import to_float, to_pil
from emu_edit.models.codec import PackedCodec
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.vision_text import VisionText, shown_size
from emu_edit.training.draws import Phase
from emu_edit.training.module import EditModule
from emu_edit.training.new_task import NewTask
from tests.datamodules.cached_stage import batches, cache
from tests.datamodules.toy_shards import make_folder
from tests.models.tiny_published import write_qwen
from tests.training.stage import TASKS, make_batch

SHOWN = DropoutRates(text=0.3, image=0.0, both=0.0, task=0.3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "model"
    write_qwen(folder)
    return folder


def make_module(base: Path, **changes: Any) -> EditModule:
    editor = EditorSettings(image_size=16, num_steps=2, guidance=Guidance(4.0, 1.0))
    options: dict[str, Any] = {"dropout": SHOWN, "editor": editor, **changes}
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return EditModule(
            DiTDenoiser(str(base), 8),
            VisionText(str(base)),
            PackedCodec(str(base)),
            tasks=TASKS,
            prediction=Prediction.flow,
            **options,
        )


@pytest.fixture(scope="module")
def module(base: Path) -> EditModule:
    return make_module(base)


def test_a_step_shows_each_text_and_each_null_text_its_picture(module):
    batch = make_batch([0, 1, 2])
    drawn = module.drawn(batch, Phase.train)
    _, cond, null = module.encoder(drawn)
    shown = to_float(batch.source)
    with torch.no_grad():
        texts = module.networks.text_encoder(
            [*batch.instruction, *[""] * 3], shown.repeat(2, 1, 1, 1)
        )
    assert torch.equal(torch.cat([cond.text.tokens, null.tokens]), texts.tokens)
    assert torch.equal(torch.cat([cond.text.mask, null.mask]), texts.mask)
    module.step(drawn, dropout=DropoutRates(text=1.0, image=0.0, both=0.0))["loss"].backward()
    assert module.networks.denoiser.transformer.img_in.weight.grad.abs().sum() > 0


def test_training_on_cached_latents_shows_what_they_decode_to(module, tmp_path):
    make_folder(tmp_path / "pictures", {"local": 4, "add": 3})
    cache(module, tmp_path / "pictures", tmp_path / "cache")
    batch = batches(tmp_path / "cache")[0]
    assert isinstance(batch, EncodedBatch)
    assert batch.text is None  # it would be the same for every picture
    _, cond, _ = module.encoder(module.drawn(batch, Phase.train))
    with torch.no_grad():
        shown = module.networks.codec.decode(batch.source)
        expected, _ = module.networks.encode_text(batch.instruction, pictures=shown)
    assert torch.equal(cond.text.tokens, expected.tokens)


def test_inversion_has_the_errors_of_training(module):
    batch = replace(make_batch([0, 3, 6]), task=torch.zeros(3, dtype=torch.int64))
    drawn = module.drawn(batch, Phase.validate)
    vector = module.networks.task_embedding.table[0]
    new = NewTask(module.make_editor(), module.objective)
    with torch.no_grad():
        error, _, _ = new.errors(drawn, vector)
        again, _, _ = new.errors(drawn, vector)
        expected = module.step(drawn, dropout=None)["error"]
    torch.testing.assert_close(error, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(error, again)


def test_what_would_withhold_or_lack_the_picture_is_refused(base, module):
    with pytest.raises(
        InputError, match=r"dropout.image=0.05, dropout.both=0.05, .* set both to 0"
    ):
        make_module(base, dropout=None)
    with pytest.raises(InputError, match=r"image guidance is 1.5, and .* withheld; give 1"):
        make_module(base, editor=EditorSettings(image_size=16))
    batch = make_batch([0, 1])
    without = replace(batch, has_source=torch.tensor([True, False]))
    with pytest.raises(InputError, match=r"data.train has pairs without one; leave out the tasks"):
        module.drawn(without, Phase.train)
    tokens, mask = torch.zeros(1, 3, 16), torch.ones(1, 3, dtype=torch.bool)
    text = EncodedText(
        tokens=tokens, mask=mask, null_tokens=tokens[0], null_mask=mask[0], encoder=""
    )
    with pytest.raises(InputError, match=r"text features, .* makes others for each picture; write"):
        module.encoder._check_text(text)


def test_a_whole_model_directory_edits_like_the_module_and_has_the_pipelines_parts(
    module, tmp_path
):
    module.eval().save_model(tmp_path / "model")
    again = Editor.from_pretrained(tmp_path / "model", "cpu")
    pixels = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    both = [
        one.edit_batch(pixels, ["make it red"], ["add"], [3])
        for one in (again, module.make_editor())
    ]
    assert torch.equal(*both)
    pipeline: Any = QwenImageEditPlusPipeline.from_pretrained(tmp_path / "model", processor=None)
    stock, ours = pipeline.transformer.state_dict(), module.networks.denoiser.transformer
    assert all(torch.equal(stock[name], value) for name, value in ours.state_dict().items())
    # its processor needs torchvision, the half for pictures does not
    processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "model" / "processor")
    text: Any = again.networks.text_encoder
    high, wide = shown_size(16, 24)
    theirs = processor([to_pil(pixels[0]).resize((wide, high), 1)], return_tensors="pt")
    ours = text._patches(pixels[0], *text._size(16, 24))
    torch.testing.assert_close(ours, theirs["pixel_values"], rtol=0, atol=1e-6)
