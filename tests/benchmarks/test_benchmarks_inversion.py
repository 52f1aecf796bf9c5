"""The few-shot study: cells that are made once, methods that get the same, curves of the cells."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.inversion import __main__ as command
from benchmarks.inversion import methods, shared
from benchmarks.inversion.cells import (
    Cell,
    LessonStart,
    OldTasks,
    Study,
    make_lesson,
    read_cell,
    run_cell,
    summary,
)
from benchmarks.inversion.cost import full_step, inversion_step
from benchmarks.inversion.curves import format_table, group, write_curves
from benchmarks.inversion.methods import Lesson, add_lora, beginning_of, make_module, teach
from datamodules.world.photographs import Photos
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.models.fingerprints import model_hash
from emu_edit.training.inversion import InversionSettings
from emu_edit.training.new_task import frozen
from tests.training.few_shot import edits, make_base, make_pairs
from tests.training.stage import TASKS

QUICK = InversionSettings(steps=2, batch_size=2, check_every=1, init="mean")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small untrained model."""
    path = tmp_path_factory.mktemp("study") / "model"
    make_base().save_pretrained(path)
    return path


def study_line(model: Path, folder: Path, *more: str) -> list[str]:
    line = f"--model {model} -o {folder} --tasks contour --pairs 2 --seeds 0 --steps 2 --batch 2"
    return [*line.split(), "--test-pairs", "2", "--old-pairs", "1", "--device", "cpu", *more]


def lesson(count: int = 3, settings: InversionSettings = QUICK) -> Lesson:
    return Lesson("opposite", make_pairs(count), settings)


def made_cell(method: str, pairs: int, seed: int, error: float, change: float = 0.0) -> dict:
    return {
        "cell": {"task": "contour", "method": method, "pairs": pairs, "seed": seed},
        "new": {"error": error, "success": 0.5},
        "old": {"success_change": change, "error_change": -change, "identical": float(change == 0)},
        "steps": 10,
        "best_step": 5,
        "weights": 64,
        "seconds": 2.0,
    }


FACTS: dict[str, object] = {
    "test_pairs": 48,
    "old_pairs": 4,
    "steps": 300,
    "batch_size": 8,
    "expert_steps": 1250,
}


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two cells."""
    path = tmp_path_factory.mktemp("study") / "cells"
    assert command.main(study_line(model, path, "--methods", "inversion", "full")) == 0
    return path


def test_a_study_leaves_a_file_for_each_cell_and_curves_of_all(folder: Path):
    cells = {path.name: json.loads(path.read_text()) for path in folder.glob("contour-*.json")}
    assert set(cells) == {"contour-inversion-2-0.json", "contour-full-2-0.json"}
    inversion, full = cells["contour-inversion-2-0.json"], cells["contour-full-2-0.json"]
    assert inversion["old"]["identical"] == 1
    assert inversion["old"]["success_change"] == inversion["old"]["error_change"] == 0
    assert inversion["weights"] == 8
    assert full["weights"] > 10_000
    assert inversion["steps"] == full["steps"] == 2
    assert inversion["new"]["edits"] == 2
    curves = json.loads((folder / "curves.json").read_text())["curves"]["contour"]
    assert curves["full"]["2"]["error"]["mean"] == full["new"]["error"]
    assert "| contour | inverted vector |" in (folder / "table.md").read_text()
    with Image.open(folder / "curves.png") as plot:
        assert min(plot.size) > 100


def test_cells_that_are_there_are_not_made_again(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    made, lessons = [], []

    def run_cell(cell: Cell, *_: object) -> dict:
        made.append(cell)
        return made_cell(cell.method, cell.pairs, cell.seed, 0.5) | {"study": known}

    def begun(cell: Cell, *_: object) -> LessonStart:
        lessons.append(cell.lesson)
        return LessonStart("mean", 1.0)

    known = json.loads((folder / "contour-full-2-0.json").read_text())["study"]
    monkeypatch.setattr(shared, "run_cell", run_cell)
    monkeypatch.setattr(LessonStart, "of", begun)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    assert command.main(study_line(model, folder, "--methods", "inversion", "full")) == 0
    assert made == []
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
    more = study_line(model, folder, "--methods", "inversion", "full", "--pairs", "2", "3")
    assert command.main(more) == 0
    assert made == [Cell("contour", method, 3, 0) for method in ("inversion", "full")]
    assert lessons == ["contour-3-0"]  # both begin where the pairs were once found to
    assert not list(folder.glob(".*"))
    for cell in made:
        (folder / cell.file).unlink()


def test_a_lesson_that_another_process_learns_is_left_to_it(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    line = study_line(model, folder, "--methods", "inversion", "--pairs", "1", "3")
    before = {path.name for path in folder.iterdir()}
    with shared.claimed(folder / ".contour-3-0.lock") as is_ours:
        assert is_ours
        assert command.main(line) == 0
    assert {path.name for path in folder.iterdir()} - before == {"contour-inversion-1-0.json"}
    assert "1 cells are being made by other processes; the last" in capsys.readouterr().err
    assert command.main(line) == 0
    cells = [folder / f"contour-inversion-{pairs}-0.json" for pairs in (1, 3)]
    curve = json.loads((folder / "curves.json").read_text())["curves"]["contour"]["inversion"]
    assert {"1", "3"} < set(curve)
    for cell in cells:
        cell.unlink()


def test_a_cell_begins_where_its_lesson_was_found_to_begin(model: Path):
    study = Study(model, steps=1, batch_size=2, test_pairs=1, old_pairs=1)
    cell = Cell("contour", "full", 2, 0)
    begun = LessonStart.of(cell, study)
    assert begun.seconds > 0
    base = Editor.from_pretrained(model)
    given = make_lesson(cell, study, base.settings.image_size, new_index=len(TASKS))
    assert given.settings.init == "best"
    assert begun.init == beginning_of(base, given).name
    made = run_cell(cell, study, OldTasks.of(study), begun, lambda *_: None)
    assert made["began_at"] == begun.init
    assert LessonStart.of(Cell("contour", "base", 0, 0), study) == LessonStart("", 0.0)


def test_photographs_of_the_test_are_never_learnt_from(model: Path, tmp_path: Path):
    for number in range(5):
        Image.new("RGB", (32, 32), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    study = Study(model, photos=Photos(tmp_path))
    learn, test = study.photo_parts
    assert learn is not None
    assert test is not None
    assert sorted(learn.paths + test.paths) == Photos(tmp_path).paths
    pairs = make_lesson(Cell("superres", "full", 30, 0), study, 16, new_index=3).pairs
    reds = {int(pair.target[0].float().mean().round()) for pair in pairs}
    learnt = {50 * int(path.stem) for path in learn.paths}
    assert reds <= learnt
    assert learnt - reds <= {max(learnt)}
    (tmp_path / "alone").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "alone" / "one.png")
    with pytest.raises(InputError, match=r"alone' has one picture; .*, give at least two"):
        Study(model, photos=Photos(tmp_path / "alone"))
    described = study.describe()["photos"]
    assert isinstance(described, dict)
    assert described["pictures"] == 5
    table = format_table(group([made_cell("full", 1, 0, 0.5)]), {**FACTS, "photos": described})
    assert "pairs show 5 photographs, a third of them for the held-out pairs alone." in table


def test_cells_of_another_study_are_refused(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    message = "was made with steps=2, this study has 3; give another -o"
    study = Study(model, steps=3, batch_size=2, test_pairs=2, old_pairs=1)
    with pytest.raises(InputError, match=message):
        read_cell(folder / "contour-full-2-0.json", study)
    assert command.main(study_line(model, folder, "--methods", "full", "--steps", "3")) == 2
    assert message in capsys.readouterr().err


def test_the_pairs_of_a_seed_are_nested_and_those_of_another_are_others(model: Path):
    few, many, other = (
        make_lesson(Cell("count", "full", pairs, seed), Study(model), 16, new_index=3).pairs
        for pairs, seed in ((2, 0), (5, 0), (2, 1))
    )
    assert [p.name for p in few] == [p.name for p in many][:2]
    assert not {p.name for p in few} & {p.name for p in other}


def test_the_expert_learns_from_its_stream_and_is_judged_by_pairs_beyond_it(model: Path):
    study = Study(model, expert_steps=7)
    given = make_lesson(Cell("count", "expert", 20, 0), study, 16, new_index=3)
    names = [sample.key for sample in given.stream]
    assert names == [f"count-train-100-{i:08d}" for i in range(20)]
    assert given.pairs[0].name == "count-train-100-00000020"
    assert {sample.task for sample in given.stream} == {3}
    # never stopped early: it is the level that the others are measured by
    assert (given.settings.steps, given.settings.patience) == (7, 7)
    assert (
        study.steps
        == make_lesson(Cell("count", "full", 2, 0), study, 16, new_index=3).settings.steps
    )


@pytest.mark.parametrize("method", ["inversion", "full"])
def test_every_method_gives_an_editor_that_knows_the_task(method: str):
    taught = teach(make_base(), method, lesson())
    assert edits(taught.editor, [*TASKS, "opposite"]).shape[0] == len(TASKS) + 1
    assert taught.steps == 2


def test_a_baseline_begins_where_the_inversion_does_and_knows_the_old_tasks():
    base, given = make_base(), lesson()
    before = edits(base, TASKS)
    mean = base.networks.base_table().detach().mean(dim=0)
    module = make_module(base, given).eval()
    assert module.networks.tasks.names == (*TASKS, "opposite")
    torch.testing.assert_close(module.networks.task_embedding.table[-1], mean)
    torch.testing.assert_close(edits(module.make_editor(), TASKS), before, atol=1, rtol=0)


def test_a_full_fine_tune_changes_every_weight_but_the_rows_of_the_old_tasks():
    base = make_base()
    rows = base.networks.task_embedding.table.detach().clone()
    state = {name: w.detach().clone() for name, w in base.networks.denoiser.named_parameters()}
    tuned = teach(base, "full", lesson(settings=replace(QUICK, held_out=0.0))).editor.networks
    assert torch.equal(tuned.task_embedding.table[:-1], rows)
    moved = [not torch.equal(w, state[name]) for name, w in tuned.denoiser.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)


def test_the_weights_that_do_best_on_held_out_pairs_are_kept():
    settings = replace(QUICK, steps=4, ema=0.0)
    # a rate that only does harm: the weights of the start are the best
    base = make_base()
    before = edits(base, TASKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.LEARNING_RATES, "full", 10.0)
        taught = teach(base, "full", lesson(8, settings))
    assert taught.best_step == 0
    torch.testing.assert_close(edits(taught.editor, TASKS), before, atol=1, rtol=0)


def test_lora_begins_at_zero_and_learns_beside_frozen_weights():
    pytest.importorskip("peft")
    module = make_module(make_base(), lesson()).eval()
    before = edits(module.make_editor(), TASKS)
    add_lora(module)
    torch.testing.assert_close(edits(module.make_editor(), TASKS), before, atol=0, rtol=0)
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    assert all("lora_" in n or n == "networks.task_embedding.table" for n in names)
    kinds = ("conv_in", "conv1", "time_emb_proj", "to_q", "to_v", "proj_in", "linear_1")
    assert all(any(f"{kind}.lora_A" in name for name in names) for kind in kinds)
    taught = teach(make_base(), "lora", lesson())
    assert taught.weights == sum(p.numel() for n, p in module.named_parameters() if n in names)
    assert edits(taught.editor, ["opposite"]).shape[0] == 1


def test_without_peft_lora_is_refused_before_anything_is_learnt(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(methods, "find_spec", lambda _: None)
    with pytest.raises(
        InputError, match="LoRA needs peft; install it with: pip install peft, or the extra 'study'"
    ):
        methods.check_methods(["full", "lora"])
    assert command.main(study_line(model, tmp_path / "study", "--methods", "lora")) == 2
    assert "LoRA needs peft" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="unknown method 'prompt'; give one of inversion, full"):
        teach(make_base(), "prompt", lesson())


def test_curves_are_means_and_ranges_over_the_seeds(tmp_path: Path):
    cells = [
        made_cell("inversion", 10, 0, 0.2),
        made_cell("inversion", 10, 1, 0.4),
        made_cell("inversion", 1, 0, 0.8),
        made_cell("full", 10, 0, 0.5, change=-0.25),
        made_cell("expert", 1000, 0, 0.1, change=-0.5),
        made_cell("base", 0, 0, 1.0),
    ]
    assert list(group(cells)["contour"]) == ["base", "inversion", "full", "expert"]
    table = write_curves(tmp_path, cells, FACTS)
    curve = json.loads((tmp_path / "curves.json").read_text())["curves"]["contour"]
    assert list(curve["inversion"]) == ["1", "10"]
    spread = curve["inversion"]["10"]["error"]
    assert spread["mean"] == pytest.approx(0.3)
    assert (spread["min"], spread["max"]) == (0.2, 0.4)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert rows[0].startswith("| new task | method | 1 pair | 10 pairs | old tasks |")
    assert len({row.count("|") for row in rows}) == 1
    assert "| inverted vector | 0.80 (50 %) | 0.30 (50 %) | same bits |" in table
    assert "| full fine-tune |  | 0.50 (50 %) | -25 points, error +0.25 |" in table
    assert "| expert, 1000 pairs | 0.10 (50 %) |" in table
    assert format_table(group(cells), FACTS) == table


def test_a_step_of_the_measured_kinds_is_one_of_inversion_and_one_of_training(model: Path):
    inverting, training = (Editor.from_pretrained(model) for _ in range(2))
    base = model_hash(inverting.networks)
    with frozen(inverting.networks):
        inversion_step(inverting, 2)(0)
    full_step(training, 2)(0)
    assert model_hash(inverting.networks) == base
    assert model_hash(training.networks) != base


def test_a_summary_counts_what_the_scores_say(model: Path):
    old = OldTasks.of(Study(model, old_pairs=1, test_pairs=1))
    said = summary(old.scores)
    assert said["edits"] == len(TASKS)
    assert said["success"] == sum(s.success for s in old.scores) / len(TASKS)
    assert old.forgetting(Editor.from_pretrained(model))["identical"] == 1
