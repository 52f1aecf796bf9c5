"""Ways of training that should come to the same do, in short: ten steps of tiny models."""

from pathlib import Path

import pytest

from benchmarks.same_training import MODELS, PLAIN, WAYS, Way, measure, prepare, table, train
from tests.training.stage import TRAINER_WARNINGS

STEPS = 10
pytestmark = [
    pytest.mark.slow,
    *(pytest.mark.filterwarnings(warning) for warning in TRAINER_WARNINGS),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    # autocast leaves norms in float32
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),
]


@pytest.mark.parametrize("model", MODELS)
def test_a_cache_bf16_and_the_same_once_more_keep_their_promises(model: str, tmp_path: Path):
    if model == "klein":
        pytest.importorskip("peft", reason="LoRA needs the extra `lora`")
    report = measure(model, ["again", "cache", "bf16"], tmp_path, STEPS)
    assert len({*report["losses"]}) == STEPS
    assert {name: row["is_kept"] for name, row in report["ways"].items()} == dict.fromkeys(
        ("again", "cache", "bf16"), True
    )
    assert report["ways"]["bf16"]["greatest"] > 0
    assert "BROKEN" not in table({model: report})


def test_two_processes_keep_their_promise(tmp_path: Path):
    report = measure("sd", ["ddp"], tmp_path, STEPS)
    assert report["ways"]["ddp"]["is_kept"]


def test_another_training_breaks_the_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prepare("sd", tmp_path)
    plain = train("sd", PLAIN, tmp_path, 3)
    monkeypatch.setattr("benchmarks.same_training.BATCH", 2)
    other = train("sd", Way("half a batch", 1e-4), tmp_path, 3)
    assert max(abs(a - b) for a, b in zip(plain, other, strict=True)) > WAYS["bf16"].promise
