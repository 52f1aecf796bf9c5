"""ViCLIP: features against numpy, both inputs against loops, its file read without running it."""

import hashlib
import json
import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.metrics.viclip import VICLIP_INPUTS, VICLIP_INTERNVID, VICLIP_VBENCH, ViclipBackbone
from emu_edit.metrics.viclip_network import TowerSizes, Viclip, ViclipSizes
from tests.metrics.tiny_backbones import write_tokenizer
from tests.metrics.tiny_viclip import (
    DIM,
    FILE,
    FRAMES,
    SIDE,
    resized,
    text_feature,
    viclip_weights,
    video_feature,
    write_viclip,
)

START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a CLIP, of which only the tokenizer is read."""
    folder = tmp_path_factory.mktemp("backbones") / "clip"
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def vocabulary(words: Path) -> dict[str, int]:
    return json.loads((words / "vocab.json").read_text())


@pytest.fixture(scope="module")
def weights(vocabulary: dict[str, int]) -> dict[str, Tensor]:
    return viclip_weights(len(vocabulary))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: dict[str, int]) -> Path:
    return write_viclip(tmp_path_factory.mktemp("backbones") / "viclip", len(vocabulary))


@pytest.fixture(scope="module")
def viclip(folder: Path, words: Path) -> ViclipBackbone:
    return ViclipBackbone.load(folder, tokenizer=words, dtype=torch.float64)


def clip_of(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def feature(backbone: ViclipBackbone, frames: Tensor) -> Tensor:
    return backbone.video([backbone.prepared(frames[i]) for i in backbone.indices(len(frames))])


@pytest.mark.parametrize("inputs", [VICLIP_VBENCH, VICLIP_INTERNVID], ids=lambda i: i.name)
def test_a_second_computation_in_numpy_agrees(
    folder: Path,
    words: Path,
    weights: dict[str, Tensor],
    cpu_generator: torch.Generator,
    inputs,
):
    backbone = ViclipBackbone.load(folder, inputs, tokenizer=words, dtype=torch.float64)
    frames = clip_of(19, 41, 61, cpu_generator)
    if inputs is VICLIP_VBENCH:
        chosen = [0, 2, 5, 7, 9, 12, 14, 17]
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    else:
        chosen = [0, 2, 4, 6, 8, 10, 12, 14]
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    prepared = []
    for i in chosen:
        picture = frames[i].permute(1, 2, 0).numpy()
        if inputs is VICLIP_VBENCH:  # 28 x 41 of 41 x 61, and of the 41 the middle 28
            levels = resized(picture, SIDE, 41, "bicubic")[:, 6:34]
        else:
            levels = resized(picture, SIDE, SIDE, "bilinear")
        ours = backbone.prepared(frames[i]).numpy()
        off = np.abs(ours - ((levels / 255 - mean) / std).transpose(2, 0, 1)) * 255
        # a value half way between two levels may be rounded to either
        assert (off > 1e-9).mean() < 0.005
        assert off.max() < 1.001 / min(std)
        prepared.append(ours)
    expected = video_feature(weights, np.stack(prepared))
    np.testing.assert_allclose(feature(backbone, frames), expected, rtol=0, atol=1e-9)


def test_the_two_inputs_give_different_features(
    folder: Path, words: Path, viclip: ViclipBackbone, cpu_generator: torch.Generator
):
    frames = clip_of(16, 40, 60, cpu_generator)
    other = ViclipBackbone.load(folder, VICLIP_INTERNVID, tokenizer=words, dtype=torch.float64)
    assert (feature(viclip, frames) - feature(other, frames)).abs().max() > 0.01
    assert list(VICLIP_INPUTS) == ["viclip-vbench", "viclip-internvid"]


def test_a_text_is_read_as_the_published_program_does(
    viclip: ViclipBackbone, weights: dict[str, Tensor], vocabulary: dict[str, int]
):
    ids = [vocabulary[token] for token in (START, "a</w>", "cat</w>", END)]
    expected = text_feature(weights, ids)
    texts = viclip.texts(["a cat", "A  c&amp;#97;t", "a dog"])
    np.testing.assert_allclose(texts[0], expected, rtol=0, atol=1e-9)
    assert torch.equal(texts[0], texts[1])
    assert (texts[0] - texts[2]).abs().max() > 0.01
    assert viclip.texts([]).shape == (0, DIM)


def test_a_long_text_is_cut_to_32_tokens_and_counted(
    viclip: ViclipBackbone, weights: dict[str, Tensor], vocabulary: dict[str, int]
):
    fits = " ".join("b" * 30)
    assert viclip.max_tokens == 32
    assert viclip.count_cut([fits, f"{fits} c", "a cat"]) == 1
    long = viclip.texts([f"{fits} c d", fits, " ".join("b" * 29)])
    assert torch.equal(long[0], long[1])
    assert not torch.equal(long[1], long[2])
    ids = [vocabulary[START], *[vocabulary["b</w>"]] * 30, vocabulary[END]]
    np.testing.assert_allclose(long[0], text_feature(weights, ids), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 8, 9, 15, 16, 17, 100])
def test_eight_frames_of_any_number_are_chosen_in_order(count: int):
    ends = np.linspace(0, count, min(8, count) + 1).astype(int)
    middle = [(ends[i] + ends[i + 1] - 1) // 2 for i in range(len(ends) - 1)]
    assert VICLIP_VBENCH.indices(count, 8) == (*middle, *[middle[-1]] * (8 - len(middle)))
    stride = VICLIP_INTERNVID.indices(count, 8)
    if count >= 8:
        assert stride == tuple(range(count))[:: count // 8][:8]
    else:
        assert stride == (*range(count), *[count - 1] * (8 - count))


def test_the_order_of_frames_matters_and_company_does_not(
    viclip: ViclipBackbone, cpu_generator: torch.Generator
):
    frames = clip_of(8, 30, 30, cpu_generator)
    forward = feature(viclip, frames)
    assert not torch.allclose(forward, feature(viclip, frames.flip(0)), atol=1e-3)
    assert torch.equal(forward, feature(viclip, frames.clone()))
    padded = frames[[0, 1, 2, 2, 2, 2, 2, 2]]
    assert torch.equal(feature(viclip, frames[:3]), feature(viclip, padded))
    with pytest.raises(ValueError, match="ViCLIP sees 8 frames, got 1"):
        viclip.video([viclip.prepared(frames[0])])


def test_a_frame_of_the_networks_own_size_is_not_resampled(
    viclip: ViclipBackbone, cpu_generator: torch.Generator
):
    frame = clip_of(1, SIDE, SIDE, cpu_generator)[0]
    mean = torch.tensor(VICLIP_VBENCH.mean, dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor(VICLIP_VBENCH.std, dtype=torch.float64).view(3, 1, 1)
    levels = (viclip.prepared(frame) * std + mean) * 255
    assert torch.equal(levels.round().to(torch.uint8), frame)


def test_the_published_sizes_make_the_published_network():
    sizes = ViclipSizes(
        video=TowerSizes(1024, 24, 768),
        text=TowerSizes(768, 12, 768),
        frames=8,
        patch=14,
        side=224,
        vocabulary=49408,
        max_tokens=32,
    )
    with torch.device("meta"):
        network = Viclip(sizes)
    # CLIP ViT-L/14 has 427,616,513: with 8 times, without 45 places of a text and without a scale
    numbers = sum(parameter.numel() for parameter in network.parameters())
    assert numbers == 427_616_513 + 8 * 1024 - (77 - 32) * 768 - 1
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["vision_encoder.conv1.weight"] == (1024, 3, 1, 14, 14)
    assert shapes["vision_encoder.positional_embedding"] == (257, 1024)
    assert shapes["text_encoder.transformer.resblocks.11.attn.in_proj_weight"] == (2304, 768)


def test_safetensors_and_a_file_with_the_settings_of_its_training_are_read(
    folder: Path,
    words: Path,
    viclip: ViclipBackbone,
    weights: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    expected = viclip.texts(["a cat"])
    assert viclip.sha256 == hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    assert viclip.frames == FRAMES
    save_file(weights, tmp_path / "model.safetensors")
    safe = ViclipBackbone.load(tmp_path, tokenizer=words, dtype=torch.float64)
    assert torch.equal(safe.texts(["a cat"]), expected)
    # as InternVideo saves them: a class of its own, which is never imported here
    module = ModuleType("utils.easydict")

    class EasyDict(dict):
        pass

    EasyDict.__module__, EasyDict.__qualname__ = "utils.easydict", "EasyDict"
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    for name in ("utils", "utils.easydict"):
        monkeypatch.setitem(sys.modules, name, module)
    config = EasyDict(lr=4e-4, inner=EasyDict(name="vit_l14"))
    vars(config).update(config)  # an item is an attribute, too
    published = tmp_path / "published"
    published.mkdir()
    torch.save({"model": weights, "config": config, "epoch": 9}, published / FILE)
    monkeypatch.delitem(sys.modules, "utils.easydict")
    monkeypatch.delitem(sys.modules, "utils")
    read = ViclipBackbone.load(published, tokenizer=words, dtype=torch.float64)
    assert torch.equal(read.texts(["a cat"]), expected)


def test_a_file_that_would_run_code_is_refused_and_does_not_run(words: Path, tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for trapped in (
        lambda: torch.save({"model": {"temp": Trap()}}, tmp_path / FILE),
        lambda: (tmp_path / FILE).write_bytes(pickle.dumps(Trap(), protocol=2)),
    ):
        trapped()
        with pytest.raises(InputError, match=r"is damaged, or holds more than weights, which is"):
            ViclipBackbone.load(tmp_path, tokenizer=words)
    assert not (tmp_path / "ran").exists()


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def shaped(name: str, *shape: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights | {name: torch.zeros(shape)}


BLOCK = "vision_encoder.transformer.resblocks.1"


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (without("vision_encoder.proj"), r"lacks 1 weights, e.g. vision_encoder.proj; give"),
        (without(f"{BLOCK}.ln_2.bias"), r"lacks 1 weights, e.g. .*resblocks.1.ln_2.bias"),
        (
            lambda weights: {k: v for k, v in weights.items() if "text_encoder" not in k},
            r"lacks 1 weights, e.g. text_encoder.text_projection; .* whole ViCLIP$",
        ),
        (shaped("vision_encoder.head.weight", 3), r"has, and ViCLIP has not, 1 weights, e.g. vis"),
        (
            shaped(f"{BLOCK}.mlp.c_fc.bias", 100),
            r"c_fc.bias is of shape \(100,\), needs \(512,\) beside the others",
        ),
        (shaped("vision_encoder.conv1.weight", 128, 3, 14, 14), r"\(128, 3, 14, 14\), needs 5 ax"),
        (shaped("vision_encoder.positional_embedding", 4, 128), r"needs \(2, 128\) beside"),
        (shaped("text_encoder.text_projection", 100, 24), r"text_encoder is 100 wide, needs a mu"),
        (shaped("vision_encoder.proj", 0, 24), r"of shape \(0, 24\), needs 2 axes"),
        (lambda _: [1, 2], "holds no weights by name"),
        (lambda _: {"temp": 1.0}, "holds no weights by name"),
        (lambda weights: weights | {"temp": torch.zeros((), dtype=torch.long)}, "holds no weigh"),
    ],
)
def test_weights_that_are_not_viclips_are_refused_in_one_line(
    weights: dict[str, Tensor],
    words: Path,
    tmp_path: Path,
    spoilt: Callable[[dict[str, Tensor]], object],
    message: str,
):
    torch.save({"model": spoilt(weights)}, tmp_path / FILE)
    with pytest.raises(InputError, match=message) as caught:
        ViclipBackbone.load(tmp_path, tokenizer=words)
    assert "\n" not in str(caught.value)


def test_missing_damaged_and_foreign_files_are_refused(
    folder: Path, words: Path, weights: dict[str, Tensor], tmp_path: Path
):
    with pytest.raises(InputError, match=r"has no model.safetensors or ViClip-InternVid-10M-FLT"):
        ViclipBackbone.load(tmp_path, tokenizer=words)
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cannot load .*FLT.pth: .*download it again"):
        ViclipBackbone.load(tmp_path, tokenizer=words)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"cannot load .*model.safetensors: .*download it again"):
        ViclipBackbone.load(tmp_path, tokenizer=words)
    more = {"text_encoder.token_embedding.weight": torch.zeros(100, 64)}
    save_file(weights | more, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"the model has 100 and expects 99; they belong to diff"):
        ViclipBackbone.load(tmp_path, tokenizer=words)
    with pytest.raises(InputError, match=r"has no tokenizer.json or vocab.json"):
        ViclipBackbone.load(folder, tokenizer=tmp_path)
    lost = {"vision_encoder.proj": weights["vision_encoder.proj"] * math.nan}
    save_file(weights | lost, tmp_path / "model.safetensors")
    broken = ViclipBackbone.load(tmp_path, tokenizer=words)
    frame = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    with pytest.raises(InputError, match="the backbone returned NaN or infinity"):
        broken.video([broken.prepared(frame)] * FRAMES)
