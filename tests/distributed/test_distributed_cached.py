"""Two processes train on a cache what one trains on the pictures."""

import pytest
import torch
from torch.testing import assert_close

from tests.datamodules.cached_stage import cache, kl_codec, make_module
from tests.datamodules.toy_shards import make_folder
from tests.distributed.cached_ranks import BATCH, STEPS, train
from tests.distributed.launch import torchrun
from tests.training.stage import TRAINER_WARNINGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device`"),
    pytest.mark.filterwarnings("ignore:Found .* module\\(s\\) in eval mode at the start"),
    *(pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS),
]


def test_two_ranks_train_on_a_cache_what_one_trains_on_the_pictures(tmp_path):
    make_folder(tmp_path / "pictures", {"local": 9, "add": 6, "depth": 2})
    cache(make_module(kl_codec(tmp_path)), tmp_path / "pictures", tmp_path / "cache")
    torchrun("cached_ranks.py", tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = train(tmp_path, tmp_path / "pictures", devices=1)
    assert len(alone["keys"]) == STEPS
    assert all(len(keys) == BATCH // 2 for keys in first["keys"] + second["keys"])
    together = [a + b for a, b in zip(first["keys"], second["keys"], strict=True)]
    assert together == alone["keys"]
    assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    means = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert means[0] == pytest.approx(alone["losses"][0], rel=1e-5, abs=1e-5)
    assert means == pytest.approx(alone["losses"], rel=1e-3)  # AdamW enlarges last bits
