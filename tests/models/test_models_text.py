"""Text encoders: CLIP and T5 from a directory, the tiny one, and its tokenizer."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTextModel, T5EncoderModel

from emu_edit.errors import InputError
from emu_edit.models.interfaces import TextFeatures
from emu_edit.models.sources import quiet_transformers
from emu_edit.models.text import TransformersText
from emu_edit.models.tiny import TOKENIZER_FILE, TinyText, load_tokenizer, train_tokenizer

TINY = TinyText(dim=16, num_layers=1, num_heads=2)


@pytest.fixture
def t5_folder(tmp_path: Path) -> Path:
    with quiet_transformers():
        TINY.model.save_pretrained(tmp_path / "t5")
        TINY.tokenizer.save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


def test_clip_pads_to_77_and_attends_to_the_padding(stable_diffusion: Path):
    encoder = TransformersText(str(stable_diffusion))
    ids, mask = encoder.tokenize(["a cat", ""])
    assert ids.shape == (2, 77)
    assert mask.all()
    assert ids[1].tolist() == [52] + [53] * 76
    features = encoder(["a cat", ""])
    assert features.tokens.shape == (2, 77, encoder.dim)
    with quiet_transformers():
        clip = CLIPTextModel.from_pretrained(stable_diffusion, subfolder="text_encoder").eval()
    # Stable Diffusion calls CLIP without a mask
    torch.testing.assert_close(features.tokens, clip(ids).last_hidden_state, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_t5_is_loaded_from_one_directory_and_masks_padding_when_told(t5_folder: Path):
    encoder = TransformersText(str(t5_folder), attend_padding=False, max_tokens=40)
    assert isinstance(encoder.model, T5EncoderModel)
    texts = ["make the sky green", ""]
    ours, expected = encoder(texts), TINY(texts)
    assert torch.equal(ours.tokens, expected.tokens)
    assert torch.equal(ours.mask, expected.mask)


def test_a_frozen_encoder_is_frozen_and_a_trainable_one_is_not(stable_diffusion: Path):
    frozen = TransformersText(str(stable_diffusion))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen.model.training
    trainable = TransformersText(str(stable_diffusion / "text_encoder"), trainable=True)
    assert all(p.requires_grad for p in trainable.parameters())


def test_text_that_is_too_long_is_refused_with_both_numbers(stable_diffusion: Path):
    clip = TransformersText(str(stable_diffusion))
    clip(["a" * 75])
    with pytest.raises(InputError, match="text of 78 tokens, the text encoder takes at most 77"):
        clip(["a", "a" * 76])
    with pytest.raises(InputError, match="takes at most 96; shorten 'é"):
        TINY(["é" * 100])


def test_more_tokens_than_positions_are_refused(stable_diffusion: Path):
    with pytest.raises(InputError, match=r"max_tokens=78, but .* has 77 positions"):
        TransformersText(str(stable_diffusion), max_tokens=78)


def test_pickled_encoders_are_refused(tmp_path: Path, stable_diffusion: Path):
    shutil.copytree(stable_diffusion, tmp_path / "sd")
    weights = tmp_path / "sd" / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(InputError, match="holds pickled weights"):
        TransformersText(str(tmp_path / "sd"))


def test_an_encoder_without_tokenizer_is_an_input_error(tmp_path: Path, stable_diffusion: Path):
    shutil.copytree(stable_diffusion / "text_encoder", tmp_path / "text_encoder")
    with pytest.raises(InputError, match="cannot load a text encoder"):
        TransformersText(str(tmp_path))


def test_a_tokenizer_without_pad_token_is_refused(t5_folder: Path):
    config = t5_folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"pad_token"', '"other_token"'))
    with pytest.raises(InputError, match="has no pad token"):
        TransformersText(str(t5_folder), max_tokens=40)


@torch.no_grad()
def test_padding_does_not_change_what_the_tiny_encoder_says():
    alone = TINY(["make it red"])
    padded = TINY(["make it red", "x" * 40])
    n = int(alone.mask.sum())
    assert padded.tokens.shape[1] > alone.tokens.shape[1]
    torch.testing.assert_close(padded.tokens[0, :n], alone.tokens[0, :n], rtol=1e-5, atol=1e-5)


def test_the_tiny_encoder_pads_to_a_multiple_of_eight_and_trains():
    encoder = TinyText(dim=16, num_layers=1, num_heads=2)
    features = encoder(["make the red circle blue", ""])
    assert isinstance(features, TextFeatures)
    assert features.tokens.shape[1] % 8 == 0
    assert features.mask.sum(1).tolist()[1] == 1
    features.tokens.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_a_tiny_width_that_does_not_split_is_refused():
    with pytest.raises(InputError, match=r"dim=10 is not divisible by text_encoder.num_heads=4"):
        TinyText(dim=10)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text: str):
    tokenizer = TINY.tokenizer
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert (
        tokenizer.decode(ids[:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        == text
    )


def test_every_byte_has_a_token_and_typed_marks_are_text():
    everything = "".join(map(chr, range(1, 0x180))) + "🎨漢\u200d\U0010ffff"
    tokenizer = TINY.tokenizer
    for text in (everything, "write </s> and <pad>"):
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert not {0, 1} & set(ids[:-1])
        assert tokenizer.decode(ids[:-1]) == text


def test_the_tokenizer_is_trained_the_same_twice(tmp_path: Path):
    texts = [f"make the {a} {b}" for a in ("circle", "square") for b in ("red", "blue", "green")]
    train_tokenizer(texts, tmp_path / "a.json", vocab_size=300)
    train_tokenizer(iter(texts[::-1] * 2), tmp_path / "b.json", vocab_size=300)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    tokenizer = load_tokenizer(tmp_path / "a.json")
    assert 258 < len(tokenizer) <= 300
    assert len(tokenizer("make the circle red")["input_ids"]) < 10
    with pytest.raises(InputError, match="vocab_size=257 has no room for 256 bytes"):
        train_tokenizer(texts, tmp_path / "c.json", vocab_size=257)


def test_the_packaged_tokenizer_knows_the_marks_where_the_encoder_expects_them():
    tokenizer = load_tokenizer(TOKENIZER_FILE)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer("")["input_ids"] == [1]


def test_texts_are_grouped_by_the_length_they_are_padded_to():
    encoder = TinyText(dim=16, num_layers=1, num_heads=2)
    texts = ["make it " + "blue " * 30, "a", "add a very large hat to the person on the left", "b"]
    groups = encoder.by_length(texts)
    assert groups[0] == [1, 3]
    assert sorted(place for group in groups for place in group) == [0, 1, 2, 3]
    lengths = [encoder.tokenize([texts[i] for i in group])[0].shape[1] for group in groups]
    assert lengths == sorted(set(lengths))
    assert encoder.by_length([]) == [[]]
