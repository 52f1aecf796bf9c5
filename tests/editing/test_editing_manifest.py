import json
from dataclasses import replace

import pytest
import torch

from emu_edit.editing.manifest import Manifest, Turn, fingerprint, parse_manifest, pixel_hash
from emu_edit.errors import InputError
from emu_edit.models.codec import PatchCodec
from tests.editing.conftest import make_editor, picture

TURN = Turn("make it red", "style+global:0.3", 2**62, "dull", 2.5, 1.25, 20, "ddim", 0.03)
MANIFEST = Manifest(
    seed=3,
    width=20,
    height=16,
    original="a" * 64,
    model="b" * 64,
    chain_latents=False,
    turns=(TURN, replace(TURN, threshold=None)),
    results=("c" * 64, "d" * 64),
)


def changed(**entries: object) -> str:
    return json.dumps({**MANIFEST.to_dict(), **entries})


def with_turn(**entries: object) -> str:
    return changed(turns=[{**TURN.to_dict(), **entries}], results=["c" * 64])


def test_a_manifest_comes_back_from_its_file_as_it_was() -> None:
    assert parse_manifest(json.dumps(MANIFEST.to_dict())) == MANIFEST
    assert parse_manifest(changed(program="emu-edit 9.9")) == MANIFEST


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the manifest is not JSON"),
        ("\x89PNG", "the manifest is not JSON"),
        ("[" * 100_000, "the manifest is not JSON"),
        ("[1]", "must be a JSON object with a version; give the manifest.json"),
        ("{}", "must be a JSON object with a version"),
        (changed(chain_latents=1), "chain_latents must be true or false, got int '1'"),
        (changed(version=2), "has version 2, this program reads 1; replay it with the program"),
        (changed(version=True), "has version True, this program reads 1"),
        (changed(seed="3"), "seed must be a whole number, got str '3'"),
        (changed(original=None), "original must be a JSON object, got null"),
        (changed(original={"sha256": "a" * 64}), "width must be a whole number, got null"),
        (changed(model={"sha256": "B" * 64}), "sha256 must be a SHA-256 of 64 hexadecimal"),
        (changed(turns=3), "turns must be a list of at most 1000 entries, got int '3'"),
        (changed(turns=[]), "the manifest has 0 turns and 2 results"),
        (changed(turns=[1, 2]), "turn 1 must be a JSON object, got int '1'"),
        (with_turn(colour="red"), "turn 1 has an unknown entry 'colour'; its entries are"),
        (changed(turns=[{}], results=["c" * 64]), "turn 1 has no 'guidance_image'; its entries"),
        (with_turn(seed=1.5), "turn 1: seed must be a whole number, got float '1.5'"),
        (with_turn(seed=True), "turn 1: seed must be a whole number, got bool 'True'"),
        (with_turn(seed=2**63), r"turn 1: a seed must be at least 0 and below 2\^63"),
        (with_turn(seed=-1), r"turn 1: a seed must be at least 0 and below 2\^63, got -1"),
        (changed(seed=-1), r"the session's seed must be at least 0 and below 2\^63, got -1"),
        (changed(seed=10**400), r"the session's seed must .* got a number of 1329 bits"),
        (with_turn(num_steps=10**6), "turn 1: num_steps must be 1 to 1000, got 1000000"),
        (with_turn(sampler="dim"), "turn 1: unknown sampler 'dim'.* Did you mean 'ddim'"),
        (with_turn(instruction="a\x07"), r"turn 1: the instruction has the character U\+0007"),
        (with_turn(negative=None), "turn 1: negative must be text, got null"),
        (with_turn(task="a+b:c"), "turn 1: task 'a.b:c': the share 'c' is no number"),
        (with_turn(threshold="on"), "turn 1: threshold must be a number, got str 'on'"),
        (with_turn(guidance_text=float("nan")), "turn 1: guidance scales must be finite"),
        (with_turn(guidance_image=10**400), "turn 1: guidance_image must be a number"),
    ],
)
def test_what_is_no_manifest_of_this_program_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_manifest(text)


def test_the_picture_hash_is_of_pixels_and_size_alone() -> None:
    image = picture(4, 6)
    assert pixel_hash(image) == pixel_hash(image.clone())
    assert pixel_hash(image.mT.contiguous().mT) == pixel_hash(image)
    other = image.clone()
    other[0, 0, 0] ^= 1
    hashes = {pixel_hash(image), pixel_hash(other), pixel_hash(image.reshape(3, 6, 4))}
    assert len(hashes) == 3


def test_the_fingerprint_changes_with_each_part_of_a_model_that_decides_pixels() -> None:
    editor = make_editor()
    first = fingerprint(editor)
    assert fingerprint(make_editor()) == first
    editor.settings = replace(editor.settings, num_steps=9)  # a turn states its own
    assert fingerprint(editor) == first
    networks = editor.networks
    networks.codec = PatchCodec(patch=2, scale=1.9)
    assert fingerprint(editor) != first
    networks.codec = PatchCodec(patch=2)
    assert fingerprint(editor) == first
    for parameter in (networks.task_embedding.table, *networks.denoiser.parameters()):
        with torch.no_grad():
            parameter.view(-1)[0] += 0.25
            assert fingerprint(editor) != first
            parameter.view(-1)[0] -= 0.25
    networks.double()
    assert fingerprint(editor) != first
