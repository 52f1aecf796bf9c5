"""Compiled transformers: the blocks they repeat, each kind once, and never again after warm-up."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from emu_edit.models.conditioning import DropoutRates, drop
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.interfaces import Conditioning, TextFeatures
from tests.models.tiny_flux3 import write_flux3
from tests.models.tiny_published import write_klein, write_kontext, write_longcat, write_qwen

pytestmark = [
    pytest.mark.slow,
    # the compiler's own look at what it is given
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

WARM_UP = 2  # lengths
RATES = DropoutRates(text=0.3, image=0.3, both=0.2, task=0.3)
LENGTHS = (16, 24, 16, 40, 32, 8, 48)
WRITERS = {
    "klein": write_klein,
    "kontext": write_kontext,
    "qwen": write_qwen,
    "longcat": write_longcat,
    "flux3": write_flux3,
}
# how often blocks may be compiled, two of each kind: each kind for one length, and then for all;
# one of them once more, where the first of the blocks is given memory in another order, or a mask
MOST = {name: 3 if name == "qwen" else 7 for name in WRITERS}


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """A compiler that only counts what it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def two_of_each(folder: Path, name: str, **options: Any) -> DiTDenoiser:
    """A base with two blocks of each kind."""
    WRITERS[name](folder)
    small = DiTDenoiser(str(folder)).transformer
    kinds = {name: 2 for name in ("num_layers", "num_single_layers") if name in small.config}
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        type(small).from_config({**small.config, **kinds}).save_pretrained(folder / "transformer")
    return DiTDenoiser(str(folder), 8, **options).train()


def loss(denoiser: DiTDenoiser, length: int, seed: int) -> Tensor:
    """Make a step with padded texts of a length, some conditions withheld."""
    generator = torch.Generator().manual_seed(seed)
    z_t, z_source = (
        torch.randn(3, denoiser.latent_channels, 4, 6, generator=generator) for _ in range(2)
    )
    real = torch.tensor([length - 1, 6, length - 2])
    mask = torch.arange(length)[None] < real[:, None]
    tokens = torch.randn(4, length, denoiser.text_dim, generator=generator)
    null = TextFeatures(tokens[3:], mask[1:2])
    cond = Conditioning(TextFeatures(tokens[:3], mask), z_source, torch.ones(3, 8))
    cond = drop(cond, null, RATES, torch.rand(3, 2, generator=generator))
    output = denoiser(z_t, torch.tensor([100.0, 500.0, 900.0]), cond).square().mean()
    output.backward()
    return output.detach()


@pytest.mark.parametrize("name", MOST)
def test_each_kind_of_block_is_compiled_for_one_length_then_for_all_and_no_more(name, tmp_path):
    if name == "flux3":
        pytest.importorskip("accelerate", reason="FLUX.3 needs the extra `lora`")
    compiled, plain = (two_of_each(tmp_path / str(one), name) for one in range(2))
    compiler = Counting()
    compiled.compile(backend=compiler)
    found = [loss(compiled, length, seed) for seed, length in enumerate(LENGTHS[:WARM_UP])]
    warm = compiler.graphs
    assert 0 < warm <= MOST[name]
    found += [loss(compiled, length, WARM_UP + i) for i, length in enumerate(LENGTHS[WARM_UP:])]
    assert compiler.graphs == warm
    assert_close(found, [loss(plain, length, seed) for seed, length in enumerate(LENGTHS)])


def test_adapters_and_checkpointing_are_compiled_once_too(tmp_path):
    pytest.importorskip("peft", reason="LoRA needs the extra `lora`")
    options: dict[str, Any] = {"lora_rank": 2, "gradient_checkpointing": True}
    denoiser = two_of_each(tmp_path / "base", "klein", **options)
    compiler = Counting()
    denoiser.compile(backend=compiler)
    for seed, length in enumerate(LENGTHS[:WARM_UP]):
        loss(denoiser, length, seed)
    warm = compiler.graphs
    for seed, length in enumerate(LENGTHS[WARM_UP:]):
        loss(denoiser, length, WARM_UP + seed)
    assert compiler.graphs == warm <= 7  # the first block's cells have no gradient
    assert all(p.grad is not None for p in denoiser.parameters() if p.requires_grad)
