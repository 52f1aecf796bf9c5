"""Two processes align a student as one does, judges included."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.distributed.eve_ranks import train
from tests.distributed.launch import torchrun
from tests.training.eve_stage import write_parts
from tests.training.stage import TRAINER_WARNINGS

pytest.importorskip("peft")
pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS)]


def test_two_ranks_learn_what_one_process_learns(tmp_path: Path) -> None:
    write_parts(tmp_path)
    torchrun("eve_ranks.py", tmp_path)
    first, second = (torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in (0, 1))
    alone = train(tmp_path)
    for what in ("gradients", "weights"):
        assert_close(first[what], second[what], rtol=0, atol=0)
    assert_close(first["gradients"], alone["gradients"], rtol=1e-3, atol=1e-6)
    # AdamW enlarges the last bits of a gradient near 0 to a step of lr = 1e-2
    assert_close(first["weights"], alone["weights"], rtol=0, atol=2e-2)
    assert any(name.startswith("judges.") for name in first["weights"])
