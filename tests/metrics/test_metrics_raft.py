"""RAFT: flow against numpy, padding, its file read without running it."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from emu_edit.errors import InputError
from emu_edit.images import to_float
from emu_edit.metrics.published_weights import PublishedWeights
from emu_edit.metrics.raft import FlowBackbone
from emu_edit.metrics.raft_network import Raft, RaftSizes
from tests.metrics.tiny_raft import FILE, raft_flow, raft_weights, write_raft


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return raft_weights()


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> Raft:
    return Raft.of_weights(PublishedWeights("RAFT", "here", weights)).eval().double()


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> FlowBackbone:
    folder = write_raft(tmp_path_factory.mktemp("backbones") / "raft_large")
    return FlowBackbone.load(folder, dtype=torch.float64)


def shapes_moved(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw two frames in [-1, 1], smooth, the second one shifted."""
    coarse = torch.rand(1, 3, 6, 7, generator=generator, dtype=torch.float64)
    frame = F.interpolate(coarse, (height, width), mode="bilinear") * 2 - 1
    return torch.cat([frame, frame.roll((2, 5), (2, 3))])


@torch.no_grad()
def test_the_flow_is_what_plain_numpy_computes(
    network: Raft, weights: dict[str, Tensor], cpu_generator: torch.Generator
):
    before, after = shapes_moved(64, 80, cpu_generator)
    found = network(before[None], after[None], 3)[0].numpy()
    wanted = raft_flow(weights, before.numpy(), after.numpy(), 3)
    assert np.abs(found - wanted).max() < 1e-9
    assert wanted.std() > 1  # pixels: it says something
    assert np.abs(wanted - raft_flow(weights, after.numpy(), before.numpy(), 3)).max() > 1
    assert np.abs(wanted - raft_flow(weights, before.numpy(), after.numpy(), 2)).max() > 0.1


@torch.no_grad()
def test_pairs_of_a_batch_do_not_see_each_other(network: Raft, cpu_generator: torch.Generator):
    before, after = (shapes_moved(64, 72, cpu_generator) for _ in range(2))
    together = network(before, after, 2)
    alone = network(before[1:], after[1:], 2)
    assert torch.allclose(together[1:], alone, atol=1e-9)
    assert not torch.allclose(together[:1], alone, atol=0.1)


def test_the_published_sizes_have_the_published_number_of_weights():
    layers = (64, 96, 128, 256)
    sizes = RaftSizes(layers, layers, (256, 192), (128, 64), 126, 128, 256, 256)
    with torch.device("meta"):
        network = Raft(sizes)
    # as torchvision's documentation states for raft_large
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_257_536
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["update_block.recurrent_block.convgru2.convq.weight"] == (128, 384, 5, 1)
    assert shapes["context_encoder.layer3.0.downsample.1.running_var"] == (128,)


def test_frames_are_padded_by_their_border_and_the_flow_is_cut_back(
    flow: FlowBackbone, network: Raft, cpu_generator: torch.Generator
):
    frames = torch.randint(0, 256, (2, 3, 45, 141), dtype=torch.uint8, generator=cpu_generator)
    found = flow(frames[0], frames[1])
    assert found.shape == (2, 45, 141)
    rows = (torch.arange(128) - 41).clamp(0, 44)  # of 83 missing rows 41 above
    columns = (torch.arange(144) - 1).clamp(0, 140)
    padded = to_float(frames[:, :, rows][..., columns]).double()
    with torch.no_grad():
        whole = network(padded[:1], padded[1:], 12)[0]
    assert torch.allclose(found, whole[:, 41:86, 1:142])


def test_the_hash_is_the_files(flow: FlowBackbone, tmp_path: Path):
    data = (write_raft(tmp_path) / FILE).read_bytes()
    assert flow.sha256 == hashlib.sha256(data).hexdigest()


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (without("mask_predictor.conv.bias"), r"lacks 1 weights, e.g. mask_predictor.conv.bias"),
        (without("feature_encoder.conv.weight"), r"lacks 1 weights, e.g. feature_encoder.conv"),
        (lambda weights: weights | {"corr.weight": torch.zeros(1)}, r"RAFT has not, 1 weights"),
        (
            lambda weights: weights | {"update_block.flow_head.conv2.bias": torch.zeros(3)},
            r"flow_head.conv2.bias is of shape \(3,\), needs \(2,\) beside the others",
        ),
        (
            lambda weights: weights | {"context_encoder.conv.weight": torch.zeros(5, 8, 1, 1)},
            r"context_encoder.conv has 5 channels, needs more than the 5 of the hidden state",
        ),
        (
            lambda weights: weights | {"mask_predictor.convrelu.0.weight": torch.zeros(9)},
            r"of shape \(9,\), needs 4 axes",
        ),
        (lambda _: [1, 2], "holds no weights by name"),
        (lambda weights: weights | {"a": torch.zeros(1, dtype=torch.long)}, "holds no weights by"),
        (lambda _: {"a": Path()}, "is damaged, or holds more than weights, which is never run"),
    ],
)
def test_weights_that_are_not_rafts_are_refused_in_one_line(
    weights: dict[str, Tensor],
    tmp_path: Path,
    spoilt: Callable[[dict[str, Tensor]], object],
    message: str,
):
    torch.save(spoilt(weights), tmp_path / FILE)
    with pytest.raises(InputError, match=message) as caught:
        FlowBackbone.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_lost_weights_are_refused(weights: dict[str, Tensor], tmp_path: Path):
    with pytest.raises(InputError, match=rf"has no {FILE}, needs torchvision's weights of RAFT"):
        FlowBackbone.load(tmp_path)
    lost = {"mask_predictor.conv.bias": weights["mask_predictor.conv.bias"] * math.nan}
    torch.save(weights | lost, tmp_path / FILE)
    frame = torch.zeros(3, 16, 16, dtype=torch.uint8)
    with pytest.raises(InputError, match="RAFT returned NaN or infinity"):
        FlowBackbone.load(tmp_path)(frame, frame)
