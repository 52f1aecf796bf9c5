"""The benchmark of the training step: all paths train the same networks; time counts once."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.train_step import measure, parse, paths_of
from benchmarks.train_step_paths import PARTS, WARM_UP, Split
from tests.training.stage import TRAINER_WARNINGS

OPTIONS = ["--width", "0.03125", "--batch", "2", "--pairs", "16", "--steps", "1", "--turns", "1"]

pytestmark = [
    *(pytest.mark.filterwarnings(warning) for warning in TRAINER_WARNINGS),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


def test_what_is_inside_another_part_counts_for_itself_and_all_time_is_in_some_part(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("benchmarks.train_step_paths.time.process_time", lambda: next(ticks))
    split = Split()  # 0
    with split.part("optimizer"):  # 1
        split.timed("denoise", lambda: None)()  # 2 and 3
    assert split.seconds == {"rest": 1, "optimizer": 2, "denoise": 1}  # up to 4
    split.restart()
    assert not split.seconds


def test_each_path_begins_with_the_same_weights_and_asks_the_encoders_as_often_as_it_should(
    tmp_path: Path,
):
    options = parse(OPTIONS)
    asked: dict[str, Counter] = {}
    weights = {}
    for name, make in paths_of(options, tmp_path).items():
        path, calls = make(), Counter()
        asked[name] = calls
        networks = path.module.networks
        weights[name] = [p.clone() for p in networks.denoiser.parameters()]
        networks.codec.get_submodule("vae.encoder").register_forward_hook(
            lambda *_, calls=calls: calls.update(["picture"])
        )
        networks.text_encoder.register_forward_hook(lambda *_, calls=calls: calls.update(["text"]))
        path.run(options.steps)
        after = list(networks.denoiser.parameters())
        assert any(map(torch.Tensor.any, map(torch.ne, weights[name], after)))
    steps = WARM_UP + options.steps
    assert asked["reference"] == {"picture": 2 * steps, "text": 2 * steps}
    assert asked["pictures"] == {"picture": 2 * steps, "text": steps + 1}
    assert asked["cache"] == {}
    for name in ("pictures", "cache"):
        for own, of_reference in zip(weights[name], weights["reference"], strict=True):
            assert torch.equal(own, of_reference)


def test_a_run_gives_rates_ratios_and_a_split_for_each_path(tmp_path: Path):
    report = measure(parse([*OPTIONS, "--precision", "bf16-mixed"]), tmp_path)
    assert json.loads(json.dumps(report)) is not None
    assert report["reference"]["ratio"] == (1.0, 1.0, 1.0)
    for name in ("reference", "pictures", "cache"):
        assert report[name]["samples_per_s"] > 0
        assert set(report[name]["ms"]) == set(PARTS)
        low, high = report[name]["ratio_cpu"][1:]
        assert low <= report[name]["ratio_cpu"][0] <= high


def test_the_tiny_recipes_networks_take_the_same_turns(tmp_path: Path):
    options = parse(["--networks", "tiny", *OPTIONS[2:]])
    paths = {name: make() for name, make in paths_of(options, tmp_path).items()}
    for path in paths.values():
        networks = path.module.networks
        before = [p.clone() for p in networks.denoiser.parameters()]
        path.run(1)
        after = list(networks.denoiser.parameters())
        assert any(map(torch.Tensor.any, map(torch.ne, before, after)))
