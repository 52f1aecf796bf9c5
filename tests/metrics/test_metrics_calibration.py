import pytest
import torch

from emu_edit.metrics.calibration import (
    FLATTEST,
    SHARPEST,
    expected_calibration_error,
    nll_temperature,
)


def test_the_calibration_error_is_the_gap_of_each_bin_weighted_by_its_size() -> None:
    # three answers with confidence 0.9, two of them right; one with 0.6, wrong
    rows = [[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]
    probabilities = torch.tensor(rows, dtype=torch.float64)
    asked = torch.tensor([0, 0, 1, 0])
    expected = 3 / 4 * abs(2 / 3 - 0.9) + 1 / 4 * 0.6
    assert expected_calibration_error(probabilities, asked) == pytest.approx(expected, abs=1e-6)


def test_certain_and_right_is_perfectly_calibrated() -> None:
    error = expected_calibration_error(torch.eye(3), torch.tensor([0, 1, 2]))
    assert error == pytest.approx(0, abs=1e-6)


def test_certainty_is_in_one_bin_with_what_is_almost_certain() -> None:
    # apart, the gaps of 0.05 and -1 would not cancel
    probabilities = torch.tensor([[0.95, 0.05], [1.0, 0.0]])
    error = expected_calibration_error(probabilities, torch.tensor([0, 1]))
    assert error == pytest.approx((1 - 0.05) / 2, abs=1e-6)


def test_the_calibration_error_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="of no samples is undefined"):
        expected_calibration_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_the_temperature_undoes_a_scaling_of_true_log_probabilities(
    cpu_generator: torch.Generator,
) -> None:
    log_p = torch.randn(20_000, 5, generator=cpu_generator).log_softmax(dim=1)
    asked = torch.multinomial(log_p.exp(), 1, generator=cpu_generator)[:, 0]
    for scale in (0.4, 1.0, 3.0):
        assert nll_temperature(log_p * scale, asked) == pytest.approx(scale, rel=0.05)


def test_the_temperature_is_where_the_likelihood_is_highest(cpu_generator: torch.Generator) -> None:
    logits = 4 * torch.randn(200, 4, generator=cpu_generator).double()
    asked = torch.randint(4, (200,), generator=cpu_generator)
    asked[:120] = logits[:120].argmax(dim=1)
    best = nll_temperature(logits, asked)

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / temperature, asked))

    assert loss(best) < loss(best * 1.01)
    assert loss(best) < loss(best / 1.01)


def test_the_temperature_stays_within_its_bounds() -> None:
    logits = torch.eye(4)
    assert nll_temperature(logits, torch.arange(4)) == pytest.approx(SHARPEST)
    assert nll_temperature(logits, (torch.arange(4) + 1) % 4) == pytest.approx(FLATTEST)
