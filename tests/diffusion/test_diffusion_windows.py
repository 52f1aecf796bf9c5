import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from emu_edit.diffusion.prediction import Predict, Prediction
from emu_edit.diffusion.samplers import Sampler, sample
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.diffusion.windows import Window, spans, tiles, windowed, windows


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pointwise(z_t: Tensor, t: Tensor) -> Tensor:
    return torch.sin(z_t) + t.reshape(-1, *[1] * (z_t.ndim - 1)) / 1000


@pytest.mark.parametrize(
    ("shape", "over"),
    [
        ((2, 3, 5, 7), {2: (4, 2), 3: (4, 2)}),
        ((1, 4, 31, 8), {2: (8, 4), 3: (8, 4)}),
        ((1, 1, 17, 33), {2: (5, 0), 3: (6, 5)}),
        ((2, 3, 4, 4), {2: (64, 32), 3: (64, 32)}),
        ((11, 3, 4, 4), {0: (4, 2)}),  # frames of a video in rows
        ((2, 3, 19, 4, 4), {2: (8, 4)}),  # frames in a dimension of their own
    ],
)
def test_what_looks_at_single_places_is_the_same_in_windows_bit_for_bit(
    shape: tuple[int, ...], over: dict[int, tuple[int, int]]
) -> None:
    z_t, t = normal(*shape), torch.arange(shape[0]) * 10
    predict = windowed(lambda _: pointwise, windows(shape, over))
    assert torch.equal(predict(z_t, t), pointwise(z_t, t))


def test_every_place_is_covered_and_no_window_is_larger_or_overlaps_less() -> None:
    for length in range(1, 40):
        for size, overlap in ((1, 0), (8, 4), (8, 7), (9, 2)):
            cuts = spans(length, size, overlap)
            assert (cuts[0].start, cuts[-1].stop) == (0, length)
            assert all(cut.stop - cut.start == min(size, length) for cut in cuts)
            pairs = pairwise(cuts)
            assert all(a.stop - b.start >= overlap and b.start > a.start for a, b in pairs)
    with pytest.raises(ValueError, match="windows of 4 overlap by 0 to 3, got 4"):
        spans(9, 4, 4)


def test_the_mean_is_that_of_the_windows_weighted_by_their_nearness() -> None:
    shape = (1, 1, 1, 6)
    two = windows(shape, {3: (4, 2)})

    def constant(window: Window) -> Predict:
        value = float(window.index[3].start)
        return lambda z_t, _t: torch.full_like(z_t, value)

    output = windowed(constant, two)(torch.zeros(shape), torch.tensor([0]))[0, 0, 0]
    far, near = (math.sin(math.pi * place / 4) ** 2 for place in (0.5, 1.5))
    share = 2 * far / (near + far)  # of the window that begins at 2, where it begins
    assert_close(output, torch.tensor([0, 0, share, 2 - share, 2, 2]))


def test_neighbouring_tiles_that_disagree_leave_no_step() -> None:
    shape = (1, 1, 32, 32)
    parts = tiles(shape, 8)
    values = normal(len(parts))

    def constant(window: Window) -> Predict:
        return lambda z_t, _t: torch.full_like(z_t, values[parts.index(window)].item())

    output = windowed(constant, parts)(torch.zeros(shape), torch.tensor([0]))
    step = (output[..., 1:] - output[..., :-1]).abs()[0, 0]
    borders = step[:, [start - 1 for start in range(4, 29, 4)]]
    assert borders.max() <= step.max() * 0.5  # the largest are in the middle of overlaps
    assert step.max() < 0.5 * (values.max() - values.min())


@pytest.mark.parametrize("sampler", list(Sampler))
def test_averaging_predictions_is_averaging_the_latents_they_lead_to(sampler: Sampler) -> None:
    """MultiDiffusion's own way, after one step of each window alone from the shared latent."""
    schedule = NoiseSchedule.scaled_linear()
    shape = (1, 2, 1, 12)
    noise, parts = normal(*shape), windows(shape, {3: (8, 4)})

    def around(z_t: Tensor, _t: Tensor) -> Tensor:
        return torch.tanh(z_t.cumsum(-1))

    run = partial(
        sample,
        noise=noise,
        schedule=schedule,
        prediction=Prediction.v,
        num_steps=1,
        sampler=sampler,
        generator=torch.Generator().manual_seed(1),
    )
    total, weights = torch.zeros(shape), torch.zeros(shape)
    for part in parts:
        z_0 = run(around, noise=noise[part.index], generator=torch.Generator().manual_seed(1))
        total[part.index] += part.weight * z_0
        weights[part.index] += part.weight
    assert_close(run(windowed(lambda _: around, parts)), total / weights)


def test_one_window_is_in_memory_at_a_time() -> None:
    seen: list[tuple[int, ...]] = []

    def predict(z_t: Tensor, _t: Tensor) -> Tensor:
        seen.append(tuple(z_t.shape))
        return z_t

    shape = (1, 2, 24, 40)
    windowed(lambda _: predict, tiles(shape, 8))(normal(*shape), torch.tensor([0]))
    assert set(seen) == {(1, 2, 8, 8)}
    assert len(seen) == 5 * 9
