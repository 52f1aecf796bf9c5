"""Positions: the stated waves, silent until trained, heard at every resolution, saved."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from emu_edit.models.interfaces import Conditioning
from emu_edit.models.unet import PretrainedUNetDenoiser, UNetDenoiser
from emu_edit.models.unet_inputs import positions
from tests.models.conftest import TASK_DIM, small_denoiser

T = torch.tensor([0, 500, 999])
OCTAVES = 3


@pytest.fixture
def told() -> UNetDenoiser:
    return small_denoiser(position_octaves=OCTAVES).eval()


def maps_of(denoiser: UNetDenoiser) -> list[torch.nn.Parameter]:
    assert denoiser.positions is not None
    return list(denoiser.positions.parameters())


def test_the_waves_are_those_of_the_cell_centres():
    waves = positions(torch.zeros(2, 5, 3, 4), OCTAVES)
    assert waves.shape == (1, 4 * OCTAVES, 3, 4)
    for k in range(OCTAVES):
        for row in range(3):
            for column in range(4):
                x, y = (column + 0.5) / 4, (row + 0.5) / 3
                expected = [
                    math.sin(2**k * math.pi * x),
                    math.cos(2**k * math.pi * x),
                    math.sin(2**k * math.pi * y),
                    math.cos(2**k * math.pi * y),
                ]
                assert_close(waves[0, k::OCTAVES, row, column], torch.tensor(expected))


def test_no_two_cells_of_a_picture_have_the_same_waves():
    waves = positions(torch.zeros(1, 1, 32, 32), 5)[0].flatten(1).T
    distances = torch.cdist(waves, waves) + 10 * torch.eye(len(waves))
    assert distances.min() > 0.1


@torch.no_grad()
def test_untrained_positions_change_no_bit(told: UNetDenoiser, z_t: Tensor, cond: Conditioning):
    plain = small_denoiser().eval()
    own = told.state_dict()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    assert torch.equal(told(z_t, T, cond), plain(z_t, T, cond))


@torch.no_grad()
def test_each_resolution_hears_them(told: UNetDenoiser, z_t: Tensor, cond: Conditioning):
    """Two levels: the first convolution, one way down, one way up."""
    assert len(maps_of(told)) == 3
    before = told(z_t, T, cond)
    for weight in maps_of(told):
        torch.nn.init.normal_(weight)
        assert not torch.allclose(told(z_t, T, cond), before)
        weight.zero_()
    assert torch.equal(told(z_t, T, cond), before)


def test_all_of_them_learn(told: UNetDenoiser, z_t: Tensor, cond: Conditioning):
    told(z_t, T, cond).square().mean().backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in maps_of(told))


@torch.no_grad()
def test_a_copy_has_its_own(told: UNetDenoiser, z_t: Tensor, cond: Conditioning):
    before = told(z_t, T, cond)
    other = copy.deepcopy(told)
    torch.nn.init.normal_(maps_of(other)[0])
    assert not torch.allclose(other(z_t, T, cond), before)
    assert torch.equal(told(z_t, T, cond), before)


def test_a_saved_unet_brings_them(
    tmp_path: Path, told: UNetDenoiser, z_t: Tensor, cond: Conditioning
):
    for weight in maps_of(told):
        torch.nn.init.normal_(weight)
    told.unet.save_pretrained(tmp_path / "unet")
    (tmp_path / "tasks").mkdir()
    save_file(told.maps(), tmp_path / "tasks" / "tasks.safetensors")
    again = PretrainedUNetDenoiser(str(tmp_path), TASK_DIM).eval()
    other = replace(cond, z_source=cond.z_source.flip(-1))
    with torch.no_grad():
        assert torch.equal(again(z_t, T, cond), told(z_t, T, cond))
        assert torch.equal(again(z_t, T, other), told(z_t, T, other))
