"""Latent chaining: turns pass latents on instead of pictures."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance
from emu_edit.editing.editor import Editor
from emu_edit.editing.session import EditSession, TurnSettings, replay
from emu_edit.images import to_float
from emu_edit.models.codec import PatchCodec
from tests.editing.conftest import SETTINGS, make_editor, make_networks, picture

TURNS = [("make it red", "local"), ("add a hat", "add"), ("paint it", "style")]


class LossyCodec(PatchCodec):
    """Each encoding takes a tenth of the contrast away, as an autoencoder loses detail."""

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return super().posterior(0.9 * images)


def play(editor: Editor, *, chain: bool, threshold: float | None = None) -> EditSession:
    session = EditSession.start(editor, picture(), seed=5, chain_latents=chain)
    for instruction, task in TURNS:
        session = session.edit(instruction, TurnSettings(task, threshold=threshold))
    return session


def idle_editor(codec: PatchCodec) -> Editor:
    """Return an editor whose network changes nothing, so that only the codec speaks."""
    networks = make_networks()
    for parameter in networks.denoiser.parameters():
        parameter.data.zero_()
    networks.codec = codec
    # other scales would weigh the source against none
    return make_editor(networks, settings=replace(SETTINGS, guidance=Guidance(1.0, 1.0)))


def test_what_the_codec_loses_is_lost_once_with_chaining_and_every_turn_without() -> None:
    editor, original = idle_editor(LossyCodec(patch=2)), to_float(picture())
    for chain, factor in ((True, 0.9), (False, 0.9**3)):
        result = to_float(play(editor, chain=chain).image)
        assert (result - factor * original).abs().max() < 3 / 127.5  # three roundings


def test_a_codec_that_loses_nothing_needs_no_chain() -> None:
    editor = idle_editor(PatchCodec(patch=2))
    assert torch.equal(play(editor, chain=True).image, picture())
    assert torch.equal(play(editor, chain=False).image, picture())


def test_the_first_turn_does_not_depend_on_chaining(editor: Editor) -> None:
    plain, chained = play(editor, chain=False), play(editor, chain=True)
    assert torch.equal(plain.images[1], chained.images[1])
    assert not torch.equal(plain.images[3], chained.images[3])


def test_the_next_turn_is_given_the_latents_the_last_one_ended_with(editor: Editor) -> None:
    session = play(editor, chain=True)
    assert session.latents is not None
    turn = session.turns[1]
    after = editor.edit_latents(
        session.latents[1][None],
        [turn.instruction],
        [turn.task],
        [turn.seed],
        negative=[""],
        settings=SETTINGS,
        on_step=None,
    )
    assert torch.equal(after[0], session.latents[2])
    assert torch.equal(editor.decode(after, session.image.shape[-2:])[0], session.images[2])


def test_kept_pixels_keep_their_latents(editor: Editor) -> None:
    everything = EditSession.start(editor, picture(), chain_latents=True)
    edited = everything.edit("make it red", TurnSettings("local", threshold=3.5))
    assert torch.equal(edited.image, picture())
    assert edited.latents is not None
    assert torch.equal(edited.latents[0], edited.latents[1])
    nothing = everything.edit("make it red", TurnSettings("local", threshold=0.0))
    assert nothing.latents is not None
    assert (nothing.latents[0] != nothing.latents[1]).any(dim=0).all()


def test_a_chained_session_replays_undoes_and_says_what_it_is(editor: Editor) -> None:
    session = play(editor, chain=True, threshold=0.1)
    told = session.manifest()
    assert told["chain_latents"] is True
    again = replay(editor, picture(), told)
    assert again.manifest() == told
    assert torch.equal(again.image, session.image)
    assert play(editor, chain=False).manifest()["chain_latents"] is False
    branch = session.undo().edit(TURNS[2][0], TurnSettings(TURNS[2][1], threshold=0.1))
    assert torch.equal(branch.image, session.image)
    assert branch.latents is not None
    assert session.latents is not None
    assert torch.equal(branch.latents[-1], session.latents[-1])


@pytest.mark.parametrize("size", [(17, 23), (1, 1), (16, 5)])
def test_odd_sizes_chain_too(editor: Editor, size: tuple[int, int]) -> None:
    image = picture()[:, :1, :1].repeat(1, *size)
    session = EditSession.start(editor, image, chain_latents=True)
    session = session.edit("make it red", TurnSettings("local")).edit(
        "add a hat", TurnSettings("add")
    )
    assert session.image.shape == (3, *size)
