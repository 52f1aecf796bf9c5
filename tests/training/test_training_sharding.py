"""What `--trainer.strategy fsdp2` refuses, in one line; what it does is in tests/distributed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.nn.utils import get_total_norm

from emu_edit.errors import InputError
from emu_edit.models.dit import DiTDenoiser
from emu_edit.training.module import EditModule
from emu_edit.training.sharding import NAME, ShardedStrategy, network_of, shard, total_norm
from tests.models.tiny_published import write_klein
from tests.training.stage import TRAINER_WARNINGS, make_module, make_trainer

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


def freeze_some(module: EditModule) -> None:
    module.networks.denoiser.get_submodule("unet.conv_in").requires_grad_(False)


def make_some_double(module: EditModule) -> None:
    module.networks.denoiser.get_submodule("unet.conv_in").double()


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (freeze_some, {}, "trained whole; .* frozen .* give --trainer.strategy ddp"),
        (make_some_double, {}, "torch.float32 and torch.float64; set model.denoiser.weights"),
        (lambda module: module.networks.denoiser.compile(), {}, "model.compile does not go with"),
        (lambda _: None, {"precision": "16-true"}, "16-true needs it; set bf16-mixed"),
        (lambda _: None, {"strategy": ModelParallelStrategy()}, "give --trainer.strategy fsdp2"),
    ],
)
def test_what_cannot_be_parted_is_refused(
    change: Callable[[EditModule], object], settings: dict, words: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)  # it takes long to import
    module = make_module()
    change(module)
    trainer = make_trainer(tmp_path, **{"strategy": NAME, "devices": 2, **settings})
    with pytest.raises(InputError, match=words):
        shard(module.networks.denoiser, trainer)


def test_a_network_that_ranks_would_call_unequally_often_is_refused(tmp_path: Path) -> None:
    write_klein(tmp_path)
    denoiser = DiTDenoiser(str(tmp_path), task_dim=8)
    assert network_of(denoiser) is denoiser.transformer
    denoiser.family = replace(denoiser.family, window=80)  # as FLUX.3 has
    with pytest.raises(InputError, match="as often as its batch has lengths of text"):
        network_of(denoiser)


def test_other_modules_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=NAME, devices=2)
    assert isinstance(trainer.strategy, ShardedStrategy)
    trainer.strategy.connect(BoringModel())
    with pytest.raises(InputError, match="is for the denoiser of an EditModule, got BoringModel"):
        trainer.strategy.setup(trainer)


def test_without_parts_the_norm_is_that_of_torch() -> None:
    gradients = [torch.randn(3, 4), torch.randn(7)]
    assert total_norm(gradients) == get_total_norm(gradients, foreach=True)
    assert total_norm([]) == 0
