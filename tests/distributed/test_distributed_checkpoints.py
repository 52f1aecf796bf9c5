import json
from pathlib import Path

import pytest

from tests.distributed.launch import torchrun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, Path]:
    """What happened on each of two gloo processes, and their folder."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("failing_saves.py", folder)
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    return first, second, folder


def test_a_save_that_fails_on_rank_0_neither_stops_nor_hangs_the_ranks(ranks):
    first, second, folder = ranks
    assert first["now and then"] == second["now and then"]
    assert first["now and then"] == {"step": 12, "error": "", "latest": "step-00000012.ckpt"}
    names = {path.name for path in (folder / "a").glob("*.ckpt")}
    assert names == {"step-00000010.ckpt", "step-00000012.ckpt", "last.ckpt"}


def test_all_ranks_stop_at_the_third_failure_with_the_words_of_rank_0(ranks):
    first, second, _ = ranks
    assert first["for good"] == second["for good"]
    assert first["for good"]["step"] == 8
    assert first["for good"]["latest"] == "step-00000002.ckpt"
    words = "training stops after 3 failed checkpoints: checkpoint step 8 not written: need "
    assert first["for good"]["error"].startswith(words)


def test_all_ranks_refuse_a_folder_rank_0_cannot_write(ranks):
    first, second, _ = ranks
    assert first["no folder"] == second["no folder"]
    assert "c (File exists); free space or" in first["no folder"]["error"]
    assert first["no folder"]["step"] == 0
