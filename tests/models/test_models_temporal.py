"""Temporal layers alone: the identity at the start, frame by frame, wherever a window begins."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from emu_edit.errors import InputError
from emu_edit.models.temporal import (
    TemporalAttention,
    TemporalConvolution,
    TemporalSpec,
    rotate,
)

SPEC = TemporalSpec(head_dim=4)


def attention(*, moved: bool = True) -> TemporalAttention:
    """Of width 8 in float64; `moved` gives the last projections weights, as training does."""
    layer = TemporalAttention(8, SPEC)
    for parameter in layer.parameters() if moved else ():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    return layer.double()


def frames(count: int, cpu_generator: torch.Generator) -> Tensor:
    return torch.randn(5, count, 8, generator=cpu_generator, dtype=torch.float64)


def numbers(count: int, first: float = 0.0) -> Tensor:
    return torch.arange(count, dtype=torch.float64) + first


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_a_new_convolution_gives_back_the_very_bits(
    cpu_generator: torch.Generator, count: int, kernel_size: int
):
    layer = TemporalConvolution(8, kernel_size, identity=True)
    x = torch.randn(2, 8, count, 6, generator=cpu_generator)
    assert torch.equal(layer(x), x)
    other = TemporalConvolution(8, kernel_size, identity=False)
    assert not torch.allclose(other(x), x, atol=0.1)


@torch.no_grad()
def test_a_convolution_mixes_neighbours_and_repeats_the_ends():
    layer = TemporalConvolution(1, 3, identity=True)
    layer.weight.copy_(torch.tensor([[[1.0, 10.0, 100.0]]]))
    video = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1)
    # 1 * before + 10 * itself + 100 * after, worked by hand
    assert layer(video).flatten().tolist() == [211.0, 321.0, 332.0]


@torch.no_grad()
def test_a_still_video_stays_still_and_is_convolved_like_one_frame(cpu_generator: torch.Generator):
    layer = TemporalConvolution(8, 3, identity=False).double()
    frame = torch.randn(2, 8, 1, 6, generator=cpu_generator, dtype=torch.float64)
    assert_close(layer(frame.expand(-1, -1, 7, -1)), layer(frame).expand(-1, -1, 7, -1))


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 5])
def test_new_attention_gives_back_the_very_bits(cpu_generator: torch.Generator, count: int):
    layer, x = attention(moved=False), frames(count, cpu_generator)
    assert torch.equal(layer(x, numbers(count)), x)
    assert layer.mlp is not None
    for last in (layer.to_out, layer.mlp[-1]):
        assert isinstance(last, nn.Linear)
        assert last.weight.abs().max() == last.bias.abs().max() == 0


def test_the_rotation_is_that_of_complex_numbers(cpu_generator: torch.Generator):
    x = torch.randn(3, 5, 8, generator=cpu_generator, dtype=torch.float64)
    positions = numbers(5, first=2.5)
    speeds = torch.tensor([100.0 ** (-i / 4) for i in range(4)], dtype=torch.float64)
    angles = positions[:, None] * speeds
    expected = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(
        torch.ones_like(angles), angles
    )
    turned = rotate(x, positions, 100.0)
    assert_close(turned, torch.view_as_real(expected).flatten(-2))
    assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_products_of_rotated_frames_depend_on_their_distance_alone(cpu_generator: torch.Generator):
    q, k = torch.randn(2, 1, 8, generator=cpu_generator, dtype=torch.float64)

    def product(at: float, other: float) -> Tensor:
        first = rotate(q, torch.tensor([at], dtype=torch.float64), 10_000.0)
        return (first * rotate(k, torch.tensor([other], dtype=torch.float64), 10_000.0)).sum()

    here, later = product(3.0, 1.0), product(1003.0, 1001.0)
    assert_close(here, later)
    assert (here - product(1.0, 3.0)).abs() > 1e-2


@torch.no_grad()
def test_attention_is_the_same_wherever_the_window_begins(cpu_generator: torch.Generator):
    layer, x = attention(), frames(7, cpu_generator)
    here = layer(x, numbers(7))
    assert_close(layer(x, numbers(7, first=1000.0)), here)
    order = torch.tensor([1, 0, 2, 3, 4, 5, 6])
    assert not torch.allclose(layer(x[:, order], numbers(7))[:, order], here)  # places do matter
    assert_close(layer(x[:, order], numbers(7)[order])[:, order], here)


@torch.no_grad()
def test_a_frame_is_the_same_in_two_windows_that_show_it_the_same(cpu_generator: torch.Generator):
    layer = attention()
    x = frames(3, cpu_generator).repeat(1, 4, 1)  # every third frame is the same
    late = layer(x[:, 3:9], numbers(6, first=3.0))
    assert_close(late, layer(x[:, :6], numbers(6)))
    assert not torch.allclose(late[:, 0], late[:, 3])  # the same frame, nearer to other ends


@torch.no_grad()
def test_one_frame_attends_to_itself_without_positions(cpu_generator: torch.Generator):
    layer, x = attention(), frames(1, cpu_generator)
    qkv = layer.to_qkv(layer.norm(x))
    seen = x + layer.to_out(qkv[..., 16:])  # softmax of one key is 1: the value
    assert layer.mlp is not None
    assert_close(layer(x, numbers(1, first=5.0)), seen + layer.mlp(seen))


@torch.no_grad()
def test_norms_take_no_statistics_over_frames_or_places(cpu_generator: torch.Generator):
    layer, x = attention(), frames(4, cpu_generator)
    assert layer.mlp is not None
    louder = x.clone()
    louder[:, 2] *= 100
    louder[3] *= 100
    for norm in (layer.norm, layer.mlp[0]):
        before, after = norm(x), norm(louder)
        untouched = [0, 1, 3]
        assert torch.equal(before[:3, untouched], after[:3, untouched])
        assert torch.equal(before[4, untouched], after[4, untouched])


@torch.no_grad()
def test_places_do_not_see_each_other(cpu_generator: torch.Generator):
    layer, x = attention(), frames(4, cpu_generator)
    changed = x.clone()
    changed[2] += 1
    before, after = layer(x, numbers(4)), layer(changed, numbers(4))
    assert torch.equal(before[[0, 1, 3, 4]], after[[0, 1, 3, 4]])
    assert not torch.allclose(before[2], after[2])


def test_the_mlp_can_be_left_out():
    layer = TemporalAttention(8, replace(SPEC, mlp_ratio=0))
    assert layer.mlp is None
    assert sum(p.numel() for p in layer.parameters()) == 16 + 3 * 64 + 72  # norm, qkv, out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": 2}, r"kernel_size=2 must be odd"),
        ({"kernel_size": 17}, r"temporal.kernel_size is 17, needs 1 to 15"),
        ({"head_dim": 7}, r"temporal.head_dim=7 even"),
        ({"head_dim": 0}, r"temporal.head_dim is 0, needs 2 to 1024"),
        ({"mlp_ratio": -1}, r"temporal.mlp_ratio is -1, needs 0 to 16"),
        ({"chunk": 0}, r"temporal.chunk is 0"),
        ({"rotary_base": 1.0}, r"temporal.rotary_base is 1.0, needs more than 1"),
        ({"rotary_base": float("inf")}, r"temporal.rotary_base is inf"),
        ({"attention_levels": (-1,)}, r"attention_levels is \(-1,\), needs each level once"),
        ({"convolution_levels": (1, 1)}, r"convolution_levels is \(1, 1\), needs each level once"),
    ],
)
def test_a_spec_out_of_range_is_refused(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        replace(SPEC, **change)


def test_a_head_that_does_not_divide_a_level_is_refused():
    with pytest.raises(InputError, match=r"width 12, which temporal.head_dim=8 does not divide"):
        TemporalAttention(12, replace(SPEC, head_dim=8))


def test_a_spec_comes_back_from_its_json():
    spec = replace(SPEC, attention_levels=(0, 2), convolution_levels=(), rotary_base=50.0)
    assert TemporalSpec.from_dict(spec.to_dict(), where="file") == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, r"file: the entry 'heads' is missing or unknown"),
        ({"chunk": True}, r"file: chunk is True, which is of another kind"),
        ({"identity": 1}, r"file: identity is 1"),
        ({"attention_levels": "all"}, r"file: attention_levels is all"),
        ({"attention_levels": [0.5]}, r"file: attention_levels is \[0.5\]"),
        ({"kernel_size": 4}, r"file: temporal.kernel_size=4 must be odd"),
    ],
)
def test_json_of_another_kind_is_refused(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        TemporalSpec.from_dict({**SPEC.to_dict(), **change}, where="file")
