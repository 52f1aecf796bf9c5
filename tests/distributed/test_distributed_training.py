import json

import pytest
import torch
from torch.testing import assert_close

from tests.distributed.launch import torchrun
from tests.distributed.two_ranks import BATCH, STEPS, train
from tests.training.stage import TRAINER_WARNINGS

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, dict]:
    """Run the script on two gloo processes; return each rank's result and the table of losses."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("two_ranks.py", folder)
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second, json.loads((folder / "task_loss.json").read_text())


def test_gradients_of_two_half_batches_are_those_of_the_whole(two_ranks, tmp_path):
    first, second, _ = two_ranks
    alone = train(tmp_path, devices=1)
    assert_close(first["gradients"], second["gradients"], rtol=0, atol=0)
    # float32 means in another order
    assert_close(first["gradients"], alone["gradients"], rtol=1e-3, atol=1e-6)


def test_weights_and_averages_are_equal_on_all_ranks(two_ranks):
    first, second, _ = two_ranks
    assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert_close(first["average"], second["average"], rtol=0, atol=0)
    name = "networks.denoiser.unet.conv_in.weight"
    assert not torch.equal(first["average"][name], first["weights"][name])


def test_the_table_of_losses_counts_the_samples_of_all_ranks(two_ranks):
    _, _, table = two_ranks
    assert sum(row["all"]["count"] for row in table["train"].values()) == STEPS * BATCH


def test_both_ranks_stop_at_the_broken_sample_of_one_and_name_it(two_ranks):
    first, second, _ = two_ranks
    assert first["spoilt"] == second["spoilt"]
    # rank 1 has the second half of the second batch of four
    assert "pair-006" in first["spoilt"]
    assert "pair-007" in first["spoilt"]
    assert "pair-005" not in first["spoilt"]


def test_the_report_of_a_broken_step_has_the_samples_of_all_ranks(two_ranks):
    (event,) = json.loads(two_ranks[0]["report"])
    found = [(sample["rank"], sample["position"], sample["error"]) for sample in event["samples"]]
    assert [(rank, position) for rank, position, _ in found] == [(0, 4), (0, 5), (1, 6), (1, 7)]
    assert [error == "nan" for _, _, error in found] == [False, False, True, True]


def test_ranks_leave_out_a_step_together_and_keep_equal_weights(two_ranks):
    first, second, _ = two_ranks
    assert first["left_out"] == second["left_out"] == f"ended after {STEPS} steps"
    assert_close(first["weights_left_out"], second["weights_left_out"], rtol=0, atol=0)
    assert all(tensor.isfinite().all() for tensor in first["weights_left_out"].values())
