"""EI²: temporal attention that is bounded and moves nothing that stands still; wider attention."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from emu_edit.errors import InputError
from emu_edit.models.inflate import inflate
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.stam import Stam
from emu_edit.models.temporal import TemporalSpec
from emu_edit.models.temporal_files import load_temporal, save_temporal
from tests.models.conftest import small_denoiser

SPEC = TemporalSpec(convolution_levels=(), head_dim=4, picture_condition=False, stam=True, coarse=2)


def learnt(seed: int = 0) -> Stam:
    """A layer that has learnt something: its gate is open, its maps are large."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        layer = Stam(16, SPEC)
        with torch.no_grad():
            layer.gate.fill_(5.0)
            for name, parameter in layer.named_parameters():
                if "original" in name or "to_qk" in name:
                    parameter.mul_(9.0)
    layer.train()
    for _ in range(20):  # power iteration follows
        layer(torch.zeros(1, 2, 16), torch.arange(2.0))
    return layer.eval()


@torch.no_grad()
def test_what_is_constant_in_time_passes_unchanged(cpu_generator: torch.Generator) -> None:
    still = torch.randn(5, 1, 16, generator=cpu_generator).expand(-1, 6, -1)
    assert_close(learnt()(still, torch.arange(6.0)), still, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_the_branch_is_nowhere_longer_than_what_moves(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(7, 6, 16, generator=generator)
    branch = learnt(seed)(x, torch.arange(6.0)) - x
    centred = x - x.mean(dim=1, keepdim=True)
    longest = centred.norm(dim=2).amax(dim=1, keepdim=True)
    assert bool((branch.norm(dim=2) <= 1.02 * longest).all())
    assert bool((branch.norm(dim=2) > 0.01).any())


def test_it_begins_as_the_identity_and_can_leave_it(cpu_generator: torch.Generator) -> None:
    layer, x = Stam(16, SPEC), torch.randn(2, 3, 16, generator=cpu_generator)
    found = layer(x, torch.arange(3.0))
    assert torch.equal(found, x)
    found.square().sum().backward()
    assert layer.gate.grad is not None
    assert float(layer.gate.grad.abs()) > 0


@torch.no_grad()
def test_a_picture_model_with_both_is_itself_outside_videos_and_of_one_frame(
    cond: Conditioning, z_t: torch.Tensor
) -> None:
    base = small_denoiser().eval()
    t = torch.tensor([3, 500, 900])
    usual = base(z_t, t, cond)
    adapter = inflate(base, SPEC).eval()
    assert torch.equal(base(z_t, t, cond), usual)
    size = (z_t.shape[-2], z_t.shape[-1])
    with adapter.video(1, size=size):
        assert torch.equal(base(z_t, t, cond), usual)
    with adapter.video(3, size=size):
        wide = base(z_t, t, cond)
    assert not torch.allclose(wide, usual)  # FFAM has no weights: frames see each other at once
    with adapter.video(3):
        assert_close(base(z_t, t, cond), usual)
    same = torch.cat([z_t[:1]] * 3)
    told = Conditioning(
        TextFeatures(cond.text.tokens[:1].expand(3, -1, -1), cond.text.mask[:1].expand(3, -1)),
        cond.z_source[:1].expand(3, -1, -1, -1),
        cond.v_task[:1].expand(3, -1),
    )
    with adapter.video(3, size=size):
        frames = base(same, t[:1].expand(3), told)
    assert_close(frames[0], frames[1])
    assert_close(frames[0], frames[2])


@torch.no_grad()
def test_layers_are_kept_with_their_maps(
    tmp_path: Path, cond: Conditioning, z_t: torch.Tensor
) -> None:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(2)
        base = small_denoiser().eval()
    adapter = inflate(base, SPEC).eval()
    for name, parameter in adapter.named_parameters():
        parameter.fill_(0.5) if name.endswith("gate") else parameter.add_(0.1)
    t, size = torch.tensor([3, 500, 900]), (z_t.shape[-2], z_t.shape[-1])
    with adapter.video(3, size=size):
        expected = base(z_t, t, cond)
    save_temporal(adapter, tmp_path / "temporal")
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(2)
        again = small_denoiser().eval()
    loaded = load_temporal(tmp_path / "temporal", again)
    assert loaded.spec == SPEC
    with loaded.video(3, size=size):
        assert_close(again(z_t, t, cond), expected)  # read from elsewhere in memory


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match=r"temporal.coarse is -1"):
        TemporalSpec(coarse=-1)
    with pytest.raises(InputError, match="does not divide"):
        Stam(10, SPEC)
