"""The branches guidance asks at inference are those the network met in training."""

from dataclasses import replace

import pytest
import torch

from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.models.conditioning import DropoutRates, branches
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.training.draws import Phase
from emu_edit.training.module import EditModule
from tests.training.stage import TASKS, make_batch, make_module

SETTINGS = EditorSettings(image_size=16, num_steps=1)
KEPT = DropoutRates(text=0.0, image=0.0, both=0.0, task=0.0)
# what training drops in the branches (full, image only, nothing)
LOST = (KEPT, replace(KEPT, text=1.0), replace(KEPT, both=1.0))


@pytest.fixture
def module() -> EditModule:
    return make_module()


@pytest.fixture
def told(module: EditModule, monkeypatch: pytest.MonkeyPatch) -> list[Conditioning]:
    """All that the denoiser is told, call by call."""
    calls: list[Conditioning] = []
    forward = module.networks.denoiser.forward

    def listening(z_t: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        calls.append(cond)
        return forward(z_t, t, cond)

    monkeypatch.setattr(module.networks.denoiser, "forward", listening)
    return calls


def edit(module: EditModule, guidance: Guidance) -> None:
    """Edit three training pairs with the networks as they are."""
    batch = make_batch([0, 1, 2])
    Editor(
        module.networks,
        schedule=module.schedule,
        prediction=Prediction.change,
        settings=replace(SETTINGS, guidance=guidance),
    ).edit_batch(batch.source, batch.instruction, [TASKS[i] for i in batch.task], [0, 1, 2])


def rows(cond: Conditioning, part: slice) -> tuple[torch.Tensor, ...]:
    text = cond.text
    return text.tokens[part], text.mask[part], cond.z_source[part], cond.v_task[part]


@pytest.mark.parametrize("branch", [0, 1, 2], ids=["full", "image only", "nothing"])
def test_each_branch_of_the_editor_is_what_a_training_step_drops(
    module: EditModule, told: list[Conditioning], branch: int
) -> None:
    edit(module, Guidance(text=5.0, image=1.5))
    with torch.no_grad():
        module.step(module.drawn(make_batch([0, 1, 2]), Phase.train), dropout=LOST[branch])
    inference, training = told
    here = rows(inference, slice(3 * branch, 3 * branch + 3))
    for at_inference, in_training in zip(here, rows(training, slice(None)), strict=True):
        assert torch.equal(at_inference, in_training)


def test_the_null_text_is_the_encoding_of_the_empty_text_and_the_null_image_is_zeros(
    module: EditModule, told: list[Conditioning]
) -> None:
    edit(module, Guidance(text=5.0, image=1.5))
    (cond,) = told
    texts = [*make_batch([0, 1, 2]).instruction, ""]
    with torch.no_grad():
        empty = module.networks.text_encoder(texts).tokens[-1]
    for row in range(3, 9):
        assert torch.equal(cond.text.tokens[row], empty)
    assert (cond.z_source[:6] != 0).any(dim=(1, 2, 3)).all()
    assert (cond.z_source[6:] == 0).all()


def test_the_editor_tells_the_network_only_the_needed_branches(
    module: EditModule, told: list[Conditioning]
) -> None:
    for guidance in (
        Guidance(5.0, 1.5),
        Guidance(5.0, 1.0),
        Guidance(1.5, 1.5),
        Guidance(1.0, 1.0),
    ):
        edit(module, guidance)
    three, no_nothing, no_image_only, full = told
    assert torch.equal(no_nothing.text.tokens, three.text.tokens[:6])
    assert torch.equal(no_nothing.z_source, three.z_source[:6])
    outer = [0, 1, 2, 6, 7, 8]
    assert torch.equal(no_image_only.text.tokens, three.text.tokens[outer])
    assert torch.equal(no_image_only.z_source, three.z_source[outer])
    assert torch.equal(full.text.tokens, three.text.tokens[:3])


def test_branches_are_stacked_in_their_order() -> None:
    cond = Conditioning(
        text=TextFeatures(torch.full((2, 3, 4), 7.0), torch.ones(2, 3, dtype=torch.bool)),
        z_source=torch.full((2, 1, 2, 2), 3.0),
        v_task=torch.ones(2, 5),
    )
    null = TextFeatures(torch.zeros(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))
    stacked = branches(cond, null, (True, False, True))
    assert stacked.text.tokens[:, 0, 0].tolist() == [7, 7, 0, 0]
    assert stacked.z_source[:, 0, 0, 0].tolist() == [3, 3, 0, 0]
    assert len(stacked.v_task) == 4
