"""Training temporal layers: they alone learn, whatever is recomputed or compiled."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.testing import assert_close

from emu_edit.models.inflate import (
    TemporalAdapter,
    given_picture,
    inflate,
    train_temporal,
    unet_of,
)
from tests.models.tiny_bases import SPEC, Picture, draw_video, ours, sd15, sdxl, trained


@pytest.fixture
def z(cpu_generator: torch.Generator) -> Tensor:
    """Two videos of three frames, a row each."""
    return torch.randn(6, 4, 8, 8, generator=cpu_generator)


def gradients(picture: Picture, adapter: TemporalAdapter, z: Tensor) -> list[Tensor]:
    """Return the adapter's gradients; the backward pass comes after the call of `video`."""
    for parameter in adapter.parameters():
        parameter.grad = None
    draw_video(picture, adapter, z).square().mean().backward()
    return [p.grad.clone() for p in adapter.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("of_the_unet", "of_the_layers"), [(False, True), (True, False), (True, True)]
)
def test_gradient_checkpointing_gives_the_same_gradients(
    of_the_unet: bool, of_the_layers: bool, z: Tensor
):
    picture = sdxl()
    adapter = trained(picture)
    train_temporal(adapter)
    unet = unet_of(picture.base).train()
    before = gradients(picture, adapter, z)
    if of_the_unet:
        unet.enable_gradient_checkpointing()
    runs = []
    layer = adapter.attentions["mid_block/attentions/0/transformer_blocks/0"]
    layer.register_forward_pre_hook(lambda *_: runs.append(1))
    adapter.spec = replace(adapter.spec, gradient_checkpointing=of_the_layers)
    assert_close(gradients(picture, adapter, z), before)
    assert len(runs) > 1
    with torch.no_grad():
        off = picture.draw(z)
    assert_close(picture.draw(z), off)  # checkpointed without a call of `video`: still a picture


@pytest.mark.parametrize("make", [sd15, ours])
def test_gradients_reach_the_adapter_alone(make: Callable[[], Picture], z: Tensor):
    picture = make()
    adapter = inflate(picture.base, SPEC)
    learning = train_temporal(adapter)
    assert {*map(id, learning)} == {*map(id, adapter.parameters())}
    with adapter.video(3, given_picture(z[::3], 3)):
        picture.draw(z).square().mean().backward()
    assert all(parameter.grad is not None for parameter in learning)
    assert all(parameter.grad is None for parameter in picture.base.parameters())
    assert adapter.condition_in is not None
    firsts = {"widened input": adapter.condition_in, "convolution": adapter.convolutions["conv_in"]}
    for name, layer in firsts.items():
        assert any((p.grad != 0).any() for p in layer.parameters() if p.grad is not None), name


def test_spatial_layers_learn_when_asked():
    picture = ours()
    adapter = inflate(picture.base, SPEC)
    learning = train_temporal(adapter, spatial=True)
    unet = unet_of(picture.base)
    assert {*map(id, learning)} == {*map(id, [*adapter.parameters(), *unet.parameters()])}
    assert unet.training
    assert all(parameter.requires_grad for parameter in learning)
    frozen = {*map(id, picture.base.parameters())} - {*map(id, learning)}
    assert all(not p.requires_grad for p in picture.base.parameters() if id(p) in frozen)
    train_temporal(adapter)
    assert not any(parameter.requires_grad for parameter in picture.base.parameters())


def test_a_few_steps_learn_motion_and_leave_the_picture_model_alone(z: Tensor):
    picture = sd15()
    with torch.no_grad():
        before = picture.draw(z)
    adapter = inflate(picture.base, SPEC)
    optimizer = torch.optim.Adam(train_temporal(adapter), lr=0.01)
    target = before.roll(1, dims=0)  # what the frame before shows
    losses = []
    for _ in range(8):
        loss = (draw_video(picture, adapter, z) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        assert torch.equal(picture.draw(z), before)


def compare_compiled() -> None:
    """Compile a U-Net with temporal layers in one graph and compare it with itself."""
    unet = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    adapter = trained(Picture(unet, lambda z, *_: z))
    train_temporal(adapter)
    unet.train().enable_gradient_checkpointing()
    z, text, t = torch.ones(6, 4, 4, 4), torch.ones(6, 2, 8), torch.tensor(7)
    z[3] = 0

    def run(network: Callable[..., tuple[Tensor]], frames: int) -> list[Tensor]:
        with adapter.video(frames):
            return [network(z, t, text, return_dict=False)[0]]

    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    off = unet(z, t, text, return_dict=False)[0]
    for _ in range(2):
        assert_close(compiled(z, t, text, return_dict=False)[0], off)
        assert_close(run(compiled, 3), run(unet, 3))
        assert_close(run(compiled, 2), run(unet, 2))
    assert not torch.allclose(run(unet, 2)[0], off, atol=1e-3)


@pytest.mark.slow
def test_compiled_in_one_graph_it_is_the_same_on_and_off():
    # in a process where annotations are not checked: the checks themselves break the graph
    program = f"from {__name__} import compare_compiled; compare_compiled()"
    root = Path(__file__).parents[2]  # wherever the tests are started
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=root)
