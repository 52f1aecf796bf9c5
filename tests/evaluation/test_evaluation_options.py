"""The records of an evaluation's options refuse what they cannot use, whoever makes them."""

from pathlib import Path
from typing import Any

import pytest

from datamodules.evaluation_sets import load_benchmark
from emu_edit.cli import evaluate as verb
from emu_edit.diffusion.samplers import Sampler
from emu_edit.editing.settings import Sampling
from emu_edit.errors import InputError
from emu_edit.evaluation.candidate import Candidate, holds_pictures
from emu_edit.evaluation.drift import DriftBenchmark, DriftOptions
from emu_edit.evaluation.photographs import PhotographOptions, check_model
from emu_edit.evaluation.world import Scenes, WorldBenchmark, WorldOptions
from emu_edit.evaluation.world_inputs import read_benchmark, write_inputs

MODEL = Candidate(Path("mine"))
PICTURES = Candidate(Path("made"), are_pictures=True)


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        (Sampling(num_steps=3), "--steps"),
        (Sampling(guidance_text=3.0), "--guidance-text"),
        (Sampling(guidance_image=0.0), "--guidance-image"),
        (Sampling(sampler=Sampler.ddim), "--sampler"),
    ],
)
def test_pictures_are_not_sampled(sampling: Sampling, name: str) -> None:
    words = f"made is a folder of pictures, which are scored as they are; leave {name} out"
    with pytest.raises(InputError, match=words):
        Candidate(Path("made"), are_pictures=True, sampling=sampling)


def test_a_model_lacks_no_pictures() -> None:
    words = "--allow-missing belongs to a folder of pictures, and mine has none; leave it out"
    with pytest.raises(InputError, match=words):
        Candidate(Path("mine"), allow_missing=True)


def test_results_go_where_they_were_asked_for_or_beside_the_candidate() -> None:
    assert PICTURES.results_folder("drift") == Path("made-drift").absolute()
    asked = Candidate(Path("mine"), output=Path("out"))
    assert asked.results_folder("drift") == Path("out")


def test_a_model_is_not_taken_for_the_pictures_beside_it(model: Path, made: Path) -> None:
    assert holds_pictures(made, "world")
    assert not holds_pictures(model, "world")
    assert not holds_pictures(made / "nowhere", "emu-edit")


def test_the_world_has_four_splits_and_drift_two() -> None:
    with pytest.raises(
        InputError, match="--split test: world has heldout, train, sentences, pairs"
    ):
        Scenes(split="test")
    with pytest.raises(
        InputError, match="--split pairs is of single edits; --drift has heldout, t"
    ):
        DriftBenchmark(scenes=Scenes(split="pairs"))


def test_pictures_of_the_world_need_no_device() -> None:
    on_cpu = Candidate(Path("made"), are_pictures=True, device="cpu")
    with pytest.raises(InputError, match="which are scored as they are; leave --device out"):
        WorldOptions(on_cpu)


def test_results_of_the_world_are_not_written_among_pictures() -> None:
    inside = Path("made", "out")
    with pytest.raises(InputError, match="-o made/out is among the pictures of made; give another"):
        WorldOptions(Candidate(Path("made"), are_pictures=True, output=inside))
    assert WorldOptions(Candidate(Path("made"), output=inside)).benchmark == WorldBenchmark()


def test_drift_needs_a_model() -> None:
    with pytest.raises(InputError, match="--drift needs a model, and made is a folder of pictures"):
        DriftOptions(PICTURES)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": 64}, "made is a folder of pictures, .*; leave --size out"),
        ({"tasks": "given"}, "made is a folder of pictures, .*; leave --tasks out"),
        ({"split": "test"}, "--split test: magicbrush has no splits; leave it out"),
        ({"protocol": "magic"}, "unknown protocol 'magic'; known protocols: emu-b32"),
    ],
)
def test_what_photographs_have_no_use_for_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PhotographOptions(PICTURES, "magicbrush", Path("data"), **given)


def test_a_protocol_of_another_benchmark_is_refused() -> None:
    words = "magicbrush is not for the benchmark emu-edit, which has no ground truth"
    with pytest.raises(InputError, match=words):
        PhotographOptions(MODEL, "emu-edit", Path("data"), protocol="magicbrush")


def test_a_benchmark_of_photographs_has_to_be_downloaded() -> None:
    words = "--benchmark emu-edit needs --data DIR, the folder it was downloaded to"
    with pytest.raises(InputError, match=words):
        load_benchmark("emu-edit", None, split=None, captions="global")


def test_an_empty_folder_is_neither_model_nor_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty, needs a model or a picture per edit"):
        check_model(tmp_path)
    with pytest.raises(InputError, match="there is no model at"):
        check_model(tmp_path / "nowhere")


def test_inputs_are_written_to_a_new_folder_and_read_again(tmp_path: Path) -> None:
    benchmark = WorldBenchmark(1, Scenes(seed=3, size=16))
    assert "wrote 16 pictures and inputs.jsonl to " in write_inputs(tmp_path / "new", benchmark)
    assert read_benchmark(tmp_path / "new", None) == benchmark
    with pytest.raises(InputError, match="is not empty, needs a new folder; give another"):
        write_inputs(tmp_path / "new", benchmark)


def test_the_help_page_promises_what_the_records_do() -> None:
    scored, drift = WorldBenchmark(), DriftBenchmark()
    assert (scored.pairs_per_task, scored.scenes.seed) == (verb.PAIRS, verb.SEED)
    assert (drift.sessions, drift.turns) == (verb.SESSIONS, verb.TURNS)
