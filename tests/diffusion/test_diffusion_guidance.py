import pytest
import torch

from emu_edit.diffusion.guidance import Guidance, guided
from emu_edit.diffusion.prediction import Prediction, estimates, with_source
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.errors import InputError
from tests.diffusion.oracles import exact_coefficients

SCHEDULE = NoiseSchedule.scaled_linear(zero_terminal_snr=False)
T = torch.tensor([400, 900])


def latents(b: int, seed: int) -> torch.Tensor:
    return torch.randn(
        b, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def branches(seed: int = 0):
    """Three fixed outputs, whatever is asked: rows (full, image only, nothing)."""
    output = latents(6, seed)
    return output, lambda _z_t, _t: output


def guide_some(output: torch.Tensor, guidance: Guidance) -> tuple[torch.Tensor, int]:
    """Guide with the rows of `output` that are needed; return the result and how many rows."""
    rows = torch.cat([
        part for part, is_needed in zip(output.chunk(3), guidance.needed, strict=True) if is_needed
    ])
    return guided(lambda _z_t, _t: rows, guidance)(latents(2, 1), T), len(rows) // 2


def in_full(output: torch.Tensor, guidance: Guidance) -> torch.Tensor:
    """The formula of InstructPix2Pix with all of its terms."""
    full, image_only, nothing = output.chunk(3)
    return nothing + guidance.image * (image_only - nothing) + guidance.text * (full - image_only)


def test_scales_of_one_give_the_full_prediction():
    output, _ = branches()
    result, _ = guide_some(output, Guidance(text=1.0, image=1.0))
    assert torch.equal(result, output[:2])


def test_no_text_scale_gives_the_image_only_prediction():
    output, _ = branches()
    result, _ = guide_some(output, Guidance(text=0.0, image=1.0))
    assert torch.equal(result, output[2:4])


def test_no_scale_at_all_gives_the_unconditional_prediction():
    output, _ = branches()
    result, _ = guide_some(output, Guidance(text=0.0, image=0.0))
    assert torch.equal(result, output[4:])


@pytest.mark.parametrize(
    ("text", "image", "number"),
    [
        (1.0, 1.0, 1),
        (0.0, 1.0, 1),
        (0.0, 0.0, 1),
        (5.0, 1.0, 2),  # nothing is idle
        (1.5, 1.5, 2),  # image only is idle
        (0.0, 1.5, 2),  # full is idle
        (5.0, 1.5, 3),
        (1.0, 1.5, 3),
        (1.0, 0.0, 3),
    ],
)
def test_idle_branches_are_not_run_and_the_result_is_that_of_all_three(text, image, number):
    output, guidance = branches(4)[0], Guidance(text=text, image=image)
    result, run = guide_some(output, guidance)
    assert run == number
    torch.testing.assert_close(result, in_full(output, guidance), rtol=0, atol=1e-14)


def test_three_branches_are_combined_in_the_order_of_the_formula_bit_for_bit():
    output, guidance = branches(5)[0].float(), Guidance(text=5.0, image=1.5)
    result, _ = guide_some(output, guidance)
    assert torch.equal(result, in_full(output, guidance))


def test_the_combination_is_the_one_of_instruct_pix2pix():
    (full, image_only, nothing), predict = branches()[0].chunk(3), branches()[1]
    e, s_i, s_t = guided(predict, Guidance(text=7.5, image=1.5)), 1.5, 7.5
    expected = (1 - s_i) * nothing + (s_i - s_t) * image_only + s_t * full
    torch.testing.assert_close(e(latents(2, 1), T), expected, rtol=0, atol=1e-13)


def test_one_forward_sees_the_batch_three_times():
    calls = []

    def predict(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append((z_t, t))
        return z_t

    z_t = latents(2, 1)
    guided(predict, Guidance())(z_t, T)
    ((seen, steps),) = calls
    assert torch.equal(seen, torch.cat([z_t, z_t, z_t]))
    assert steps.tolist() == [400, 900] * 3


@pytest.mark.parametrize("space", [Prediction.eps, Prediction.v])
def test_guidance_is_the_same_in_every_space(space):
    """Combining z_0 estimates equals combining outputs, because the weights sum to 1."""
    output, predict = branches()
    z_t, c = latents(2, 1), exact_coefficients(SCHEDULE, T)
    c_3 = exact_coefficients(SCHEDULE, T.repeat(3))

    def predict_z0(z: torch.Tensor, _t: torch.Tensor) -> torch.Tensor:
        return estimates(output, z, c_3, space)[0]

    here = guided(predict, Guidance())(z_t, T)
    there = guided(predict_z0, Guidance())(z_t, T)
    z_0_hat, eps_hat = estimates(here, z_t, c, space)
    torch.testing.assert_close(z_0_hat, there, rtol=0, atol=1e-11)
    _, eps_there = estimates(there, z_t, c, Prediction.z0)
    torch.testing.assert_close(eps_hat, eps_there, rtol=0, atol=1e-11)


def test_the_change_is_guided_with_the_source_of_each_branch():
    """Without an image there is no source to change, so image guidance scales the source too."""
    z_source, silent = latents(2, 3), torch.zeros(6, 2, 3, 3, dtype=torch.float64)
    stacked = torch.cat([z_source, z_source, torch.zeros_like(z_source)])
    predict = with_source(lambda _z_t, _t: silent, stacked, Prediction.change)
    result = guided(predict, Guidance(text=5.0, image=1.5))(latents(2, 1), T)
    torch.testing.assert_close(result, 1.5 * z_source, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("text", "image"), [(4.0, 1.0), (5.0, 1.5), (1.0, 1.0), (0.0, 1.5)])
def test_a_guided_output_that_keeps_its_norm_has_each_cell_of_the_full_branchs_length(text, image):
    output, _ = branches()
    guidance = Guidance(text, image)
    rows = torch.cat([
        part for part, needed in zip(output.chunk(3), guidance.needed, strict=True) if needed
    ])
    kept, plain = (
        guided(lambda _z_t, _t: rows, guidance, keeps_norm=keeps)(latents(2, 1), T)
        for keeps in (True, False)
    )
    if text in {0.0, 1.0}:  # no full branch, or nothing else
        assert torch.equal(kept, plain)
        return
    full = output[:2]
    torch.testing.assert_close(kept.norm(dim=1), full.norm(dim=1), rtol=1e-12, atol=0)
    expected = plain * (full.norm(dim=1) / plain.norm(dim=1))[:, None]
    torch.testing.assert_close(kept, expected, rtol=1e-12, atol=0)


def test_only_needed_branches_are_asked_for():
    calls = []

    def predict(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append((len(z_t), t.tolist()))
        return z_t

    for guidance in (Guidance(1.0, 1.0), Guidance(5.0, 1.0), Guidance(5.0, 1.5)):
        guided(predict, guidance)(latents(2, 1), T)
    assert calls == [(2, [400, 900]), (4, [400, 900] * 2), (6, [400, 900] * 3)]


def test_the_defaults_are_the_papers():
    assert Guidance() == Guidance(text=5.0, image=1.5)


@pytest.mark.parametrize("scales", [(float("nan"), 1.0), (1.0, float("inf"))])
def test_scales_that_are_no_numbers_are_refused(scales):
    with pytest.raises(InputError, match="guidance scales must be finite, got text="):
        Guidance(*scales)
