"""I3D against numpy, VideoMAE against numpy; both from local folders of which nothing is run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from emu_edit.errors import InputError
from emu_edit.images import to_float
from emu_edit.metrics.i3d_network import I3d
from emu_edit.metrics.published_weights import PublishedWeights
from emu_edit.metrics.video_features import I3dBackbone, VideoMaeBackbone
from tests.metrics.tiny_backbones import write_clip
from tests.metrics.tiny_i3d import CLASSES, FILE, i3d_scores, i3d_weights, write_i3d
from tests.metrics.tiny_videomae import videomae_feature, write_videomae


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return i3d_weights()


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> I3d:
    return I3d.of_weights(PublishedWeights("I3D", "here", weights)).eval().double()


@pytest.mark.parametrize("size", [(9, 32, 32), (16, 37, 45), (26, 33, 40)])
@torch.no_grad()
def test_scores_of_i3d_are_what_plain_numpy_computes(
    network: I3d,
    weights: dict[str, Tensor],
    size: tuple[int, int, int],
    cpu_generator: torch.Generator,
):
    video = torch.rand(3, *size, generator=cpu_generator, dtype=torch.float64) * 2 - 1
    found = network(video[None])[0].numpy()
    wanted = i3d_scores(weights, video.numpy())
    assert np.abs(found - wanted).max() < 1e-9
    other = network(video.flip(1)[None])[0].numpy()
    assert np.abs(other - wanted).max() > 1e-3  # it sees which way time goes


def test_the_published_widths_have_the_published_number_of_weights():
    widths = {"Conv3d_1a_7x7": 64, "Conv3d_2b_1x1": 64, "Conv3d_2c_3x3": 192, "logits": 400}
    mixed = {
        "3b": (64, 96, 128, 16, 32, 32),
        "3c": (128, 128, 192, 32, 96, 64),
        "4b": (192, 96, 208, 16, 48, 64),
        "4c": (160, 112, 224, 24, 64, 64),
        "4d": (128, 128, 256, 24, 64, 64),
        "4e": (112, 144, 288, 32, 64, 64),
        "4f": (256, 160, 320, 32, 128, 128),
        "5b": (256, 160, 320, 32, 128, 128),
        "5c": (384, 192, 384, 48, 128, 128),
    }
    for name, units in mixed.items():
        for unit, width in zip(("b0", "b1a", "b1b", "b2a", "b2b", "b3b"), units, strict=True):
            widths[f"Mixed_{name}.{unit}"] = width
    with torch.device("meta"):
        network = I3d(widths)
    # Carreira & Zisserman 2017, table 1: 12 M; with 400 classes
    assert sum(parameter.numel() for parameter in network.parameters()) == 12_697_264
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["Mixed_5c.b1b.conv3d.weight"] == (384, 192, 3, 3, 3)
    assert shapes["logits.conv3d.weight"] == (400, 1024, 1, 1, 1)


def test_a_clip_enters_i3d_squeezed_to_its_side(
    network: I3d, tmp_path: Path, cpu_generator: torch.Generator
):
    backbone = I3dBackbone.load(write_i3d(tmp_path / "i3d"), dtype=torch.float64)
    clip = torch.randint(0, 256, (9, 3, 20, 30), generator=cpu_generator, dtype=torch.uint8)
    frames = F.interpolate(to_float(clip).double(), (224, 224), mode="bilinear")
    with torch.no_grad():
        wanted = network(frames.transpose(0, 1)[None])[0]
    torch.testing.assert_close(backbone.feature(clip), wanted, rtol=1e-9, atol=1e-9)
    assert backbone.width == CLASSES
    with pytest.raises(InputError, match="at least 9 frames of a clip, got 8"):
        backbone.feature(clip[:8])


def test_weights_of_i3d_that_are_not_are_refused(tmp_path: Path, weights: dict[str, Tensor]):
    with pytest.raises(InputError, match=r"has no model.safetensors or rgb_imagenet.pt, needs"):
        I3dBackbone.load(tmp_path)
    (tmp_path / "i3d_torchscript.pt").touch()
    with pytest.raises(InputError, match="is a program, which is never run"):
        I3dBackbone.load(tmp_path)
    torch.save({**weights, "logits.conv3d.weight": torch.zeros(3, 9, 1, 1, 1)}, tmp_path / FILE)
    with pytest.raises(InputError, match=r"logits\.conv3d\.weight is of shape"):
        I3dBackbone.load(tmp_path)
    some = {name: value for name, value in weights.items() if "Mixed_4d.b2b" not in name}
    torch.save(some, tmp_path / FILE)
    with pytest.raises(InputError, match=r"lacks 1 weights, e.g. Mixed_4d\.b2b\.conv3d"):
        I3dBackbone.load(tmp_path)


def test_a_torchscript_file_under_the_published_name_is_not_run(tmp_path: Path):
    with pytest.warns(DeprecationWarning, match="deprecated"):
        torch.jit.script(torch.nn.ReLU()).save(tmp_path / FILE)
    with pytest.raises(InputError, match="cannot load"):
        I3dBackbone.load(tmp_path)


@pytest.mark.parametrize("count", [4, 7, 2])
def test_the_feature_of_videomae_is_what_plain_numpy_computes(
    count: int, tmp_path: Path, cpu_generator: torch.Generator
):
    folder = write_videomae(tmp_path / "videomae")
    backbone = VideoMaeBackbone.load(folder, dtype=torch.float64)
    clip = torch.randint(0, 256, (count, 3, 16, 16), generator=cpu_generator, dtype=torch.uint8)
    chosen = {4: [0, 1, 2, 3], 7: [0, 2, 4, 6], 2: [0, 0, 1, 1]}[count]
    wanted = videomae_feature(folder, clip[chosen].numpy() / 255)
    found = backbone.feature(clip)
    assert np.abs(found.numpy() - wanted).max() < 1e-6  # its places are float32
    assert backbone.width == len(wanted)
    if count == 4:
        assert (backbone.feature(clip.flip(0)) - found).abs().max() > 1e-2


def test_published_names_of_biases_are_read(tmp_path: Path, cpu_generator: torch.Generator):
    folder = write_videomae(tmp_path / "videomae")
    clip = torch.randint(0, 256, (4, 3, 16, 16), generator=cpu_generator, dtype=torch.uint8)
    wanted = VideoMaeBackbone.load(folder, dtype=torch.float64).feature(clip)
    weights = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value
        for name, value in weights.items()
    }
    assert "videomae.encoder.layer.0.attention.attention.q_bias" in renamed
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    found = VideoMaeBackbone.load(folder, dtype=torch.float64).feature(clip)
    assert torch.equal(found, wanted)


def test_what_is_no_fine_tuned_videomae_is_refused(tmp_path: Path):
    folder = write_videomae(tmp_path / "videomae", use_mean_pooling=False)
    with pytest.raises(InputError, match="use_mean_pooling off, needs a fine-tuned VideoMAE"):
        VideoMaeBackbone.load(folder)
    with pytest.raises(InputError, match="type 'clip', needs 'videomae'"):
        VideoMaeBackbone.load(write_clip(tmp_path / "clip"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors or pytorch_model\.bin"):
        VideoMaeBackbone.load(folder)
