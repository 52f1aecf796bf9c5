"""The dropout lattice, counted; and the null branches of guidance."""

from math import sqrt

import pytest
import torch

from emu_edit.errors import InputError
from emu_edit.models.conditioning import DropoutRates, branches, drop, null_image
from emu_edit.models.interfaces import Conditioning, TextFeatures

DRAWS = 100_000


def ones(b: int) -> Conditioning:
    return Conditioning(
        text=TextFeatures(tokens=torch.ones(b, 2, 1), mask=torch.ones(b, 2, dtype=torch.bool)),
        z_source=torch.ones(b, 1, 1, 1),
        v_task=torch.ones(b, 1),
    )


NULL = TextFeatures(tokens=torch.full((1, 2, 1), 5.0), mask=torch.tensor([[True, False]]))


def lost(cond: Conditioning) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        cond.text.tokens[:, 0, 0] == 5.0,
        cond.z_source[:, 0, 0, 0] == 0,
        cond.v_task[:, 0] == 0,
    )


def close(count: torch.Tensor, rate: float) -> bool:
    """Whether a count of DRAWS is within five standard deviations of the binomial."""
    return abs(int(count) - DRAWS * rate) <= 5 * sqrt(DRAWS * rate * (1 - rate))


@pytest.mark.parametrize(
    "rates", [DropoutRates(), DropoutRates(text=0.1, image=0.02, both=0.3, task=0.5)]
)
def test_a_hundred_thousand_draws_have_the_declared_shares(
    rates: DropoutRates, cpu_generator: torch.Generator
):
    u = torch.rand(DRAWS, 2, generator=cpu_generator)
    no_text, no_image, no_task = lost(drop(ones(DRAWS), NULL, rates, u))
    assert close((no_text & ~no_image).sum(), rates.text)
    assert close((no_image & ~no_text).sum(), rates.image)
    assert close((no_text & no_image).sum(), rates.both)
    assert close(no_task.sum(), rates.task)
    kept = 1 - rates.text - rates.image - rates.both
    assert close((~no_text & ~no_image).sum(), kept)
    # the task is dropped independently of the rest
    assert close((no_task & no_text & no_image).sum(), rates.task * rates.both)
    assert close((no_task & ~no_text & ~no_image).sum(), rates.task * kept)


def test_the_uniform_alone_decides_and_the_three_exclude_each_other():
    rates = DropoutRates(text=0.25, image=0.25, both=0.25, task=0.5)
    u = torch.tensor([[0.0, 0.9], [0.24, 0.5], [0.25, 0.49], [0.5, 0.0], [0.75, 0.9], [0.99, 0.9]])
    no_text, no_image, no_task = lost(drop(ones(6), NULL, rates, u))
    assert no_text.tolist() == [True, True, False, True, False, False]
    assert no_image.tolist() == [False, False, True, True, False, False]
    assert no_task.tolist() == [False, False, True, True, False, False]


def test_rates_of_zero_drop_nothing_and_of_one_drop_all():
    u = torch.tensor([[0.0, 0.0], [0.999, 0.999]])
    nothing = drop(ones(2), NULL, DropoutRates(0.0, 0.0, 0.0, 0.0), u)
    assert not any(flag.any() for flag in lost(nothing))
    everything = drop(ones(2), NULL, DropoutRates(0.0, 0.0, 1.0, 1.0), u)
    assert all(flag.all() for flag in lost(everything))


def test_the_null_branches_are_what_dropout_produces(cond: Conditioning):
    null = TextFeatures(tokens=torch.randn(1, 8, 32), mask=torch.arange(8)[None] < 1)
    stacked = branches(cond, null)
    for rates, row in (
        (DropoutRates(0.0, 0.0, 0.0, 0.0), 0),
        (DropoutRates(1.0, 0.0, 0.0, 0.0), 1),
        (DropoutRates(0.0, 0.0, 1.0, 0.0), 2),
    ):
        dropped = drop(cond, null, rates, torch.full((3, 2), 0.5))
        part = slice(3 * row, 3 * row + 3)
        assert torch.equal(stacked.text.tokens[part], dropped.text.tokens)
        assert torch.equal(stacked.text.mask[part], dropped.text.mask)
        assert torch.equal(stacked.z_source[part], dropped.z_source)
        assert torch.equal(stacked.v_task[part], cond.v_task)


def test_a_null_image_is_zeros_and_leaves_the_rest(cond: Conditioning):
    blind = null_image(cond)
    assert (blind.z_source == 0).all()
    assert blind.text is cond.text
    assert blind.v_task is cond.v_task


def test_gradients_flow_through_what_is_kept_and_into_the_null_text(cond: Conditioning):
    tokens = torch.zeros(1, 8, 32, requires_grad=True)
    null = TextFeatures(tokens=tokens, mask=cond.text.mask[:1])
    dropped = drop(cond, null, DropoutRates(1.0, 0.0, 0.0, 0.0), torch.zeros(3, 2))
    dropped.text.tokens.sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad == 3).all()


def test_impossible_rates_are_refused():
    with pytest.raises(InputError, match=r"dropout.image=1.5 is no probability"):
        DropoutRates(image=1.5)
    with pytest.raises(InputError, match=r"dropout.task=-0.1 is no probability"):
        DropoutRates(task=-0.1)
    with pytest.raises(InputError, match=r"exceeds 1; they exclude each other"):
        DropoutRates(text=0.5, image=0.4, both=0.2)
