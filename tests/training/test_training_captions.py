"""Training on captions: a source that is not there is withheld, and all else is as for edits."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from datamodules.world.captions import make_caption
from datamodules.world.data import WorldCaptions
from emu_edit.batch import EditBatch, EditSample
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.generate import draw_pictures
from emu_edit.errors import InputError
from emu_edit.models.conditioning import DropoutRates
from emu_edit.tasks import CAPTION
from emu_edit.training.draws import Phase
from emu_edit.training.module import EditModule
from tests.training.stage import TRAINER_WARNINGS, make_module

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


def module() -> EditModule:
    return make_module(prediction=Prediction.z0, tasks=[CAPTION])


def batch(count: int = 4) -> EditBatch:
    samples = []
    for index in range(count):
        made = make_caption(0, index, size=16)
        target = torch.from_numpy(made.target).permute(2, 0, 1).contiguous()
        samples.append(
            EditSample(
                key=made.key,
                instruction=made.instruction,
                task=0,
                source=None,
                target=target,
                position=index,
            )
        )
    return EditBatch.collate(samples)


def test_a_source_that_is_not_there_is_withheld_whatever_stands_in_its_place() -> None:
    ours, given = module(), batch()
    assert not given.has_source.any()
    assert not given.source.any()
    losses = [
        ours.step(ours.drawn(one, Phase.train), dropout=None)["loss"].item()
        for one in (given, replace(given, source=given.target))
    ]
    withheld = replace(given, has_source=torch.ones(4, dtype=torch.bool))
    rates = DropoutRates(text=0.0, image=1.0, both=0.0, task=0.0)
    losses.append(ours.step(ours.drawn(withheld, Phase.train), dropout=rates)["loss"].item())
    assert losses[0] == losses[1] == losses[2]


def test_pictures_with_and_without_sources_stand_in_one_batch() -> None:
    captions = batch(2)
    first = EditSample(
        key="a", instruction="b", task=0, source=captions.target[0], target=captions.target[0]
    )
    mixed = EditBatch.collate([first, replace(first, source=None)])
    assert mixed.has_source.tolist() == [True, False]
    cond = module().encoder(module().drawn(mixed, Phase.train))[1]
    assert cond.z_source[0].any()
    assert not cond.z_source[1].any()


def test_a_tiny_model_draws_the_picture_it_has_learnt_by_heart() -> None:
    ours, given = module(), batch(1)
    optimizer = torch.optim.Adam(ours.networks.denoiser.parameters(), lr=3e-3)
    for step in range(60):
        drawn = ours.drawn(replace(given, position=given.position + step), Phase.train)
        optimizer.zero_grad()
        ours.step(drawn, dropout=None)["loss"].backward()
        optimizer.step()
    ours.eval()
    made = draw_pictures(ours.make_editor(), given.instruction, [7], size=(16, 16))
    other = make_caption(0, 1, size=16).target.transpose(2, 0, 1)
    right, wrong = (
        (made[0].float() - torch.as_tensor(picture).float()).abs().mean()
        for picture in (given.target[0], other)
    )
    assert right < 10 < wrong  # grey levels


def test_the_worlds_captions_are_written_once_and_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "captions"
    make = partial(WorldCaptions, str(folder), 40, image_size=16, global_batch=4, steps_per_epoch=2)
    data = make()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module(), data)
    assert trainer.global_step == 2
    assert (folder / "train" / "contact_sheet.png").is_file()
    before = (folder / "train" / "manifest.json").read_bytes()
    make().prepare_data()
    assert (folder / "train" / "manifest.json").read_bytes() == before
    with pytest.raises(InputError, match="was made with flat=True, needed is False"):
        make(flat=False).prepare_data()
